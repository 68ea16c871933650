"""A node whose disk fails: new mail is refused, what is on its way arrives, and all goes on when the disk does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from anontls.errors import AnontlsError, Unreachable
from anontls.smtp import exchange
from anontls.transport import dispatch, queue, queue_file, queue_sqlite
from anontls.transport.lab import EDGE
from anontls.transport.queue import StoreFailed
from tests.transport.queue_world import CHUNKS, DORA, EVA, Peer, QueueNode, free_port, relaying
from tests.transport.test_queue_disk import another_process
from tests.transport.vfs import FULL, IO_ERROR, OK, READ_ONLY, RecordingVfs
from tests.transport.world import ANNA, BEN, World, eventually, exchange_server, run

FABRIKAM = "fabrikam.com"


@pytest.fixture
def vfs() -> Iterator[RecordingVfs]:
    with RecordingVfs().installed() as installed:
        yield installed


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_sqlite, "PAUSE", 0.02)
    monkeypatch.setattr(queue, "PAUSE", 0.02)
    monkeypatch.setattr(queue_file, "BUSY", 0.05)


async def fails_and_recovers(node: QueueNode, peer: Peer, fail: Callable[[], None], mend: Callable[[], None]) -> None:
    """Three messages are on their way when the disk fails; they arrive, once, and all goes on when it is mended."""
    peer.gate.clear()
    for _ in range(3):
        await node.send(BEN)
    await eventually(lambda: peer.waiting > 0, "on their way")
    fail()
    assert str(await node.accept(BEN)) == str(exchange.INSUFFICIENT_RESOURCES)
    assert str(node.delivery.refusal()) == str(exchange.INSUFFICIENT_RESOURCES)
    peer.gate.set()
    await eventually(lambda: len(peer.letters) == 3, "what was on its way arrives")
    await asyncio.sleep(0.1)
    assert node.store.count == 3, "but that is not durable yet"
    assert str(await node.accept(BEN)) == str(exchange.INSUFFICIENT_RESOURCES)
    mend()
    await node.empty()
    await eventually(lambda: len(node.dispatcher.memory) == 0, "nothing is held any more")
    assert node.delivery.refusal() is None
    await node.send(BEN)
    await node.empty()
    assert len(peer.letters) == 4, "and nothing twice"
    assert node.console.count("new mail is refused with 452") == 1
    assert node.console.count("new mail is taken again") == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("code", [FULL, IO_ERROR, READ_ONLY], ids=["full", "I/O error", "read-only"])
def test_a_disk_that_cannot_be_written_loses_nothing(world: World, vfs: RecordingVfs, code: int) -> None:
    async def session() -> None:
        peer = Peer(*CHUNKS)
        async with relaying(world, {FABRIKAM: peer}) as node:
            await fails_and_recovers(node, peer, lambda: setattr(vfs, "fail", code), lambda: setattr(vfs, "fail", OK))

    run(session())


@pytest.mark.usefixtures("hasty")
def test_a_database_that_another_process_locks_loses_nothing(world: World) -> None:
    async def session() -> None:
        peer = Peer(*CHUNKS)
        async with relaying(world, {FABRIKAM: peer}) as node:
            with ExitStack() as held:

                def lock() -> None:
                    process = held.enter_context(another_process(world.folder / "queue.sqlite"))
                    held.callback(process.communicate, "go\n")

                await fails_and_recovers(node, peer, lock, held.close)

    run(session())


@pytest.mark.usefixtures("hasty")
def test_a_stop_while_the_disk_is_full_says_what_is_sent_again(world: World, vfs: RecordingVfs) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {FABRIKAM: peer}) as node:
            peer.gate.clear()
            await node.send(BEN)
            await eventually(lambda: peer.waiting == 1, "on its way")
            vfs.fail = FULL
            peer.gate.set()
            await eventually(lambda: len(peer.letters) == 1, "it arrives")
        vfs.fail = OK
        assert "database or disk is full; what was settled since then is sent again" in node.console
        async with relaying(world, {FABRIKAM: peer}) as node:
            await node.empty()
        assert len(peer.letters) == 2

    run(session())


@pytest.mark.usefixtures("hasty")
def test_a_message_is_not_suspended_on_a_full_disk_and_that_is_told_soon(world: World, vfs: RecordingVfs) -> None:
    async def session() -> None:
        async with relaying(world, {FABRIKAM: 1}) as node:
            await node.send(BEN)
            identity = node.message().identity
            vfs.fail = FULL
            async with asyncio.timeout(5):
                with pytest.raises(Unreachable, match=r"is as it was: .*cannot be written: .*full") as caught:
                    await node.operations.suspend(identity)
            assert caught.value.hint == "make room on its disk"
            assert node.message().status != "Suspended"
            vfs.fail = OK
            await node.operations.suspend(identity)
            assert node.message().status == "Suspended"

    run(session())


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("with_ndr", [True, False])
def test_a_message_is_not_removed_on_a_full_disk_and_that_is_told_soon(
    world: World, vfs: RecordingVfs, *, with_ndr: bool
) -> None:
    """It is for two destinations, and is being sent to one of them."""

    async def session() -> None:
        there, away = Peer(), Peer(port=free_port())
        there.gate.clear()
        async with relaying(world, {FABRIKAM: away.port, "wingtip.example": there}) as node:
            await node.send(BEN, DORA, sender=ANNA)
            await eventually(lambda: there.waiting == 1, "on its way to one")
            queue = node.queue(FABRIKAM)
            await eventually(lambda: queue.next_retry is not None, "the other is down")
            identity = f"MBX1\\{queue.number}\\{queue.numbers()[0]}"
            vfs.fail = FULL
            for _ in range(3):
                async with asyncio.timeout(5):
                    with pytest.raises(Unreachable, match=r"is as it was: .*cannot be written: .*full"):
                        await node.operations.remove(identity, with_ndr=with_ndr)
                assert [each.address for each in node.operations.show(identity).recipients] == [BEN]
            there.gate.set()
            await eventually(lambda: len(there.letters) == 1, "it arrives")
            with pytest.raises(Unreachable, match="is as it was"):
                await node.operations.remove(identity, with_ndr=with_ndr)
            assert node.metrics.recipients["failed"] == 0 and node.store.count == 1
            vfs.fail = OK
            async with away.listening():
                await node.empty()
            await eventually(lambda: len(node.dispatcher.memory) == 0, "nothing is held any more")
        assert [letter.recipients for letter in there.letters] == [(f"RCPT TO:<{DORA}>",)]
        assert [letter.recipients for letter in away.letters] == [(f"RCPT TO:<{BEN}>",)]
        assert not world.messages(ANNA), "nobody is told of what was not done"

    run(session())


def test_a_mailbox_that_cannot_be_written_keeps_the_mail_waiting(world: World) -> None:
    async def session() -> None:
        (world.folder / "mail").write_text("not a folder")
        async with relaying(world) as node:
            await node.send(ANNA)
            await eventually(lambda: bool(node.message().retry_count), "tried")
            assert "451 4.3.0 Mailbox cannot be reached" in node.message().last_error
            assert "a message could not be delivered: Not a directory" in node.console
            (world.folder / "mail").unlink()
            await node.empty()
        assert len(world.messages(ANNA)) == 1

    run(session())


def test_a_message_that_cannot_be_read_for_a_while_is_sent_then(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def session() -> None:
        peer = Peer(port=free_port())
        async with relaying(world, {FABRIKAM: peer.port}) as node:
            await node.send(BEN)
            await eventually(lambda: node.queue(FABRIKAM).retry_count > 0, "the host is down: out of memory")

            def fails(*_: object, **__: object) -> None:
                raise StoreFailed("queue.sqlite: disk I/O error")

            with monkeypatch.context() as broken:
                broken.setattr(node.store, "message", fails)
                async with peer.listening():
                    await eventually(lambda: "disk I/O error" in node.console, "told")
                    await asyncio.sleep(0.1)
                    broken.undo()
                    await node.empty()
        assert len(peer.letters) == 1

    run(session())


@pytest.mark.usefixtures("hasty")
def test_a_queue_that_cannot_be_read_at_the_start_is_read_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def session() -> None:
        peer = Peer()
        monkeypatch.setattr(dispatch, "PAUSE", 0.02)
        async with relaying(world, {FABRIKAM: free_port()}) as node:
            await node.send(BEN)
        real = queue_sqlite.SqliteQueue.messages

        def fails(*_: object, **__: object) -> None:
            raise StoreFailed("queue.sqlite: disk I/O error")

        monkeypatch.setattr(queue_sqlite.SqliteQueue, "messages", fails)
        async with relaying(world, {FABRIKAM: peer}) as node:
            await eventually(lambda: "disk I/O error" in node.console, "told")
            monkeypatch.setattr(queue_sqlite.SqliteQueue, "messages", real)
            await node.empty()
        assert len(peer.letters) == 1

    run(session())


def test_a_node_does_not_start_with_the_queue_of_another(world: World) -> None:
    async def session() -> None:
        async with relaying(world) as node:
            await node.send(DORA)
            with pytest.raises(AnontlsError, match="has it"):
                async with relaying(world):
                    pass
            assert node.store.count == 1

    run(session())


# --- back pressure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_messages", "minimum_free"), [(2, 0), (1000, 2**60)], ids=["messages", "free"])
def test_back_pressure_is_told_at_rcpt(world: World, max_messages: int, minimum_free: int) -> None:
    async def session() -> None:
        async with (
            relaying(world, {FABRIKAM: 1}, max_messages=max_messages, minimum_free=minimum_free) as node,
            exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as client,
        ):
            while node.store.count < max_messages == 2:
                await node.send(BEN)
            assert (await client.ask(f"MAIL FROM:<{BEN}>")).startswith("250")
            assert await client.ask(f"RCPT TO:<{ANNA}>") == "452 4.3.1 Insufficient system resources"
            assert "new mail is refused with 452" in node.console

    run(session())


def test_back_pressure_is_told_to_exchange_servers_that_relay(world: World) -> None:
    async def session() -> None:
        async with (
            relaying(world, {FABRIKAM: 1}, max_messages=1) as node,
            exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as client,
        ):
            await node.send(EVA)
            assert "452 4.3.1 Insufficient system resources" in await client.message(BEN), "at RCPT"

    run(session())
