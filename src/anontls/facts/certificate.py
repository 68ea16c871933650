"""A certificate as one server holds it, and the value of ``msExchServerInternalTLSCert``."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import cached_property
from typing import Annotated, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from anontls.facts.enums import CERTIFICATE_STATUS, SERVICE_BITS, Flags, enum_name, services
from anontls.facts.names import IssuerAndSubject, any_covers, common_names, same_name, x500_text
from anontls.facts.unknown import ABSENT, Unknown, is_unknown

Time = Annotated[datetime, msgspec.Meta(tz=True)]
Text = str | None | Unknown
Flag = bool | None | Unknown


def normal_thumbprint(text: str) -> str:
    """``text`` in upper case without anything that is not a letter or a digit.

    Thumbprints compare without case, blanks, colons and the invisible U+200E that the certificate console prints.
    """
    return text.upper() if text.isalnum() and text.isascii() else "".join(filter(str.isalnum, text)).upper()


def thumbprint_of(der: bytes) -> str:
    """SHA-1 of the DER bytes, 40 upper-case hexadecimal digits [FACT I 5.3]; a name, never a proof."""
    return hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()


class Certificate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """One entry of a server's local certificate store, under the property names of ``Get-ExchangeCertificate``.

    Either ``der`` is given, and all that X.509 says is derived from it; or the properties are.  Times are aware.
    Bytes that are not a certificate keep their thumbprint, and everything else about them is unknown.
    """

    der: bytes | None = None
    thumbprint: Text = msgspec.field(name="Thumbprint", default=ABSENT)
    subject: Text = msgspec.field(name="Subject", default=ABSENT)
    issuer: Text = msgspec.field(name="Issuer", default=ABSENT)
    certificate_domains: tuple[str, ...] | None | Unknown = msgspec.field(name="CertificateDomains", default=ABSENT)
    not_before: Time | None | Unknown = msgspec.field(name="NotBefore", default=ABSENT)
    not_after: Time | None | Unknown = msgspec.field(name="NotAfter", default=ABSENT)
    version: int | None | Unknown = msgspec.field(name="Version", default=ABSENT)
    has_private_key: Flag = msgspec.field(name="HasPrivateKey", default=ABSENT)
    is_self_signed: Flag = msgspec.field(name="IsSelfSigned", default=ABSENT)
    services: str | int | None | Unknown = msgspec.field(name="Services", default=ABSENT)
    status: str | int | None | Unknown = msgspec.field(name="Status", default=ABSENT)

    def __post_init__(self) -> None:
        if self.der is not None:
            for name, value in _read_der(self.der, self.is_self_signed).items():
                msgspec.structs.force_setattr(self, name, value)
            return
        if isinstance(self.thumbprint, str):
            msgspec.structs.force_setattr(self, "thumbprint", normal_thumbprint(self.thumbprint))
        for time in (self.not_before, self.not_after):
            if isinstance(time, datetime) and time.year in (MINYEAR, MAXYEAR):
                try:
                    time.astimezone(UTC)
                except OverflowError:
                    raise ValueError(f"{time.isoformat()} is no time that there is in UTC") from None

    @property
    def is_request(self) -> bool:
        """Whether this is a pending request, which is no certificate yet."""
        return isinstance(self.status, str) and self.status.lower() == "pendingrequest"

    @property
    def status_name(self) -> str | Unknown:
        """``Status`` as a name; empty when it is not set."""
        if is_unknown(self.status):
            return self.status
        return enum_name("" if self.status is None else self.status, CERTIFICATE_STATUS)

    @property
    def service_flags(self) -> Flags | Unknown:
        """``Services`` as flags; null means none."""
        if is_unknown(self.services):
            return self.services
        return services("None" if self.services is None else self.services)

    def serves_smtp(self) -> bool | Unknown:
        """Whether ``SMTP`` is among the ``Services``."""
        flags = self.service_flags
        return flags if is_unknown(flags) else flags.holds("SMTP", SERVICE_BITS)

    def named(self, name: str) -> bool | Unknown:
        """Whether the Subject CN or a DNS name stands for ``name``."""
        subject, domains = self.subject, self.certificate_domains
        if isinstance(subject, str) and any_covers(common_names(subject), name):
            return True
        if isinstance(domains, tuple) and any_covers(domains, name):
            return True
        for part in (subject, domains):
            if is_unknown(part):
                return part
        return False

    def named_by_wildcard(self, name: str) -> bool:
        """Whether only a wildcard makes it stand for ``name``."""
        names = [*(self.certificate_domains or ())] if isinstance(self.certificate_domains, tuple) else []
        if isinstance(self.subject, str):
            names += common_names(self.subject)
        return all(not same_name(each, name) for each in names) and any_covers(names, name)

    def issued_as(self, wanted: IssuerAndSubject) -> bool | Unknown:
        """Whether issuer and subject are the wanted strings, exactly [FACT C 7.2]."""
        pairs = ((self.issuer, wanted.issuer), (self.subject, wanted.subject))
        if any(not is_unknown(given) and given != wish for given, wish in pairs):
            return False
        return next((given for given, _ in pairs if is_unknown(given)), True)

    @property
    def sort_key(self) -> tuple[float, float, str]:
        """Newest ``NotBefore`` first; then the later ``NotAfter``, then the smaller thumbprint [FACT I 1.7]."""
        return (-_seconds(self.not_before), -_seconds(self.not_after), str(self.thumbprint))

    @cached_property
    def x509(self) -> x509.Certificate | None:
        """The parsed certificate, or ``None`` when there are no bytes or they do not parse."""
        try:
            return None if self.der is None else x509.load_der_x509_certificate(self.der)
        except Exception:  # noqa: BLE001 hostile bytes raise anything; the reason stands in the unknown properties
            return None

    @cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 of the bytes, 64 upper-case hexadecimal digits; ``None`` when there are no bytes."""
        return None if self.der is None else hashlib.sha256(self.der).hexdigest().upper()

    @cached_property
    def key(self) -> str | Unknown:
        """Key algorithm and size, such as ``RSA 2048`` or ``EC secp256r1``."""
        try:
            public = self.x509.public_key() if self.x509 else None
        except Exception as e:  # noqa: BLE001 as above
            return Unknown(f"the public key cannot be read: {e}")
        match public:
            case None:
                return Unknown("the certificate's bytes are not known")
            case rsa.RSAPublicKey() | dsa.DSAPublicKey():
                return f"{'RSA' if isinstance(public, rsa.RSAPublicKey) else 'DSA'} {public.key_size}"
            case ec.EllipticCurvePublicKey():
                return f"EC {public.curve.name}"
            case ed25519.Ed25519PublicKey():
                return "Ed25519"
            case ed448.Ed448PublicKey():
                return "Ed448"
            case _:
                return type(public).__name__

    @cached_property
    def signature_algorithm(self) -> str | Unknown:
        """Such as ``sha256WithRSAEncryption``; the dotted OID when it has no name here."""
        if self.x509 is None:
            return Unknown("the certificate's bytes are not known")
        oid = self.x509.signature_algorithm_oid
        return oid.dotted_string if oid._name == "Unknown OID" else str(oid._name)


def _seconds(time: object) -> float:
    return time.timestamp() if isinstance(time, datetime) else float("-inf")


def _read_der(der: bytes, self_signed: Flag) -> dict[str, Any]:
    found: dict[str, Any] = {"thumbprint": thumbprint_of(der)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a country code of three letters, say: a fact here, no reason to talk
            return found | _read_x509(x509.load_der_x509_certificate(der), self_signed)
    except Exception as e:  # noqa: BLE001 hostile bytes: the library raises more than ValueError
        why = Unknown(f"the bytes are not a certificate that can be read: {str(e)[:200] or type(e).__name__}")
        return dict.fromkeys(FROM_X509, why) | found


FROM_X509 = ("subject", "issuer", "not_before", "not_after", "version", "is_self_signed", "certificate_domains")


def _read_x509(certificate: x509.Certificate, self_signed: Flag) -> dict[str, Any]:
    subject, issuer = certificate.subject, certificate.issuer
    # Exchange's own word for it, from the export, goes first; else equal names [RFC5280 3.2].
    same = subject == issuer
    own = same if is_unknown(self_signed) or self_signed is None else self_signed
    text = x500_text(subject)
    values = (
        text,
        text if same else x500_text(issuer),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.version.value + 1,
        own,
        _domains(certificate, subject),
    )
    return dict(zip(FROM_X509, values, strict=True))


def _domains(certificate: x509.Certificate, subject: x509.Name) -> tuple[str, ...] | Unknown:
    # CertificateDomains lists the Subject CN and the DNS names [FACT I 7.2]
    names = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        names += certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
            x509.DNSName
        )
    except x509.ExtensionNotFound:
        pass
    except Exception as e:  # noqa: BLE001 as above
        return Unknown(f"the extensions cannot be read: {str(e)[:200]}")
    return tuple(dict.fromkeys(names))


NOTHING_REFUSED: Mapping[str, str] = {}


class Store(Sequence[Certificate]):
    """The local computer's certificate store: pending requests left out, found by thumbprint in constant time.

    ``refused`` are those that are known not to load though their key is there, by thumbprint, each with the reason.
    """

    __slots__ = ("_by_thumbprint", "_certificates", "refused")

    def __init__(self, certificates: Iterable[Certificate], refused: Mapping[str, str] = NOTHING_REFUSED) -> None:
        self.refused = refused
        self._certificates = tuple(c for c in certificates if not c.is_request)
        self._by_thumbprint: dict[str, Certificate] = {}
        for certificate in self._certificates:
            if isinstance(certificate.thumbprint, str):
                self._by_thumbprint.setdefault(certificate.thumbprint, certificate)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self._certificates)

    def __len__(self) -> int:
        return len(self._certificates)

    def __getitem__(self, index: Any) -> Any:
        return self._certificates[index]

    def find(self, thumbprint: str) -> Certificate | None:
        """The certificate of that (normalised) thumbprint."""
        return self._by_thumbprint.get(thumbprint)

    @property
    def without_thumbprint(self) -> bool:
        """Whether some entry's thumbprint is not known, so that "not found" cannot be said."""
        return any(not isinstance(certificate.thumbprint, str) for certificate in self._certificates)


class InternalTlsCert(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """``msExchServerInternalTLSCert`` of a server object: exactly one of five things that can be said of it.

    The attribute holds the certificate itself; the thumbprint is derived from it [FACT C 5.3].
    """

    thumbprint: str | msgspec.UnsetType = msgspec.UNSET
    der: bytes | msgspec.UnsetType = msgspec.UNSET
    value: None | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET
    unknown: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not msgspec.UNSET for name in self.__struct_fields__) != 1:
            raise ValueError("msExchServerInternalTLSCert is one of thumbprint, der, value (null), error, unknown")

    @cached_property
    def names(self) -> str | None:
        """The thumbprint of the certificate that the attribute names; ``None`` when it names none."""
        if isinstance(self.thumbprint, str):
            return normal_thumbprint(self.thumbprint) or None
        return thumbprint_of(self.der) if isinstance(self.der, bytes) and self.der else None


#: No source says anything of the attribute.
ATTRIBUTE_ABSENT = InternalTlsCert(unknown=ABSENT.because)

CERT_CERT_PROP_ID = 32  # the property of a serialized certificate that holds the encoded certificate


def certificate_bytes(value: bytes) -> bytes:
    """The DER inside a value of ``msExchServerInternalTLSCert``.

    The value is DER, or the serialized form of Windows: a run of (u32 property, u32 encoding, u32 length, data), all
    little-endian, with the certificate under property 32.  Which one a server stores is not confirmed, so both are
    read [FACT I 5.3].

    Raises:
        ValueError: neither.
    """
    if value[:1] == b"\x30":
        return value
    at = 0
    while at + 12 <= len(value):
        prop, _, length = struct.unpack_from("<III", value, at)
        at += 12
        if at + length > len(value):
            break
        if prop == CERT_CERT_PROP_ID:
            return value[at : at + length]
        at += length
    raise ValueError("neither a DER certificate nor a serialized certificate of Windows")
