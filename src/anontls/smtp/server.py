"""The receiving session: bytes in, events out.

The program (a Receive connector's loop) does this::

    session = ServerSession(settings, peer="192.0.2.7", recipient=may_receive)
    session.greeting(now);  write(session.output())
    on data:     events = session.receive(data);  handle each;  write(session.output())
    while session.paused: do not read; something of ours is awaited, see the event that paused it

`MessageEnds` wants `settle`, `StartTls` wants `tls_established`, `Authenticate` and `AuthenticationResponse` want
`continue_authentication` or `authenticated`.  What the peer has pipelined meanwhile waits; these calls go on with it
and return its events.  All answers to one group of commands leave with one `output`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TypeAlias

from anontls.smtp import exchange, syntax
from anontls.smtp.content import DotReader, only_crlf
from anontls.smtp.errors import LocalProtocolError
from anontls.smtp.events import (
    Authenticate,
    AuthenticationCancelled,
    AuthenticationResponse,
    Content,
    Hello,
    MessageAborted,
    MessageBegins,
    MessageEnds,
    ServerClosed,
    ServerEvent,
    StartTls,
)
from anontls.smtp.exchange import ServerSettings, TlsVerb
from anontls.smtp.reply import Reply
from anontls.smtp.states import SERVER, ServerState
from anontls.smtp.syntax import MAX_AUTHENTICATION_LINE, MAX_COMMAND_LINE, Envelope, Recipient, SyntaxFault

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

# Digits of a chunk size; [RFC3030 2] gives no limit, SIZE has 20 digits, and nobody has a chunk of 10^15 octets.
MAX_CHUNK_DIGITS = 15


# --- the session ------------------------------------------------------------------------------------------------------

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


_GREETED: Final = ServerState.GREETED
_HELLO: Final = ServerState.HELLO
_RCPT: Final = ServerState.RCPT
_DATA: Final = ServerState.DATA
_CHUNKS: Final = (ServerState.CHUNK, ServerState.LAST_CHUNK)
_SETTLING: Final = ServerState.SETTLING
_CLOSED: Final = ServerState.CLOSED
_STEPS: Final = _steps()

_SENDER_OK: Final = exchange.SENDER_OK.encode()
_RECIPIENT_OK: Final = exchange.RECIPIENT_OK.encode()
_START_MAIL_INPUT: Final = exchange.START_MAIL_INPUT.encode()

SenderCheck: TypeAlias = "Callable[[ServerSession, Envelope], Reply | None]"
RecipientCheck: TypeAlias = "Callable[[ServerSession, Recipient], Reply | None]"
Trace: TypeAlias = Callable[[str, bytes], None]


class ServerSession:
    """One receiving session.  Only RemoteProtocolError may escape `receive`, whatever the bytes.

    ``recipient`` (and ``sender``) answer a path: None accepts with Exchange's text.  ``trace`` hears each line as
    ``("<" or ">", line)`` without its CRLF, tokens of an authentication left out.

    ``exchange_server`` is the right to relay to any recipient.  The session never sets it; TLS and every EHLO or HELO
    take it away, because it was given to a name and a channel.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        peer: str,
        recipient: RecipientCheck,
        sender: SenderCheck | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.settings = settings
        self.peer = peer
        self.state, self._allowed, self._reading = _STEPS[ServerState.CONNECTED]
        self.tls: TlsVerb | None = None
        self.hello: str | None = None
        self.esmtp = False
        self.authenticated_as: str | None = None
        self.exchange_server = False
        self.errors = 0
        self._fruitless = 0  # commands since a message was accepted that are no errors and move nothing
        self._require_tls = settings.require_tls
        self._require_authentication = settings.require_authentication
        self._recipient = recipient
        self._sender = sender
        self._trace = trace
        self._offered: frozenset[str] = frozenset()
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

    # --- what the program calls ---------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether the session waits for the program, which should not read meanwhile."""
        return self._reading == _NOT

    @property
    def closed(self) -> bool:
        return self.state is _CLOSED

    @property
    def envelope(self) -> Envelope | None:
        """The transaction in progress."""
        return self._envelope

    def greeting(self, at: datetime | None = None) -> None:
        """Say the banner; ``at`` is its date."""
        self._go("220")
        self._reply(exchange.banner(self.settings.fqdn, at))

    def refuse(self, reply: Reply) -> list[ServerEvent]:
        """Say no instead of a greeting (too many sessions), and close."""
        events: list[ServerEvent] = []
        self._close(events, str(reply), reply)
        return events

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

    def settle(self, reply: Reply) -> list[ServerEvent]:
        """The program's answer to a whole message."""
        events: list[ServerEvent] = []
        if self.state is _CLOSED:
            return events
        self._must(_SETTLING)
        self._reply(reply)
        self._end_transaction("settled")
        if reply.positive:
            self._fruitless = 0
        self._close_if_wanted(events)
        return self._resume(events)

    def tls_established(self, *, anonymous: bool) -> list[ServerEvent]:
        """The handshake is done; all that was learnt in clear is forgotten [RFC3207 4.2]."""
        events: list[ServerEvent] = []
        if self.state is _CLOSED:
            return events
        self._must(ServerState.TLS)
        self._go("TLS established")
        self.tls = "X-ANONYMOUSTLS" if anonymous else "STARTTLS"
        self.hello, self.esmtp, self._offered = None, False, frozenset()
        self.authenticated_as, self.exchange_server = None, False
        self._envelope = None
        return events

    def continue_authentication(self, challenge: bytes) -> list[ServerEvent]:
        """Send a challenge; `AuthenticationResponse` follows."""
        events: list[ServerEvent] = []
        if self.state is _CLOSED:
            return events
        self._must(ServerState.AUTHENTICATING)
        self._go("334")
        self._out.append(b"334 " + base64.b64encode(challenge) + b"\r\n")
        if self._trace:
            self._trace(">", b"334 <authentication response>")  # [FACT O 3.4]
        return self._resume(events)

    def authenticated(
        self, who: str | None, reply: Reply = exchange.AUTHENTICATED, *, exchange_server: bool = False
    ) -> list[ServerEvent]:
        """End an authentication: ``who`` it is, or None with a reply that says no."""
        if (who is None) is reply.positive:
            raise LocalProtocolError(f"{who or 'nobody'} is authenticated, but the reply is {reply}")
        if exchange_server and (who is None or self.tls is None):
            raise LocalProtocolError("the rights of an Exchange server need a name and TLS")
        events: list[ServerEvent] = []
        if self.state is _CLOSED:
            return events
        self._must(ServerState.AUTHENTICATING)
        if who is not None:
            self._go("authenticated")
            self.authenticated_as, self.exchange_server = who, exchange_server
            self._reply(reply)
        else:
            self._go("not authenticated")
            self._fault(reply, events)
        return self._resume(events)

    def timed_out(self) -> list[ServerEvent]:
        return self._leave("timed out", exchange.CONNECTION_TIMED_OUT)

    def shut_down(self) -> list[ServerEvent]:
        """Close in order: a message on its way is received and settled first."""
        if self.state in (_DATA, _SETTLING, ServerState.BDAT, *_CHUNKS):
            self._closing = exchange.SERVICE_NOT_ACTIVE
            return []
        return self._leave("shutting down", exchange.SERVICE_NOT_ACTIVE)

    def eof(self) -> list[ServerEvent]:
        """The peer has closed.  A message that awaits `settle` was received whole and stays valid."""
        return self._leave("connection closed by the peer", None)

    # --- the loop -----------------------------------------------------------------------------------------------------

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
                        return
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
                    return
            elif reading == _COUNTED:
                self._receive_chunk(events)
            elif self.state is _CLOSED:
                break
            else:
                return
        self._data, self._at = b"", 0

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

    # --- lines --------------------------------------------------------------------------------------------------------

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
            if self._trace:
                self._trace("<", b"<line too long>")
            self._fault(exchange.LINE_TOO_LONG, events)
            if self.state is ServerState.CHALLENGED:
                self._go("cancelled")
                events.append(AuthenticationCancelled())
        return end >= 0

    def _line(self, line: bytes, events: list[ServerEvent]) -> None:
        try:
            text = line.decode("ascii")
        except UnicodeDecodeError:
            text = self._wide(line, events)
            if not text:
                return
        method = _PATHS.get(text[:5])
        if method is None:
            verb = text.partition(" ")[0].upper()
            if self._trace:
                self._trace("<", _without_token(verb, line))
            if not text.isprintable():  # NUL, a bare CR or LF, a tab: what one server skips, the next may obey
                self._fault(exchange.ILLEGAL_CHARACTER, events)
                return
            method = _COMMANDS.get(verb)
            if method is None:
                self._fault(exchange.UNRECOGNIZED_COMMAND, events)
                return
        elif self._trace:
            self._trace("<", line)
        try:
            method(self, text, events)
        except SyntaxFault as fault:
            self._refuse_command(fault.reply if text.isprintable() else exchange.ILLEGAL_CHARACTER, events)

    def _wide(self, line: bytes, events: list[ServerEvent]) -> str:
        """A line beyond ASCII: only paths may be so, and only with SMTPUTF8 [RFC6531 3.4]."""
        head = line[:4].upper()
        reply = exchange.NEEDS_SMTPUTF8 if head in (b"MAIL", b"RCPT") else exchange.ILLEGAL_CHARACTER
        envelope = self._envelope
        if "SMTPUTF8" in self._offered and (
            head == b"MAIL" or (head == b"RCPT" and envelope is not None and envelope.smtputf8)
        ):
            try:
                return line.decode()
            except UnicodeDecodeError:
                reply = exchange.ILLEGAL_CHARACTER
        if self._trace:
            self._trace("<", line)
        self._refuse_command(reply, events)
        return ""

    # --- commands -----------------------------------------------------------------------------------------------------

    def _ehlo(self, text: str, events: list[ServerEvent]) -> None:
        verb, _, name = text.partition(" ")
        name = name.strip(" ")
        if not syntax.valid_hello(name):
            self._fault(exchange.INVALID_DOMAIN_NAME, events)
            return
        self._abort("EHLO", events)
        verb = verb.upper()
        self._end_transaction(verb)
        self.hello, self.esmtp = name, verb == "EHLO"
        self.exchange_server = False
        if self.esmtp:
            keywords = exchange.ehlo_keywords(self.settings, self.tls)
            self._offered = frozenset(keyword.partition(" ")[0] for keyword in keywords)
            self._reply(exchange.ehlo_reply(self.settings, self.peer, self.tls))
        else:
            self._offered = frozenset()
            self._reply(exchange.helo_reply(self.settings, self.peer))
        events.append(Hello(name, self.esmtp))
        self._no_fruit(events)
        self._close_if_wanted(events)

    def _mail(self, text: str, events: list[ServerEvent]) -> None:
        if "MAIL" not in self._allowed:
            self._out_of_order(exchange.SENDER_ALREADY_SPECIFIED, events)
            return
        self._follow_ups = True  # until it has been accepted
        if self._require_tls and self.tls is None:
            self._refuse(exchange.MUST_ISSUE_STARTTLS, events)
            return
        if self._require_authentication and self.authenticated_as is None and not self.exchange_server:
            self._refuse(exchange.CLIENT_NOT_AUTHENTICATED, events)
            return
        address, parameters = syntax.parse_mail(text)
        if parameters is None:
            envelope = Envelope(address, [])
        else:
            envelope = Envelope(address, [], **syntax.mail_parameters(parameters, self._offered))
            if envelope.size is not None and envelope.size > self.settings.max_size:
                self._refuse(exchange.MESSAGE_TOO_LARGE, events)
                return
        if not (envelope.smtputf8 or text.isascii()):
            raise SyntaxFault(exchange.NEEDS_SMTPUTF8)
        answer = self._sender(self, envelope) if self._sender is not None else None
        if answer is not None and not answer.positive:
            self._refuse(answer, events)
            return
        self._envelope, self._follow_ups = envelope, False
        self._go("MAIL")
        if answer is None and not self._trace:
            self._out.append(_SENDER_OK)
        else:
            self._reply(answer or exchange.SENDER_OK)

    def _rcpt(self, text: str, events: list[ServerEvent]) -> None:
        envelope = self._envelope
        if "RCPT" not in self._allowed or envelope is None:
            self._out_of_order(exchange.NEED_MAIL_COMMAND, events)
            return
        self._follow_ups = True  # a group goes on with DATA whatever becomes of its recipients
        address, parameters = syntax.parse_rcpt(text)
        recipient = Recipient(address)
        if parameters is not None:
            recipient = Recipient(address, **syntax.rcpt_parameters(parameters, self._offered))
        if len(envelope.recipients) >= self.settings.max_recipients:
            self._refuse(exchange.TOO_MANY_RECIPIENTS, events)
            return
        answer = self._recipient(self, recipient)
        if answer is not None and not answer.positive:
            self._refuse(answer, events)
            return
        envelope.recipients.append(recipient)
        if self.state is not _RCPT:
            self._go("RCPT")
        if answer is None and not self._trace:
            self._out.append(_RECIPIENT_OK)
        else:
            self._reply(answer or exchange.RECIPIENT_OK)

    def _data_command(self, text: str, events: list[ServerEvent]) -> None:
        if self._at < len(self._data):
            # DATA is the last of its group [RFC2920 3.1]: what follows was written without knowing the answer, and
            # would be content after one answer and commands after another.
            self._fault(exchange.INPUT_BEHIND_DATA, events)
            self._close(events, "input behind DATA", None)
            return
        envelope = self._envelope
        if "DATA" not in self._allowed or envelope is None:
            self._out_of_order(exchange.NEED_MAIL_COMMAND if envelope is None else exchange.NEED_RCPT_COMMAND, events)
            return
        if len(text) > 4 and text.rstrip(" ")[4:]:
            self._fault(exchange.INVALID_ARGUMENTS, events)
            return
        if envelope.body == "BINARYMIME":  # [RFC3030 3]
            self._fault(exchange.BINARYMIME_NEEDS_BDAT, events)
            return
        self._go("DATA")
        self._dots.begin()
        self._size, self._drained, self._refusal = 0, 0, None
        events.append(MessageBegins(envelope))
        if self._trace:
            self._reply(exchange.START_MAIL_INPUT)
        else:
            self._out.append(_START_MAIL_INPUT)

    def _bdat(self, text: str, events: list[ServerEvent]) -> None:
        words = text.upper().split()
        size = words[1] if len(words) > 1 else ""
        if not (size.isascii() and size.isdigit() and len(size) <= MAX_CHUNK_DIGITS and words[2:] in ([], ["LAST"])):
            # A chunk of unknown size follows; nothing behind it can be told from its octets.
            self._fault(exchange.INVALID_CHUNK_SIZE, events)
            self._close(events, "chunk of unknown size", None)
            return
        octets, last = int(size), len(words) == 3
        envelope = self._envelope
        what = "BDAT LAST" if last else "BDAT"
        if what not in self._allowed or envelope is None or "CHUNKING" not in self._offered:
            # The octets come whatever we say, so they are taken first and answered then.  [RFC3030 2]
            self._skip = octets
            self._skip_reply = (
                exchange.UNRECOGNIZED_COMMAND
                if self.esmtp and "CHUNKING" not in self._offered
                else exchange.NEED_MAIL_COMMAND
                if envelope is None
                else exchange.NEED_RCPT_COMMAND
            )
            if not octets:
                self._chunk_skipped(events)
            return
        if self.state is not ServerState.BDAT:
            self._size, self._drained, self._refusal = 0, 0, None
            events.append(MessageBegins(envelope))
        self._go(what)
        self._chunk = self._chunk_size = octets
        if self._size + octets > self.settings.max_size:
            self._refuse_content(exchange.MESSAGE_TOO_LARGE, "too large", events)
        if not octets:
            self._chunk_complete(events)

    def _rset(self, text: str, events: list[ServerEvent]) -> None:
        if self._no_arguments(text, events):
            self._abort("RSET", events)
            self._end_transaction("RSET")
            self._reply(exchange.RESET)
            self._no_fruit(events)
            self._close_if_wanted(events)

    def _noop(self, text: str, events: list[ServerEvent]) -> None:
        self._reply(exchange.OK)  # with any argument [RFC5321 4.1.1.9]
        self._no_fruit(events)

    def _vrfy(self, text: str, events: list[ServerEvent]) -> None:
        self._reply(exchange.CANNOT_VERIFY)  # the same for everybody: nothing is disclosed [RFC5321 7.3]
        self._no_fruit(events)

    def _expn(self, text: str, events: list[ServerEvent]) -> None:
        self._reply(exchange.COMMAND_NOT_IMPLEMENTED)
        self._no_fruit(events)

    def _help(self, text: str, events: list[ServerEvent]) -> None:
        self._reply(exchange.help_reply())
        self._no_fruit(events)

    def _quit(self, text: str, events: list[ServerEvent]) -> None:
        if self._no_arguments(text, events):
            self._close(events, "QUIT", exchange.CLOSING)

    def _start_tls(self, text: str, events: list[ServerEvent]) -> None:
        verb: TlsVerb = "STARTTLS" if text[:1] in "sS" else "X-ANONYMOUSTLS"
        offered = self.settings.starttls if verb == "STARTTLS" else self.settings.anonymous_tls
        if self._at < len(self._data):
            # What stands behind the verb came in clear and would be obeyed under TLS.
            self._injection(events)
        elif self.state is _GREETED:
            self._fault(exchange.SEND_HELLO_FIRST, events)
        elif self.tls is not None:
            self._fault(exchange.ALREADY_UNDER_TLS, events)
        elif not offered or not self.esmtp:
            self._fault(exchange.UNRECOGNIZED_COMMAND, events)
        elif verb not in self._allowed:
            self._fault(exchange.BAD_SEQUENCE, events)
        elif self._no_arguments(text, events):
            self._reply(exchange.SERVER_READY_FOR_TLS)
            self._go(verb)
            events.append(StartTls(verb))

    # --- authentication -----------------------------------------------------------------------------------------------

    def _authenticate(self, text: str, events: list[ServerEvent]) -> None:
        words = text.split()
        verb = words[0].upper()
        if self.state is _GREETED:
            self._fault(exchange.SEND_HELLO_FIRST, events)
            return
        if verb not in self._offered:
            self._fault(exchange.UNRECOGNIZED_COMMAND, events)
            return
        if self.authenticated_as is not None:
            self._fault(exchange.ALREADY_AUTHENTICATED, events)
            return
        if verb not in self._allowed:
            self._fault(exchange.BAD_SEQUENCE, events)
            return
        mechanisms = (exchange.auth_mechanisms if verb == "AUTH" else exchange.exps_mechanisms)(self.settings, self.tls)
        mechanism = words[1].upper() if len(words) > 1 else ""
        if mechanism not in mechanisms:
            self._fault(exchange.UNRECOGNIZED_AUTHENTICATION if mechanism else exchange.INVALID_ARGUMENTS, events)
            return
        variant = None
        if verb == "X-EXPS" and mechanism == "EXCHANGEAUTH":
            if len(words) < 3 or words[2].upper() != "SHA256":
                self._fault(exchange.UNRECOGNIZED_AUTHENTICATION, events)
                return
            variant = words.pop(2).upper()
        if len(words) > 3:
            self._fault(exchange.INVALID_ARGUMENTS, events)
            return
        initial = None
        if len(words) == 3:
            initial = b"" if words[2] == "=" else _decode(words[2].encode("ascii"))  # [RFC4954 4]
            if initial is None:
                self._fault(exchange.CANNOT_DECODE, events)
                return
        self._go(verb)
        events.append(Authenticate(verb, mechanism, variant, initial))

    def _authentication_line(self, line: bytes, events: list[ServerEvent]) -> None:
        if self._trace:
            self._trace("<", b"<authentication response>")
        data = None if line == b"*" else _decode(line)
        if data is None:
            self._go("cancelled")
            self._fault(exchange.AUTHENTICATION_CANCELLED if line == b"*" else exchange.CANNOT_DECODE, events)
            events.append(AuthenticationCancelled())
        else:
            self._go("response")
            events.append(AuthenticationResponse(data))

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

    # --- small steps --------------------------------------------------------------------------------------------------

    def _go(self, what: str) -> None:
        try:
            self.state, self._allowed, self._reading = self._allowed[what]
        except KeyError:
            raise LocalProtocolError(f"{what} while waiting for {self.state.value}") from None

    def _must(self, state: ServerState) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"the session waits for {self.state.value}, not for {state.value}")

    def _reply(self, reply: Reply) -> None:
        encoded = reply.encode()
        self._out.append(encoded)
        if self._trace:
            self._trace(">", encoded[:-2])

    def _fault(self, reply: Reply, events: list[ServerEvent]) -> None:
        """Answer an error of the peer, and close when it makes too many."""
        self._reply(reply)
        self.errors += 1
        if self.errors >= self.settings.max_errors and self.state is not _CLOSED:
            self._close(events, "too many errors", exchange.TOO_MANY_ERRORS)

    def _refuse_command(self, reply: Reply, events: list[ServerEvent]) -> None:
        """Answer a malformed command; a path that is no address is as often a user's error as a program's."""
        if reply in _FAULTS_OF_A_USER:
            self._refuse(reply, events)
        else:
            self._fault(reply, events)

    def _out_of_order(self, reply: Reply, events: list[ServerEvent]) -> None:
        """A command of a transaction at the wrong time: an error, unless it only follows one that was refused."""
        if self.state is _GREETED:
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

    def _close_if_wanted(self, events: list[ServerEvent]) -> None:
        if self._closing is not None:
            self._close(events, "shutting down", self._closing)

    def _no_arguments(self, text: str, events: list[ServerEvent]) -> bool:
        if " " in text.rstrip(" "):
            self._fault(exchange.INVALID_ARGUMENTS, events)
            return False
        return True

    def _end_transaction(self, what: str) -> None:
        self._go(what)
        self._envelope = None
        self._follow_ups = False
        self._refusal = None

    def _abort(self, reason: str, events: list[ServerEvent]) -> None:
        """Tell of the end of a message whose content had begun."""
        if self._refusal is None and self.state in (_DATA, ServerState.BDAT, *_CHUNKS):
            events.append(MessageAborted(reason))

    def _injection(self, events: list[ServerEvent]) -> None:
        reply: Reply | None = exchange.COMMANDS_BEHIND_TLS_VERB
        if self.state is ServerState.TLS:
            if self._out:
                self._out.pop()  # the 220 has not left yet: take it back
            else:
                reply = None  # it has, and behind it nothing more can be said in clear
        self._close(events, "input behind a TLS verb", reply)

    def _leave(self, reason: str, reply: Reply | None) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        if self.state is not _CLOSED:
            self._close(events, reason, None if self.state is ServerState.TLS else reply)
        return events

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


_FAULTS_OF_A_USER: Final = frozenset({exchange.INVALID_SENDER, exchange.INVALID_RECIPIENT, exchange.NEEDS_SMTPUTF8})

_COMMANDS: Final[Mapping[str, Callable[[ServerSession, str, list[ServerEvent]], None]]] = {
    "AUTH": ServerSession._authenticate,
    "BDAT": ServerSession._bdat,
    "DATA": ServerSession._data_command,
    "EHLO": ServerSession._ehlo,
    "EXPN": ServerSession._expn,
    "HELO": ServerSession._ehlo,
    "HELP": ServerSession._help,
    "MAIL": ServerSession._mail,
    "NOOP": ServerSession._noop,
    "QUIT": ServerSession._quit,
    "RCPT": ServerSession._rcpt,
    "RSET": ServerSession._rset,
    "STARTTLS": ServerSession._start_tls,
    "VRFY": ServerSession._vrfy,
    "X-ANONYMOUSTLS": ServerSession._start_tls,
    "X-EXPS": ServerSession._authenticate,
}

# The two commands of every message as nearly everybody writes them; their grammar has no place for
# what is not printable.
_PATHS: Final[Mapping[str, Callable[[ServerSession, str, list[ServerEvent]], None]]] = {
    "MAIL ": ServerSession._mail,
    "RCPT ": ServerSession._rcpt,
}


def _decode(line: bytes) -> bytes | None:
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        return None


def _without_token(verb: str, line: bytes) -> bytes:
    """An authentication command without what proves anything."""
    return b" ".join(line.split()[:2]) if verb.startswith(("AUTH", "X-EXPS")) else line
