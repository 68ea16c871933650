"""Facts for tests: valid by default, so that a test states only what it is about.

Properties go by their PowerShell names, ``None`` is ``$null``, and :data:`UNKNOWN` is what nobody could see::

    make_facts("inbound-starttls", store=Store([make_certificate(Services="IIS")]))

Certificates in DER are issued, never stored; each kind of key is made once a run.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from anontls.facts import (
    Certificate,
    DirectoryWord,
    InternalTlsCert,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    SessionFacts,
    Store,
    Unknown,
)

AS_OF = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ITC = "0123456789ABCDEF0123456789ABCDEF01234567"
OTHER = "FEDCBA9876543210FEDCBA9876543210FEDCBA98"
UNKNOWN = Unknown("not looked at")
DIRECTORY = DirectoryWord(url="ldaps://dc1.contoso.com", as_of=AS_OF - timedelta(seconds=12), age=12.3456)
ALL_MECHANISMS = "Tls, Integrated, BasicAuth, BasicAuthRequireTLS, ExchangeServer"

S = TypeVar("S", bound=msgspec.Struct)


@lru_cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(kind)}


def _make(kind: type[S], valid: dict[str, Any], changed: dict[str, Any]) -> S:
    fields = _fields(kind)
    wrong = [name for name in changed if name not in fields]
    assert not wrong, f"{kind.__name__} has no property {', '.join(wrong)}"
    return kind(**{fields[name]: value for name, value in {**valid, **changed}.items()})


def year(number: int) -> datetime:
    """The first moment of a year."""
    return datetime(number, 1, 1, tzinfo=UTC)


def make_certificate(**changed: Any) -> Certificate:
    """The self-signed certificate that setup makes: the internal transport certificate of MBX1."""
    valid = {
        "Thumbprint": ITC,
        "Subject": "CN=MBX1",
        "Issuer": "CN=MBX1",
        "CertificateDomains": ("MBX1", "mbx1.contoso.com"),
        "NotBefore": year(2024),
        "NotAfter": year(2029),
        "Version": 3,
        "HasPrivateKey": True,
        "IsSelfSigned": True,
        "Services": "IMAP, POP, IIS, SMTP",
        "Status": "Valid",
    }
    return _make(Certificate, {} if "der" in changed else valid, changed)


def make_server(**changed: Any) -> Server:
    """A Mailbox server."""
    valid = {
        "Name": "MBX1",
        "Fqdn": "mbx1.contoso.com",
        "ServerRole": "Mailbox",
        "InternalTransportCertificateThumbprint": ITC,
    }
    return _make(Server, valid, changed)


def make_queue(**changed: Any) -> Queue:
    """The queue to the Edge servers that are subscribed to the site."""
    valid = {"DeliveryType": "SmtpRelayWithinAdSiteToEdge", "NextHopDomain": "EdgeSync - Site1 to Internet"}
    return _make(Queue, valid, changed)


def make_send_connector(**changed: Any) -> SendConnector:
    """The Send connector of an Edge server to the Mailbox servers of its site, as EdgeSync makes it."""
    valid = {
        "Identity": "EdgeSync - Inbound to Site1",
        "SmartHostAuthMechanism": "ExchangeServer",
        "SmartHosts": ("--",),
        "AddressSpaces": ("SMTP:--;1",),
    }
    return _make(SendConnector, valid, changed)


def make_receive_connector(**changed: Any) -> ReceiveConnector:
    """The Default Receive connector."""
    valid = {
        "Identity": "MBX1\\Default MBX1",
        "AuthMechanism": ALL_MECHANISMS,
        "Fqdn": "mbx1.contoso.com",
        "TlsCertificateName": None,
        "SuppressXAnonymousTls": False,
    }
    return _make(ReceiveConnector, valid, changed)


def make_facts(scenario: str = "outbound-anonymous", phase: str = "session", **changed: Any) -> SessionFacts:
    """A session that gets the certificate :data:`ITC`; ``attribute`` is msExchServerInternalTLSCert."""
    valid: dict[str, Any] = {
        "scenario": Scenario(scenario),
        "phase": Phase(phase),
        "as_of": AS_OF,
        "server": make_server(),
        "internal_tls_cert": changed.pop("attribute", InternalTlsCert(thumbprint=ITC)),
        "store": Store([make_certificate()]),
        "queue": make_queue(),
        "send_connector": make_send_connector(),
        "receive_connector": make_receive_connector(),
    }
    return _make(SessionFacts, valid, changed)


# --- certificates in DER ----------------------------------------------------------------------------------------------

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@lru_cache
def private_key(kind: str = "ec") -> Key:
    """A key of that kind, the same one for the whole run."""
    match kind:
        case "rsa":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return ec.generate_private_key(ec.SECP256R1())


def common_name(value: str) -> x509.Name:
    """An X.500 name of one CN."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])


@lru_cache
def make_der(
    subject: x509.Name | None = None,
    issuer: x509.Name | None = None,
    names: tuple[str, ...] | None = ("MBX1", "mbx1.contoso.com"),
    key: str = "ec",
) -> bytes:
    """An issued certificate; without ``issuer`` self-signed, with ``names=None`` without a SAN."""
    own = private_key(key)
    subject = subject or common_name("MBX1")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(own.public_key())
        .serial_number(4711)
        .not_valid_before(year(2024))
        .not_valid_after(year(2029))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    digest = None if isinstance(own, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(own, digest).public_bytes(serialization.Encoding.DER)


def pkcs7_of(*certificates: bytes) -> bytes:
    """These certificates, and nothing that is signed."""
    loaded = [x509.load_der_x509_certificate(each) for each in certificates]
    return pkcs7.serialize_certificates(loaded, serialization.Encoding.DER)


def make_v1_der() -> bytes:
    """A certificate of X.509 v1: one without extensions, its version taken out (the signature no longer fits)."""
    _, certificate, _ = _element(make_der(names=None))
    _, body, rest = _element(certificate)
    _, _, without_version = _element(body)
    return _sequence(_sequence(without_version) + rest)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    length, at = der[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(der[2:at], "big")
    return der[0], der[at : at + length], der[at + length :]


def _sequence(content: bytes) -> bytes:
    size = len(content)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return b"\x30" + (bytes([size]) if size < 0x80 else bytes([0x80 | len(octets)]) + octets) + content
