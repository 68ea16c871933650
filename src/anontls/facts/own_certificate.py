"""A certificate of our own: what the facts say of it, the chain that is sent with it, and its private key.

It stands among the facts because the store hands it out and the TLS step takes it, and neither knows the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias, get_args

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from anontls.errors import AnontlsError
from anontls.facts.certificate import Certificate

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)
#: The same for ``isinstance``.
PRIVATE_KEYS: tuple[type[PrivateKey], ...] = get_args(PrivateKey)


class OwnCertificateRefused(AnontlsError):
    """A certificate of our own cannot be used: its key does not open or fit, or the TLS library takes neither.

    For a transport service this is a certificate that cannot be loaded: event 12013.
    """

    def __init__(self, thumbprint: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"certificate {thumbprint} cannot be used: {reason}", hint=hint)
        self.thumbprint = thumbprint
        self.reason = reason


class OwnCertificate:
    """A certificate with its private key.  The key shows in no ``repr`` and cannot be pickled.

    Two of them are equal when the bytes that they send are, so contexts are cached by this.
    """

    def __init__(self, certificate: Certificate, key: PrivateKey, chain: Sequence[bytes] = ()) -> None:
        if certificate.der is None:
            raise ValueError("a certificate of our own needs its bytes")
        self.certificate = certificate
        self.der = certificate.der
        self.chain = tuple(chain)  #: the issuers' certificates (DER) that are sent along, nearest first
        self._key = key

    @property
    def key(self) -> PrivateKey:
        """The private key; do not print, log or keep it."""
        return self._key

    @property
    def thumbprint(self) -> str:
        """SHA-1 thumbprint: the name by which Exchange calls it."""
        return str(self.certificate.thumbprint)

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 over all that is sent."""
        digest = hashlib.sha256(self.der)
        for der in self.chain:
            digest.update(hashlib.sha256(der).digest())
        return digest.digest()

    def fits(self) -> bool:
        """Whether the private key is that of the certificate."""
        try:
            public = self.certificate.x509.public_key() if self.certificate.x509 else None
        except Exception:  # noqa: BLE001 a certificate may hold a key of any strange kind
            return False
        return public is not None and public == self._key.public_key()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnCertificate) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"OwnCertificate({self.thumbprint}, subject={self.certificate.subject!r})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")
