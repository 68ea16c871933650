"""Certificates for tests: valid by default, override one thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from anontls.facts import Certificate
from anontls.facts.own_certificate import OwnCertificate, PrivateKey

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
Kind = Literal["rsa", "rsa-1024", "ec", "p384", "ed25519"]


@cache
def key_of(kind: Kind = "ec", number: int = 0) -> PrivateKey:
    """A private key; the same one for the same arguments."""
    match kind:
        case "rsa" | "rsa-1024":
            return rsa.generate_private_key(65537, 2048 if kind == "rsa" else 1024)
        case "ec":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()


def make(
    kind: Kind = "ec",
    *,
    name: str = "mbx1",
    number: int = 0,
    start: datetime = NOW - timedelta(days=30),
    days: int = 365,
    issuer: OwnCertificate | None = None,
    ca: bool = False,
    digest: Any = None,
    pss: bool = False,
) -> OwnCertificate:
    """A certificate with its key, self-signed without ``issuer``."""
    key = key_of(kind, number)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above = issuer.certificate.x509 if issuer else None
    signer: Any = issuer.key if issuer else key
    if digest is None and not isinstance(signer, ed25519.Ed25519PrivateKey):
        digest = hashes.SHA256()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"{name}.contoso.com")]), False)
        .add_extension(x509.BasicConstraints(ca, None), True)
        .sign(signer, digest, rsa_padding=padding.PSS(padding.MGF1(digest), 32) if pss else None)
    )
    chain = (issuer.der, *issuer.chain) if issuer else ()
    return OwnCertificate(Certificate(der=certificate.public_bytes(Encoding.DER)), key, chain)


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


#: sha256WithRSAEncryption and its predecessors, which nothing signs with any more: 1.2.840.113549.1.1.x
_RSA_WITH = bytes.fromhex("06092a864886f70d0101")


def make_weak(digest: Literal["MD5", "SHA1"] = "SHA1") -> OwnCertificate:
    """A self-signed RSA certificate whose signature algorithm is MD5 or SHA-1, as Exchange used to make it."""
    modern = make("rsa")
    assert modern.certificate.x509 is not None
    assert isinstance(modern.key, rsa.RSAPrivateKey)
    old = _RSA_WITH + (b"\x05" if digest == "SHA1" else b"\x04")
    tbs = modern.certificate.x509.tbs_certificate_bytes.replace(_RSA_WITH + b"\x0b", old)
    hash_ = hashes.SHA1() if digest == "SHA1" else hashes.MD5()
    signature = modern.key.sign(tbs, padding.PKCS1v15(), hash_)
    der = _tlv(0x30, tbs + _tlv(0x30, old + b"\x05\x00") + _tlv(0x03, b"\x00" + signature))
    return OwnCertificate(Certificate(der=der), modern.key)


def pem(*ders: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in ders)


def key_pem(key: PrivateKey, password: bytes | None = None, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    sealed: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, sealed)


def pfx(own: OwnCertificate, password: bytes | None = None) -> bytes:
    certificate = own.certificate.x509
    assert certificate is not None
    chain = [x509.load_der_x509_certificate(der) for der in own.chain]
    sealed: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    return pkcs12.serialize_key_and_certificates(b"mbx", own.key, certificate, chain, sealed)
