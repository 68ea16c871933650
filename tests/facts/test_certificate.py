"""Certificates as facts: thumbprints, names, what DER says, the store, the attribute."""

import hashlib
import struct
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from anontls.facts import (
    Certificate,
    InternalTlsCert,
    IssuerAndSubject,
    Store,
    Unknown,
    certificate_bytes,
    is_unknown,
    normal_thumbprint,
    parse_tls_certificate_name,
    same_name,
    thumbprint_of,
)
from anontls.facts.names import common_names, covers, x500_text
from tests.support.make import ITC, common_name, make_certificate, make_der, make_v1_der, year

# --- thumbprints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ITC,
        ITC.lower(),
        f"\u200e{ITC.lower()}",
        f" {ITC} ",
        ":".join(ITC[i : i + 2] for i in range(0, 40, 2)),
        " ".join(ITC[i : i + 2].lower() for i in range(0, 40, 2)),
        f"\u200e{ITC[:2]} {ITC[2:]}\u200e",
    ],
)
def test_thumbprints_compare_without_decoration(text: str) -> None:
    assert normal_thumbprint(text) == ITC
    assert make_certificate(Thumbprint=text).thumbprint == ITC
    assert InternalTlsCert(thumbprint=text).names == ITC


@given(st.text())
def test_a_normal_thumbprint_stays(text: str) -> None:
    assert normal_thumbprint(normal_thumbprint(text)) == normal_thumbprint(text)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "stands_for"),
    [
        ("mail.contoso.com", "mail.contoso.com", True),
        ("MAIL.contoso.com", "mail.Contoso.com", True),
        ("*.contoso.com", "mail.contoso.com", True),
        ("*.contoso.com", "contoso.com", False),
        ("*.contoso.com", ".contoso.com", False),
        ("*.contoso.com", "a.b.contoso.com", False),
        ("*.contoso.com", "mailcontoso.com", False),
        ("m*.contoso.com", "mail.contoso.com", False),
        ("mail.*.com", "mail.contoso.com", False),
        ("*", "MBX1", False),
        ("", "mail.contoso.com", False),
    ],
)
def test_covers(pattern: str, name: str, stands_for: bool) -> None:
    assert covers(pattern, name) is stands_for


def test_names_compare_without_case() -> None:
    assert same_name("Mail.Contoso.com", "mAIL.contoso.COM")
    assert not same_name("mail.contoso.com", "mail.contoso.com.")


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        ("CN=MBX1", ("MBX1",)),
        ("CN=a, O=Contoso, C=DE", ("a",)),
        ("O=Contoso, CN=a", ("a",)),
        ("cn=a", ("a",)),
        ("CN=a, CN=b", ("a", "b")),
        ("CN=a + OU=b", ("a",)),
        ("OU=b + CN=a", ("a",)),
        ('CN="a, b"', ("a, b",)),
        ('CN="a ""quoted"" b"', ('a "quoted" b',)),
        ('CN=" a "', (" a ",)),
        ('CN=""', ("",)),
        ('O="x, CN=evil", CN=a', ("a",)),
        ('O="x "", CN=evil", CN=a', ("a",)),
        ("OU=CN", ()),
        ("", ()),
        ("nonsense", ()),
    ],
)
def test_common_names(subject: str, names: tuple[str, ...]) -> None:
    assert common_names(subject) == names


@pytest.mark.parametrize(
    "value",
    [
        "MBX1",
        "a, b",
        'a "b" c',
        " leading",
        "trailing ",
        "a+b",
        "a=b",
        "#a",
        "a;b",
        "a<b>c",
        "Müller",
        "a\\b",
        'CN="x", O=y',
    ],
)
def test_x500_text_of_an_issued_certificate(value: str) -> None:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, value)]
    )
    certificate = Certificate(der=make_der(subject))
    assert isinstance(certificate.subject, str)
    assert common_names(certificate.subject) == (value,)
    assert certificate.subject.startswith("CN=")
    assert certificate.subject.endswith(", C=DE")
    assert certificate.issuer == certificate.subject


# 64: what cryptography allows, and it counts octets of some texts
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64).filter(lambda t: len(t.encode()) <= 64)
)
def test_x500_text_keeps_the_common_name(value: str) -> None:
    assert common_names(x500_text(common_name(value))) == (value,)


def test_x500_text_prints_as_windows_does() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "com"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Bayern"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@contoso.com"),
            x509.NameAttribute(ObjectIdentifier("1.2.3.4"), "odd"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Contoso, Ltd."),
        ]
    )
    assert x500_text(name) == 'O="Contoso, Ltd.", OID.1.2.3.4=odd, E=a@contoso.com, S=Bayern, DC=com'


@pytest.mark.parametrize(
    ("text", "issuer", "subject"),
    [
        ("<I>CN=CA<S>CN=a", "CN=CA", "CN=a"),
        ("<i>CN=CA<s>CN=a", "CN=CA", "CN=a"),
        ("<I>CN=CA, O=X<S>CN=a, O=Y", "CN=CA, O=X", "CN=a, O=Y"),
        ("<I>CN=<CA><S>CN=a", "CN=<CA>", "CN=a"),
    ],
)
def test_tls_certificate_name(text: str, issuer: str, subject: str) -> None:
    assert parse_tls_certificate_name(text) == IssuerAndSubject(issuer, subject)


def test_tls_certificate_name_prints_as_it_is_written() -> None:
    assert str(IssuerAndSubject("CN=CA", "CN=a")) == "<I>CN=CA<S>CN=a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mail.contoso.com",
        "<I>",
        "<I>CN=CA",
        "<S>CN=a",
        "<I><S>",
        "<I>CN=CA<S>",
        "<I><S>CN=a",
        "<I> <S>CN=a",
        "<S>CN=a<I>CN=CA",
        "x<I>CN=CA<S>CN=a",
        "<I>CN=CA<S>CN=a<S>CN=b",
        "<I>CN=CA<I>CN=CB<S>CN=a",
        "<I>CN=CA<S>CN=a<I>",
        "I>CN=CA<S>CN=a",
        "CN=CA<S>CN=a",
    ],
)
def test_malformed_tls_certificate_name(text: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        parse_tls_certificate_name(text)


# --- what DER says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "key"), [("rsa", "RSA 2048"), ("ec", "EC secp256r1"), ("ed25519", "Ed25519")])
def test_a_certificate_from_der(kind: str, key: str) -> None:
    der = make_der(key=kind)
    certificate = Certificate(der=der, has_private_key=True, services="SMTP")
    assert certificate.thumbprint == thumbprint_of(der) == hashlib.sha1(der).hexdigest().upper()
    assert (certificate.subject, certificate.issuer, certificate.is_self_signed) == ("CN=MBX1", "CN=MBX1", True)
    assert (certificate.not_before, certificate.not_after) == (year(2024), year(2029))
    assert certificate.certificate_domains == ("MBX1", "mbx1.contoso.com")
    assert (certificate.version, certificate.has_private_key, certificate.services) == (3, True, "SMTP")
    assert certificate.key == key
    assert is_unknown(certificate.status)


def test_der_says_more_than_the_properties_beside_it() -> None:
    certificate = make_certificate(der=make_der(), Subject="CN=lie", Thumbprint="AA", NotAfter=year(2099))
    assert (certificate.subject, certificate.not_after) == ("CN=MBX1", year(2029))
    assert certificate.thumbprint == thumbprint_of(make_der()) or len(str(certificate.thumbprint)) == 40


def test_a_certificate_of_a_ca() -> None:
    certificate = Certificate(der=make_der(issuer=common_name("CA")))
    assert (certificate.issuer, certificate.is_self_signed) == ("CN=CA", False)


def test_a_certificate_without_a_san() -> None:
    certificate = Certificate(der=make_der(names=None))
    assert certificate.certificate_domains == ("MBX1",)
    assert certificate.named("mbx1") is True
    assert certificate.named("mbx1.contoso.com") is False


def test_a_certificate_of_version_1() -> None:
    certificate = Certificate(der=make_v1_der())
    assert (certificate.version, certificate.subject) == (1, "CN=MBX1")


def test_a_certificate_with_5000_names() -> None:
    names = tuple(f"host{n}.contoso.com" for n in range(5000))
    certificate = Certificate(der=make_der(names=names))
    assert isinstance(certificate.certificate_domains, tuple)
    assert certificate.certificate_domains[1:] == names
    assert certificate.named("HOST4999.contoso.com") is True
    assert certificate.named("host5000.contoso.com") is False


def garbage() -> list[bytes]:
    der = make_der()
    return [b"", b"\x30", b"garbage", der[:-1], der[: len(der) // 2], b"\x30\x82\xff\xff" + der, bytes(4096)]


@pytest.mark.parametrize("at", range(len(garbage())))
def test_bytes_that_are_no_certificate(at: int) -> None:
    der = garbage()[at]
    certificate = Certificate(der=der)
    assert certificate.thumbprint == thumbprint_of(der)
    for value in (
        certificate.subject,
        certificate.issuer,
        certificate.not_before,
        certificate.not_after,
        certificate.version,
        certificate.is_self_signed,
        certificate.certificate_domains,
        certificate.key,
        certificate.signature_algorithm,
    ):
        assert isinstance(value, Unknown)
        assert value.because


@given(st.data())
def test_a_damaged_certificate_is_read_or_unknown(data: st.DataObject) -> None:
    der = bytearray(make_der())
    der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    certificate = Certificate(der=bytes(der))
    assert certificate.thumbprint == thumbprint_of(bytes(der))
    assert certificate.named("mbx1.contoso.com") in (True, False) or is_unknown(certificate.named("mbx1.contoso.com"))
    assert certificate.key
    assert certificate.signature_algorithm


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("services", "smtp"),
    [
        ("IMAP, POP, IIS, SMTP", True),
        ("smtp", True),
        ("IIS", False),
        ("None", False),
        ("", False),
        (None, False),
        (27, True),
        (16, True),
        ("27", True),
        (11, False),
        (4, False),
        (0, False),
        (Unknown("x"), Unknown("x")),
    ],
    ids=repr,
)
def test_services(services: Any, smtp: bool | Unknown) -> None:
    assert make_certificate(Services=services).serves_smtp() == smtp


def test_status() -> None:
    assert make_certificate(Status=1).status_name == "Valid"
    assert make_certificate(Status="Untrusted").status_name == "Untrusted"
    assert isinstance(make_certificate(Status=4).status_name, Unknown)
    assert make_certificate(Status="PENDINGREQUEST").is_request
    assert not make_certificate().is_request


# --- store and attribute ----------------------------------------------------------------------------------------------


def test_the_store_leaves_requests_out() -> None:
    store = Store([make_certificate(), make_certificate(Thumbprint="AA" * 20, Status="PendingRequest")])
    assert len(store) == 1
    assert store.find(ITC) is store[0]
    assert store.find("AA" * 20) is None
    assert not store.without_thumbprint
    assert Store([make_certificate(Thumbprint=Unknown("x"))]).without_thumbprint


@pytest.mark.parametrize(
    "given",
    [{}, {"thumbprint": ITC, "value": None}, {"der": b"x", "thumbprint": ITC}, {"error": "x", "unknown": "y"}],
)
def test_the_attribute_is_exactly_one_thing(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one of thumbprint, der"):
        InternalTlsCert(**given)


def test_what_the_attribute_names() -> None:
    der = make_der()
    assert InternalTlsCert(der=der).names == thumbprint_of(der)
    for attribute in (
        InternalTlsCert(value=None),
        InternalTlsCert(error="x"),
        InternalTlsCert(unknown="x"),
        InternalTlsCert(thumbprint=""),
    ):
        assert attribute.names is None


def serialized(*properties: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack("<III", number, 1, len(data)) + data for number, data in properties)


def test_certificate_bytes() -> None:
    der = make_der()
    assert certificate_bytes(der) == der
    assert certificate_bytes(serialized((3, b"\x01" * 20), (11, b"name\0"), (32, der))) == der
    assert certificate_bytes(serialized((32, der), (3, b"\x01" * 20))) == der


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x20",
        b"garbage",
        serialized((3, b"\x01" * 20)),
        serialized((32, b"x" * 100))[:-1],
        struct.pack("<III", 3, 1, 0xFFFFFFFF),
        struct.pack("<III", 32, 1, 0xFFFFFFFF) + b"x",
        bytes(100),
    ],
)
def test_other_bytes_hold_no_certificate(value: bytes) -> None:
    with pytest.raises(ValueError, match="neither"):
        certificate_bytes(value)


@given(
    st.one_of(
        st.binary(), st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=20))).map(lambda p: serialized(*p))
    )
)
def test_any_bytes_are_answered(value: bytes) -> None:
    try:
        found = certificate_bytes(value)
    except ValueError:
        return
    assert found in value
