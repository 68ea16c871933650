"""Direct trust: a peer is the server that the directory knows when it shows that server's whole certificate."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import datetime

import msgspec

from anontls.facts.certificate import Certificate


class TrustResult(enum.Enum):
    """What the comparison says; only ``MATCH`` proves anything."""

    MATCH = "match"
    MISMATCH = "mismatch"
    NO_CERTIFICATE = "no certificate"
    UNKNOWN_SERVER = "unknown server"


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """The answer about one peer.

    ``expired`` is about the peer's certificate whatever the result, and never takes trust away: a match that has
    expired is trusted and logged as event 12019 [FACT D 3.3].  A ``NotAfter`` that cannot be read is not called expired.
    """

    result: TrustResult
    expired: bool
    fingerprint: str | None = None  #: SHA-256 of the peer's certificate, for logs

    @property
    def trusted(self) -> bool:
        """Whether the peer is the server it is taken for."""
        return self.result is TrustResult.MATCH


def direct_trust(peer: Certificate | None, expected: Sequence[bytes], now: datetime) -> Trust:
    """Compare the ``peer``'s certificate with those (DER) that the directory holds for that server [FACT D 3.3].

    What is compared is all bytes: the SHA-1 thumbprint is a name, not a proof.
    """
    if peer is None:
        return Trust(result=TrustResult.NO_CERTIFICATE, expired=False)
    if not expected:
        result = TrustResult.UNKNOWN_SERVER
    elif peer.der is not None and peer.der in expected:
        result = TrustResult.MATCH
    else:
        result = TrustResult.MISMATCH
    return Trust(
        result=result,
        expired=isinstance(peer.not_after, datetime) and now > peer.not_after,  # [RFC5280 4.1.2.5] NotAfter is valid
        fingerprint=peer.fingerprint,
    )
