"""What can be wrong with an authentication by Kerberos."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any, Final

from anontls.errors import AnontlsError

MAX_TEXT = 300  #: characters of what the library says; a peer may have chosen some of them


class Reason(enum.Enum):
    """Why an authentication failed."""

    CLOCK_SKEW = "clock skew"
    EXPIRED = "expired ticket"
    NOT_YET_VALID = "ticket not valid yet"
    REPLAY = "replay"
    UNKNOWN_SPN = "unknown service principal name"  # to the KDC
    WRONG_SPN = "ticket for another service"
    WRONG_BINDING = "bound to another channel"
    NO_BINDING = "not bound to a channel"
    NO_AES = "not AES"
    WRONG_KEY = "key does not fit"  # an old keytab, or a trust between domains that is broken
    KDC_UNREACHABLE = "KDC not reachable"
    NO_CREDENTIALS = "no credentials"  # keytab, account or password of our own
    NOT_MUTUAL = "not mutual"
    DELEGATION = "delegation"
    MALFORMED = "malformed token"
    OTHER = "refused"


class KerberosFailed(AnontlsError):
    """An authentication failed; the message has names, no keys, tickets or tokens."""

    def __init__(self, reason: Reason, text: str = "") -> None:
        text = "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
        super().__init__(f"{reason.value}: {text}" if text else reason.value)
        self.reason = reason
        self.text = text


_KRB5 = -1765328384  # of the library's codes; the first 96 are those of the protocol [RFC4120 7.5.9]
_REASONS: Final[Mapping[int, Reason]] = {
    6: Reason.NO_CREDENTIALS,  # client not found in the database
    7: Reason.UNKNOWN_SPN,
    14: Reason.NO_AES,  # the KDC has no support for the encryption type
    18: Reason.NO_CREDENTIALS,  # client revoked
    23: Reason.NO_CREDENTIALS,  # its password has expired
    24: Reason.NO_CREDENTIALS,  # pre-authentication failed
    31: Reason.WRONG_KEY,  # integrity check failed
    32: Reason.EXPIRED,
    33: Reason.NOT_YET_VALID,
    34: Reason.REPLAY,
    35: Reason.WRONG_SPN,
    37: Reason.CLOCK_SKEW,
    41: Reason.WRONG_KEY,  # modified
    44: Reason.WRONG_KEY,  # key version
    45: Reason.WRONG_KEY,  # no key
    # From here on of MIT's library.
    144: Reason.WRONG_SPN,
    148: Reason.CLOCK_SKEW,
    154: Reason.KDC_UNREACHABLE,  # realm not known
    156: Reason.KDC_UNREACHABLE,
    181: Reason.NO_CREDENTIALS,  # keytab
    188: Reason.NO_AES,
    195: Reason.NO_CREDENTIALS,  # no cache, and the keytab has not the account
    220: Reason.KDC_UNREACHABLE,  # realm cannot be resolved
    230: Reason.WRONG_KEY,  # key version not in the keytab
    236: Reason.NO_AES,
    237: Reason.NO_AES,
}
_MESSAGE = re.compile(r"Major \(\d+\): (.*), Minor \(\d+\): (.*)", re.DOTALL)


def failure_of(gssapi: Any, error: Any) -> KerberosFailed:
    """The exception of the library as ours."""
    reason = _REASONS.get((error.min_code - _KRB5) & 0xFFFF_FFFF)
    if reason is None:
        match error:
            case gssapi.exceptions.BadChannelBindingsError():
                reason = Reason.WRONG_BINDING
            case gssapi.exceptions.MissingCredentialsError() | gssapi.exceptions.InvalidCredentialsError():
                reason = Reason.NO_CREDENTIALS
            case gssapi.exceptions.ExpiredContextError() | gssapi.exceptions.ExpiredCredentialsError():
                reason = Reason.EXPIRED
            case gssapi.exceptions.InvalidTokenError() | gssapi.exceptions.BadMICError():
                reason = Reason.MALFORMED
            case _:
                reason = Reason.OTHER
    said = _MESSAGE.fullmatch(str(error))
    major, minor = said.groups() if said else (str(error), "")
    return KerberosFailed(reason, major if minor in {"", "Success", "Unknown error"} else minor)
