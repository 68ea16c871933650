"""A message on its way out: whether a peer can be given it, how its content is sent, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from anontls.smtp import exchange, syntax
from anontls.smtp.content import DotWriter, LineEnds, Needs, dotted, needs
from anontls.smtp.events import Delivered, Rejected
from anontls.smtp.reply import LocalReply, Reply
from anontls.smtp.states import MESSAGE, MessageState
from anontls.smtp.syntax import Envelope

# One call of `output` gives about this much, so that a program that waits for its peer holds no more.  It is what
# transports buffer, and one chunk of BDAT.
OUTPUT_SLICE = 256 * 1024

# Content up to this size is sent before RCPT is answered; of more, a refusal would waste the octets.
MAX_UNASKED = 64 * 1024

# What this side says when it does not send a message; worded like what Exchange's sender reports.
BARE_LINEFEEDS = LocalReply(
    550, ("5.6.11 SMTPSEND.BareLinefeedsAreIllegal; message contains bare CR or LF, which cannot be sent via DATA",)
)
NEEDS_8BITMIME = LocalReply(554, ("5.6.3 Content is 8-bit, and the peer does not offer 8BITMIME",))
NEEDS_SMTPUTF8 = LocalReply(550, ("5.6.7 Message needs SMTPUTF8, which the peer does not offer",))
TOO_LARGE_FOR_PEER = LocalReply(552, ("5.3.4 Message is larger than the peer takes",))
BAD_ENVELOPE = LocalReply(553, ("5.1.3 Envelope cannot be expressed in SMTP",))
CONVERSION_NOT_SUPPORTED = LocalReply(554, exchange.CONVERSION_NOT_SUPPORTED.lines)
NO_RECIPIENT = LocalReply(554, ("5.5.1 No recipient",))

Content: TypeAlias = bytes | Iterable[bytes]


class Unsendable(Exception):
    """Pieces of a content are not what its envelope promised."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


# The table as it is walked: each message makes five steps, and a member of an Enum is not cheap to look up.
_Step: TypeAlias = "tuple[MessageState, dict[str, _Step]]"
_STEPS: Final[dict[MessageState, _Step]] = {state: (state, {}) for state in MessageState}
for (_state, _what), _target in MESSAGE.items():
    _STEPS[_state][1][_what] = _STEPS[_target]


class Message:
    """A message on its way."""

    __slots__ = (
        "_allowed",
        "accepted",
        "chunked",
        "content",
        "end_replies",
        "envelope",
        "failure",
        "mail_line",
        "mail_ok",
        "outstanding",
        "rcpt_replies",
        "rcpt_sent",
        "size",
        "state",
        "verify",
    )

    def __init__(self, envelope: Envelope, content: Content, mail_line: bytes, verify: Needs, *, chunked: bool) -> None:
        self.envelope = envelope
        self.content = content
        self.mail_line = mail_line
        self.verify = verify  # the most that pieces may need; a whole content has been looked at
        self.size = len(content) if isinstance(content, bytes) else None
        self.state, self._allowed = _STEPS[MessageState.QUEUED]
        self.chunked = chunked
        self.rcpt_sent = 0
        self.outstanding = 0  # answers to come
        self.mail_ok = False
        self.accepted = 0
        self.rcpt_replies: list[Reply] = []
        self.end_replies: list[Reply] = []
        self.failure: tuple[str, Reply] | None = None

    def go(self, what: str) -> None:
        self.state, self._allowed = self._allowed[what]

    def write(self) -> Iterator[tuple[bytes, bool]]:
        """The content as it is sent, piece by piece, each with whether it is the last."""
        content = self.content
        if isinstance(content, bytes):
            if len(content) <= OUTPUT_SLICE:
                return iter([(content if self.chunked else dotted(content), True)])
            pieces = _slices(content)
        else:
            pieces = _lumps(_verified(content, self.verify))
        return _chunks(pieces) if self.chunked else _lines(pieces)

    def verdict(self, *, lmtp: bool) -> Delivered | Rejected:
        """The answers taken together: the last word on each recipient."""
        envelope = self.envelope
        end = self.end_replies[-1] if self.end_replies else None
        failure = self.failure
        if (
            failure is None
            and end is not None
            and end.positive
            and not lmtp
            and self.accepted == len(envelope.recipients)
        ):
            return Delivered(envelope, end, (end,) * self.accepted)  # mostly
        ends = iter(self.end_replies)
        if failure is None and not self.accepted and self.rcpt_replies:
            failure = ("RCPT", self.rcpt_replies[-1])
        if failure is None and end is None:
            failure = ("RCPT", NO_RECIPIENT)
        replies = []
        for number in range(len(envelope.recipients)):
            answer = self.rcpt_replies[number] if number < len(self.rcpt_replies) else None
            if answer is not None and not answer.positive and (failure is None or failure[0] != "MAIL"):
                replies.append(answer)
            elif failure is not None:
                replies.append(failure[1])
            else:
                assert end is not None
                replies.append(next(ends, end) if lmtp else end)
        delivered = [reply for reply in replies if reply.positive]
        if delivered:
            return Delivered(envelope, delivered[-1], tuple(replies))
        command, reply = failure or ("end of data", end or replies[-1])
        return Rejected(envelope, command, reply, tuple(replies))


_NEEDS_BY_BODY: Final = {
    None: Needs.SEVEN_BIT,
    "7BIT": Needs.SEVEN_BIT,
    "8BITMIME": Needs.EIGHT_BIT,
    "BINARYMIME": Needs.BINARY,
}


def prepare(
    envelope: Envelope,
    content: Content,
    extensions: Mapping[str, tuple[str, ...]],
    need: Needs | None = None,
    *,
    chunked: bool,
) -> tuple[Reply | None, Message]:
    """What a message is for a peer with these extensions, and why it cannot be sent, if so; see `ClientSession.send`."""
    whole = isinstance(content, bytes)
    size = len(content) if isinstance(content, bytes) else envelope.size
    if not isinstance(content, bytes):
        need = _NEEDS_BY_BODY.get(envelope.body, Needs.BINARY)
    elif need is None:
        need = needs(content)
    body = _body(envelope.body, need, extensions, chunked=chunked)
    wide = not envelope.sender.isascii()
    for recipient in envelope.recipients:
        wide = wide or not recipient.address.isascii()
    utf8 = wide or (envelope.smtputf8 and not (whole and _ascii_header(content)))

    refusal = None
    limit = syntax.size_limit(extensions)
    if not envelope.recipients:
        refusal = NO_RECIPIENT
    elif not syntax.valid_envelope(envelope):
        refusal = BAD_ENVELOPE
    elif utf8 and "SMTPUTF8" not in extensions:
        refusal = NEEDS_SMTPUTF8
    elif need is Needs.BINARY and body != "BINARYMIME":
        refusal = BARE_LINEFEEDS
    elif need is Needs.EIGHT_BIT and body is None:
        refusal = NEEDS_8BITMIME
    elif limit is not None and size is not None and size > limit:
        refusal = TOO_LARGE_FOR_PEER

    line = f"MAIL FROM:<{envelope.sender}>"
    if size is not None and "SIZE" in extensions:
        line += f" SIZE={size}"
    if body is not None:
        line += f" BODY={body}"
    if utf8 or (envelope.smtputf8 and "SMTPUTF8" in extensions):
        line += " SMTPUTF8"
    if "DSN" in extensions:
        if envelope.ret is not None:
            line += f" RET={envelope.ret}"
        if envelope.envid is not None:
            line += f" ENVID={envelope.envid}"
    if envelope.auth is not None and "AUTH" in extensions:
        line += f" AUTH={envelope.auth}"
    return refusal, Message(envelope, content, line.encode("utf-8", "replace"), need, chunked=chunked)


def _body(declared: str | None, need: Needs, extensions: Mapping[str, tuple[str, ...]], *, chunked: bool) -> str | None:
    """BODY= for a content: at least what it needs, else what was declared, if the peer knows it."""
    if need is Needs.BINARY:
        return "BINARYMIME" if chunked and "BINARYMIME" in extensions else None
    if "8BITMIME" not in extensions:
        return None
    if need is Needs.EIGHT_BIT or declared in {"8BITMIME", "BINARYMIME"}:
        return "8BITMIME"
    return declared


def _ascii_header(content: object) -> bool:
    return isinstance(content, bytes) and content.partition(b"\r\n\r\n")[0].isascii()


def _verified(pieces: Iterable[bytes], most: Needs) -> Iterator[bytes]:
    """The same pieces, as long as they need no more than was promised."""
    ends = LineEnds()
    for piece in pieces:
        if most < Needs.BINARY and not ends.add(piece):
            raise Unsendable(BARE_LINEFEEDS)
        if most < Needs.EIGHT_BIT and not piece.isascii():
            raise Unsendable(CONVERSION_NOT_SUPPORTED)
        yield piece
    if most < Needs.BINARY and not ends.finish():
        raise Unsendable(BARE_LINEFEEDS)


def _slices(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), OUTPUT_SLICE):
        yield content[at : at + OUTPUT_SLICE]


def _lumps(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same octets in pieces of about OUTPUT_SLICE."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        for part in _slices(piece) if len(piece) > OUTPUT_SLICE else (piece,):
            held.append(part)
            size += len(part)
            if size >= OUTPUT_SLICE:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)


def _chunks(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Chunks; the last is known when no other comes."""
    held: bytes | None = None
    for piece in pieces:
        if held is not None:
            yield held, False
        held = piece
    yield held or b"", True


def _lines(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Dot-stuffed lines and the end of data."""
    writer = DotWriter()
    for piece in pieces:
        yield writer.write(piece), False
    yield writer.end(), True
