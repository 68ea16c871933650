"""How a receiving session reads: octets to lines, content and chunks, with a limit on everything that is kept.

`ServerSession` gives it the commands.  They are two classes because both change the state of one session, and one file
would hold twice what a reader can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeAlias

from anontls.smtp import exchange
from anontls.smtp.content import DotReader, only_crlf
from anontls.smtp.errors import LocalProtocolError
from anontls.smtp.events import (
    AuthenticationCancelled,
    Content,
    MessageAborted,
    MessageEnds,
    ServerClosed,
    ServerEvent,
)
from anontls.smtp.exchange import ServerSettings
from anontls.smtp.reply import Reply
from anontls.smtp.states import SERVER, ServerState
from anontls.smtp.syntax import MAX_AUTHENTICATION_LINE, MAX_COMMAND_LINE, Envelope

# A line that is too long is skipped without being kept; who sends this much of one is no mail client.
MAX_SKIPPED_LINE = 1024 * 1024

# What may arrive while the session is paused: one read that was under way (transports read up to 256 KiB) and a margin.
MAX_WAITING = 512 * 1024

# Content of a message that is refused already is received to its end, but not for ever: four times the largest
# message that Exchange sends by default is 150 MB.
MAX_DRAINED = 256 * 1024 * 1024

# Commands that are no errors but bring no message: NOOP, RSET, refused recipients and what follows them.  Five times the
# recipients of a full group; Postfix allows 100 without recipients.
MAX_FRUITLESS = 1000

_PAUSED: Final = (ServerState.SETTLING, ServerState.TLS, ServerState.AUTHENTICATING)

# How the received octets are read in a state.
_LINES: Final = 0
_TOKEN: Final = 1  # one line of an authentication
_DOTTED: Final = 2
_COUNTED: Final = 3
_NOT: Final = 4

# The table as it is walked: what a state allows, where that leads, and how octets are read there.  Neither hashing nor
# looking up a member of an Enum is cheap, and every message makes five steps.
Step: TypeAlias = "tuple[ServerState, dict[str, Step], int]"


def _steps() -> dict[ServerState, Step]:
    reading = dict.fromkeys(ServerState, _LINES)
    reading[ServerState.DATA] = _DOTTED
    reading[ServerState.CHALLENGED] = _TOKEN
    reading |= dict.fromkeys((ServerState.CHUNK, ServerState.LAST_CHUNK), _COUNTED)
    reading |= dict.fromkeys((ServerState.CONNECTED, *_PAUSED, ServerState.CLOSED), _NOT)
    steps: dict[ServerState, Step] = {state: (state, {}, reading[state]) for state in ServerState}
    for (state, what), target in SERVER.items():
        steps[state][1][what] = steps[target]
    return steps


_DATA: Final = ServerState.DATA
_CHUNKS: Final = (ServerState.CHUNK, ServerState.LAST_CHUNK)
_SETTLING: Final = ServerState.SETTLING
_CLOSED: Final = ServerState.CLOSED
RECEIVING: Final = (ServerState.DATA, ServerState.BDAT, *_CHUNKS)  # a message has begun and not ended
_STEPS: Final = _steps()

Trace: TypeAlias = Callable[[str, bytes], None]


class Receiving(ABC):
    """The reading half of `ServerSession`."""

    def __init__(self, settings: ServerSettings, trace: Trace | None) -> None:
        self.settings = settings
        self.state, self._allowed, self._reading = _STEPS[ServerState.CONNECTED]
        self.errors = 0
        self._fruitless = 0  # commands since a message was accepted that are no errors and move nothing
        self.trace = trace
        self._offered: frozenset[str] = frozenset()  # keywords of our EHLO answer
        self._data = b""  # received; what stands before _at is done
        self._at = 0
        self._waiting: list[bytes] = []  # arrived while paused
        self._waiting_size = 0
        self._out: list[bytes] = []
        self._envelope: Envelope | None = None
        self._follow_ups = False  # a command of this transaction was refused; what it pipelined is no error
        self._size = 0  # octets of content so far
        self._dots = DotReader()
        self._refusal: Reply | None = None  # of the content, when its end comes
        self._chunk = 0  # octets to come of the chunk
        self._chunk_size = 0
        self._skip = 0  # octets to come of a chunk that was refused
        self._skip_reply: Reply | None = None
        self._drained = 0
        self._line_skipped = 0  # octets of a line that is too long
        self._closing: Reply | None = None  # to be said once the message is settled

    @abstractmethod
    def _line(self, line: bytes, events: list[ServerEvent]) -> None:
        """A command."""

    @abstractmethod
    def _authentication_line(self, line: bytes, events: list[ServerEvent]) -> None:
        """A line that answers a challenge."""

    @property
    def paused(self) -> bool:
        """Whether the session waits for the program, which should not read meanwhile."""
        return self._reading == _NOT

    @property
    def closed(self) -> bool:
        return self.state is _CLOSED

    def receive(self, data: bytes) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        if self._reading == _NOT:
            self._wait(data, events)
            return events
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0
        self._run(events)
        return events

    def output(self) -> bytes:
        """Everything to send so far, in one piece."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        data = b"".join(out)
        out.clear()
        return data

    def _run(self, events: list[ServerEvent]) -> None:
        """Work off what has been received, until it ends or the program is needed."""
        data = self._data
        size = len(data)
        while self._at < size:
            reading = self._reading
            if reading <= _TOKEN:
                at = self._at
                if self._skip:
                    self._skip_chunk(events)
                    continue
                end = data.find(b"\r\n", at)
                if end < 0 or self._line_skipped:
                    if not self._partial_line(end, events):
                        break
                elif end - at > MAX_COMMAND_LINE - 2 and not self._may_be_long(at):
                    self._line_skipped = 1
                else:
                    self._at = end + 2
                    if reading == _LINES:
                        self._line(data[at:end], events)
                    else:
                        self._authentication_line(data[at:end], events)
            elif reading == _DOTTED:
                if not self._receive_data(events):
                    break
            elif reading == _COUNTED:
                self._receive_chunk(events)
            else:
                break
        if self._at >= size:
            self._data, self._at = b"", 0
        elif self._at * 2 > size:
            # A few octets must not keep a large read alive; copying less than half each time stays cheap.
            self._data, self._at = self._data[self._at :], 0

    def _resume(self, events: list[ServerEvent]) -> list[ServerEvent]:
        if self._waiting and self._reading != _NOT:
            self._data = self._data[self._at :] + b"".join(self._waiting)
            self._at = 0
            self._waiting, self._waiting_size = [], 0
        self._run(events)
        return events

    def _wait(self, data: bytes, events: list[ServerEvent]) -> None:
        if self.state is _CLOSED or not data:
            return
        if self.state is ServerState.CONNECTED:
            raise LocalProtocolError("a greeting comes first")
        if self.state is ServerState.TLS:
            self._injection(events)
            return
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size + len(self._data) - self._at > MAX_WAITING:
            self._close(events, f"more than {MAX_WAITING} octets sent ahead", exchange.TOO_MANY_ERRORS)

    def _may_be_long(self, at: int) -> bool:
        """Whether the line may be as long as an authentication token needs it to be."""
        limit = MAX_AUTHENTICATION_LINE
        if self.state is not ServerState.CHALLENGED and not (
            self._data[at : at + 7].upper().startswith((b"AUTH ", b"X-EXPS "))
            and ("AUTH" in self._offered or "X-EXPS" in self._offered)
        ):
            return False
        end = self._data.find(b"\r\n", at, at + limit)
        return end >= 0 or len(self._data) - at < limit

    def _partial_line(self, end: int, events: list[ServerEvent]) -> bool:
        """A line whose end is not here, or that is being skipped; false when more must be received."""
        data, at = self._data, self._at
        if end < 0:
            if not self._line_skipped:
                if len(data) - at < MAX_COMMAND_LINE or self._may_be_long(at):
                    return False
                self._line_skipped = 1
            kept = 1 if data.endswith(b"\r") else 0
            self._line_skipped += len(data) - kept - at
            self._at = len(data) - kept
        else:
            self._line_skipped += end - at
            self._at = end + 2
        if self._line_skipped > MAX_SKIPPED_LINE:
            self._close(events, f"a line of more than {MAX_SKIPPED_LINE} octets", exchange.TOO_MANY_ERRORS)
        elif end >= 0:
            self._line_skipped = 0
            if self.trace:
                self.trace("<", b"<line too long>")
            self._fault(exchange.LINE_TOO_LONG, events)
            if self.state is ServerState.CHALLENGED:
                self._go("cancelled")
                events.append(AuthenticationCancelled())
        return end >= 0

    # --- content ------------------------------------------------------------------------------------------------------

    def _receive_data(self, events: list[ServerEvent]) -> bool:
        """Take content up to CRLF.CRLF; false when more must be received."""
        piece, self._at, ended = self._dots.take(self._data, self._at)
        if piece:
            self._content(piece, events, lines=True)
        if ended and self.state is _DATA:
            self._end_of_data(events)
        return self.state is not _DATA

    def _content(self, piece: bytes, events: list[ServerEvent], *, lines: bool) -> None:
        self._size += len(piece)
        if self._size > self.settings.max_size:
            self._refuse_content(exchange.MESSAGE_TOO_LARGE, "too large", events)
        elif self._refusal is None:
            if not lines or only_crlf(piece):
                events.append(Content(piece))
                return
            self._refuse_content(exchange.BARE_LINEFEEDS, "bare CR or LF", events)
        self._drained += len(piece)
        if self._drained > MAX_DRAINED:
            self._close(events, "refused message does not end", self._refusal)

    def _refuse_content(self, reply: Reply, reason: str, events: list[ServerEvent]) -> None:
        if self._refusal is None:
            events.append(MessageAborted(reason))
        self._refusal = reply  # of two reasons the size has the last word, however the content was cut

    def _end_of_data(self, events: list[ServerEvent]) -> None:
        if self._refusal is not None:
            self._content_refused(events)
            return
        assert self._envelope is not None
        self._go("end of data")
        events.append(MessageEnds(self._envelope, self._size))

    def _receive_chunk(self, events: list[ServerEvent]) -> None:
        data, at = self._data, self._at
        piece = data[at : at + self._chunk]
        self._at = at + len(piece)
        self._chunk -= len(piece)
        self._content(piece, events, lines=False)
        if not self._chunk and self.state in _CHUNKS:
            self._chunk_complete(events)

    def _chunk_complete(self, events: list[ServerEvent]) -> None:
        if self._refusal is not None:
            self._content_refused(events)
            return
        assert self._envelope is not None
        self._go("chunk complete")
        if self.state is _SETTLING:
            events.append(MessageEnds(self._envelope, self._size))
        else:
            self._reply(exchange.chunk_received(self._chunk_size))

    def _content_refused(self, events: list[ServerEvent]) -> None:
        assert self._refusal is not None
        self._reply(self._refusal)
        self._end_transaction("content refused")
        self._follow_ups = True  # more chunks may be on their way
        self._close_if_wanted(events)

    def _skip_chunk(self, events: list[ServerEvent]) -> None:
        taken = min(self._skip, len(self._data) - self._at)
        self._at += taken
        self._skip -= taken
        self._drained += taken
        if self._drained > MAX_DRAINED:
            self._close(events, "refused chunk does not end", self._skip_reply)
        elif not self._skip:
            self._chunk_skipped(events)

    def _chunk_skipped(self, events: list[ServerEvent]) -> None:
        reply, self._skip_reply = self._skip_reply, None
        self._drained = 0
        assert reply is not None
        self._out_of_order(reply, events)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _go(self, what: str) -> None:
        try:
            self.state, self._allowed, self._reading = self._allowed[what]
        except KeyError:
            raise LocalProtocolError(f"{what} while waiting for {self.state.value}") from None

    def _reply(self, reply: Reply) -> None:
        self._put(reply.encode())

    def _put(self, encoded: bytes) -> None:
        """A whole reply, as it is sent."""
        self._out.append(encoded)
        if self.trace:
            self.trace(">", encoded[:-2])

    def _fault(self, reply: Reply, events: list[ServerEvent]) -> None:
        """Answer an error of the peer, and close when it makes too many."""
        self._reply(reply)
        self.errors += 1
        if self.errors >= self.settings.max_errors and self.state is not _CLOSED:
            self._close(events, "too many errors", exchange.TOO_MANY_ERRORS)

    def _out_of_order(self, reply: Reply, events: list[ServerEvent]) -> None:
        """A command of a transaction at the wrong time: an error, unless it only follows one that was refused."""
        if self.state is ServerState.GREETED:
            self._fault(exchange.SEND_HELLO_FIRST, events)
        elif self.state is ServerState.BDAT:
            self._fault(exchange.BAD_SEQUENCE, events)
        elif self._follow_ups:
            self._refuse(reply, events)
        else:
            self._fault(reply, events)

    def _refuse(self, reply: Reply, events: list[ServerEvent]) -> None:
        """Answer a command that was understood and is not done."""
        self._reply(reply)
        self._no_fruit(events)

    def _no_fruit(self, events: list[ServerEvent]) -> None:
        self._fruitless += 1
        if self._fruitless > MAX_FRUITLESS:
            self._close(events, "too many commands without a message", exchange.TOO_MANY_ERRORS)

    def _end_transaction(self, what: str) -> None:
        self._go(what)
        self._envelope = None
        self._follow_ups = False
        self._refusal = None

    def _abort(self, reason: str, events: list[ServerEvent]) -> None:
        """Tell of the end of a message whose content had begun."""
        if self._refusal is None and self.state in RECEIVING:
            events.append(MessageAborted(reason))

    def _close_if_wanted(self, events: list[ServerEvent]) -> None:
        if self._closing is not None:
            self._close(events, "shutting down", self._closing)

    def _injection(self, events: list[ServerEvent]) -> None:
        reply: Reply | None = exchange.COMMANDS_BEHIND_TLS_VERB
        if self.state is ServerState.TLS:
            if self._out:
                self._out.pop()  # the 220 has not left yet: take it back
            else:
                reply = None  # it has, and behind it nothing more can be said in clear
        self._close(events, "input behind a TLS verb", reply)

    def _close(self, events: list[ServerEvent], reason: str, reply: Reply | None) -> None:
        if self.state is _CLOSED:
            return
        self._abort(reason, events)
        if reply is not None:
            self._reply(reply)
        self._go("closed")
        self._data, self._at, self._skip, self._envelope = b"", 0, 0, None
        self._waiting, self._waiting_size = [], 0
        events.append(ServerClosed(reason))
