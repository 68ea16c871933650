"""The receiving session: limits, order, and what its program does with it."""

import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from anontls.smtp import (
    Envelope,
    LocalProtocolError,
    Recipient,
    Reply,
    ServerSession,
    ServerState,
    exchange,
)
from anontls.smtp.events import (
    Authenticate,
    AuthenticationResponse,
    Content,
    Hello,
    MessageAborted,
    MessageBegins,
    MessageEnds,
    ServerClosed,
    StartTls,
)
from anontls.smtp.receiving import MAX_DRAINED, MAX_FRUITLESS, MAX_SKIPPED_LINE, MAX_WAITING
from anontls.smtp.syntax import MAX_AUTHENTICATION_LINE, MAX_COMMAND_LINE
from tests.smtp.drive import PASSWORD, QUEUED, Server, greeted, hello, make_settings

GROUP = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@mail.example>\r\nDATA\r\n"


def in_data(**fields: object) -> Server:
    server = hello(**fields)
    server.receive(GROUP)
    assert server.session.state is ServerState.DATA
    return server


# --- messages ---------------------------------------------------------------------------------------------------------


def test_one_output_for_a_group_and_content_in_large_slices() -> None:
    session = hello().session
    events = session.receive(GROUP)
    assert events == [MessageBegins(Envelope("a@client.example", [Recipient("b@mail.example")]), lines=True)]
    assert session.output().count(b"\r\n") == 3
    body = b"x" * 70 + b"\r\n"
    events = session.receive(body * 1000)
    assert [type(event) for event in events] == [Content]
    events = session.receive(body * 10 + b".\r\n" + GROUP)
    assert [type(event) for event in events] == [Content, MessageEnds]
    assert events[-1] == MessageEnds(Envelope("a@client.example", [Recipient("b@mail.example")]), 72 * 1010)
    assert session.paused
    assert session.output() == b""
    events = session.settle(QUEUED)
    assert [type(event) for event in events] == [MessageBegins]
    assert session.output().startswith(QUEUED.encode() + b"250 2.1.0")
    assert not session.paused


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b".a\r\n.\r\n", b"a\r\n"),
        (b"...\r\n..\r\n...a\r\n.\r\n", b"..\r\n.\r\n..a\r\n"),
        (b"\r\n..\r\n..\r\n.\r\n", b"\r\n.\r\n.\r\n"),
        (b"a.\r\n.b\r\n.\r\n", b"a.\r\nb\r\n"),
        (b"\0\xff\r\n.\r\n", b"\0\xff\r\n"),
    ],
)
def test_dots(sent: bytes, content: bytes) -> None:
    for size in range(1, len(sent) + 1):
        server = in_data()
        for at in range(0, len(sent), size):
            server.receive(sent[at : at + size])
        assert server.messages == [content]
        assert server.session.state is ServerState.HELLO


# Everything that some server somewhere has taken for the end of a message, but CRLF.CRLF.
ENDS = [
    end
    for first in (b"\r\n", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\n", b"")
    for dot in (b".", b"..", b". ", b".\0")
    for last in (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r")
    if (end := first + dot + last) not in {b"\r\n.\r\n", b"\r\r\n.\r\n"}
]


@pytest.mark.parametrize("end", ENDS)
def test_nothing_else_ends_a_message(end: bytes) -> None:
    """Whatever stands there, the commands behind it are content."""
    smuggled = b"MAIL FROM:<evil@client.example>\r\nRCPT TO:<victim@mail.example>\r\nQUIT\r\n"
    for size in (1, 7, 1000):
        server = in_data()
        data = b"innocent" + end + smuggled + b"\r\n.\r\n"
        for at in range(0, len(data), size):
            server.receive(data[at : at + size])
        assert server.closed is None
        assert server.session.state is ServerState.HELLO
        bare = b"\n" in data.replace(b"\r\n", b"") or b"\r" in data.replace(b"\r\n", b"")
        if bare:
            assert server.messages == []
            assert [e for e in server.events if isinstance(e, MessageAborted)] == [MessageAborted("bare CR or LF")]
        else:
            assert len(server.messages) == 1
            assert smuggled in server.messages[0]


def test_the_real_end_is_found_behind_a_bare_cr() -> None:
    server = in_data()
    assert server.receive(b"a\r\r\n.\r\nNOOP\r\n") == exchange.BARE_LINEFEEDS.encode() + exchange.OK.encode()


def test_of_two_refusals_the_size_has_the_last_word() -> None:
    for pieces in ([b"a\nb", b"x" * 100, b"\r\n.\r\n"], [b"a\nb" + b"x" * 100 + b"\r\n.\r\n"]):
        server = in_data(max_size=50)
        out = b"".join(server.receive(piece) for piece in pieces)
        assert out == exchange.MESSAGE_TOO_LARGE.encode()
        assert sum(isinstance(event, MessageAborted) for event in server.events) == 1


def test_a_program_may_refuse_a_whole_message() -> None:
    server = Server(answer=Reply(451, ("4.3.0 Later",)))
    server.say("EHLO client.example")
    server.receive(GROUP)
    assert server.receive(b"x\r\n.\r\n") == b"451 4.3.0 Later\r\n"
    assert server.session.state is ServerState.HELLO


def test_recipients_have_a_limit_and_the_message_goes_to_the_others() -> None:
    server = hello(max_recipients=2)
    codes = server.codes("MAIL FROM:<>", *["RCPT TO:<b@mail.example>"] * 4, "DATA")
    assert codes == [250, 250, 250, 452, 452, 354]
    envelope = server.session.envelope
    assert envelope is not None
    assert len(envelope.recipients) == 2


def test_a_program_answers_paths() -> None:
    seen = []

    def recipient(session: ServerSession, recipient: Recipient) -> Reply | None:
        assert session.envelope is not None
        seen.append((session.envelope.sender, recipient))
        return Reply(251, ("2.1.5 forwarded",)) if recipient.notify else None

    def sender(session: ServerSession, envelope: Envelope) -> Reply | None:
        return exchange.INSUFFICIENT_RESOURCES if envelope.sender == "" else None

    session = ServerSession(make_settings(), peer="192.0.2.7", recipient=recipient, sender=sender)
    session.greeting()
    session.receive(b"EHLO c\r\nMAIL FROM:<>\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\n")
    lines = session.output().split(b"\r\n")[-4:]
    assert lines == [b"452 4.3.1 Insufficient system resources", b"250 2.1.0 Sender OK", b"251 2.1.5 forwarded", b""]
    assert seen == [("a@b", Recipient("c@d", notify="NEVER"))]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["STARTTLS", "X-ANONYMOUSTLS", "starttls", "x-anonymoustls"])
def test_injection(verb: str) -> None:
    injected = b"EHLO evil.example\r\n" + GROUP
    # In one group: the verb is not even answered.
    server = hello(starttls=True, anonymous_tls=True)
    out = server.receive(verb.encode() + b"\r\n" + injected)
    assert out == exchange.COMMANDS_BEHIND_TLS_VERB.encode()
    assert server.names() == ["Hello", "ServerClosed"]
    # Before the 220 has left: it is taken back.
    server = hello(starttls=True, anonymous_tls=True)
    server.handle(server.session.receive(verb.encode() + b"\r\n"))
    assert server.receive(injected) == exchange.COMMANDS_BEHIND_TLS_VERB.encode()
    assert server.names() == ["Hello", "StartTls", "ServerClosed"]
    # After it: nothing can be said in clear any more.
    server = hello(starttls=True, anonymous_tls=True)
    assert server.receive(verb.encode() + b"\r\n") == exchange.SERVER_READY_FOR_TLS.encode()
    assert server.receive(injected) == b""
    assert server.closed == "input behind a TLS verb"
    assert server.session.tls_established(anonymous=True) == []
    assert server.session.state is ServerState.CLOSED


def test_half_a_command_behind_the_verb_is_injection_too() -> None:
    server = hello(starttls=True)
    server.receive(b"STARTTLS\r\nE")
    assert server.closed == "input behind a TLS verb"


def test_tls_forgets_all() -> None:
    server = hello(starttls=True, auth=("LOGIN",), auth_under_tls=("NTLM",))
    session = server.session
    server.say("AUTH LOGIN b3BlbiBzZXNhbWU=")
    session.exchange_server = True
    assert session.authenticated_as == "user"
    server.say("STARTTLS")
    assert session.paused
    session.tls_established(anonymous=False)
    learnt: list[object] = [session.hello, session.authenticated_as, session.exchange_server, session.envelope]
    assert learnt == [None, None, False, None]
    assert server.codes("MAIL FROM:<>", "AUTH LOGIN", "STARTTLS") == [503, 503, 503]
    assert "AUTH LOGIN NTLM" in server.say("EHLO c")


def test_a_new_name_has_no_rights_of_the_old() -> None:
    server = hello()
    server.session.exchange_server = True
    server.say("MAIL FROM:<>", "RSET")
    assert server.session.exchange_server
    server.say("EHLO other.example")
    assert not server.session.exchange_server


def test_require_tls() -> None:
    server = hello(require_tls=True, starttls=True)
    assert server.say("MAIL FROM:<>") == "451 5.7.3 Must issue a STARTTLS command first\r\n"
    server.say("STARTTLS")
    server.session.tls_established(anonymous=False)
    assert server.codes("EHLO c", "MAIL FROM:<>") == [250, 250]


def test_an_exchange_server_needs_no_authentication() -> None:
    server = hello(require_authentication=True)
    assert server.codes("MAIL FROM:<>") == [530]
    server.session.exchange_server = True
    assert server.codes("MAIL FROM:<>") == [250]


# --- authentication ---------------------------------------------------------------------------------------------------


def test_tokens_stay_out_of_trace_and_repr() -> None:
    told: list[tuple[str, bytes]] = []
    session = ServerSession(
        make_settings(auth=("LOGIN",), x_exps=("GSSAPI",)),
        peer="192.0.2.7",
        recipient=lambda _s, _r: None,
        trace=lambda kind, line: told.append((kind, line)),
    )
    session.greeting()
    session.receive(b"EHLO c\r\nauth  login b3BlbiBzZXNhbWU= x\r\nAUTH\tLOGIN b3BlbiBzZXNhbWU=\r\nX-EXPS GSSAPI\r\n")
    session.continue_authentication(PASSWORD)
    (event,) = session.receive(b"b3BlbiBzZXNhbWU=\r\n")
    assert event == AuthenticationResponse(PASSWORD)
    session.authenticated("user")
    text = repr(told) + repr(event) + repr(Authenticate("AUTH", "LOGIN", None, PASSWORD))
    assert "b3Blb" not in text
    assert "sesame" not in text
    assert told[-3:] == [
        (">", b"334 <authentication response>"),
        ("<", b"<authentication response>"),
        (">", b"235 2.7.0 Authentication successful"),
    ]
    assert ("<", b"X-EXPS GSSAPI") in told


def test_long_tokens() -> None:
    server = hello(x_exps=("GSSAPI",), max_errors=100)
    token = b"A" * ((MAX_AUTHENTICATION_LINE - len(b"X-EXPS GSSAPI \r\n")) // 4 * 4)
    assert server.codes(b"X-EXPS GSSAPI " + token) == [535]
    assert server.codes(b"X-EXPS GSSAPI " + token + b"AAAA") == [500]
    events = server.session.receive(b"X-EXPS GSSAPI\r\n")
    assert events == [Authenticate("X-EXPS", "GSSAPI", None, None)]
    server.session.continue_authentication(b"")
    assert server.session.output() == b"334 \r\n"
    assert server.codes(b"A" * (MAX_AUTHENTICATION_LINE - 4)) == [535]
    server.session.receive(b"X-EXPS GSSAPI\r\n")
    server.session.continue_authentication(b"")
    server.session.output()
    assert server.codes(b"A" * MAX_AUTHENTICATION_LINE, "NOOP") == [500, 250]
    assert server.names()[-1] == "AuthenticationCancelled"
    assert hello(max_errors=100).codes(b"X-EXPS GSSAPI " + token) == [500]


def test_an_answer_must_fit_its_reply() -> None:
    session = hello(auth=("LOGIN",), anonymous_tls=True).session
    session.receive(b"AUTH LOGIN =\r\n")
    with pytest.raises(LocalProtocolError):
        session.authenticated("user", exchange.AUTHENTICATION_UNSUCCESSFUL)
    with pytest.raises(LocalProtocolError):
        session.authenticated(None)
    with pytest.raises(LocalProtocolError, match="TLS"):
        session.authenticated("ex1", exchange_server=True)
    session.authenticated(None, exchange.TEMPORARY_AUTHENTICATION_FAILURE)
    session.receive(b"X-ANONYMOUSTLS\r\n")
    session.tls_established(anonymous=True)
    session.receive(b"EHLO c\r\nAUTH LOGIN =\r\n")
    session.authenticated("ex1", exchange_server=True)
    assert session.exchange_server


# --- limits -----------------------------------------------------------------------------------------------------------


def test_command_lines_have_a_limit() -> None:
    for size in (1, 100, 100_000):
        server = hello()
        data = b"NOOP " + b"x" * (MAX_COMMAND_LINE - 7) + b"\r\n" + b"NOOP " + b"x" * (MAX_COMMAND_LINE - 6)
        data += b"\r\nNOOP\r\n"
        out = b"".join(server.receive(data[at : at + size]) for at in range(0, len(data), size))
        assert out == exchange.OK.encode() + exchange.LINE_TOO_LONG.encode() + exchange.OK.encode()


def test_a_line_without_end_ends_the_session() -> None:
    server = greeted()
    out = b""
    for _ in range(MAX_SKIPPED_LINE // 10_000 + 1):
        out += server.receive(b"x" * 10_000)
    assert out == exchange.TOO_MANY_ERRORS.encode()
    assert server.closed
    assert server.receive(b"NOOP\r\n") == b""


def held_by(server: Server) -> int:
    """Octets that a session keeps, as far as its attributes tell."""
    total = 0
    for value in vars(server.session).values():
        if isinstance(value, bytes):
            total += len(value)
        elif isinstance(value, list):
            total += sum(len(item) if isinstance(item, bytes) else sys.getsizeof(item) for item in value)
    return total


def garbage(kind: str) -> Iterator[bytes]:
    for _ in range(1000 if kind != "dots" else 20_000):
        match kind:
            case "no line end":
                yield b"x" * 10_000
            case "lines":
                yield b"x" * 98 + b"\r\n" + b"y" * 9_900
            case "NOOP":
                yield b"NOOP\r\n" * 1666
            case "dots":
                yield b"\r\n..\r\n.x" + b"x" * 90 + b"\r"
            case "zeros":
                yield bytes(10_000)


@pytest.mark.parametrize("kind", ["no line end", "lines", "NOOP", "dots", "zeros"])
@pytest.mark.parametrize("state", ["GREETED", "HELLO", "RCPT", "DATA", "too large", "bare", "CHUNK", "skipped chunk"])
def test_ten_megabytes_of_garbage_keep_nothing(state: str, kind: str) -> None:
    server = greeted(max_errors=10**9, max_size=1000 if state == "too large" else 10**9)
    if state != "GREETED":
        server.say("EHLO c")
    if state not in {"GREETED", "HELLO", "skipped chunk"}:
        server.receive(GROUP[:-6])
    match state:
        case "DATA" | "too large" | "bare":
            server.receive(b"DATA\r\n")
            server.receive(b"a\nb" if state == "bare" else b"a")
        case "CHUNK" | "skipped chunk":
            server.receive(b"BDAT 9999999 LAST\r\n")
    tracemalloc.start()
    try:
        most = 0
        for piece in garbage(kind):
            server.session.receive(piece)
            server.session.output()
            most = max(most, held_by(server))
        assert most < 16_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rest", [b"NOO", b"x" * 4000])
def test_a_few_octets_do_not_keep_a_large_read_alive(rest: bytes) -> None:
    server = hello()
    server.receive(b"NOOP " + b"x" * 4000 + b"\r\n" + b"NOOP\r\n" * 100 + rest)
    assert held_by(server) < 2 * len(rest) + 1000
    server.receive(GROUP[:-6] + b"BDAT 200000\r\n" + b"x" * 200_000 + b"BDAT 1 LAST\r\nx" + b"NOOP\r\n" * 20)
    assert held_by(server) < 2 * len(rest) + 1000


def test_a_refused_message_does_not_go_on_for_ever() -> None:
    server = in_data(max_size=10)
    block = b"x" * (8 * 1024 * 1024)
    sent = 0
    while server.closed is None:
        server.receive(block)
        sent += len(block)
        assert sent <= MAX_DRAINED + len(block)
    assert server.closed == "refused message does not end"
    server = hello()
    server.receive(b"BDAT 999999999999999 LAST\r\n")
    while server.closed is None:
        server.receive(block)
    assert server.closed == "refused chunk does not end"


def test_what_waits_has_a_limit() -> None:
    session = in_data().session
    events = session.receive(b"x\r\n.\r\n")
    assert isinstance(events[-1], MessageEnds)
    events, sent = [], 0
    while not events:
        events = session.receive(b"NOOP\r\n" * 1000)
        sent += 6000
    assert events == [ServerClosed(f"more than {MAX_WAITING} octets sent ahead")]
    assert MAX_WAITING < sent <= MAX_WAITING + 6000
    assert session.settle(QUEUED) == []  # the message is safe all the same


def test_commands_that_bring_no_message_have_a_limit() -> None:
    for group, each in ((b"NOOP\r\n", 1), (b"RSET\r\n", 1), (b"VRFY a\r\n", 1), (b"EHLO c\r\n", 1)):
        server = hello()
        count = 0
        while server.closed is None:
            server.receive(group)
            count += each
        assert MAX_FRUITLESS - 2 <= count <= MAX_FRUITLESS + 2
    for recipient in ("nobody", "b"):
        server = hello()
        server.say("MAIL FROM:<>")
        while server.closed is None:
            server.say(f"RCPT TO:<{recipient}@mail.example>")
    server = hello(require_tls=True)
    while server.closed is None:
        server.say("MAIL FROM:<>", "RCPT TO:<b@mail.example>")
    server = hello()
    for _ in range(MAX_FRUITLESS * 2):
        server.receive(b"RSET\r\nMAIL FROM:<>\r\nRCPT TO:<b@mail.example>\r\nBDAT 1 LAST\r\nx")
    assert server.closed is None
    assert len(server.messages) == MAX_FRUITLESS * 2


# --- the end ----------------------------------------------------------------------------------------------------------


def test_time_out() -> None:
    server = in_data()
    server.receive(b"half")
    assert server.session.timed_out() == [MessageAborted("timed out"), ServerClosed("timed out")]
    assert server.session.output() == exchange.CONNECTION_TIMED_OUT.encode()
    assert server.session.timed_out() == []
    server = hello(starttls=True)
    server.say("STARTTLS")
    assert server.session.timed_out() == [ServerClosed("timed out")]
    assert server.session.output() == b""


def test_shut_down_waits_for_the_message() -> None:
    server = hello()
    assert server.session.shut_down() == [ServerClosed("shutting down")]
    assert server.session.output() == exchange.SERVICE_NOT_ACTIVE.encode()

    server = in_data()
    assert server.session.shut_down() == []
    assert server.receive(b"x\r\n.\r\nNOOP\r\n") == QUEUED.encode() + exchange.SERVICE_NOT_ACTIVE.encode()
    assert server.closed == "shutting down"

    server = in_data(max_size=1)
    server.session.shut_down()
    server.receive(b"too large\r\n.\r\n")
    assert server.closed == "shutting down"

    server = hello()
    server.receive(GROUP[:-6] + b"BDAT 1\r\nx")
    server.session.shut_down()
    server.say("RSET")
    assert server.closed == "shutting down"


def test_eof() -> None:
    server = in_data()
    assert server.session.eof() == [
        MessageAborted("connection closed by the peer"),
        ServerClosed("connection closed by the peer"),
    ]
    session = in_data().session
    session.receive(b"x\r\n.\r\n")
    assert session.eof() == [ServerClosed("connection closed by the peer")]  # received whole, so not aborted
    assert session.settle(QUEUED) == []
    assert session.output() == b""


def test_refuse_instead_of_a_greeting() -> None:
    session = ServerSession(make_settings(), peer="192.0.2.7", recipient=lambda _s, _r: None)
    assert [type(event) for event in session.refuse(exchange.SERVICE_NOT_ACTIVE)] == [ServerClosed]
    assert session.output() == exchange.SERVICE_NOT_ACTIVE.encode()


def test_what_the_program_must_not_ask() -> None:
    session = ServerSession(make_settings(starttls=True), peer="192.0.2.7", recipient=lambda _s, _r: None)
    with pytest.raises(LocalProtocolError):
        session.receive(b"x")
    session.greeting()
    for call in (
        session.greeting,
        lambda: session.settle(QUEUED),
        lambda: session.tls_established(anonymous=True),
        lambda: session.continue_authentication(b""),
        lambda: session.authenticated("user"),
    ):
        with pytest.raises(LocalProtocolError):
            call()
    assert session.receive(b"EHLO c\r\nSTARTTLS\r\n") == [Hello("c", True), StartTls("STARTTLS")]
    assert session.receive(b"") == []
    assert session.paused


def test_trace_tells_lines_and_no_content() -> None:
    told: list[tuple[str, bytes]] = []
    session = ServerSession(
        make_settings(), peer="192.0.2.7", recipient=lambda _s, _r: None, trace=lambda *line: told.append(line)
    )
    session.greeting()
    session.receive(b"HELO c\r\n" + GROUP)
    session.receive(b"secret\r\n.\r\n")
    session.settle(QUEUED)
    session.receive(b"x" * 5000 + b"\r\n\xff\r\n")
    assert told[1:] == [
        ("<", b"HELO c"),
        (">", b"250 mail.example Hello [192.0.2.7]"),
        ("<", b"MAIL FROM:<a@client.example>"),
        (">", b"250 2.1.0 Sender OK"),
        ("<", b"RCPT TO:<b@mail.example>"),
        (">", b"250 2.1.5 Recipient OK"),
        ("<", b"DATA"),
        (">", b"354 Start mail input; end with <CRLF>.<CRLF>"),
        (">", b"250 2.6.0 <1@mail.example> Queued mail for delivery"),
        ("<", b"<line too long>"),
        (">", b"500 5.5.2 Line too long"),
        ("<", b"\xff"),
        (">", b"500 5.5.2 Illegal character in command"),
    ]
