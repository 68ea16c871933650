"""The receiving session: bytes in, events out.

The program (a Receive connector's loop) does this::

    session = ServerSession(settings, peer="192.0.2.7", recipient=may_receive)
    session.greeting(now);  write(session.output())
    on data:     events = session.receive(data);  handle each;  write(session.output())
    while session.paused: do not read; something of ours is awaited, see the event that paused it

`MessageEnds` wants `settle`, `StartTls` wants `tls_established`, `Authenticate` and `AuthenticationResponse` want
`continue_authentication` or `authenticated`.  What the peer has pipelined meanwhile waits; these calls go on with it
and return its events.  All answers to one group of commands leave with one `output`.

`Receiving` cuts the octets into lines and content, `AuthenticatingServer` has AUTH and X-EXPS.  Here stand what the
program calls and a method for each other verb, which makes the file long; their order is that of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TypeAlias

from anontls.smtp import exchange, syntax
from anontls.smtp.authentication import AuthenticatingServer, without_token
from anontls.smtp.events import (
    Hello,
    MessageBegins,
    ServerEvent,
    StartTls,
)
from anontls.smtp.exchange import ServerSettings, TlsVerb
from anontls.smtp.receiving import RECEIVING, Trace
from anontls.smtp.reply import Reply
from anontls.smtp.states import ServerState
from anontls.smtp.syntax import Envelope, Recipient, SyntaxFault

# Digits of a chunk size; [RFC3030 2] gives no limit, SIZE has 20 digits, and nobody has a chunk of 10^15 octets.
MAX_CHUNK_DIGITS = 15


# Looking up a member of an Enum is slow; these stand on the way of every message.
_GREETED: Final = ServerState.GREETED
_RCPT: Final = ServerState.RCPT
_CLOSED: Final = ServerState.CLOSED

_SENDER_OK: Final = exchange.SENDER_OK.encode()
_RECIPIENT_OK: Final = exchange.RECIPIENT_OK.encode()
_START_MAIL_INPUT: Final = exchange.START_MAIL_INPUT.encode()

SenderCheck: TypeAlias = "Callable[[ServerSession, Envelope], Reply | None]"
RecipientCheck: TypeAlias = "Callable[[ServerSession, Recipient], Reply | None]"


class ServerSession(AuthenticatingServer):
    """One receiving session.  Only RemoteProtocolError may escape `receive`, whatever the bytes.

    ``recipient`` (and ``sender``) answer a path: None accepts with Exchange's text.  ``trace`` hears each line as
    ``("<" or ">", line)`` without its CRLF, tokens of an authentication left out; it may be replaced at any time.

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
        super().__init__(settings, trace)
        self.peer = peer
        self.hello: str | None = None
        self.esmtp = False
        self._require_tls = settings.require_tls
        self._require_authentication = settings.require_authentication
        self._recipient = recipient
        self._sender = sender

    # --- what the program calls ---------------------------------------------------------------------------------------

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

    def settle(self, reply: Reply) -> list[ServerEvent]:
        """The program's answer to a whole message."""
        events: list[ServerEvent] = []
        if self.state is _CLOSED:
            return events
        self._must(ServerState.SETTLING)
        self._reply(reply)
        self._end_transaction("settled")
        if reply.positive:
            self._fruitless = 0
        if self._closing is not None:
            self._close_if_wanted(events)
        elif self._data or self._waiting:
            self._resume(events)
        return events

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

    def timed_out(self) -> list[ServerEvent]:
        return self._leave("timed out", exchange.CONNECTION_TIMED_OUT)

    def shut_down(self) -> list[ServerEvent]:
        """Close in order: a message on its way is received and settled first."""
        if self.state in RECEIVING or self.state is ServerState.SETTLING:
            self._closing = exchange.SERVICE_NOT_ACTIVE
            return []
        return self._leave("shutting down", exchange.SERVICE_NOT_ACTIVE)

    def eof(self) -> list[ServerEvent]:
        """The peer has closed.  A message that awaits `settle` was received whole and stays valid."""
        return self._leave("connection closed by the peer", None)

    # --- lines --------------------------------------------------------------------------------------------------------

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
            if self.trace:
                self.trace("<", without_token(verb, line))
            if not text.isprintable():  # NUL, a bare CR or LF, a tab: what one server skips, the next may obey
                self._fault(exchange.ILLEGAL_CHARACTER, events)
                return
            method = _COMMANDS.get(verb)
            if method is None:
                self._fault(exchange.UNRECOGNIZED_COMMAND, events)
                return
        elif self.trace:
            self.trace("<", line)
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
        if self.trace:
            self.trace("<", line)
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
            self._offered = exchange.offered(self.settings, self.tls)
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
        if answer is None:
            self._put(_SENDER_OK)
        else:
            self._reply(answer)

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
        if answer is None:
            self._put(_RECIPIENT_OK)
        else:
            self._reply(answer)

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
        events.append(MessageBegins(envelope, lines=True))
        self._put(_START_MAIL_INPUT)

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
            events.append(MessageBegins(envelope, lines=False))
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
        self._reply(exchange.help_reply(self.settings, self.tls))
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

    # --- small steps --------------------------------------------------------------------------------------------------

    def _refuse_command(self, reply: Reply, events: list[ServerEvent]) -> None:
        """Answer a malformed command; a path that is no address is as often a user's error as a program's."""
        if reply in _FAULTS_OF_A_USER:
            self._refuse(reply, events)
        else:
            self._fault(reply, events)

    def _no_arguments(self, text: str, events: list[ServerEvent]) -> bool:
        if " " in text.rstrip(" "):
            self._fault(exchange.INVALID_ARGUMENTS, events)
            return False
        return True

    def _leave(self, reason: str, reply: Reply | None) -> list[ServerEvent]:
        events: list[ServerEvent] = []
        if self.state is not _CLOSED:
            self._close(events, reason, None if self.state is ServerState.TLS else reply)
        return events


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

# The commands of every message as nearly everybody writes them; their grammar has no place for what is not printable.
_PATHS: Final[Mapping[str, Callable[[ServerSession, str, list[ServerEvent]], None]]] = {
    "DATA": ServerSession._data_command,
    "MAIL ": ServerSession._mail,
    "RCPT ": ServerSession._rcpt,
}
