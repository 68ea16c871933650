"""The sending session: what it says, and what it makes of the answers."""

from collections.abc import Iterable, Iterator

import msgspec
import pytest

from anontls.smtp import (
    ClientSession,
    ClientSettings,
    ClientState,
    Envelope,
    LocalProtocolError,
    Recipient,
    RemoteProtocolError,
    Reply,
    events,
)
from anontls.smtp.events import (
    Authenticated,
    Challenge,
    ClientClosed,
    Delivered,
    Ready,
    RecipientAnswered,
    Refused,
    Rejected,
    StartTlsNow,
    TlsRefused,
)
from anontls.smtp.outgoing import (
    BAD_ENVELOPE,
    BARE_LINEFEEDS,
    NEEDS_8BITMIME,
    NEEDS_SMTPUTF8,
    NO_RECIPIENT,
    OUTPUT_SLICE,
    TOO_LARGE_FOR_PEER,
)
from tests.smtp.drive import Client

BODY = b"Subject: x\r\n\r\n.hello\r\n"
ONE = Envelope("a@client.example", [Recipient("b@mail.example")])
TWO = Envelope("a@client.example", [Recipient("b@mail.example"), Recipient("c@mail.example")])
FULL = Envelope(
    "a@client.example",
    [Recipient("b@mail.example", notify="NEVER", orcpt="rfc822;b@old.example")],
    ret="HDRS",
    envid="id+2B1",
    auth="<>",
    body="8BITMIME",
)


def names(found: Iterable[object]) -> list[str]:
    return [type(event).__name__ for event in found]


# --- greeting ---------------------------------------------------------------------------------------------------------


def test_greeting() -> None:
    client = Client()
    assert client.said() == []
    assert client.hear("220-mail", "220 ready") == []
    assert client.said() == ["EHLO client.example"]
    (event,) = client.hear("250-mail Hello", "250-SIZE 100", "250-x-exps GSSAPI NTLM", "250 AUTH")
    assert isinstance(event, Ready)
    assert event.extensions == {"SIZE": ("100",), "X-EXPS": ("GSSAPI", "NTLM"), "AUTH": ()}
    assert client.session.extensions == event.extensions
    assert client.session.idle
    client.session.quit()
    assert client.said() == ["QUIT"]
    assert client.hear("221 bye") == [ClientClosed(Reply(221, ("bye",)))]
    assert client.session.closed


def test_helo_only_where_allowed() -> None:
    client = Client()
    client.hear("220 mail")
    client.said()
    assert client.hear("500 what") == [Refused("EHLO", Reply(500, ("what",)))]
    client.session.quit()
    assert client.said() == ["QUIT"]

    client = Client(allow_helo=True)
    client.hear("220 mail")
    client.said()
    assert client.hear("500 what") == []
    assert client.said() == ["HELO client.example"]
    (event,) = client.hear("250 mail Hello")
    assert isinstance(event, Ready)
    assert event.extensions == {}
    client.session.send(FULL, BODY)
    assert client.said() == ["MAIL FROM:<a@client.example>"]


@pytest.mark.parametrize("allow_helo", [False, True])
def test_a_server_that_does_not_want_us(allow_helo: bool) -> None:
    client = Client(allow_helo=allow_helo)
    assert client.hear("554 5.7.1 no") == [Refused("greeting", Reply(554, ("5.7.1 no",)))]
    assert client.said() == []
    with pytest.raises(LocalProtocolError):
        client.session.send(ONE, BODY)

    client = Client(allow_helo=allow_helo)
    assert names(client.hear("421 4.3.2 busy")) == ["Refused", "ClientClosed"]

    client = Client(allow_helo=allow_helo)
    client.hear("220 mail")
    assert client.hear("550 5.7.1 no") == [Refused("EHLO", Reply(550, ("5.7.1 no",)))]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["STARTTLS", "X-ANONYMOUSTLS"])
def test_tls(verb: str) -> None:
    assert verb in {"STARTTLS", "X-ANONYMOUSTLS"}
    client = Client(require_tls=True).ready("STARTTLS", "X-ANONYMOUSTLS", "AUTH LOGIN")
    with pytest.raises(LocalProtocolError, match="in clear"):
        client.session.send(ONE, BODY)
    client.session.start_tls(verb)  # type: ignore[arg-type]
    assert client.said() == [verb]
    with pytest.raises(LocalProtocolError):
        client.session.send(ONE, BODY)
    assert client.hear("220 2.0.0 SMTP server ready") == [StartTlsNow(verb)]  # type: ignore[arg-type]
    client.session.tls_established()
    assert client.session.extensions == {}
    assert client.said() == ["EHLO client.example"]
    assert names(client.hear("250-mail", "250-X-EXPS EXCHANGEAUTH", "250 X-EXCHANGEAUTH SHA256")) == ["Ready"]
    assert set(client.session.extensions) == {"X-EXPS", "X-EXCHANGEAUTH"}
    assert client.session.send(ONE, BODY) == []
    assert client.said() == ["MAIL FROM:<a@client.example>"]


@pytest.mark.parametrize("glued", [b"250 injected\r\n", b"250-", b"2", b"\r\n"])
def test_injection(glued: bytes) -> None:
    for at_once in (True, False):
        client = Client().ready("X-ANONYMOUSTLS")
        client.session.start_tls("X-ANONYMOUSTLS")
        client.said()
        if not at_once:
            client.session.receive(b"220 ready\r\n")
        with pytest.raises(RemoteProtocolError) as error:
            client.session.receive(b"220 ready\r\n" + glued if at_once else glued)
        assert names(error.value.events) == ["ClientClosed"]
        assert client.session.closed
        assert client.said() == []
        with pytest.raises(LocalProtocolError):
            client.session.tls_established()


@pytest.mark.parametrize("reply", ["454 4.7.0 TLS not available", "501 no", "503 no"])
def test_a_refused_verb_leaves_the_session_in_clear(reply: str) -> None:
    client = Client().ready("X-ANONYMOUSTLS")
    client.session.start_tls("X-ANONYMOUSTLS")
    client.said()
    assert client.hear(reply) == [TlsRefused("X-ANONYMOUSTLS", Reply(int(reply[:3]), (reply[4:],)))]
    assert client.session.state is ClientState.READY
    assert client.session.tls is None


def test_a_verb_that_is_not_offered_is_not_said() -> None:
    client = Client().ready("STARTTLS")
    with pytest.raises(LocalProtocolError, match="offer"):
        client.session.start_tls("X-ANONYMOUSTLS")
    client.session.send(ONE, BODY)
    with pytest.raises(LocalProtocolError):
        client.session.start_tls("STARTTLS")


# --- authentication ---------------------------------------------------------------------------------------------------


def test_authentication() -> None:
    client = Client().ready("X-EXPS EXCHANGEAUTH GSSAPI", "X-EXCHANGEAUTH SHA256", "AUTH LOGIN")
    session = client.session
    session.authenticate("X-EXPS", "EXCHANGEAUTH", b"token", variant="SHA256")
    assert client.said() == ["X-EXPS EXCHANGEAUTH SHA256 dG9rZW4="]
    assert client.hear("454 4.7.0 no") == [Refused("X-EXPS", Reply(454, ("4.7.0 no",)))]
    session.authenticate("AUTH", "LOGIN", b"")
    assert client.said() == ["AUTH LOGIN ="]
    (event,) = client.hear("334 UGFzc3dvcmQ6")
    assert event == Challenge(b"Password:")
    assert "Password" not in repr(event)
    session.respond(b"secret")
    assert client.said() == ["c2VjcmV0"]
    assert client.hear("235 2.7.0 yes") == [Authenticated(Reply(235, ("2.7.0 yes",)))]
    session.authenticate("X-EXPS", "GSSAPI")
    client.hear("334")
    session.respond(None)
    assert client.said() == ["X-EXPS GSSAPI", "*"]
    assert names(client.hear("501 cancelled")) == ["Refused"]
    with pytest.raises(LocalProtocolError, match="offer"):
        session.authenticate("AUTH", "PLAIN")


@pytest.mark.parametrize("reply", ["334 !", "334 a", "250 ok", "354 go"])
def test_bad_answers_to_authentication(reply: str) -> None:
    client = Client().ready("AUTH LOGIN")
    client.session.authenticate("AUTH", "LOGIN")
    with pytest.raises(RemoteProtocolError):
        client.hear(reply)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_one_command_at_a_time_without_pipelining() -> None:
    client = Client().ready("SIZE")
    client.session.send(TWO, BODY)
    client.session.quit()
    assert client.said() == [f"MAIL FROM:<a@client.example> SIZE={len(BODY)}"]
    assert client.hear("250 ok") == []
    assert client.said() == ["RCPT TO:<b@mail.example>"]
    assert client.hear("250 ok") == [RecipientAnswered(TWO, TWO.recipients[0], Reply(250, ("ok",)))]
    assert client.said() == ["RCPT TO:<c@mail.example>"]
    client.hear("550 no")
    assert client.said() == ["DATA"]
    assert client.hear("354 go") == []
    assert client.said() == ["Subject: x", "", "..hello", "."]
    assert client.hear("250 queued") == [
        Delivered(TWO, Reply(250, ("queued",)), (Reply(250, ("queued",)), Reply(550, ("no",))))
    ]
    assert client.said() == ["QUIT"]


def test_a_group_with_pipelining_and_the_next_behind_the_end() -> None:
    client = Client().ready("PIPELINING")
    client.session.send(TWO, BODY)
    client.session.send(ONE, b"next")
    client.session.quit()
    group = ["MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>", "RCPT TO:<c@mail.example>", "DATA"]
    assert client.said() == group
    client.hear("250 ok", "250 ok", "250 ok", "354 go")
    assert client.said() == ["Subject: x", "", "..hello", ".", *group[:2], "DATA"]
    assert names(client.hear("250 queued", "250 ok", "250 ok", "354 go")) == ["Delivered", "RecipientAnswered"]
    assert client.said() == ["next", ".", "QUIT"]
    assert names(client.hear("250 queued", "221 bye")) == ["Delivered", "ClientClosed"]


def test_no_round_trip_with_chunking() -> None:
    client = Client().ready("PIPELINING", "CHUNKING")
    client.session.send(ONE, BODY)
    client.session.send(ONE, b"")
    client.session.quit()
    assert client.said() == [
        "MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>", "BDAT 22 LAST", "Subject: x", "", ".hello",
        "RSET", "MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>", "BDAT 0 LAST", "QUIT",
    ]  # fmt: skip
    found = client.hear("250 ok", "250 ok", "250 queued", "250 reset", "250 ok", "550 no", "503 no", "221 bye")
    assert names(found) == ["RecipientAnswered", "Delivered", "RecipientAnswered", "Rejected", "ClientClosed"]
    assert found[3] == Rejected(ONE, "RCPT", Reply(550, ("no",)), (Reply(550, ("no",)),))


def test_the_window() -> None:
    client = Client(window=2).ready("PIPELINING", "CHUNKING")
    for _ in range(4):
        client.session.send(ONE, b"x")
    assert sum(line.startswith("MAIL") for line in client.said()) == 2
    client.hear("250 ok", "250 ok", "250 queued")
    assert sum(line.startswith("MAIL") for line in client.said()) == 1


def test_parameters_only_where_offered() -> None:
    offers = ("SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN", "AUTH LOGIN")
    client = Client().ready("PIPELINING", *offers)
    client.session.send(FULL, BODY)
    assert client.said()[:2] == [
        "MAIL FROM:<a@client.example> SIZE=22 BODY=8BITMIME RET=HDRS ENVID=id+2B1 AUTH=<>",
        "RCPT TO:<b@mail.example> NOTIFY=NEVER ORCPT=rfc822;b@old.example",
    ]
    client = Client().ready("PIPELINING")
    client.session.send(FULL, BODY)
    assert client.said()[:2] == ["MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>"]
    client = Client().ready("PIPELINING", *offers)
    client.session.send(Envelope("j\u00f6rg@client.example", ONE.recipients, smtputf8=True), "\u00f6".encode())
    assert client.said()[0] == "MAIL FROM:<j\u00f6rg@client.example> SIZE=2 BODY=8BITMIME SMTPUTF8"
    wide = Envelope("", [Recipient("b@mail.example", orcpt="utf-8;j\u00f6rg@old.example")])
    for smtputf8 in (False, True):
        client = Client().ready("PIPELINING", *offers)
        client.session.send(msgspec.structs.replace(wide, smtputf8=smtputf8), b"x")
        assert ("ORCPT=utf-8;j\u00f6rg@old.example" in client.said()[1]) is smtputf8
    client = Client().ready("PIPELINING", "CHUNKING", "BINARYMIME")
    client.session.send(ONE, b"a\nb\0")
    assert client.said()[0] == "MAIL FROM:<a@client.example> BODY=BINARYMIME"


ALL = ("SIZE 30", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "PIPELINING")


@pytest.mark.parametrize(
    ("envelope", "content", "missing", "reply"),
    [
        (ONE, "\u00f6".encode(), "8BITMIME", NEEDS_8BITMIME),
        (ONE, b"a\nb", "BINARYMIME", BARE_LINEFEEDS),
        (ONE, b"a\rb", "CHUNKING", BARE_LINEFEEDS),
        (ONE, b"a\r", "CHUNKING", BARE_LINEFEEDS),
        (Envelope("j\u00f6rg@client.example", ONE.recipients), b"x", "SMTPUTF8", NEEDS_SMTPUTF8),
        (Envelope("", [Recipient("b@m\u00e4il.example")]), b"x", "SMTPUTF8", NEEDS_SMTPUTF8),
        (Envelope("", ONE.recipients, smtputf8=True), "Subject: \u00f6\r\n\r\nx".encode(), "SMTPUTF8", NEEDS_SMTPUTF8),
        (ONE, b"x" * 31, "", TOO_LARGE_FOR_PEER),
        (Envelope("", []), b"x", "", NO_RECIPIENT),
        (Envelope("a@b>\r\nQUIT\r\n<", ONE.recipients), b"x", "", BAD_ENVELOPE),
        (Envelope("", ONE.recipients, body="9BITMIME"), iter([b"x"]), "", BAD_ENVELOPE),
        (Envelope("", ONE.recipients, body="8BITMIME"), iter([b"x"]), "8BITMIME", NEEDS_8BITMIME),
        (Envelope("", ONE.recipients, body="BINARYMIME"), iter([b"x"]), "BINARYMIME", BARE_LINEFEEDS),
        (Envelope("", ONE.recipients, smtputf8=True), iter([b"x"]), "SMTPUTF8", NEEDS_SMTPUTF8),
        (Envelope("", ONE.recipients, size=31), iter([b"x"]), "", TOO_LARGE_FOR_PEER),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    envelope: Envelope, content: bytes | Iterator[bytes], missing: str, reply: Reply
) -> None:
    client = Client().ready(*(keyword for keyword in ALL if keyword != missing))
    assert client.session.send(envelope, content) == [
        Rejected(envelope, "local", reply, (reply,) * len(envelope.recipients))
    ]
    assert client.said() == []
    assert client.session.idle


def test_what_needs_little_is_sent_to_a_peer_with_little() -> None:
    """A declaration of more than the content needs does not stop it."""
    client = Client().ready("PIPELINING")
    envelope = Envelope("", ONE.recipients, body="BINARYMIME", smtputf8=True)
    assert client.session.send(envelope, b"Subject: x\r\n\r\nplain\r\n") == []
    assert client.said()[0] == "MAIL FROM:<>"


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"\r\n", b"\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n.\r\n..\r\n", b"..\r\n..\r\n...\r\n.\r\n"),
        (b"\r\n.", b"\r\n..\r\n.\r\n"),
        (b"a.\r\nb", b"a.\r\nb\r\n.\r\n"),
    ],
)
def test_dots_however_the_content_is_cut(content: bytes, sent: bytes) -> None:
    contents: list[bytes | list[bytes]] = [content]
    contents += [[content[i : i + size] for i in range(0, len(content), size)] for size in (1, 2, 3)]
    for pieces in contents:
        client = Client().ready("PIPELINING")
        client.session.send(ONE, pieces)
        client.said()
        client.hear("250 ok", "250 ok", "354 go")
        assert client.session.output() == sent


def test_large_content_leaves_in_slices() -> None:
    line = b"." + b"x" * 98 + b"\r\n"
    contents: tuple[bytes | list[bytes], ...] = (line * 20_000, [line] * 20_000)
    for content in contents:
        for keywords in (["PIPELINING"], ["PIPELINING", "CHUNKING"]):
            client = Client().ready(*keywords)
            client.session.send(ONE, content)
            client.said()
            client.hear("250 ok", "250 ok", *(["354 go"] if len(keywords) == 1 else []))
            sizes = [len(piece) for piece in iter(client.session.output, b"")]
            assert len(sizes) > 5
            assert max(sizes) <= OUTPUT_SLICE * 1.1
            assert sum(sizes) > len(line) * 20_000
            if "CHUNKING" in keywords:
                client.hear(*["250 chunk"] * (len(sizes) - 1))
            assert names(client.hear("250 queued")) == ["Delivered"]


def test_large_chunks_wait_for_the_recipients() -> None:
    client = Client().ready("PIPELINING", "CHUNKING")
    client.session.send(ONE, [b"x" * 100_000])
    assert client.said() == ["MAIL FROM:<a@client.example>", "RCPT TO:<b@mail.example>"]
    client.session.send(TWO, b"x")
    client.hear("250 ok", "550 no")
    assert client.said()[:2] == ["RSET", "MAIL FROM:<a@client.example>"]
    assert names(client.events)[-1] == "Rejected"


def test_a_refused_chunk_stops_the_rest() -> None:
    client = Client().ready("PIPELINING", "CHUNKING")
    client.session.send(ONE, [b"x" * OUTPUT_SLICE] * 3)
    client.said()
    client.hear("250 ok", "250 ok")
    assert client.session.output().startswith(b"BDAT 262144\r\n")
    found = client.hear("552 5.3.4 full")
    assert found == [Rejected(ONE, "BDAT", Reply(552, ("5.3.4 full",)), (Reply(552, ("5.3.4 full",)),))]
    client.session.send(ONE, b"x")
    assert client.said()[:2] == ["RSET", "MAIL FROM:<a@client.example>"]


@pytest.mark.parametrize(
    ("content", "keywords"),
    [
        ([b"good\r\n" * 50_000, b"bad\n", b"x"], ["CHUNKING"]),
        ([b"good\r\n" * 50_000, b"bad\r", b"x"], []),
        ([b"good\r\n" * 50_000, b"bad\r"], []),
        ([b"good\r\n" * 50_000, b"\xff"], []),
    ],
)
def test_pieces_that_break_their_promise_end_the_session(content: list[bytes], keywords: list[str]) -> None:
    """Half a message has been sent; without an end it will not arrive."""
    client = Client().ready("PIPELINING", "8BITMIME", *keywords)
    client.session.send(ONE, content)
    client.session.send(TWO, b"x")
    client.said()
    client.hear("250 ok", "250 ok", *([] if keywords else ["354 go"]))
    sent = b"".join(iter(client.session.output, b""))
    assert b"LAST" not in sent
    assert b"\r\n.\r\n" not in sent
    assert client.session.closed
    rejected, closed = client.session.eof()
    assert isinstance(rejected, Rejected)
    assert rejected.command == "local"
    assert rejected.reply.permanent
    assert closed == ClientClosed(None, (TWO,), ())
    assert client.session.eof() == []


# --- refusals ---------------------------------------------------------------------------------------------------------

NO = Reply(550, ("no",))


@pytest.mark.parametrize(
    ("keywords", "answers", "command", "next_line"),
    [
        ([], ["550 no"], "MAIL", "MAIL FROM:<>"),
        ([], ["250 ok", "550 no", "550 no"], "RCPT", "RSET"),
        ([], ["250 ok", "250 ok", "250 ok", "550 no"], "DATA", "RSET"),
        ([], ["250 ok", "250 ok", "250 ok", "354 go", "550 no"], "end of data", "MAIL FROM:<>"),
        (["PIPELINING"], ["550 no", "503 no", "503 no", "503 no"], "MAIL", "MAIL FROM:<>"),
        (["PIPELINING"], ["250 ok", "550 no", "550 no", "503 no"], "RCPT", "RSET"),
        (["PIPELINING"], ["250 ok", "250 ok", "250 ok", "550 no"], "DATA", "RSET"),
        (["PIPELINING"], ["250 ok", "250 ok", "250 ok", "354 go", "550 no"], "end of data", "MAIL FROM:<>"),
        (["PIPELINING", "CHUNKING"], ["550 no", "503 no", "503 no", "503 no"], "MAIL", "RSET"),
        (["PIPELINING", "CHUNKING"], ["250 ok", "550 no", "550 no", "503 no"], "RCPT", "RSET"),
        (["PIPELINING", "CHUNKING"], ["250 ok", "250 ok", "250 ok", "550 no"], "end of data", "RSET"),
        (["CHUNKING"], ["250 ok", "550 no", "550 no"], "RCPT", "RSET"),
    ],
)
def test_refused_at_each_step(keywords: list[str], answers: list[str], command: str, next_line: str) -> None:
    client = Client().ready(*keywords)
    client.session.send(TWO, BODY)
    for answer in answers:
        client.said()
        client.hear(answer)
    assert client.events[-1] == Rejected(TWO, command, NO, (NO, NO))
    assert client.session.idle
    client.session.send(Envelope("", ONE.recipients), BODY)
    assert client.said()[0] == next_line


def test_a_354_for_nobody_gets_an_empty_message() -> None:
    client = Client().ready("PIPELINING")
    client.session.send(ONE, BODY)
    client.said()
    client.hear("250 ok", "550 no", "354 go")
    assert client.said() == ["."]
    assert client.hear("250 queued") == [Rejected(ONE, "RCPT", NO, (NO,))]


def test_lmtp() -> None:
    three = Envelope("", [Recipient(f"{name}@mail.example") for name in "abc"])
    for keywords in (["PIPELINING"], ["PIPELINING", "CHUNKING"]):
        client = Client(lmtp=True)
        client.hear("220 mail LMTP")
        assert client.said() == ["LHLO client.example"]
        client.hear("250-mail", *(f"250-{keyword}" for keyword in keywords), "250 8BITMIME")
        client.session.send(three, BODY)
        client.said()
        client.hear("250 ok", "250 ok", "550 no", "250 ok", *(["354 go"] if len(keywords) == 1 else []))
        client.said()
        assert client.hear("250 a") == []
        assert client.hear("450 c later") == [
            Delivered(three, Reply(250, ("a",)), (Reply(250, ("a",)), NO, Reply(450, ("c later",))))
        ]
        client.session.send(ONE, BODY)
        client.said()
        client.hear("250 ok", "250 ok", *(["354 go"] if len(keywords) == 1 else []))
        client.said()
        assert names(client.hear("450 later")) == ["Rejected"]


def test_lmtp_has_no_helo_and_no_354_for_nobody() -> None:
    client = Client(lmtp=True, allow_helo=True)
    client.hear("220 mail")
    assert names(client.hear("500 what")) == ["Refused"]
    client = Client(lmtp=True).ready("PIPELINING")
    client.session.send(ONE, BODY)
    client.said()
    with pytest.raises(RemoteProtocolError):
        client.hear("250 ok", "550 no", "354 go")


# --- the end ----------------------------------------------------------------------------------------------------------


def test_421_at_any_time() -> None:
    bye = Reply(421, ("4.3.2 bye",))
    client = Client().ready()
    assert client.hear("421 4.3.2 bye") == [ClientClosed(bye)]
    assert client.hear("250 more") == []
    client = Client().ready("PIPELINING", "CHUNKING")
    client.session.send(ONE, BODY)
    client.session.send(TWO, [b"x" * 100_000])
    client.session.send(FULL, BODY)
    client.said()
    (answered, closed) = client.hear("250 ok", "250 ok", "421 4.3.2 bye")[-2:]
    assert answered == Rejected(ONE, "end of data", bye, (bye,))
    assert closed == ClientClosed(bye, (TWO, FULL), ())
    client = Client().ready()
    client.session.quit()
    client.said()
    assert client.hear("421 4.3.2 bye") == [ClientClosed(bye)]


def test_eof_tells_what_is_uncertain() -> None:
    client = Client().ready("PIPELINING", "CHUNKING")
    client.session.send(ONE, BODY)
    client.session.send(TWO, [b"x" * 100_000])
    client.said()
    assert client.session.eof() == [ClientClosed(None, (ONE, TWO), (ONE,))]
    assert client.session.eof() == []
    assert client.said() == []
    client.session.quit()


@pytest.mark.parametrize(
    ("before", "reply"),
    [
        ("greeting", "250 ok"), ("greeting", "354 go"), ("greeting", "rubbish"), ("EHLO", "354 go"),
        ("idle", "250 nothing asked"), ("STARTTLS", "250 ok"), ("STARTTLS", "354 go"), ("MAIL", "354 go"),
        ("RCPT", "334 x"), ("DATA", "250 ok"), ("DATA", "334 x"), ("end", "354 go"),
    ],
)  # fmt: skip
def test_answers_that_fit_nothing(before: str, reply: str) -> None:
    client = Client()
    if before != "greeting":
        client.hear("220 mail")
    if before not in {"greeting", "EHLO"}:
        client.hear("250-mail", "250-STARTTLS", "250 DSN")
    client.said()
    if before == "STARTTLS":
        client.session.start_tls("STARTTLS")
    elif before not in {"greeting", "EHLO", "idle"}:
        client.session.send(ONE, BODY)
        for answer in ["250 ok", "250 ok", "354 go"][: ["MAIL", "RCPT", "DATA", "end"].index(before)]:
            client.said()
            client.hear(answer)
        client.said()
    with pytest.raises(RemoteProtocolError) as error:
        client.hear(reply)
    assert isinstance(error.value.events[-1], ClientClosed)
    assert client.session.closed


def test_what_was_acknowledged_before_a_fault_stays_acknowledged() -> None:
    for at_once in (True, False):
        client = Client().ready("PIPELINING", "CHUNKING")
        client.session.send(ONE, BODY)
        client.session.send(TWO, BODY)
        client.said()
        if at_once:
            replies = "250 ok\r\n250 ok\r\n250 queued\r\nrubbish"
        else:
            client.hear("250 ok", "250 ok", "250 queued")
            replies = "rubbish"
        with pytest.raises(RemoteProtocolError) as error:
            client.hear(*replies.split("\r\n"))
        found = [*client.events[1:], *error.value.events]
        assert names(found) == ["RecipientAnswered", "Delivered", "ClientClosed"]
        assert found[-1] == ClientClosed(None, (TWO,), (TWO,))


def test_trace_hides_tokens_and_content() -> None:
    told: list[tuple[str, bytes]] = []
    session = ClientSession(ClientSettings(hello="c"), trace=lambda *line: told.append(line))
    session.receive(b"220 mail\r\n250-mail\r\n250-CHUNKING\r\n250 AUTH LOGIN\r\n")
    session.authenticate("AUTH", "LOGIN", b"secret")
    session.receive(b"334 c2VjcmV0\r\n")
    session.respond(b"secret")
    session.receive(b"235 yes\r\n")
    session.send(ONE, b"secret")
    session.output()
    session.receive(b"250 ok\r\n")
    session.output()
    session.receive(b"250 ok\r\n")
    session.output()
    assert told == [
        ("<", b"220 mail"),
        (">", b"EHLO c"),
        ("<", b"250-mail\r\n250-CHUNKING\r\n250 AUTH LOGIN"),
        (">", b"AUTH LOGIN"),
        ("<", b"334 <authentication response>"),
        (">", b"<authentication response>"),
        ("<", b"235 yes"),
        (">", b"MAIL FROM:<a@client.example>"),
        ("<", b"250 ok"),
        (">", b"RCPT TO:<b@mail.example>"),
        ("<", b"250 ok"),
        (">", b"BDAT 6 LAST"),
    ]


def test_every_event_is_in_one_of_the_two_unions() -> None:
    structs = {
        value for value in vars(events).values() if isinstance(value, type) and value.__module__ == events.__name__
    }
    assert structs == set(events.ServerEvent.__args__) | set(events.ClientEvent.__args__)


def test_a_name_that_is_none() -> None:
    with pytest.raises(LocalProtocolError):
        Client(hello="a b\r\nQUIT")
