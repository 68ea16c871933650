"""The organisation changes while mail is on its way or waits: every recipient has a queue afterwards, and one only."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import msgspec
import pytest

from anontls.facts import SendConnector
from anontls.transport import dispatch
from anontls.transport.body import IN_MEMORY
from tests.transport.queue_world import (
    CARL,
    CHUNKS,
    DORA,
    PLAIN,
    Peer,
    free_port,
    relaying,
    smart_host,
)
from tests.transport.world import World, eventually, run

SPACES = {CARL: "SMTP:tailspin.example;1", DORA: "SMTP:wingtip.example;1"}


def connector(host: str, *recipients: str) -> SendConnector:
    """Mail for the recipients' domains goes to that smart host."""
    spaces = tuple(SPACES[each] for each in recipients)
    return msgspec.structs.replace(smart_host(host), identity=f"To {host}", address_spaces=spaces)


APART = (connector("one.example", CARL), connector("two.example", DORA))
TOGETHER = (connector("one.example", CARL, DORA),)


def arrived(peer: Peer) -> list[str]:
    """The recipients of all that the peer has taken."""
    return sorted(re.findall(r"<(.+?)>", " ".join(to for letter in peer.letters for to in letter.recipients)))


def test_a_recipient_comes_to_a_queue_that_is_sending_its_message_to_another(world: World) -> None:
    async def session() -> None:
        one = Peer()
        one.gate.clear()
        peers: dict[str, Peer | int] = {"one.example": one, "two.example": free_port()}
        async with relaying(world, peers, connectors=APART, glitch_retry_interval=60.0) as node:
            await node.send(CARL, DORA)
            await eventually(lambda: one.waiting == 1)
            world.change(send_connectors=TOGETHER)
            await node.service.reload()
            one.gate.set()
            await node.empty()
        assert arrived(one) == [CARL, DORA]

    run(session())


def test_a_broken_session_gives_a_recipient_to_such_a_queue(world: World) -> None:
    async def session() -> None:
        one, two = Peer(), Peer()
        one.gate.clear()
        two.gate.clear()
        async with relaying(world, {"one.example": one, "two.example": two}, connectors=APART) as node:
            await node.send(CARL, DORA)
            await eventually(lambda: one.waiting == 1 and two.waiting == 1)
            world.change(send_connectors=TOGETHER)
            await node.service.reload()
            two.cut()
            two.gate.set()
            await eventually(lambda: not two.open)
            one.gate.set()
            await node.empty()
        assert arrived(one) == [CARL, DORA]

    run(session())


def test_reloads_that_overlap_count_nothing_twice(world: World) -> None:
    async def session() -> None:
        async with relaying(world, {"one.example": free_port()}, connectors=(smart_host("one.example"),)) as node:
            await asyncio.gather(*(node.send(CARL) for _ in range(1500)))
            for _ in range(4):
                await node.service.reload()
            await asyncio.sleep(0.2)
            assert sum(queue.message_count for queue in node.operations.queues()) <= node.store.count

    run(session())


def test_a_message_that_is_resumed_while_all_is_read_again_is_not_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "AT_ONCE", 10)

    async def session() -> None:
        async with relaying(world, {"one.example": free_port()}, connectors=(smart_host("one.example"),)) as node:
            for _ in range(30):
                await node.send(CARL)
            for message in list(node.operations.messages()):
                await node.operations.suspend(message.identity)
            (queue,) = node.dispatcher.queues.values()
            await node.service.reload()
            await eventually(lambda: len(queue.held) == 30, "all are held")
            late = max(queue.held)

            async def resume(_seconds: float) -> None:  # what may come in that round of the loop
                if late not in resumed:
                    resumed.add(late)
                    await node.operations.resume(f"MBX1\\{queue.number}\\{late}")

            resumed = set[int]()
            monkeypatch.setattr(dispatch, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": resume}))
            node.dispatcher.reroute()
            await eventually(lambda: len(queue) == 30 and bool(resumed), "all is read again")
            monkeypatch.undo()
            assert late not in queue.held and len(queue.held) == 29

    run(session())


@pytest.mark.parametrize("less", [40, 0])
@pytest.mark.parametrize("keywords", [PLAIN, CHUNKS])
def test_eight_bits_that_nobody_declared_outlive_a_restart(world: World, keywords: tuple[str, ...], less: int) -> None:
    """With the Received field the message is too large to be read again in one piece."""
    line = "ä".encode() * 36 + b"\r\n"
    content = b"Subject: x\r\n\r\n" + line * (IN_MEMORY // len(line) + 1)
    content = content[: IN_MEMORY - less - 2] + b"\r\n"

    async def session() -> None:
        peer, port = Peer(*keywords), free_port()
        to = (smart_host("one.example"),)
        async with relaying(world, {"one.example": port}, connectors=to) as node:
            await node.send(CARL, content=content)
        async with relaying(world, {"one.example": peer}, connectors=to) as node:
            await node.empty()
        (letter,) = peer.letters
        assert letter.content.endswith(content) and "BODY=8BITMIME" in letter.mail

    run(session())
