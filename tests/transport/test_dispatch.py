"""Mail through the queue: what arrives, over which sessions, in which order; and what an administrator does with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from anontls.errors import UsageError
from anontls.transport import dispatch, memory, send, session_queue, sweep
from anontls.transport.control_client import ControlClient
from anontls.transport.lab import EDGE
from tests.transport.queue_world import (
    CARL,
    CHUNKS,
    DORA,
    EVA,
    PLAIN,
    RECEIVED,
    Peer,
    free_port,
    relaying,
    reported,
)
from tests.transport.world import ANNA, BEN, MESSAGE, World, eventually, exchange_server, run

EVERYTHING = [PLAIN, CHUNKS]
IDS = ["DATA", "BDAT"]


def large(octets: int) -> bytes:
    """A message that is no two lines the same, with lines that begin with dots."""
    chance = random.Random(octets)
    lines = [b"Subject: large\r\n\r\n"]
    while octets > 0:
        line = b"." * chance.randrange(3) + chance.randbytes(36).hex().encode() + b"\r\n"
        lines.append(line)
        octets -= len(line)
    return b"".join(lines)


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_a_message_goes_on_as_it_came(world: World) -> None:
    """Envelope, its extensions, eight bits: from an Exchange server to a peer elsewhere."""
    content = "From: <jörg@fabrikam.com>\r\nSubject: Grüße\r\n\r\n.\r\nÄ\r\n".encode()

    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            async with exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as client:
                mail = "MAIL FROM:<jörg@contoso.com> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ314159"
                assert (await client.ask(mail)).startswith("250")
                rcpt = "RCPT TO:<büro@fabrikam.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;office@fabrikam.com"
                assert (await client.ask(rcpt)).startswith("250")
                assert (await client.ask("RCPT TO:<ben@fabrikam.com> NOTIFY=NEVER")).startswith("250")
                assert (await client.ask("DATA")).startswith("354")
                await client.send(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
                assert "Queued mail for delivery" in await client.reply()
            await node.empty()
        (letter,) = peer.letters
        head, _, rest = letter.content.partition(b"From: <j")
        assert b"From: <j" + rest == content
        assert head.startswith(b"Received: from edge1.contoso.com ([127.0.0.1]) by mbx1.contoso.com\r\n with ESMTPS")
        assert letter.mail == (
            f"MAIL FROM:<jörg@contoso.com> SIZE={len(letter.content)} BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ314159"
        )
        assert letter.recipients == (
            "RCPT TO:<büro@fabrikam.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;office@fabrikam.com",
            "RCPT TO:<ben@fabrikam.com> NOTIFY=NEVER",
        )
        assert node.metrics.messages == 1 and node.metrics.recipients["delivered"] == 2

    run(session())


@pytest.mark.parametrize("keywords", EVERYTHING, ids=IDS)
@pytest.mark.parametrize("octets", [70_000, 3 * 1024 * 1024])
def test_a_large_message_is_not_changed(world: World, keywords: tuple[str, ...], octets: int) -> None:
    content = large(octets)

    async def session() -> None:
        peer = Peer(*keywords)
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.send(BEN, ANNA, content=content)
            await node.send(BEN, content=MESSAGE)
            await node.empty()
        assert [letter.content for letter in peer.letters] == [RECEIVED + content, RECEIVED + MESSAGE]
        (local,) = world.messages(ANNA)
        assert local.partition(RECEIVED)[2] == content

    run(session())


def test_eight_bits_that_nobody_declared_are_declared(world: World) -> None:
    content = b"Subject: 8\r\n\r\n" + "ä".encode() * 2_000_000 + b"\r\n"
    lines = b"\r\n".join(content[at : at + 900] for at in range(0, len(content), 900))

    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.send(BEN, content=lines + b"\r\n")
            await node.empty()
        assert peer.letters[0].mail.endswith(" BODY=8BITMIME")

    run(session())


def test_each_destination_gets_one_copy_for_all_its_recipients(world: World) -> None:
    async def session() -> None:
        peers = {"fabrikam.com": Peer(), "wingtip.example": Peer(*CHUNKS), "tailspin.example": Peer()}
        async with relaying(world, peers) as node:
            await node.send(DORA, ANNA, CARL, EVA, BEN)
            await node.empty()
            assert len(node.dispatcher.queues) == 4
        assert {name: [letter.recipients for letter in peer.letters] for name, peer in peers.items()} == {
            "fabrikam.com": [(f"RCPT TO:<{BEN}>",)],
            "wingtip.example": [(f"RCPT TO:<{DORA}>", f"RCPT TO:<{EVA}>")],
            "tailspin.example": [(f"RCPT TO:<{CARL}>",)],
        }
        assert len(world.messages(ANNA)) == 1

    run(session())


def test_a_destination_that_is_down_holds_up_no_other(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"wingtip.example": peer, "tailspin.example": 1}) as node:
            await node.send(CARL, DORA, ANNA)
            await eventually(lambda: bool(peer.letters and world.messages(ANNA)), "the others have it")
            await eventually(lambda: len(list(node.operations.messages())) == 1, "it waits in one queue only")
            assert [one.address for one in node.message().recipients] == [CARL]

    run(session())


# --- sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", EVERYTHING, ids=IDS)
def test_a_session_takes_many_messages(world: World, keywords: tuple[str, ...]) -> None:
    async def session() -> None:
        peer = Peer(*keywords)
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=1) as node:
            for number in range(40):
                await node.send(BEN, content=b"Subject: %d\r\n\r\n" % number)
            await node.empty()
        subjects = [letter.content.removeprefix(RECEIVED) for letter in peer.letters]
        assert subjects == [b"Subject: %d\r\n\r\n" % number for number in range(40)], "in the order in which they came"
        assert peer.sessions == 1

    run(session())


@pytest.mark.parametrize(("keywords", "window"), [(CHUNKS, 16), (PLAIN, 3), (("8BITMIME",), 1)], ids=[*IDS, "plain"])
def test_a_session_holds_as_many_messages_as_hide_a_round_trip(
    world: World, keywords: tuple[str, ...], window: int
) -> None:
    async def session() -> None:
        peer = Peer(*keywords)
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=1) as node:
            for _ in range(30):
                await node.send(BEN)
            queue = node.queue("fabrikam.com")
            await eventually(lambda: len(queue.in_flight) == window, "the window is full")
            assert len(queue.ready) == 30 - window and queue.status.value == "Active"
            peer.gate.set()
            await node.empty()
        assert len(peer.letters) == 30 and peer.sessions == 1

    run(session())


def test_no_more_sessions_than_the_limit(world: World) -> None:
    async def session() -> None:
        peer = Peer("8BITMIME")
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=3) as node:
            for _ in range(30):
                await node.send(BEN)
            await eventually(lambda: peer.waiting == 3, "three messages are on their way")
            await asyncio.sleep(0.05)
            assert peer.sessions == 3
            peer.gate.set()
            await node.empty()
        assert peer.most == 3 and len(peer.letters) == 30
        assert node.dispatcher.sessions == 0, "all are given back"

    run(session())


def test_an_idle_session_says_goodbye(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": peer}, idle_timeout=0.1) as node:
            await node.send(BEN)
            await node.empty()
            assert peer.open == 1, "it is kept for what may come"
            await eventually(lambda: not peer.open, "it ends")
            assert peer.lines[-1] == "QUIT"
            await node.send(BEN)
            await node.empty()
        assert peer.sessions == 2

    run(session())


def test_a_session_that_the_peer_closed_is_replaced(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            for _ in range(3):
                await node.send(BEN)
                await node.empty()
                peer.cut()
                await eventually(lambda: not peer.open, "it is closed")
        assert peer.sessions == 3 and len(peer.letters) == 3
        assert node.metrics.recipients["deferred"] == 0

    run(session())


@pytest.mark.parametrize("keywords", [PLAIN, CHUNKS, ("8BITMIME",)])
def test_a_peer_that_takes_few_messages_a_session_delays_none(world: World, keywords: tuple[str, ...]) -> None:
    """Many servers end a session with 421 after so many messages; that is no fault of the next."""

    async def session() -> None:
        taken = refused = 0

        def said(line: str, _content: bytes) -> str | None:
            nonlocal taken, refused
            taken = 0 if line == "" else taken + line.startswith("MAIL")
            if not line.startswith("MAIL") or taken < 5:
                return None
            refused += 1
            return "421 4.7.0 too many messages in this session"

        peer = Peer(*keywords, said=said)
        async with relaying(
            world,
            {"fabrikam.com": peer},
            sessions_per_destination=1,
            glitch_retry_interval=60.0,
            message_retry_interval=60.0,
        ) as node:
            for _ in range(20):
                await node.send(BEN)
            await node.empty()
        assert len(peer.letters) == 20
        assert refused == 1  # the first session finds out; what is sent ahead in the others would be at risk
        assert node.metrics.recipients["deferred"] == 0

    run(session())


def test_sessions_of_all_destinations_together_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_SESSIONS", 1)
    monkeypatch.setattr(session_queue, "CROWDED", 0.05)

    async def session() -> None:
        first, second = Peer(), Peer()
        async with relaying(world, {"fabrikam.com": first, "wingtip.example": second}, idle_timeout=0.1) as node:
            first.gate.clear()
            await node.send(BEN)
            await eventually(lambda: first.waiting == 1, "the only session is taken")
            await node.send(DORA)
            await asyncio.sleep(0.1)
            assert second.sessions == 0 and node.queue("wingtip.example").retry_count == 0
            first.gate.set()
            await node.empty()
        assert len(second.letters) == 1

    run(session())


def test_an_empty_queue_is_shown_for_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def session() -> None:
        async with relaying(world) as node:
            await node.send(ANNA)
            await node.empty()
            await node.dispatcher.sweep.once()
            assert [status.message_count for status in node.operations.queues()] == [0]
            monkeypatch.setattr(sweep, "QUEUE_STAYS", 0.0)
            await node.dispatcher.sweep.once()
            assert node.operations.queues() == []

    run(session())


# --- start, reload, stop ----------------------------------------------------------------------------------------------


def test_what_is_in_the_queue_goes_on_after_a_restart(world: World) -> None:
    async def session() -> None:
        peer = Peer(port=free_port())
        async with relaying(world, {"fabrikam.com": peer.port}) as node:
            for number in range(20):
                await node.send(BEN, ANNA, content=b"Subject: %d\r\n\r\n" % number)
            await eventually(lambda: len(world.messages(ANNA)) == 20, "mailboxes here have theirs")
            assert node.store.count == 20
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=1) as node:
            await node.empty()
        assert [letter.content.removeprefix(RECEIVED) for letter in peer.letters] == [
            b"Subject: %d\r\n\r\n" % number for number in range(20)
        ]
        assert all(letter.recipients == (f"RCPT TO:<{BEN}>",) for letter in peer.letters)

    run(session())


def test_a_restart_keeps_attempts_and_the_time_of_the_next(world: World) -> None:
    async def session() -> None:
        peer = Peer(*PLAIN, said=lambda line, _: "450 4.2.1 busy" if line.startswith("RCPT") else None)
        async with relaying(world, {"fabrikam.com": peer}, message_retry_interval=50.0) as node:
            await node.send(BEN)
            await eventually(lambda: node.message().status == "Retry", "deferred")
            await asyncio.sleep(0.05)  # it is durable
            before = node.message()
        async with relaying(world, {"fabrikam.com": peer}, message_retry_interval=50.0) as node:
            await eventually(lambda: bool(node.dispatcher.queues), "loaded")
            after = node.message()
            assert (after.retry_count, after.last_error, after.status) == (1, before.last_error, "Retry")
            queue = node.queue("fabrikam.com")
            assert 45 < queue.waiting[0][0] - node.dispatcher.clock() < 50
            await node.operations.retry("MBX1\\1")
            await eventually(lambda: node.message().retry_count == 2, "it was tried again")
        assert peer.sessions == 2

    run(session())


def test_a_clock_that_was_set_back_before_the_start_keeps_no_message_for_long(world: World) -> None:
    async def session() -> None:
        busy = True
        peer = Peer(*PLAIN, said=lambda line, _: "450 4.2.1 busy" if busy and line.startswith("RCPT") else None)
        async with relaying(world, {"fabrikam.com": peer}, message_retry_interval=50.0) as node:
            await node.send(BEN)
            await eventually(lambda: node.message().status == "Retry", "deferred")
            await asyncio.sleep(0.05)
        busy = False
        past = lambda: datetime.now(UTC) - timedelta(days=1)  # noqa: E731
        async with relaying(world, {"fabrikam.com": peer}, now=past, message_retry_interval=0.1) as node:
            await node.empty()
        assert len(peer.letters) == 1

    run(session())


def test_stopping_waits_for_what_is_on_its_way(world: World) -> None:
    async def session() -> None:
        peer = Peer(*CHUNKS)
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=1) as node:
            for _ in range(20):
                await node.send(BEN)
            await eventually(lambda: len(node.queue("fabrikam.com").in_flight) == 16, "a window is on its way")
            stop = asyncio.create_task(node.service.stop(5))
            await asyncio.sleep(0.05)
            assert not stop.done()
            peer.gate.set()
            await stop
            assert len(peer.letters) == 16, "nothing new was begun"
        assert peer.lines[-1] == "QUIT"
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.empty()
        assert len(peer.letters) == 20, "and none was sent twice"

    run(session())


def test_what_is_on_its_way_when_patience_ends_is_sent_again_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "GOODBYE", 0.1)

    async def session() -> None:
        peer = Peer(*CHUNKS)
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.send(BEN)
            await eventually(lambda: peer.waiting == 1, "on its way")
            node.patience = 0.0
        assert not peer.open
        peer.letters.clear()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.empty()
        assert len(peer.letters) == 1

    run(session())


def test_a_stop_ends_a_connection_that_is_being_made(world: World) -> None:
    async def session() -> None:
        peer = Peer(greeting="hang")
        async with peer.listening():
            async with relaying(world, {"fabrikam.com": peer.port}) as node:
                await node.send(BEN)
                await eventually(lambda: peer.open == 1, "it waits for the greeting")
            await eventually(lambda: not peer.open, "it is closed")

    run(session())


# --- an administrator -------------------------------------------------------------------------------------------------


def test_a_suspended_queue_sends_nothing_until_it_is_resumed(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.send(BEN)
            await node.empty()
            await node.operations.suspend("MBX1\\1")
            await node.send(BEN, ANNA)
            await eventually(lambda: len(world.messages(ANNA)) == 1, "another queue goes on")
            (status, _) = node.operations.queues()
            assert (status.status, status.message_count) == ("Suspended", 1)
            assert len(peer.letters) == 1
            await node.service.reload()
            await asyncio.sleep(0.05)
            assert node.queue("fabrikam.com").suspended and len(peer.letters) == 1, "a reload does not resume it"
            await node.operations.resume("MBX1\\1")
            await node.empty()
        assert len(peer.letters) == 2

    run(session())


def test_a_suspended_queue_is_not_tried(world: World) -> None:
    async def session() -> None:
        async with relaying(world, {"fabrikam.com": 1}, glitch_retry_interval=60.0) as node:
            await node.send(BEN)
            queue = node.queue("fabrikam.com")
            await eventually(lambda: queue.next_retry is not None, "the host is down")
            await node.operations.suspend("MBX1\\1")
            before = queue.status_of_queue("MBX1")
            with pytest.raises(UsageError, match="is suspended, and is not tried") as caught:
                await node.operations.retry("MBX1\\1")
            assert "queue resume" in str(caught.value.hint)
            after = queue.status_of_queue("MBX1")
            assert (after.next_retry_time, after.status) == (before.next_retry_time, "Suspended")
            await node.operations.resume("MBX1\\1")
            await node.operations.retry("MBX1\\1")
            await eventually(lambda: queue.retry_count == 2, "tried")

    run(session())


@pytest.mark.parametrize("number", ["9" * 19, "9" * 18, "9" * 5000, "-1", "\u0663", ""])
def test_a_number_that_no_message_has(world: World, number: str) -> None:
    async def session() -> None:
        async with relaying(world, {"fabrikam.com": 1}) as node:
            await node.send(BEN)
            with pytest.raises(UsageError, match="no message"):
                node.operations.show(f"MBX1\\1\\{number}")

    run(session())


def test_a_suspended_message_stays_through_a_restart(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"fabrikam.com": 1}) as node:
            await node.send(BEN, content=b"Subject: stays\r\n\r\n")
            await node.send(BEN, content=b"Subject: goes\r\n\r\n")
            first = next(iter(node.operations.messages()))
            await node.operations.suspend(first.identity)
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await eventually(lambda: len(peer.letters) == 1, "the other goes")
            await asyncio.sleep(0.05)
            assert peer.letters[0].content.endswith(b"goes\r\n\r\n")
            shown = node.operations.show(node.message().identity)
            assert (shown.status, shown.subject) == ("Suspended", "stays")
            await node.operations.resume(shown.identity)
            await node.empty()
        assert len(peer.letters) == 2

    run(session())


@pytest.mark.parametrize("with_ndr", [True, False])
def test_a_removed_message_is_gone_for_good(world: World, *, with_ndr: bool) -> None:
    async def session() -> None:
        async with relaying(world, {"fabrikam.com": 1}) as node:
            await node.send(BEN, sender=ANNA)
            await eventually(lambda: node.queue("fabrikam.com").status.value == "Retry", "the host is down")
            await node.operations.remove(node.message().identity, with_ndr=with_ndr)
            await node.empty()
            assert len(node.queue("fabrikam.com")) == 0
            assert node.metrics.recipients["failed"] == 1
        told = [reported(message)[BEN]["Diagnostic-Code"] for message in world.messages(ANNA)]
        assert told == ["smtp; 550 5.7.1 The message was removed from the queue by an administrator"] * with_ndr

    run(session())


def test_a_message_that_is_being_sent_is_not_removed(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}) as node:
            await node.send(BEN)
            await eventually(lambda: peer.waiting == 1, "on its way")
            assert node.message().status == "Active"
            with pytest.raises(UsageError, match="is being sent"):
                await node.operations.remove(node.message().identity, with_ndr=False)
            peer.gate.set()
            await node.empty()

    run(session())


def test_the_control_socket_steers_the_node(world: World) -> None:
    async def session() -> None:
        peer = Peer(port=free_port())
        async with relaying(world, {"fabrikam.com": peer.port}, glitch_retry_interval=60.0) as node:
            await node.send(BEN, sender=ANNA)
            await node.send(BEN)
            client = ControlClient(world.folder / "queue.sqlite.sock")
            ask: Callable[[], list[str]] = lambda: [each.status for each in client.queues()]  # noqa: E731
            await eventually(lambda: node.queue("fabrikam.com").status.value == "Retry", "the host is down")
            assert await asyncio.to_thread(ask) == ["Retry"]
            first, _ = await asyncio.to_thread(lambda: list(client.messages("MBX1\\1")))
            await asyncio.to_thread(client.remove, first.identity, with_ndr=True)
            await eventually(lambda: len(world.messages(ANNA)) == 1, "its sender is told")
            await asyncio.to_thread(client.suspend, "MBX1\\1")
            assert (await asyncio.to_thread(ask))[0] == "Suspended"
            await asyncio.to_thread(client.resume, "MBX1\\1")
            async with peer.listening():
                await asyncio.to_thread(client.retry, "MBX1\\1")
                await node.empty()
        assert len(peer.letters) == 1

    run(session())


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_in_memory_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "IN_MEMORY", 10_000)
    content = b"Subject: x\r\n\r\n" + b"x" * 900 + b"\r\n"

    async def session() -> None:
        peer = Peer("8BITMIME")
        peer.gate.clear()
        async with relaying(world, {"fabrikam.com": peer}, sessions_per_destination=1) as node:
            for _ in range(50):
                await node.send(BEN, content=content)
            await eventually(lambda: peer.waiting == 1, "the first is on its way")
            kept = len(node.dispatcher.memory)
            assert kept == 10_000 // (len(RECEIVED) + len(content))
            peer.gate.set()
            await node.empty()
            await eventually(lambda: len(node.dispatcher.memory) == 0, "what has left is forgotten")
            for _ in range(3):  # what was freed is there again
                await node.send(BEN, content=content)
            await node.empty()
        assert [letter.content for letter in peer.letters] == [RECEIVED + content] * 53

    run(session())


def test_what_cannot_leave_is_not_kept_in_memory(world: World) -> None:
    async def session() -> None:
        async with relaying(world, {"fabrikam.com": 1}, glitch_retry_interval=60.0) as node:
            await node.send(BEN)
            await eventually(lambda: node.queue("fabrikam.com").status.value == "Retry", "the host is down")
            for _ in range(10):
                await node.send(BEN)
            assert len(node.dispatcher.memory) == 0 and len(node.queue("fabrikam.com")) == 11

    run(session())
