"""What sessions tell their programs."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from anontls.smtp.exchange import TlsVerb
from anontls.smtp.reply import Reply
from anontls.smtp.syntax import Envelope, Recipient

# --- of a receiving session -------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, gc=False):
    """EHLO or HELO was accepted.  Any right that hung on an earlier name is gone: grant it anew."""

    name: str
    esmtp: bool


class StartTls(msgspec.Struct, frozen=True, gc=False):
    """Write the output, do the handshake, call `tls_established`."""

    verb: TlsVerb


class MessageBegins(msgspec.Struct, frozen=True, gc=False):
    """Content follows; ``lines``: sent with DATA, so that each line ends with CRLF, and CR and LF stand nowhere else."""

    envelope: Envelope
    lines: bool


class Content(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the content, without dot-stuffing; the pieces joined are the message."""

    data: bytes


class MessageEnds(msgspec.Struct, frozen=True, gc=False):
    """The whole message has been handed over; `settle` it."""

    envelope: Envelope
    size: int


class MessageAborted(msgspec.Struct, frozen=True, gc=False):
    """The message that began will not end; throw it away."""

    reason: str


class Authenticate(msgspec.Struct, frozen=True, gc=False):
    """AUTH or X-EXPS; ``variant`` is the hash of ``X-EXPS EXCHANGEAUTH SHA256``."""

    verb: str
    mechanism: str
    variant: str | None
    initial: bytes | None

    def __repr__(self) -> str:
        return f"Authenticate({self.verb!r}, {self.mechanism!r}, {self.variant!r}, <{len(self.initial or b'')} octets>)"


class AuthenticationResponse(msgspec.Struct, frozen=True, gc=False):
    """The answer to `continue_authentication`."""

    data: bytes

    def __repr__(self) -> str:
        return f"AuthenticationResponse(<{len(self.data)} octets>)"


class AuthenticationCancelled(msgspec.Struct, frozen=True, gc=False):
    """The peer broke its authentication off; the session has answered."""


class ServerClosed(msgspec.Struct, frozen=True, gc=False):
    """Write the output and close the connection."""

    reason: str


ServerEvent: TypeAlias = (
    Hello
    | StartTls
    | MessageBegins
    | Content
    | MessageEnds
    | MessageAborted
    | Authenticate
    | AuthenticationResponse
    | AuthenticationCancelled
    | ServerClosed
)

# --- of a sending session ---------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, gc=False):
    """EHLO was answered; messages, a TLS verb or an authentication may be sent now."""

    extensions: dict[str, tuple[str, ...]]
    reply: Reply


class StartTlsNow(msgspec.Struct, frozen=True, gc=False):
    """The peer waits for the handshake; do it, then call `tls_established`."""

    verb: TlsVerb


class TlsRefused(msgspec.Struct, frozen=True, gc=False):
    """The session goes on in clear, if the program wants that."""

    verb: TlsVerb
    reply: Reply


class RecipientAnswered(msgspec.Struct, frozen=True, gc=False):
    """The answer to one RCPT."""

    envelope: Envelope
    recipient: Recipient
    reply: Reply


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """The peer took the message for at least one recipient.

    ``replies`` has the last word on each recipient, in the order of the envelope: what RCPT said of those that were
    refused, and what the end of the content said of the others (their own with LMTP).
    """

    envelope: Envelope
    reply: Reply
    replies: tuple[Reply, ...]


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """The message went to nobody.

    ``command`` is where it failed: ``MAIL``, ``RCPT``, ``DATA``, ``BDAT``, ``end of data``, or ``local`` when this
    side would not send it.  ``reply`` decided it; ``replies`` is one for each recipient.
    """

    envelope: Envelope
    command: str
    reply: Reply
    replies: tuple[Reply, ...]


class Challenge(msgspec.Struct, frozen=True, gc=False):
    """334: `respond` to it."""

    data: bytes

    def __repr__(self) -> str:
        return f"Challenge(<{len(self.data)} octets>)"


class Authenticated(msgspec.Struct, frozen=True, gc=False):
    """235; that of EXCHANGEAUTH has a token, which is empty when it is not base64."""

    reply: Reply
    token: bytes | None = None

    def __repr__(self) -> str:
        return f"Authenticated({self.reply}, <{len(self.token or b'')} octets>)"


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The greeting, EHLO, HELO, LHLO, AUTH or X-EXPS was refused; after the first four only QUIT is possible."""

    command: str
    reply: Reply


class ClientClosed(msgspec.Struct, frozen=True, gc=False):
    """Close the connection.  ``reply`` was the peer's last word, if it had one.

    ``unanswered`` are messages without a verdict; those in ``uncertain`` had been sent whole, so the peer may have
    taken them all the same.
    """

    reply: Reply | None
    unanswered: tuple[Envelope, ...] = ()
    uncertain: tuple[Envelope, ...] = ()


ClientEvent: TypeAlias = (
    Ready
    | StartTlsNow
    | TlsRefused
    | RecipientAnswered
    | Delivered
    | Rejected
    | Challenge
    | Authenticated
    | Refused
    | ClientClosed
)
