"""Where accepted mail goes, and that it is acknowledged only when it is there, unchanged."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from anontls.smtp import Reply
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport import body as body_module
from anontls.transport.body import Body
from anontls.transport.deliver import MaildirDelivery, answer
from anontls.transport.lab import EDGE
from tests.transport.world import ANNA, EVERYTHING, MESSAGE, Client, Hop, World, behind, greeted, run

BIG = b"Subject: big\r\n\r\n" + b"0123456789abcdef" * 4 * 1024 * 32 + b"\r\n"  # 2 MiB in one line
LINES = b"Subject: big\r\n\r\n" + (b"x" * 70 + b"\r\n") * 30_000
UNKNOWN = "550 5.1.1 User unknown"


def local(world: World, *, create: bool = True) -> None:
    world.deliver(EDGE, f'maildir = "mail"\ncreate-mailboxes = {str(create).lower()}')


def content_of(file: bytes) -> bytes:
    """A delivered file without the two fields of this hop."""
    head, _, rest = file.partition(b"\r\nReceived: ")
    assert head.startswith(b"Return-Path: <")
    received, _, message = rest.partition(b" +0000\r\n")
    assert received.count(b"\r\n") == 2, received
    return message


async def bdat(client: Client, content: bytes, *, size: int = 300_000) -> str:
    for at in range(0, len(content), size):
        piece = content[at : at + size]
        last = at + size >= len(content)
        await client.send(b"BDAT %d%s\r\n" % (len(piece), b" LAST" if last else b"") + piece)
        answer = await client.reply()
        if last:
            return answer
        assert answer.startswith("250"), answer
    raise AssertionError


# --- Maildir ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [MESSAGE, LINES, b"\r\n", b"Subject: \xc3\xa9 \xff\r\n\r\n..dots\r\n.\x00\r\n"])
def test_unchanged(world: World, content: bytes) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            stuffed = content.replace(b"\r\n.", b"\r\n..")
            assert (await client.message(content=stuffed))[-1].startswith("250 2.6.0 <")

    run(session())
    (file,) = world.messages()
    assert content_of(file) == content
    assert b" with ESMTP id " in file


@pytest.mark.parametrize("content", [b"a\nb\rc\x00" * 10, BIG.replace(b"\r\n", b"\n")])
def test_binary_by_bdat(world: World, content: bytes) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            await client.ask("MAIL FROM:<ben@fabrikam.com> BODY=BINARYMIME")
            await client.ask(f"RCPT TO:<{ANNA}>")
            assert (await bdat(client, content)).startswith("250 2.6.0 <")

    run(session())
    (file,) = world.messages()
    assert content_of(file) == content


def test_several_recipients_each_once_and_case_does_not_matter(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            replies = await client.message(ANNA, "Anna@CONTOSO.com", "carl@contoso.com", "far@fabrikam.com")
            assert [reply[:3] for reply in replies] == ["250", "250", "250", "250", "550", "354", "250"]

    run(session())
    (one,), (other,) = world.messages(ANNA), world.messages("carl@contoso.com")
    assert one == other
    assert sorted(path.name for path in (world.folder / "mail").iterdir()) == [ANNA, "carl@contoso.com"]
    assert not list((world.folder / "mail").glob("*/tmp/*"))


def test_a_recipient_without_a_mailbox_is_unknown(world: World) -> None:
    local(world, create=False)
    (world.folder / "mail" / ANNA).mkdir(parents=True)
    (world.folder / "mail" / "file@contoso.com").write_text("no folder")

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            replies = await client.message(ANNA, "nobody@contoso.com", "file@contoso.com")
            assert replies[2:4] == [UNKNOWN, UNKNOWN]
            assert replies[-1].startswith("250")

    run(session())
    assert len(world.messages()) == 1, "tmp, new and cur were made in a mailbox that was there"


def test_a_disk_that_is_not_there_makes_nobody_unknown(world: World) -> None:
    local(world, create=False)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message())[1] == "451 4.3.0 Mailbox cannot be reached; try again"

    run(session())


@pytest.mark.parametrize(
    "local_part",
    [
        '"../../up"',
        '"/etc/passwd"',
        '".."',
        "a/b",
        "~root",
        '"a b"',
        "%2e%2e%2f",
        '"."',
        "-rf",
        '"\\\\"',
        "x" * 60,
    ],
)
def test_no_address_leads_out_of_the_folder(world: World, local_part: str) -> None:
    local(world)
    before = {path for path in world.folder.rglob("*") if "mail" not in path.parts}

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            replies = await client.message(f"{local_part}@contoso.com")
            assert replies[-1].startswith("250"), replies

    run(session())
    mail = world.folder / "mail"
    (mailbox,) = mail.iterdir()
    assert len(list((mailbox / "new").iterdir())) == 1
    after = {path for path in world.folder.rglob("*") if "mail" not in path.parts}
    assert {path.name for path in after - before} <= {"edge1-log", "SmtpReceive", "SmtpSend", "edge1-events.jsonl"} | {
        path.name for path in (world.folder / "edge1-log").rglob("*.LOG")
    }


@pytest.mark.parametrize("create", [True, False])
def test_an_address_that_is_no_file_name_is_unknown(world: World, create: bool) -> None:
    local(world, create=create)
    (world.folder / "mail").mkdir()

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message("x" * 300 + "@contoso.com"))[1] == UNKNOWN
            assert (await client.message("%" * 100 + "@contoso.com"))[1] == UNKNOWN
            assert (await client.message())[-1].startswith("250" if create else "503"), "the session goes on"

    run(session())


def test_postmaster_is_local(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message("postmaster"))[-1].startswith("250")

    run(session())
    assert len(world.messages("postmaster")) == 1


def test_smtputf8_and_the_null_sender(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            await client.ask("MAIL FROM:<> SMTPUTF8")
            assert (await client.ask("RCPT TO:<jörg@contoso.com>")).startswith("250")
            assert (await bdat(client, MESSAGE)).startswith("250")

    run(session())
    (file,) = (world.folder / "mail").glob("j%C3%B6rg@contoso.com/new/*")
    assert file.read_bytes().startswith(b"Return-Path: <>\r\n")


class Disk:
    """Calls of ``os`` that a test lets fail, and the order of those that do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.failing = ""
        for name in ("write", "fsync", "open", "link"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.failing and self.failing == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.calls.append(name)
            return real(*arguments, **keywords)

        return call


def deliver(delivery: MaildirDelivery, *recipients: str, content: bytes = MESSAGE) -> Reply:
    async def work() -> Reply:
        with Body() as body:
            body.add(content)
            body.complete()
            envelope = Envelope("ben@fabrikam.com", [Recipient(one) for one in recipients or (ANNA,)])
            return await delivery.deliver(envelope, body, b"Received: here\r\n")

    return run(work())


def test_file_and_folder_are_synced_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = MaildirDelivery(tmp_path / "mail", "mbx1", create=True)
    deliver(delivery)
    disk = Disk(monkeypatch)
    deliver(delivery)
    wanted = [call for call in disk.calls if call in ("write", "fsync")]
    assert "fsync" in wanted[wanted.index("write") :]
    assert wanted.count("fsync") == 2, "the file and the folder"


@pytest.mark.parametrize("failing", ["write", "fsync", "open"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    delivery = MaildirDelivery(tmp_path / "mail", "mbx1", create=True)
    deliver(delivery, ANNA, "carl@contoso.com")
    disk = Disk(monkeypatch)
    disk.failing = failing
    with pytest.raises(OSError, match="No space left"):
        deliver(delivery, ANNA, "carl@contoso.com")
    disk.failing = ""
    assert len(list((tmp_path / "mail").glob("*/new/*"))) == 2
    assert not list((tmp_path / "mail").glob("*/tmp/*"))
    deliver(delivery, ANNA)
    assert len(list((tmp_path / "mail" / ANNA / "new").iterdir())) == 2


def test_a_mailbox_that_fails_takes_the_message_back_from_the_others(tmp_path: Path) -> None:
    delivery = MaildirDelivery(tmp_path / "mail", "mbx1", create=True)
    carl = tmp_path / "mail" / "carl@contoso.com"
    (carl / "new").mkdir(parents=True)  # without tmp, and new will be gone
    deliver(delivery, ANNA)
    (carl / "new").rmdir()
    (carl / "new").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"."):
        deliver(delivery, ANNA, "bea@contoso.com", "carl@contoso.com")
    assert len(list((tmp_path / "mail" / ANNA / "new").iterdir())) == 1
    assert not list((tmp_path / "mail" / "bea@contoso.com" / "new").iterdir())


def test_where_links_cannot_be_made_there_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = MaildirDelivery(tmp_path / "mail", "mbx1", create=True)
    disk = Disk(monkeypatch)
    disk.failing = "link"
    deliver(delivery, ANNA, "carl@contoso.com", content=LINES)
    files = list((tmp_path / "mail").glob("*/new/*"))
    assert len({path.stat().st_ino for path in files}) == 2
    assert len({path.read_bytes() for path in files}) == 1


def test_a_full_disk_in_a_session_is_451_and_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message())[-1].startswith("250")
            disk = Disk(monkeypatch)
            disk.failing = "fsync"
            for _ in range(3):
                assert (await client.message())[-1] == "451 4.3.0 The message could not be stored; try again"
            disk.failing = ""
            assert (await client.message())[-1].startswith("250")

    run(session())
    assert len(world.messages()) == 2
    assert world.consoles[EDGE].getvalue().count("No space left") == 1


def test_a_full_disk_for_temporary_files_is_451(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    local(world)

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            with monkeypatch.context() as patch:
                patch.setattr(tempfile, "TemporaryFile", full)
                assert (await client.message(content=LINES))[-1].startswith("451 4.3.0")
            assert (await client.message(content=LINES))[-1].startswith("250")

    run(session())
    assert [content_of(file) for file in world.messages()] == [LINES]


# --- the body ---------------------------------------------------------------------------------------------------------


def test_a_body_of_single_octets_stays_small() -> None:
    with Body() as body:
        for _ in range(200_000):
            body.add(b"x")
        assert body.in_memory() == b"x" * 200_000
        assert Body.in_use == 200_000
    assert Body.in_use == 0


def test_big_bodies_go_to_a_file_and_all_of_them_sooner_when_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Body() as big:
        for at in range(0, len(LINES), 10_000):
            big.add(LINES[at : at + 10_000])
        big.complete()
        assert big.in_memory() is None
        assert b"".join(big.pieces()) == b"".join(big.pieces()) == LINES
    monkeypatch.setattr(body_module, "ALL_IN_MEMORY", 100_000)
    with Body() as one, Body() as two:
        one.add(b"1" * 90_000)
        two.add(b"2" * 90_000)
        assert one.in_memory() is not None
        assert two.in_memory() is None
        assert b"".join(two.pieces()) == b"2" * 90_000
    assert Body.in_use == 0


# --- next hops --------------------------------------------------------------------------------------------------------


def onward(world: World, hop: Hop, *commands: str, content: bytes = MESSAGE, lmtp: bool = False) -> str:
    """The last answer to a client whose message went on to ``hop``."""

    async def session() -> str:
        async with hop.listening():
            world.deliver(
                EDGE,
                f'next-hop = "127.0.0.1:{hop.port}"\nprotocol = "{"lmtp" if lmtp else "smtp"}"\ntimeout = 10',
            )
            async with world.node(EDGE) as node, greeted(node.port) as client:
                for command in commands or ("MAIL FROM:<ben@fabrikam.com>", f"RCPT TO:<{ANNA}>"):
                    assert (await client.ask(command)).startswith("250"), command
                reply = await bdat(client, content)
                assert (await client.ask("NOOP")).startswith("250")
                return reply

    return run(session())


def passed_on(hop: Hop) -> bytes:
    """What the hop got, without this hop's Received field."""
    (content,) = hop.contents
    assert content.startswith(b"Received: from mail.fabrikam.com")
    return content.partition(b" +0000\r\n")[2]


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("content", [MESSAGE, LINES, BIG, b"\x00\xff\n\r." * 9, b"\r\n.\r\n.\r\n", b"a" * 1_100_000])
def test_next_hop_gets_it_unchanged(world: World, content: bytes, lmtp: bool) -> None:
    hop = Hop(ehlo=EVERYTHING)
    assert onward(world, hop, content=content, lmtp=lmtp) == "250 2.6.0 taken"
    assert passed_on(hop) == content


@pytest.mark.parametrize(
    "content", [MESSAGE, LINES, b"Subject: a\r\n\r\n.\r\n..\r\n", LINES.replace(b"x", "é".encode())]
)
def test_next_hop_without_chunking(world: World, content: bytes) -> None:
    hop = Hop(ehlo=b"250-next Hello\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
    assert onward(world, hop, content=content) == "250 2.6.0 taken"
    got = passed_on(hop)
    assert got.replace(b"\r\n..", b"\r\n.") == content


def test_undeclared_eight_bits_of_any_size_go_on(world: World) -> None:
    for content in (b"Subject: \xff\r\n\r\n\r\n", LINES.replace(b"x", b"\xff")):
        hop = Hop(ehlo=EVERYTHING)
        assert onward(world, hop, content=content) == "250 2.6.0 taken"
        assert "BODY=8BITMIME" in next(line for line in hop.commands if line.startswith("MAIL"))


@pytest.mark.parametrize("content", [b"a\nb\r\n", BIG.replace(b"\r\n", b"\n")])
def test_binary_content_does_not_go_where_it_cannot(world: World, content: bytes) -> None:
    hop = Hop(ehlo=b"250-next Hello\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
    assert onward(world, hop, content=content).startswith("550 5.6.11 ")
    assert hop.contents == []


def test_dsn_and_smtputf8_parameters_are_kept(world: World) -> None:
    hop = Hop(ehlo=EVERYTHING)
    mail = "MAIL FROM:<jörg@fabrikam.com> SIZE=30 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ314159"
    rcpt = f"RCPT TO:<{ANNA}> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Anna@contoso.com"
    assert onward(world, hop, mail, rcpt) == "250 2.6.0 taken"
    sent = next(line for line in hop.commands if line.startswith("MAIL"))
    assert sent.split()[1] == "FROM:<jörg@fabrikam.com>"
    assert set(sent.split()[3:]) == {"BODY=8BITMIME", "SMTPUTF8", "RET=HDRS", "ENVID=QQ314159"}
    assert rcpt in hop.commands


TWO = ("MAIL FROM:<ben@fabrikam.com>", f"RCPT TO:<{ANNA}>", "RCPT TO:<carl@contoso.com>")
PARTLY = "451 4.4.0 Some recipients were refused by the next hop; none is acknowledged"


async def only_anna(line: str) -> bytes:
    return b"250 2.1.5 ok\r\n" if "anna" in line else b"550 5.1.1 no such user\r\n"


async def neither(line: str) -> bytes:
    return b"450 4.2.1 full\r\n" if "anna" in line else b"550 5.1.1 no such user\r\n"


REFUSALS: dict[str, tuple[Hop, str]] = {
    "one of two": (Hop({"RCPT": only_anna}, ehlo=EVERYTHING), PARTLY),
    "both, one for now": (Hop({"RCPT": neither}, ehlo=EVERYTHING), "450 4.2.1 full"),
    "both": (Hop({"RCPT": b"550 5.1.1 no\r\n"}, ehlo=EVERYTHING), "550 5.1.1 no"),
    "sender": (Hop({"MAIL": b"550 5.7.1 not you\r\n"}, ehlo=EVERYTHING), "550 5.7.1 not you"),
    "content": (Hop(end=b"554 5.7.1 spam\r\n", ehlo=EVERYTHING), "554 5.7.1 spam"),
    "content for now": (Hop(end=b"452 4.3.1 full\r\n", ehlo=EVERYTHING), "452 4.3.1 full"),
    "421 for the content": (
        Hop(end=b"421 4.3.2 going down\r\n", ehlo=EVERYTHING),
        "451 4.4.397 Error communicating with target host. -> 421 4.3.2 going down",
    ),
    "drops at the end": (
        Hop(end=b"", ehlo=b"250-next\r\n250 8BITMIME\r\n"),
        "451 4.4.397 Error communicating with target host",
    ),
    "drops at RCPT": (Hop({"RCPT": b""}, ehlo=EVERYTHING), "451 4.4.397 Error communicating with target host"),
    "354 for nobody": (
        Hop({"RCPT": b"550 5.1.1 no\r\n"}, ehlo=b"250-next\r\n250-PIPELINING\r\n250 8BITMIME\r\n"),
        "550 5.1.1 no",
    ),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_what_the_next_hop_refuses_is_refused(world: World, how: str) -> None:
    hop, reply = REFUSALS[how]
    assert onward(world, hop, *TWO) == reply


@pytest.mark.parametrize(
    ("end", "reply"),
    [
        (b"250 2.1.5 anna\r\n250 2.1.5 carl\r\n", "250 2.1.5 anna"),
        (b"250 2.1.5 anna\r\n550 5.2.2 full\r\n", PARTLY),
        (b"452 4.2.2 full\r\n550 5.2.2 full\r\n", "452 4.2.2 full"),
        (b"550 5.2.2 full\r\n550 5.2.2 full\r\n", "550 5.2.2 full"),
    ],
)
def test_lmtp_answers_for_each_recipient(world: World, end: bytes, reply: str) -> None:
    hop = Hop(end=end, ehlo=EVERYTHING)
    assert onward(world, hop, *TWO, lmtp=True) == reply
    assert hop.commands[0].startswith("LHLO ")


def test_lmtp_of_several_with_one_refused_at_rcpt(world: World) -> None:
    hop = Hop({"RCPT": only_anna}, end=b"250 2.1.5 anna\r\n", ehlo=EVERYTHING)
    assert onward(world, hop, *TWO, lmtp=True) == PARTLY


def test_nothing_is_acknowledged_before_the_next_hop_does(world: World) -> None:
    import asyncio

    async def session() -> None:
        gate = asyncio.Event()
        hop = Hop({"MAIL": behind(gate)}, ehlo=EVERYTHING)
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
            async with world.node(EDGE) as node, greeted(node.port) as client:
                sending = asyncio.create_task(client.message())
                await asyncio.sleep(0.3)
                assert not sending.done()
                gate.set()
                assert (await sending)[-1] == "250 2.6.0 taken"

    run(session())


def test_a_loop_ends(world: World) -> None:
    hop = Hop(ehlo=EVERYTHING)
    hops = b"Received: from a by b;\r\n Tue, 1 Jan 2030 00:00:00 +0000\r\n"
    assert onward(world, hop, content=hops * 60 + MESSAGE) == "554 5.4.6 Hop count exceeded - possible mail loop"
    assert hop.sessions == 0
    assert onward(world, hop, content=hops * 59 + MESSAGE + b"Received: in the text\r\n") == "250 2.6.0 taken"


def test_a_node_that_is_its_own_next_hop_stops(world: World) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    world.configure(EDGE, "127.0.0.1:0", f"127.0.0.1:{port}") if "127.0.0.1:0" in world.config(
        EDGE
    ).read_text() else None
    world.deliver(EDGE, f'next-hop = "127.0.0.1:{port}"')

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message())[-1].startswith("554 5.4.6 Hop count exceeded")

    run(session())


def test_answer() -> None:
    def replies(*codes: int) -> tuple[Reply, ...]:
        return tuple(Reply(code, ("text",)) for code in codes)

    assert answer(replies(250, 251)).code == 250
    assert answer(replies(550, 451)).code == 451
    assert answer(replies(550, 553)).code == 550
    assert answer(replies(250, 550)).code == 451
    assert answer(replies(421)).code == 451
