"""The internal transport certificate as Exchange makes it at set-up, signed with SHA-256."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from anontls.errors import UsageError
from anontls.facts import Certificate, same_name
from anontls.facts.own_certificate import OwnCertificate

KEY_SIZES = (2048, 4096)  #: Exchange knows 1024 as well [FACT D 7.2]; the TLS library refuses such a key
SERIAL_BITS = 128
YEARS = 5
DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)


def new_internal_certificate(
    server_name: str, fqdn: str, *, now: datetime, key_size: int = 2048, years: int = YEARS
) -> OwnCertificate:
    """A new self-signed certificate for ``server_name`` [FACT D/C 7.1]; it is published and bound nowhere.

    The extended key usage is serverAuth alone, as Exchange has it, although servers show the certificate as clients
    too: each side takes any certificate and compares bytes.  Only the hash differs from the certificate that was
    decoded (SHA-1): SHA-256, as later builds are said to do [FACT R 7.1].

    Raises:
        UsageError: a name is no DNS name, or the size of the key is none of ``KEY_SIZES``.
    """
    for given in (server_name, fqdn):
        if not DNS_NAME.fullmatch(given):
            raise UsageError(f"{given!r} is not a DNS name", hint="for example MBX1 and mbx1.contoso.com")
    if len(server_name) > 63 or "." in server_name:
        raise UsageError(f"{server_name!r} is not the short name of a server", hint="the name without its domain")
    if key_size not in KEY_SIZES:
        raise UsageError(f"no key size {key_size}", hint="known: " + ", ".join(map(str, KEY_SIZES)))
    start = now.astimezone(UTC).replace(microsecond=0)
    key = rsa.generate_private_key(public_exponent=65537, key_size=key_size)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server_name)])
    names = [server_name] if same_name(server_name, fqdn) else [server_name, fqdn]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(SERIAL_BITS) or 1)
        .not_valid_before(start)
        .not_valid_after(years_later(start, years))
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    facts = Certificate(
        der=certificate.public_bytes(Encoding.DER),
        has_private_key=True,
        is_self_signed=True,
        services="None",
        status="Valid",
    )
    return OwnCertificate(facts, key)


def years_later(start: datetime, years: int) -> datetime:
    """The same second in another year; from 29 February it is the 28th where there is no 29th, as in .NET."""
    try:
        return start.replace(year=start.year + years)
    except ValueError:
        return start.replace(year=start.year + years, day=28)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
