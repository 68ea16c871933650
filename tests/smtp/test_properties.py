"""What holds for all bytes: the cut changes nothing, only RemoteProtocolError escapes, two sessions understand each other."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.smtp import ClientSession, ClientSettings, Envelope, Recipient, RemoteProtocolError, ServerState
from anontls.smtp.content import DotReader, LineEnds, dotted, needs, only_crlf
from anontls.smtp.events import (
    ClientEvent,
    Delivered,
    MessageAborted,
    Ready,
    Rejected,
    ServerEvent,
    StartTls,
    StartTlsNow,
)
from tests.smtp.drive import Server, converse, cut, make_settings
from tests.smtp.test_dialogues import DIALOGUES, octets

cuts = st.lists(st.integers(0, 10_000), max_size=20)
contents = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\r\n.\r\n", b"a", b"\0", b"\xff", b"QUIT\r\n", b"BDAT 1"]),
    max_size=12,
).map(b"".join)

OFFERS: dict[str, Any] = {
    "starttls": True,
    "anonymous_tls": True,
    "auth": ("LOGIN",),
    "x_exps": ("GSSAPI",),
    "exchange_auth": True,
    "max_errors": 1000,
    "max_size": 300,
}


def groups(path: Path) -> list[bytes]:
    """What the client of a dialogue sends, a group each."""
    found = [b""]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(("C:", "C.")):
            found[-1] += octets(line[3:]) + (b"\r\n" if line[1] == ":" else b"")
        elif found[-1]:
            found.append(b"")
    return found[:-1] if not found[-1] else found


SCRIPTS = [groups(path) for path in DIALOGUES]
WORDS = [line for script in SCRIPTS for group in script for line in group.split(b"\r\n")]
WORDS += [b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>", b"DATA", b"BDAT 3 LAST", b".", b"X-ANONYMOUSTLS", b"*"]


def facts(events: list[ServerEvent]) -> list[object]:
    """The events without what depends on where the octets were cut: which of two reasons came first."""
    return [MessageAborted("") if isinstance(event, MessageAborted) else event for event in events]


def run(pieces: list[bytes], **fields: Any) -> tuple[list[object], list[bytes], bytes, ServerState]:
    server = Server(make_settings(**(OFFERS | fields)))
    out = server.session.output()
    for piece in pieces:
        out += server.receive(piece)
        if server.session.state is ServerState.TLS:
            break
    return facts(server.events), server.messages, out, server.session.state


# --- the receiving session --------------------------------------------------------------------------------------------

# Lines that must be the last of their group; where they are, the program of an honest peer waits.
LAST = (b"DATA", b"STARTTLS", b"X-ANONYMOUSTLS")


@given(st.lists(st.sampled_from(WORDS) | contents, max_size=25), cuts)
def test_any_cut_gives_the_same_events_and_output(lines: list[bytes], where: list[int]) -> None:
    whole: list[bytes] = [b"EHLO c\r\n"]
    for line in lines:
        whole[-1] += line + b"\r\n"
        if line.split(b" ")[0].upper() in LAST or b"DATA" in line.upper() or b"TLS" in line.upper():
            whole.append(b"")
    pieces = [part for group in whole for part in cut(group, where)]
    assert run(pieces) == run(whole)


@given(st.lists(st.sampled_from(WORDS) | contents, max_size=30), cuts)
def test_any_lines_do_no_harm(lines: list[bytes], where: list[int]) -> None:
    run(cut(b"EHLO c\r\n" + b"\r\n".join(lines), where))


@given(st.binary(max_size=400), cuts, st.sampled_from(["", "EHLO", "RCPT", "DATA", "BDAT", "AUTH"]))
def test_any_octets_do_no_harm(data: bytes, where: list[int], state: str) -> None:
    pieces = []
    if state:
        pieces.append(b"EHLO c\r\n")
    if state in {"RCPT", "DATA", "BDAT"}:
        pieces.append(b"MAIL FROM:<>\r\nRCPT TO:<a@mail.example>\r\n")
    if state in {"DATA", "BDAT", "AUTH"}:
        pieces.append({"DATA": b"DATA\r\n", "BDAT": b"BDAT 100\r\n", "AUTH": b"AUTH LOGIN\r\n"}[state])
    run(pieces + cut(data, where))


@given(st.sampled_from(SCRIPTS), st.integers(0, 2000), st.integers(0, 2000), st.binary(max_size=6), cuts)
def test_changed_dialogues_do_no_harm(script: list[bytes], at: int, to: int, new: bytes, where: list[int]) -> None:
    data = bytearray(b"".join(script))
    a, b = sorted((at % (len(data) + 1), to % (len(data) + 1)))
    data[a:b] = new
    run(cut(bytes(data), where))


# --- content ----------------------------------------------------------------------------------------------------------


@given(contents)
def test_only_crlf(content: bytes) -> None:
    rest = content.replace(b"\r\n", b"")
    assert only_crlf(content) is (b"\r" not in rest and b"\n" not in rest)


@given(contents, cuts)
def test_line_ends_however_cut(content: bytes, where: list[int]) -> None:
    ends = LineEnds()
    good = all([ends.add(piece) for piece in cut(content, where)] or [True])
    assert (good and ends.finish()) is only_crlf(content)


@given(contents, contents, cuts)
def test_dots_away_and_back(content: bytes, behind: bytes, where: list[int]) -> None:
    if not only_crlf(content):
        content = content.replace(b"\r", b"").replace(b"\n", b"\r\n")
    reader, data, taken, ended = DotReader(), b"", b"", False
    for piece in cut(dotted(content) + behind, where):
        data += piece
        at = 0
        while at < len(data) and not ended:
            piece, after, ended = reader.take(data, at)
            taken += piece
            if after == at and not ended:
                break
            at = after
        data = data[at:]
    assert ended
    assert data == behind
    assert taken == content + (b"" if content.endswith(b"\r\n") or not content else b"\r\n")


# --- both -------------------------------------------------------------------------------------------------------------

messages = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "relay", "nobody", "busy", "b"]), min_size=1, max_size=4),
        contents | st.binary(max_size=400),
        st.booleans(),
    ),
    max_size=6,
)


@given(
    messages,
    cuts,
    st.fixed_dictionaries(
        {name: st.booleans() for name in ("pipelining", "chunking", "binary_mime", "eight_bit_mime")}
    ),
    st.fixed_dictionaries({"pipelining": st.booleans(), "chunking": st.booleans(), "window": st.integers(1, 4)}),
)
def test_client_and_server_understand_each_other(
    wanted: list[tuple[list[str], bytes, bool]], where: list[int], offers: dict[str, bool], uses: dict[str, Any]
) -> None:
    server = Server(make_settings(max_size=350, **offers))
    client = ClientSession(ClientSettings(hello="client.example", **uses))
    (ready, *others) = converse(client, server, where)
    assert isinstance(ready, Ready)
    assert others == []
    sent: list[bytes] = []
    local: list[ClientEvent] = []
    for names, content, cut_up in wanted:
        envelope = Envelope("s@client.example", [Recipient(f"{name}@mail.example") for name in names])
        # Pieces are promised to hold lines of ASCII, and these do.
        plain = content.isascii() and only_crlf(content) and len(content) <= 350
        refused = client.send(envelope, cut(content, where) if cut_up and plain else content)
        local += refused
        if not refused and {"a", "b"} & set(names):
            sent.append(content)
    client.quit()
    events = converse(client, server, where)

    verdicts = [event for event in events if isinstance(event, Delivered | Rejected)]
    assert len(verdicts) + len(local) == len(wanted)
    assert client.closed
    assert server.closed == "QUIT"
    got = server.messages
    lines = [content if content.endswith(b"\r\n") or not content else content + b"\r\n" for content in sent]
    # DATA ends the last line, BDAT leaves it; both are what was meant.  Two octets may make it too large.
    assert len(got) == sum(isinstance(verdict, Delivered) for verdict in verdicts)
    if len(got) == len(sent):
        assert all(a in {b, c} for a, b, c in zip(got, sent, lines, strict=True))
    else:
        assert any(len(line) > 350 for line in lines)
    for verdict in verdicts:
        for recipient, reply in zip(verdict.envelope.recipients, verdict.replies, strict=True):
            if recipient.local_part in {"relay", "nobody", "busy"}:
                assert not reply.positive
            else:
                assert reply.positive is isinstance(verdict, Delivered)


@pytest.mark.parametrize("verb", ["STARTTLS", "X-ANONYMOUSTLS"])
@given(where=cuts)
def test_tls_between_the_two(verb: str, where: list[int]) -> None:
    server = Server(make_settings(**OFFERS))
    client = ClientSession(ClientSettings(hello="client.example", require_tls=True))
    (ready,) = converse(client, server, where)
    assert isinstance(ready, Ready)
    assert verb in ready.extensions
    client.start_tls("STARTTLS" if verb == "STARTTLS" else "X-ANONYMOUSTLS")
    assert [type(event) for event in converse(client, server, where)] == [StartTlsNow]
    assert isinstance(server.events[-1], StartTls)
    server.session.tls_established(anonymous=verb == "X-ANONYMOUSTLS")
    client.tls_established()
    (ready,) = converse(client, server, where)
    assert isinstance(ready, Ready)
    assert not {"STARTTLS", "X-ANONYMOUSTLS"} & set(ready.extensions)
    assert ("X-EXCHANGEAUTH" in ready.extensions) is (verb == "X-ANONYMOUSTLS")
    client.send(Envelope("", [Recipient("a@mail.example")]), b"x\r\n")
    assert isinstance(converse(client, server, where)[-1], Delivered)
    assert server.messages == [b"x\r\n"]


# --- the sending session ----------------------------------------------------------------------------------------------

reply_lines = st.lists(
    st.sampled_from(
        [
            line.encode()
            for line in [
                "220 x",
                "250 ok",
                "250-SIZE 10",
                "250-PIPELINING",
                "250-CHUNKING",
                "250 STARTTLS",
                "354 go",
                "550 no",
                "421 bye",
                "334 eA==",
                "235 yes",
                "450 later",
                "251",
                "rubbish",
                "250-X-EXPS GSSAPI",
                "500 what",
            ]
        ]
    )
    | st.binary(max_size=10),
    max_size=30,
)


def listen(pieces: list[bytes], action: str) -> tuple[list[ClientEvent], str | None, bytes]:
    """Events, fault and output of a client that does one thing when it can."""
    client = ClientSession(ClientSettings(hello="c", allow_helo=True, lmtp=action == "lmtp"))
    events: list[ClientEvent] = []
    out = b""
    for piece in pieces:
        try:
            new = client.receive(piece)
        except RemoteProtocolError as error:
            return [*events, *error.events], str(error), out  # type: ignore[list-item]
        events += new
        if any(isinstance(event, Ready) for event in new):
            if action == "tls" and client.idle and "STARTTLS" in client.extensions:
                client.start_tls("STARTTLS")
            elif action in {"send", "lmtp"}:
                client.send(Envelope("", [Recipient("a@b"), Recipient("c@d")]), b"x")
                client.send(Envelope("", [Recipient("a@b")]), [b"y\r\n", b"z"])
            client.quit() if action == "send" else None
        out += b"".join(iter(client.output, b""))
    return events, None, out


@given(reply_lines, cuts, st.sampled_from(["tls", "send", "lmtp", "nothing"]))
def test_any_replies_do_no_harm(lines: list[bytes], where: list[int], action: str) -> None:
    start = b"220 mail\r\n250-mail\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
    listen(cut(start, []) + cut(b"\r\n".join(lines), where), action)
    listen(cut(b"\r\n".join(lines), where), action)


@given(reply_lines, cuts)
def test_any_cut_of_replies_gives_the_same_events(lines: list[bytes], where: list[int]) -> None:
    data = b"220 mail\r\n" + b"\r\n".join(lines) + b"\r\n"
    one = [data[i : i + 1] for i in range(len(data))]
    assert listen(cut(data, where), "nothing")[:2] == listen(one, "nothing")[:2]


@given(contents)
def test_needs(content: bytes) -> None:
    assert needs(content) == (2 if not only_crlf(content) else 0 if content.isascii() else 1)
