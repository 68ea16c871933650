"""``Status`` of a certificate: does its chain lead to an authority that we know, and is it in date?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from cryptography import x509
from OpenSSL import crypto
from OpenSSL.SSL import X509VerificationCodes as Code

from anontls.facts import Certificate, Unknown, is_unknown

NO_AUTHORITIES = Unknown("no CA certificates are given, so the chain cannot be checked")
OUT_OF_DATE = frozenset({Code.ERR_CERT_HAS_EXPIRED, Code.ERR_CERT_NOT_YET_VALID})


class Authorities:
    """The CA certificates that are trusted: roots, and the intermediate ones that they issued.

    As in Windows a chain ends in a self-signed certificate.  Revocation is not looked at.
    """

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        self._certificates = tuple(crypto.X509.from_cryptography(certificate) for certificate in certificates)
        self._at: tuple[datetime, crypto.X509Store] | None = None

    def verdict(self, certificate: x509.Certificate, chain: Sequence[x509.Certificate], now: datetime) -> str:
        """``Valid``, ``Untrusted`` or ``DateInvalid`` [FACT D 7.2]."""
        untrusted = [crypto.X509.from_cryptography(one) for one in chain]
        try:
            crypto.X509StoreContext(
                self._store(now), crypto.X509.from_cryptography(certificate), untrusted
            ).verify_certificate()
        except crypto.X509StoreContextError as e:
            return "DateInvalid" if e.errors[0] in OUT_OF_DATE else "Untrusted"
        except crypto.Error:
            return "Untrusted"
        return "Valid"

    def _store(self, now: datetime) -> crypto.X509Store:
        if self._at is None or self._at[0] != now:
            store = crypto.X509Store()
            for certificate in self._certificates:
                store.add_cert(certificate)
            store.set_time(now.astimezone(UTC))  # once only: the library keeps the first time that it is given
            self._at = now, store
        return self._at[1]


def status(
    certificate: Certificate, chain: Sequence[bytes], authorities: Authorities | None, now: datetime
) -> str | Unknown:
    """``Status`` at the moment ``now``.  A self-signed certificate has no chain to check: only its dates count."""
    self_signed, not_before, not_after = certificate.is_self_signed, certificate.not_before, certificate.not_after
    for fact in (self_signed, not_before, not_after):
        if is_unknown(fact):
            return fact
    if self_signed:
        in_date = (
            isinstance(not_before, datetime) and isinstance(not_after, datetime) and not_before <= now <= not_after
        )
        return "Valid" if in_date else "DateInvalid"
    if authorities is None:
        return NO_AUTHORITIES
    parsed = certificate.x509
    if parsed is None:
        return "Invalid"
    return authorities.verdict(parsed, [x509.load_der_x509_certificate(der) for der in chain], now)
