"""The sending session: bytes in, events out.

The program does this::

    session = ClientSession(ClientSettings(hello="ex1.contoso.example"))
    on data:  for event in session.receive(data): ...;  then write what `output` gives until it gives nothing

`Ready` comes after each EHLO.  Then `start_tls`, `authenticate`, or `send` as many messages as there are, and `quit`.
Nothing is sent before the program has seen `Ready`, so nothing leaves in clear that waits for TLS.

Where the peer offers PIPELINING, MAIL, RCPT and DATA leave as one group, and the next message's group leaves behind
the end of the one before.  With CHUNKING a message needs no round trip at all: BDAT and content follow RCPT.

What is said and how its answer is read stand together here, because they must agree; a message on its way is in
`outgoing`.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec

from anontls.smtp import syntax
from anontls.smtp.authentication import AuthenticatingClient
from anontls.smtp.content import Needs
from anontls.smtp.errors import LocalProtocolError, RemoteProtocolError
from anontls.smtp.events import (
    ClientClosed,
    ClientEvent,
    Ready,
    RecipientAnswered,
    Refused,
    Rejected,
    StartTlsNow,
    TlsRefused,
)
from anontls.smtp.exchange import TlsVerb
from anontls.smtp.outgoing import MAX_UNASKED, OUTPUT_SLICE, Content, Message, Unsendable, prepare
from anontls.smtp.reply import Reply, ReplyReader
from anontls.smtp.states import CLIENT, ClientState, MessageState
from anontls.smtp.syntax import Envelope

# Messages on their way without a verdict.  Enough to hide a round trip: 16 of 4 KiB are a full TCP window.
MAX_WINDOW = 16

Trace: TypeAlias = Callable[[str, bytes], None]


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one side introduces itself and what it uses of what is offered."""

    hello: str
    lmtp: bool = False
    allow_helo: bool = False
    require_tls: bool = False  # `send` before TLS is a fault of the program
    pipelining: bool = True
    chunking: bool = True
    window: int = MAX_WINDOW


class _Wants(enum.Enum):
    """What the next reply answers."""

    GREETING = enum.auto()
    HELLO = enum.auto()
    TLS = enum.auto()
    AUTH = enum.auto()
    RSET = enum.auto()
    QUIT = enum.auto()
    MAIL = enum.auto()
    RCPT = enum.auto()
    DATA = enum.auto()
    CHUNK = enum.auto()
    END = enum.auto()


class ClientSession(AuthenticatingClient):
    """One sending session.  Only RemoteProtocolError may escape `receive`, whatever the bytes."""

    def __init__(self, settings: ClientSettings, *, trace: Trace | None = None) -> None:
        if not syntax.valid_hello(settings.hello):
            raise LocalProtocolError(f"no name for EHLO: {settings.hello!r}")
        super().__init__()
        self.settings = settings
        self.state = ClientState.GREETING
        self.tls: TlsVerb | None = None
        self.greeting: Reply | None = None
        self._trace = trace
        self._reader = ReplyReader()
        self._wanted: deque[tuple[_Wants, Message | None]] = deque([(_Wants.GREETING, None)])
        self._out: list[bytes] = []
        self._size = 0  # octets in it
        self._queue: deque[Message] = deque()
        self._current: Message | None = None  # not sent whole yet
        self._writing: Iterator[tuple[bytes, bool]] | None = None  # its content: the rest, and whether it is the last
        self._unsettled: list[Message] = []  # begun, without a verdict
        self._reset = False  # RSET before the next MAIL
        self._quitting = False
        self._verb: TlsVerb = "STARTTLS"
        self._hello_verb = "LHLO" if settings.lmtp else "EHLO"
        self._late: list[ClientEvent] = []  # happened while sending

    # --- what the program calls ---------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the connection is to be closed.  If `output` brought that about, `eof` says why."""
        return self.state is ClientState.CLOSED

    @property
    def idle(self) -> bool:
        """Ready, and no message on its way."""
        return self.state is ClientState.READY and not self._unsettled and not self._queue

    @property
    def room(self) -> int:
        """Messages that may be queued now and hide a round trip.

        With CHUNKING a window.  With DATA and PIPELINING one that is sent, and two whose commands leave with it.
        """
        if self.state is not ClientState.READY or self._quitting:
            return 0
        window = self.settings.window if self._chunking else 3 if self._pipelining else 1
        return max(0, window - len(self._unsettled) - len(self._queue))

    def receive(self, data: bytes) -> list[ClientEvent]:
        """What the bytes mean; a fault in them raises RemoteProtocolError, which has the events before it."""
        events, self._late = self._late, []
        if self.closed:
            return events
        try:
            if self.state is ClientState.TLS and data:
                raise RemoteProtocolError("the peer speaks in clear where TLS should start")
            replies = self._reader.receive(data)
            for number, reply in enumerate(replies, 1):
                if not self._answer(reply, events, last=number == len(replies)):
                    return events
            if self._reader.fault is not None:
                raise self._reader.fault
        except RemoteProtocolError as error:
            self._close(None, events)
            error.events = tuple(events)
            raise
        return events

    def output(self) -> bytes:
        """The next bytes to send, about OUTPUT_SLICE at most; empty when there is nothing to send now."""
        if self.state is ClientState.READY:
            self._pump()
        out = self._out
        self._size = 0
        if len(out) == 1:
            return out.pop()
        data = b"".join(out)
        out.clear()
        return data

    def start_tls(self, verb: TlsVerb) -> None:
        """Ask for TLS; `StartTlsNow` or `TlsRefused` follows."""
        self._nothing_awaited(verb)
        if verb not in self.extensions:
            raise LocalProtocolError(f"the peer does not offer {verb}")
        self._go(f"send {verb}")
        self._verb = verb
        self._command(verb.encode(), _Wants.TLS)

    def tls_established(self) -> None:
        """The handshake is done: forget what was learnt in clear, and greet again [RFC3207 4.2]."""
        self._go("TLS established")
        self.tls = self._verb
        self.extensions = {}
        self._reader = ReplyReader()
        self._hello()

    def send(self, envelope: Envelope, content: Content, need: Needs | None = None) -> list[ClientEvent]:
        """Queue a message.  One that this peer cannot be given is refused here and now, and nothing of it is sent.

        ``content`` is the whole message, or its pieces.  Pieces are looked at only as they are sent; ``envelope.body``
        says what they may hold, and pieces that hold more end the connection, because a message cannot be taken back.
        ``need`` is what a whole message asks of a peer, where that is known.
        """
        if (self.state, "send message") not in CLIENT or self._quitting:
            raise LocalProtocolError(f"a message while waiting for {self.state.value}")
        if self.settings.require_tls and self.tls is None:
            raise LocalProtocolError("a message in clear")
        refusal, message = prepare(envelope, content, self.extensions, need, chunked=self._chunking)
        if refusal is not None:
            return [Rejected(envelope, "local", refusal, (refusal,) * len(envelope.recipients))]
        self._queue.append(message)
        return []

    def quit(self) -> None:
        """QUIT once all messages have been sent."""
        if self.state is ClientState.REFUSED:
            self._send_quit()
        elif self.state is ClientState.READY:
            self._quitting = True
        elif self.state not in (ClientState.QUIT, ClientState.CLOSED):
            raise LocalProtocolError(f"QUIT while waiting for {self.state.value}")

    def eof(self) -> list[ClientEvent]:
        """The connection is gone."""
        events, self._late = self._late, []
        self._close(None, events)
        return events

    def _nothing_awaited(self, verb: str) -> None:
        if not self.idle or self._quitting or self._wanted:
            raise LocalProtocolError(f"{verb} while waiting for {self.state.value}")

    @property
    def _chunking(self) -> bool:
        return self.settings.chunking and "CHUNKING" in self.extensions

    @property
    def _pipelining(self) -> bool:
        return self.settings.pipelining and "PIPELINING" in self.extensions

    # --- sending ------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Put out what may be sent now, up to about OUTPUT_SLICE."""
        pipelining = self._pipelining
        while self._size < OUTPUT_SLICE:
            message = self._current
            if message is None:
                if self._wanted and (not pipelining or len(self._unsettled) >= self.settings.window):
                    return
                if not self._queue:
                    if self._quitting:
                        self._send_quit()
                    return
                if self._unsettled and self._unsettled[-1].state is not MessageState.DONE and self._chunking:
                    # Whether the message before left a transaction open is not known yet.
                    self._reset = True
                if self._reset:
                    self._reset = False
                    self._command(b"RSET", _Wants.RSET)
                    if not pipelining:
                        return
                message = self._current = self._queue.popleft()
                self._unsettled.append(message)
            if not self._advance(message, pipelining):
                return

    def _advance(self, message: Message, pipelining: bool) -> bool:
        """Send the next part of a message; false when an answer is awaited first."""
        if message.outstanding and not pipelining:
            return False
        if message.state is MessageState.QUEUED:
            message.go("send MAIL")
            self._command(message.mail_line, _Wants.MAIL, message)
            if not pipelining:
                return True
        if message.state is MessageState.ENVELOPE:
            return self._send_envelope(message, pipelining)
        if message.state is MessageState.CONTENT:
            self._send_content(message)
            return True
        return False

    def _send_envelope(self, message: Message, pipelining: bool) -> bool:
        recipients = message.envelope.recipients
        if message.rcpt_sent < len(recipients):
            dsn = "DSN" in self.extensions
            utf8 = b" SMTPUTF8" in message.mail_line
            for recipient in recipients[message.rcpt_sent :] if pipelining else [recipients[message.rcpt_sent]]:
                line = f"RCPT TO:<{recipient.address}>"
                if dsn and recipient.notify is not None:
                    line += f" NOTIFY={recipient.notify}"
                if dsn and recipient.orcpt is not None and (utf8 or recipient.orcpt.isascii()):
                    line += f" ORCPT={recipient.orcpt}"
                message.rcpt_sent += 1
                self._command(line.encode(), _Wants.RCPT, message)
            if not pipelining or self._size >= OUTPUT_SLICE:
                return True
        if not message.chunked:
            message.go("send DATA")
            self._command(b"DATA", _Wants.DATA, message)
            return False
        if message.outstanding and (message.size is None or message.size > MAX_UNASKED):
            return False
        message.go("send BDAT")
        return True

    def _send_content(self, message: Message) -> None:
        """The next piece of the content, or all of it."""
        try:
            if self._writing is None:
                self._writing = message.write()
            piece, last = next(self._writing)
        except Unsendable as fault:
            # Half of it may have been sent, so only closing keeps it from arriving.
            message.failure = ("local", fault.reply)
            message.go("given up")
            self._finish(message, self._late)
            self._close(None, self._late)
            return
        if message.chunked:
            command = b"BDAT %d LAST" % len(piece) if last else b"BDAT %d" % len(piece)
            self._command(command, _Wants.END if last else _Wants.CHUNK, message)
        elif last:
            self._want(_Wants.END, message)
        if piece:
            self._out.append(piece)
            self._size += len(piece)
        if last:
            self._sent(message)

    def _sent(self, message: Message) -> None:
        message.go("end sent")
        message.content = b""
        self._current = self._writing = None

    def _command(
        self, line: bytes, wants: _Wants, message: Message | None = None, *, shown: bytes | None = None
    ) -> None:
        self._out.append(line + b"\r\n")
        self._size += len(line) + 2
        self._want(wants, message)
        if self._trace:
            self._trace(">", line if shown is None else shown)

    def _say_authentication(self, line: bytes, shown: bytes) -> None:
        self._command(line, _Wants.AUTH, shown=shown)

    def _want(self, wants: _Wants, message: Message | None) -> None:
        self._wanted.append((wants, message))
        if message is not None:
            message.outstanding += 1

    def _hello(self) -> None:
        self._command(f"{self._hello_verb} {self.settings.hello}".encode(), _Wants.HELLO)

    def _send_quit(self) -> None:
        self._go("send QUIT")
        self._command(b"QUIT", _Wants.QUIT)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, reply: Reply, events: list[ClientEvent], *, last: bool) -> bool:
        """Take one reply; false when it ends the session."""
        if self._trace:
            self._trace("<", self._shown(reply))
        if not self._wanted:
            if reply.code == 421:  # [RFC5321 3.8] may come at any time
                self._close(reply, events)
                return False
            raise RemoteProtocolError(f"a reply to nothing: {reply}")
        wants, message = self._wanted[0]
        if wants is _Wants.END and message is not None and self._more_to_come(message, reply):
            return True
        self._wanted.popleft()
        if message is None:
            self._session_answer(wants, reply, events, last=last)
        else:
            message.outstanding -= 1
            # 421 before the end of a message says something of the session, and nothing of the message [RFC5321 3.8].
            if message.state is not MessageState.DONE and (reply.code != 421 or wants is _Wants.END):
                self._message_answer(wants, message, reply, events)
        if reply.code == 421:
            self._close(reply, events)
        return not (events and isinstance(events[-1], ClientClosed))

    def _session_answer(self, wants: _Wants, reply: Reply, events: list[ClientEvent], *, last: bool) -> None:
        if wants is _Wants.GREETING:
            self.greeting = reply
            if reply.code == 220:
                self._go("220")
                self._hello()
            else:
                _must_be(reply.code >= 400, "the connection", reply)
                self._go("refused")
                events.append(Refused("greeting", reply))
        elif wants is _Wants.HELLO:
            self._hello_answer(reply, events)
        elif wants is _Wants.TLS:
            if reply.code == 220:
                if not last or self._reader.pending or self._reader.fault is not None:
                    # What came glued to the 220 came in clear and would be believed under TLS.
                    raise RemoteProtocolError(f"replies in clear behind the 220 of {self._verb}")
                self._go("220")
                events.append(StartTlsNow(self._verb))
            else:
                _must_be(reply.code >= 400, "a TLS verb", reply)
                self._go("refused")
                events.append(TlsRefused(self._verb, reply))
        elif wants is _Wants.AUTH:
            self._authentication_answer(reply, events)
        elif wants is _Wants.QUIT:
            self._close(reply, events)
        else:  # RSET
            _must_be(reply.code >= 400 or reply.positive, "RSET", reply)

    def _hello_answer(self, reply: Reply, events: list[ClientEvent]) -> None:
        helo = self.state is ClientState.HELO
        if reply.code == 250:
            self._go("250")
            self.extensions = {} if helo else syntax.parse_extensions(reply.lines[1:])
            events.append(Ready(self.extensions, reply))
            return
        _must_be(reply.code >= 400, self._hello_verb, reply)
        if not helo and self.settings.allow_helo and not self.settings.lmtp and reply.code in _NO_EHLO:
            self._go("refused, HELO allowed")
            self._command(f"HELO {self.settings.hello}".encode(), _Wants.HELLO)
            return
        self._go("refused")
        events.append(Refused("HELO" if helo else self._hello_verb, reply))

    def _more_to_come(self, message: Message, reply: Reply) -> bool:
        """LMTP answers the end of data once for each recipient that RCPT took [RFC2033 4.2]."""
        message.end_replies.append(reply)
        return self.settings.lmtp and len(message.end_replies) < message.accepted and reply.code != 421

    def _message_answer(self, wants: _Wants, message: Message, reply: Reply, events: list[ClientEvent]) -> None:
        positive = reply.code < 300
        if wants is _Wants.DATA:
            self._data_answer(message, reply, events)
            return
        if 300 <= reply.code < 400:
            raise RemoteProtocolError(f"{_ANSWERED[wants]} answered with {reply}")
        if wants is _Wants.MAIL:
            message.mail_ok = positive
            if not positive:
                message.failure = ("MAIL", reply)
        elif wants is _Wants.RCPT:
            recipient = message.envelope.recipients[len(message.rcpt_replies)]
            message.rcpt_replies.append(reply)
            message.accepted += positive
            events.append(RecipientAnswered(message.envelope, recipient, reply))
        elif wants is _Wants.CHUNK:
            if not positive and message.failure is None:
                message.failure = ("BDAT", reply)
        else:
            message.go("answered")
            if not positive and not any(r.positive for r in message.end_replies):
                self._reset = self._reset or message.chunked
            self._finish(message, events)
            return
        if self._hopeless(message):
            self._drop(message, events)

    def _data_answer(self, message: Message, reply: Reply, events: list[ClientEvent]) -> None:
        if reply.code == 354:
            message.go("354")
            if message.failure is not None or not message.accepted:
                # The peer wants content for nobody: an empty message, whatever it says of it.  [RFC2920 3.1]
                if self.settings.lmtp:
                    raise RemoteProtocolError("354 though no recipient was taken")
                self._out.append(b".\r\n")
                self._want(_Wants.END, message)
                self._sent(message)
            return
        _must_be(reply.code >= 400, "DATA", reply)
        if message.failure is None and message.accepted:
            message.failure = ("DATA", reply)
        self._drop(message, events)

    def _hopeless(self, message: Message) -> bool:
        """Whether a message that is being sent can be stopped now."""
        if message is not self._current:
            return False
        if message.state is MessageState.ENVELOPE:
            done = message.rcpt_sent == len(message.rcpt_replies) and not message.outstanding
            everyone = message.rcpt_sent == len(message.envelope.recipients)
            return done and (message.failure is not None or (everyone and not message.accepted))
        return message.state is MessageState.CONTENT and message.chunked and message.failure is not None

    def _drop(self, message: Message, events: list[ClientEvent]) -> None:
        """End a message that has not been sent whole."""
        if message.mail_ok:
            self._reset = True
        self._current = self._writing = None
        message.go("given up")
        self._finish(message, events)

    def _finish(self, message: Message, events: list[ClientEvent]) -> None:
        self._unsettled.remove(message)
        message.content = b""
        events.append(message.verdict(lmtp=self.settings.lmtp))

    def _go(self, what: str) -> None:
        try:
            self.state = CLIENT[self.state, what]
        except KeyError:
            raise LocalProtocolError(f"{what} while waiting for {self.state.value}") from None

    def _close(self, reply: Reply | None, events: list[ClientEvent]) -> None:
        if self.closed:
            return
        self._go("closed")
        uncertain = tuple(m.envelope for m in self._unsettled if m.state is MessageState.ENDED)
        others = [*(m for m in self._unsettled if m.state is not MessageState.ENDED), *self._queue]
        self._out.clear()
        self._wanted.clear()
        self._queue.clear()
        self._unsettled.clear()
        self._current = self._writing = None
        unanswered = tuple(m.envelope for m in others)
        events.append(ClientClosed(reply, uncertain + unanswered, uncertain))


# What a reply to a message answers, in words.
_ANSWERED: Final = {
    _Wants.MAIL: "MAIL",
    _Wants.RCPT: "RCPT",
    _Wants.CHUNK: "BDAT",
    _Wants.END: "the end of data",
}

# Answers to EHLO that mean "no such command".  [RFC5321 4.1.4]
_NO_EHLO: Final = frozenset({500, 501, 502, 504})


def _must_be(expected: bool, command: str, reply: Reply) -> None:
    if not expected:
        raise RemoteProtocolError(f"{command} answered with {reply}")
