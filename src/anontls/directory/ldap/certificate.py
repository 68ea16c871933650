"""The certificate in a value of ``msExchServerInternalTLSCert``, whatever form it has."""

from __future__ import annotations

import base64
import binascii
import re
import warnings

from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from anontls.facts import certificate_bytes

SEQUENCE, OBJECT_IDENTIFIER, BIT_STRING, INTEGER, VERSION = 0x30, 0x06, 0x03, 0x02, 0xA0
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")


def certificate_of(value: bytes) -> bytes:
    """The certificate's own bytes, never encoded anew.

    DER, the serialized form of Windows, PEM, or PKCS #7 with one certificate in it: which of them a server stores is not
    confirmed [FACT I 5.3].  Only the outline of a certificate is looked at: what no parser of ours understands may still
    be what the server has.

    Raises:
        ValueError: none of these; the message says what there is instead.
    """
    if pem := PEM.fullmatch(value.strip()):
        try:
            value = base64.b64decode(b"".join(pem[1].split()), validate=True)
        except binascii.Error:
            raise ValueError(f"{len(value):,} bytes of PEM that is not base64") from None
    der = certificate_bytes(value)
    elements = _elements(der, *_sequence(der))
    tags = [tag for tag, _, _ in elements]
    if tags[:1] == [OBJECT_IDENTIFIER]:
        return _only_certificate(der)
    if tags != [SEQUENCE, SEQUENCE, BIT_STRING] or not _is_to_be_signed(der, *elements[0][1:]):
        raise ValueError(f"{len(der):,} bytes of ASN.1 that are not a certificate")
    return der


def _sequence(der: bytes) -> tuple[int, int]:
    """Where the content of the one SEQUENCE that ``der`` is begins and ends."""
    tag, start, end = _element(der, 0, len(der)) if der[:1] == b"\x30" else (0, 0, 0)
    if tag != SEQUENCE or end != len(der):
        raise ValueError(f"{len(der):,} bytes that are not one ASN.1 sequence")
    return start, end


def _is_to_be_signed(der: bytes, at: int, end: int) -> bool:
    """Whether it begins as a certificate's inner part does; requests and revocation lists have the same frame."""
    tags = [tag for tag, _, _ in _elements(der, at, end)]
    # version, serial number, algorithm, issuer, validity, subject, public key [RFC5280 4.1]
    return tags[tags[:1] == [VERSION] :][:6] == [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE]


def _elements(der: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """The elements there, up to the eight that are looked at."""
    found: list[tuple[int, int, int]] = []
    while at < end and len(found) < 8:
        found.append(_element(der, at, end))
        at = found[-1][2]
    return found


def _element(der: bytes, at: int, limit: int) -> tuple[int, int, int]:
    """Tag, and where its content begins and ends."""
    if at + 2 > limit:
        raise ValueError(f"{len(der):,} bytes of ASN.1 that end in the middle")
    length, start = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size], "big"), start + size
        if not 0 < size <= 4:
            raise ValueError(f"{len(der):,} bytes that are not DER")
    if start + length > limit:
        raise ValueError(f"{len(der):,} bytes of ASN.1 that end in the middle")
    return der[at], start, start + length


def _only_certificate(der: bytes) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = pkcs7.load_der_pkcs7_certificates(der)
            found = [each.public_bytes(Encoding.DER) for each in inside]
    except Exception as e:  # noqa: BLE001 hostile bytes: the library raises more than ValueError
        raise ValueError(f"PKCS #7 that cannot be read: {str(e)[:200]}") from None
    if len(found) != 1:
        raise ValueError(f"PKCS #7 with {len(found)} certificates instead of one")
    return found[0]
