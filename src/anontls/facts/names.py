"""Names in certificates: X.500 strings as Windows prints them, DNS names, and ``<I>issuer<S>subject``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

# The short names that X509Certificate2.Subject prints; stateOrProvinceName is `S` there, not `ST`.  [FACT O 7.1]
WINDOWS_ATTRIBUTE = {
    NameOID.COMMON_NAME: "CN",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "S",
    NameOID.COUNTRY_NAME: "C",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "E",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.TITLE: "T",
    NameOID.GIVEN_NAME: "G",
    NameOID.INITIALS: "I",
    NameOID.SURNAME: "SN",
    NameOID.SERIAL_NUMBER: "SERIALNUMBER",
    NameOID.USER_ID: "OID.0.9.2342.19200300.100.1.1",
}
NEEDS_QUOTES = re.compile(r'[,+=";<>#\n\r]|^\s|\s$|^$')
COMPONENT = re.compile(r'\s*([A-Za-z0-9.]+)\s*=\s*("(?:[^"]|"")*"|[^,+;]*)\s*(?:[,+;]|$)')


def x500_text(name: x509.Name) -> str:
    """``name`` as ``X509Certificate2.Subject`` prints it: last component first, joined by comma and blank."""
    return ", ".join(" + ".join(_component(attribute) for attribute in rdn) for rdn in reversed(name.rdns))


def _component(attribute: x509.NameAttribute[str | bytes]) -> str:
    label = WINDOWS_ATTRIBUTE.get(attribute.oid) or f"OID.{attribute.oid.dotted_string}"
    value = attribute.value if isinstance(attribute.value, str) else attribute.value.hex().upper()
    if NEEDS_QUOTES.search(value):
        value = '"' + value.replace('"', '""') + '"'
    return f"{label}={value}"


@lru_cache(maxsize=4096)
def common_names(subject: str) -> tuple[str, ...]:
    """The ``CN`` values of an X.500 name given as text."""
    values = (match.group(2).strip() for match in COMPONENT.finditer(subject) if match.group(1).upper() == "CN")
    return tuple(
        v[1:-1].replace('""', '"') if v.startswith('"') and v.endswith('"') and len(v) > 1 else v for v in values
    )


def same_name(one: str, other: str) -> bool:
    """Names compare without case [FACT I 1.7]."""
    return one.lower() == other.lower()


def covers(pattern: str, name: str) -> bool:
    """Whether the certificate name ``pattern`` stands for the DNS name ``name``.

    A wildcard stands for exactly one leftmost label, as in [RFC6125 6.4.3]; that Exchange does the same is our
    reading [FACT I 1.7].
    """
    pattern, name = pattern.lower(), name.lower()
    if pattern == name:
        return True
    if not pattern.startswith("*."):
        return False
    label, dot, rest = name.partition(".")
    return bool(label) and bool(dot) and rest == pattern[2:]


def any_covers(patterns: Iterable[str], name: str) -> bool:
    """Whether one of ``patterns`` stands for ``name``."""
    return any(covers(pattern, name) for pattern in patterns)


# PowerShell ends a text in single quotes at any of these; doubled, each stands for itself (about_Quoting_Rules).
SINGLE_QUOTES = re.compile("['\u2018\u2019\u201a\u201b]")
PLAIN_ARGUMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\\-]*")


def in_single_quotes(text: str) -> str:
    """``text`` as it stands between single quotes in PowerShell."""
    return SINGLE_QUOTES.sub(lambda quote: quote[0] * 2, text)


def powershell_argument(name: str) -> str:
    """``name`` as one argument of a cmdlet: whatever an export calls a thing, a pasted line names it and no more."""
    return name if PLAIN_ARGUMENT.fullmatch(name) else f"'{in_single_quotes(name)}'"


def in_ldap_filter(value: str) -> str:
    """``value`` as it stands in an LDAP filter (RFC 4515, section 3)."""
    return re.sub(r"[*()\\\0]", lambda special: f"\\{ord(special[0]):02x}", value)


class IssuerAndSubject(msgspec.Struct, frozen=True):
    """The two halves of a ``TlsCertificateName``."""

    issuer: str
    subject: str

    def __str__(self) -> str:
        return f"<I>{self.issuer}<S>{self.subject}"


# One anchored pattern; both halves are needed, and neither may hold another marker.  [FACT C 7.2]
TLS_CERTIFICATE_NAME = re.compile(r"<I>((?:(?!<[IS]>).)+)<S>((?:(?!<[IS]>).)+)", re.IGNORECASE | re.DOTALL)


@lru_cache(maxsize=4096)
def parse_tls_certificate_name(text: str) -> IssuerAndSubject:
    """Read ``<I>issuer<S>subject``.

    Raises:
        ValueError: ``text`` is anything else.
    """
    match = TLS_CERTIFICATE_NAME.fullmatch(text)
    if match is None or not match.group(1).strip() or not match.group(2).strip():
        raise ValueError(f"not of the form <I>issuer<S>subject: {text[:200]!r}")
    return IssuerAndSubject(match.group(1), match.group(2))
