"""Replies to bytes and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.smtp import Reply, ReplyReader
from anontls.smtp.reply import MAX_REPLY
from tests.smtp.drive import cut

texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
replies = st.builds(Reply, st.integers(200, 599), st.lists(texts, min_size=1, max_size=4).map(tuple))


def read(pieces: list[bytes]) -> tuple[list[Reply], str | None]:
    reader = ReplyReader()
    found = [reply for piece in pieces for reply in reader.receive(piece)]
    return found, str(reader.fault) if reader.fault else None


@given(st.lists(replies, max_size=5), st.lists(st.integers(0, 1000)))
def test_replies_survive_the_wire_however_cut(sent: list[Reply], cuts: list[int]) -> None:
    data = b"".join(reply.encode() for reply in sent)
    assert read(cut(data, cuts)) == (sent, None)


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000)))
def test_any_bytes_however_cut(data: bytes, cuts: list[int]) -> None:
    assert read(cut(b"250 ok\r\n" + data, cuts)) == read([b"250 ok\r\n" + data])


@pytest.mark.parametrize(
    ("data", "found", "fault"),
    [
        (b"250\r\n", [Reply(250, ("",))], None),
        (b"250-a\r\n250 b\r\n", [Reply(250, ("a", "b"))], None),
        (b"250-a\r\n250\r\n", [Reply(250, ("a", ""))], None),
        (b"250 \xff\r\n", [Reply(250, ("\ufffd",))], None),
        (b"250 a\r\nrubbish\r\n250 b\r\n", [Reply(250, ("a",))], "not a reply line"),
        (b"250-a\r\n251 b\r\n", [], "changes its code from 250 to 251"),
        (b"250_a\r\n", [], "not a reply line"),
        (b"650 a\r\n", [], "not a reply line"),
        (b"150 a\r\n", [], "not a reply line"),
        (b"25 a\r\n", [], "not a reply line"),
        (b"250 a\nb\r\n", [], "not a reply line"),
        (b"250 a\rb\r\n", [], "not a reply line"),
        (b"\r\n", [], "not a reply line"),
        (b"250 " + b"a" * MAX_REPLY + b"\r\n", [], "longer than"),
        (b"250 " + b"a" * (MAX_REPLY - 4), [], None),
        (b"250 " + b"a" * MAX_REPLY, [], "longer than"),
        (b"250-a\r\n" * (MAX_REPLY // 7 + 1), [], "longer than"),
    ],
)
def test_reader(data: bytes, found: list[Reply], fault: str | None) -> None:
    replies, message = read([data])
    assert replies == found
    assert fault in message if fault and message else fault is message


def test_nothing_is_read_behind_a_fault_and_nothing_kept() -> None:
    reader = ReplyReader()
    reader.receive(b"rubbish\r\n")
    assert reader.receive(b"250 ok\r\n" * 1000) == []
    assert not reader.pending


def test_a_text_cannot_open_another_line() -> None:
    assert Reply(250, ("a\r\n250 b\0", "\u00e9\x1b[0m")).encode() == b"250-a??250 b?\r\n250 ??[0m\r\n"


@pytest.mark.parametrize(("code", "lines"), [(199, ("",)), (600, ("",)), (250, ())])
def test_no_replies(code: int, lines: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not a reply"):
        Reply(code, lines)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(250, ("2.1.5 Recipient OK",)), (2, 1, 5)),
        (Reply(451, ("5.7.3 Must",)), (5, 7, 3)),
        (Reply(550, ("5.7.54",)), (5, 7, 54)),
        (Reply(250, ("2.1.5x",)), None),
        (Reply(220, ("192.0.2.1 ready",)), None),
        (Reply(250, ("",)), None),
    ],
)
def test_enhanced_codes(reply: Reply, code: tuple[int, int, int] | None) -> None:
    assert reply.enhanced == code


def test_text() -> None:
    reply = Reply(550, ("5.7.1 no", "", "never"))
    assert (str(reply), reply.positive, reply.permanent) == ("550 5.7.1 no never", False, True)
    assert not Reply(450, ("",)).permanent
