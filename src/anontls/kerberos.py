"""Kerberos: contexts that initiate and accept, bound to a TLS channel, through GSSAPI (extra ``ad``).

What makes them strict, beyond what the library does by itself:

* an acceptor that has a binding refuses an initiator that sends none, which GSSAPI accepts;
* both sides are proved to each other, and nobody gets a ticket to act for somebody else;
* the ticket and its session key are AES.  RC4 is a guess at the service's password away from being forged;
* a service's name is taken as it is written: DNS has no say in whom a ticket is for.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from anontls.errors import AnontlsError, UsageError

#: Service classes of SMTP in a service principal name [FACT D/O 3.4]; tickets are asked for under the first.
SERVICES: Final = ("SMTPSVC", "SMTP")
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

    def __init__(self, reason: Reason, text: str = "", *, hint: str | None = None) -> None:
        text = "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
        super().__init__(f"{reason.value}: {text}" if text else reason.value, hint=hint)
        self.reason = reason


# --- names ------------------------------------------------------------------------------------------------------------


def realm_of(fqdn: str) -> str:
    """The realm of a host: its DNS domain in capitals, as Active Directory has it."""
    return fqdn.partition(".")[2].upper()


def computer_account(name: str, realm: str) -> str:
    """Principal of the computer account of the server called ``name``: ``MBX1$@CONTOSO.COM``."""
    return f"{name.upper()}$@{realm}"


def same_account(principal: str, account: str) -> bool:
    """Whether two principals are one account: its name without case, as in Active Directory, its realm as written."""
    (name, _, realm), (other, _, other_realm) = principal.rpartition("@"), account.rpartition("@")
    # What is not ASCII is nobody's: letters exist beyond it whose lower case is an ASCII letter.
    return principal.isascii() and name.lower() == other.lower() and realm == other_realm


# --- contexts ---------------------------------------------------------------------------------------------------------


class Kerberos:
    """Kerberos as one server does it.

    ``account`` is its principal.  ``keytab`` holds the keys of the account and of the services that it is.  Tickets are
    kept in ``credential_cache`` (such as ``FILE:/run/anontls/ccache``), in memory when none is given; with a keytab they
    are renewed by themselves.

    Raises:
        UsageError: the library is not installed.
    """

    def __init__(self, account: str, *, keytab: Path | None = None, credential_cache: str | None = None) -> None:
        self.account = account
        self._gssapi = _library()
        self._accepting = {} if keytab is None else {"keytab": f"FILE:{keytab}"}
        self._initiating = {"ccache": credential_cache or f"MEMORY:anontls {account}"}
        if keytab is not None:
            self._initiating["client_keytab"] = f"FILE:{keytab}"

    @property
    def accepts(self) -> bool:
        """Whether there is a keytab to accept with."""
        return bool(self._accepting)

    def initiator(self, target: str, binding: bytes) -> Initiator:
        """Begin towards the service principal ``target``, such as ``SMTPSVC/mbx2.contoso.com@CONTOSO.COM``."""
        return Initiator(self._gssapi, self.account, self._initiating, target, binding)

    def acceptor(self, hosts: Collection[str], binding: bytes | None) -> Acceptor:
        """Accept tickets for SMTP at one of ``hosts``; without a ``binding`` a context is never bound."""
        return Acceptor(self._gssapi, self._accepting, hosts, binding)


class _Context:
    """One side of one authentication."""

    def __init__(self, gssapi: Any) -> None:
        self._gssapi = gssapi
        self._context: Any = None

    @property
    def complete(self) -> bool:
        return self._context is not None and bool(self._context.complete)

    def sign(self, data: bytes) -> bytes:
        """A signature that only the two sides can make."""
        return bytes(self._context.get_signature(data))

    def verify(self, data: bytes, signature: bytes) -> None:
        """Check the other side's signature.

        Raises:
            KerberosFailed: it is not that of ``data``.
        """
        try:
            self._context.verify_signature(data, signature)
        except self._gssapi.exceptions.GSSError as e:
            raise _failure(self._gssapi, e) from None

    def _step(self, token: bytes | None) -> bytes | None:
        try:
            given = self._context.step(token)
        except self._gssapi.exceptions.GSSError as e:
            raise _failure(self._gssapi, e) from None
        return None if given is None else bytes(given)

    def _bound_to(self, binding: bytes | None) -> Any:
        return None if binding is None else self._gssapi.raw.ChannelBindings(application_data=binding)

    def _has(self, flag: str) -> bool:
        return getattr(self._gssapi.RequirementFlag, flag) in self._context.actual_flags


class Initiator(_Context):
    """The side that shows a ticket."""

    def __init__(self, gssapi: Any, account: str, store: Mapping[str, str], target: str, binding: bytes) -> None:
        super().__init__(gssapi)
        self.account = account
        self.target = target
        self._store = store
        self._binding = binding

    def step(self, token: bytes | None = None) -> bytes | None:
        """The first token, and then the answer to what the peer sent; ``None``: nothing more.

        The first one may ask the KDC, and blocks meanwhile: for seconds, or half a minute where nobody answers.

        Raises:
            KerberosFailed: it failed.
        """
        if self._context is not None:
            given = self._step(token or b"")
            if self.complete and not self._has("mutual_authentication"):
                raise KerberosFailed(Reason.NOT_MUTUAL)
            return given
        gssapi, flags = self._gssapi, self._gssapi.RequirementFlag
        principal = gssapi.NameType.kerberos_principal
        try:
            credentials = gssapi.Credentials(
                name=gssapi.Name(self.account, principal),
                usage="initiate",
                mechs=[gssapi.MechType.kerberos],
                store=self._store,
            )
            self._context = gssapi.SecurityContext(
                name=gssapi.Name(self.target, principal),
                creds=credentials,
                usage="initiate",
                mech=gssapi.MechType.kerberos,
                # channel_bound tells the acceptor that bindings are meant to count.
                flags=flags.mutual_authentication | flags.replay_detection | flags.integrity | flags.channel_bound,
                channel_bindings=self._bound_to(self._binding),
            )
        except gssapi.exceptions.GSSError as e:
            raise _failure(gssapi, e) from None
        given = self._step(None) or b""
        _must_be_aes(given, self.target)
        return given


class Acceptor(_Context):
    """The side that a ticket is shown to."""

    def __init__(self, gssapi: Any, store: Mapping[str, str], hosts: Collection[str], binding: bytes | None) -> None:
        super().__init__(gssapi)
        self.peer = ""  #: principal of the initiator, once complete
        self._store = store
        self._hosts = frozenset(host.lower() for host in hosts)
        self._binding = binding

    def step(self, token: bytes) -> bytes | None:
        """The answer to the peer's token; ``None``: nothing more.

        Raises:
            KerberosFailed: it is refused.
        """
        if self._context is None:
            _must_be_aes(token)
            gssapi = self._gssapi
            try:
                credentials = gssapi.Credentials(usage="accept", mechs=[gssapi.MechType.kerberos], store=self._store)
                self._context = gssapi.SecurityContext(
                    creds=credentials, usage="accept", channel_bindings=self._bound_to(self._binding)
                )
            except gssapi.exceptions.GSSError as e:
                raise _failure(gssapi, e) from None
        given = self._step(token)
        if self.complete:
            self._check()
        return given

    @property
    def bound(self) -> bool:
        """Whether the peer has proved that it is at the other end of this very channel."""
        return self.complete and self._binding is not None

    def _check(self) -> None:
        if self._binding is not None and not self._has("channel_bound"):
            raise KerberosFailed(Reason.NO_BINDING)
        if not self._has("mutual_authentication"):
            raise KerberosFailed(Reason.NOT_MUTUAL)
        if self._has("delegate_to_peer"):
            raise KerberosFailed(Reason.DELEGATION)
        target = _text(self._context.target_name)
        service, _, host = target.rpartition("@")[0].partition("/")
        if service.upper() not in SERVICES or host.lower() not in self._hosts:
            raise KerberosFailed(Reason.WRONG_SPN, target)
        self.peer = _text(self._context.initiator_name)


def _text(name: Any) -> str:
    return bytes(name).decode("utf-8", "replace")


def _library() -> Any:
    try:
        import gssapi
    except ImportError:
        raise UsageError(
            "Kerberos needs the Python package gssapi, which is not installed", hint="pip install 'anontls[ad]'"
        ) from None
    # Else `step` returns the error token of a context that failed as if it were an answer.
    gssapi.SecurityContext.__DEFER_STEP_ERRORS__ = False
    return gssapi


# --- what went wrong --------------------------------------------------------------------------------------------------

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


def _failure(gssapi: Any, error: Any) -> KerberosFailed:
    """The exception of the library as ours."""
    reason = _REASONS.get((error.min_code - _KRB5) & 0xFFFF_FFFF)
    if reason is None:
        match error:
            case gssapi.exceptions.BadChannelBindingsError():
                reason = Reason.WRONG_BINDING
            case gssapi.exceptions.MissingCredentialsError() | gssapi.exceptions.InvalidCredentialsError():
                reason = Reason.NO_CREDENTIALS
            case gssapi.exceptions.InvalidTokenError() | gssapi.exceptions.BadMICError():
                reason = Reason.MALFORMED
            case _:
                reason = Reason.OTHER
    said = _MESSAGE.fullmatch(str(error))
    major, minor = said.groups() if said else (str(error), "")
    return KerberosFailed(reason, major if minor in {"", "Success", "Unknown error"} else minor)


# --- encryption types -------------------------------------------------------------------------------------------------

#: aes128-cts-hmac-sha1-96 and aes256 [RFC3962 7], their successors with SHA-2 [RFC8009 7].
AES: Final = frozenset({17, 18, 19, 20})
# Object identifier of the Kerberos mechanism, and the token's kind: AP-REQ [RFC4121 4.1].
_AP_REQ: Final = bytes.fromhex("06092a864886f712010202") + b"\x01\x00"


def _must_be_aes(token: bytes, service: str = "") -> None:
    try:
        types = encryption_types(token)
    except ValueError as e:
        raise KerberosFailed(Reason.MALFORMED, str(e)) from None
    if not AES.issuperset(types):
        raise KerberosFailed(
            Reason.NO_AES,
            f"encryption types of ticket and session key: {types[0]}, {types[1]}" + (f"; {service}" if service else ""),
            hint="set msDS-SupportedEncryptionTypes of the service's account to 24, and change its password",
        )


def encryption_types(token: bytes) -> tuple[int, int]:
    """Encryption types of the ticket and of the session key in an initiator's first token.

    Both stand in clear in it: the ticket's own, and that of the authenticator [RFC4120 5.5.1].

    Raises:
        ValueError: it is not such a token.
    """
    frame, rest = _element(token, 0x60)
    if rest or not frame.startswith(_AP_REQ):
        raise ValueError("not a token of the Kerberos mechanism")
    fields = _fields(frame[len(_AP_REQ) :], 0x6E, 0xA0, 0xA1, 0xA2, 0xA3, 0xA4)
    ticket = _fields(fields[3], 0x61, 0xA0, 0xA1, 0xA2, 0xA3)
    return _encryption_type(ticket[3]), _encryption_type(fields[4])


def _encryption_type(encrypted: bytes) -> int:
    sequence, _ = _element(encrypted, 0x30)
    number, _ = _element(_element(sequence, 0xA0)[0], 0x02)
    return int.from_bytes(number, signed=True)


def _fields(data: bytes, application: int, *tags: int) -> list[bytes]:
    """All fields of a message, in their order."""
    rest, _ = _element(_element(data, application)[0], 0x30)
    values = []
    for tag in tags:
        value, rest = _element(rest, tag)
        values.append(value)
    return values


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The value of the DER element at the front, and what stands behind it."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"no element {tag:#x} where one belongs")
    at, size = 2, data[1]
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at]) if 2 < at <= 5 else len(data)
    if at + size > len(data):
        raise ValueError(f"element {tag:#x} is cut off, or longer than any token")
    return data[at : at + size], data[at + size :]
