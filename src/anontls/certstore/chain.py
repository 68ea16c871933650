"""Which of several certificates is meant, which key is its own, and who issued it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509

from anontls.certstore.files import SealedKey, Unusable


class Picked(NamedTuple):
    """The certificate of a file, the chain behind it, and its key."""

    leaf: bytes
    chain: tuple[bytes, ...]
    key: SealedKey | None


def pick(certificates: Sequence[bytes], keys: Sequence[SealedKey]) -> Picked:
    """The certificate that one of the keys belongs to, else the first; the others that issued it, nearest first.

    Raises:
        Unusable: there are keys, and none of them is the key of a certificate here.
    """
    leaf, key = certificates[0], None
    if keys:
        fitting = ((der, one) for der in certificates for one in keys if one.fits(der))
        found = next(fitting, None)
        if found is None:
            raise Unusable(
                "the private key is not the key of the certificate", "put the certificate and its own key together"
            )
        leaf, key = found
    if len(certificates) == 1:
        return Picked(leaf, (), key)
    by_subject: dict[bytes, bytes] = {}
    for der in certificates:
        if der != leaf:
            by_subject.setdefault(_names(der)[0], der)
    chain: list[bytes] = []
    subject, issuer = _names(leaf)
    while issuer != subject and issuer in by_subject:
        above = by_subject.pop(issuer)
        chain.append(above)
        subject, issuer = _names(above)
    return Picked(leaf, tuple(chain), key)


def _names(der: bytes) -> tuple[bytes, bytes]:
    certificate = x509.load_der_x509_certificate(der)
    try:
        return certificate.subject.public_bytes(), certificate.issuer.public_bytes()
    except Exception:  # noqa: BLE001 hostile bytes raise anything; such a certificate belongs to no chain
        return der, der
