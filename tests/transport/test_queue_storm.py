"""Peers that behave badly by chance, an administrator who meddles, reloads and restarts: the books are right at the end."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from contextlib import suppress

import pytest

from anontls.errors import UsageError
from anontls.transport import send, session_queue
from tests.transport.queue_world import BREAK, CHUNKS, PLAIN, Peer, QueueNode, relaying, reported, smart_host
from tests.transport.world import World, run

MESSAGES = 40
DOMAINS = ("contoso.com", "fabrikam.com", "tailspin.example", "wingtip.example")
Books = Counter[tuple[int, str]]  # how often a message came to an address


class Storm:
    """What happens by chance; with ``breaks``, connections break as well, and a verdict may get lost."""

    def __init__(self, seed: int, *, breaks: bool) -> None:
        self.chance = random.Random(seed)
        self.breaks = breaks
        self.calm = False
        self.sent: dict[int, list[str]] = {}

    def said(self, line: str, _content: bytes) -> str | None:
        dice = self.chance.random()
        verb = line.partition(" ")[0]
        if verb == "RCPT" and "nobody" in line:
            return "550 5.1.1 no such user"
        if self.calm:
            return None
        if self.breaks and verb in ("", "HEADER", "BDAT", ".") and dice < 0.03:
            return BREAK
        if self.breaks and verb == "MAIL" and dice < 0.05:
            return "421 4.7.0 enough"
        if verb in ("MAIL", "RCPT", ".") and dice < 0.1:
            return "450 4.2.1 later"
        return "554 5.3.2 closed" if verb == "" and dice < 0.2 else None

    async def sends(self, node: QueueNode) -> None:
        chance = self.chance
        for number in range(len(self.sent), len(self.sent) + MESSAGES):
            names = [chance.choice(("anna", "ben", "carl", "nobody")) for _ in range(4)]
            to = [f"{name}@{domain}" for name, domain in zip(names, DOMAINS, strict=True) if chance.random() < 0.6]
            self.sent[number] = to = to or ["anna@fabrikam.com"]
            body = b"line\r\n" * chance.choice((1, 1, 1, 20_000))
            await node.send(*to, sender=f"sender{number}@contoso.com", content=b"Subject: %d\r\n\r\n" % number + body)
            if chance.random() < 0.1:
                await asyncio.sleep(0.01)

    async def meddles(self, node: QueueNode) -> None:
        chance, operations = self.chance, node.operations
        for _ in range(15):
            await asyncio.sleep(0.02)
            queues = [queue.identity for queue in operations.queues()] or ["MBX1\\1"]
            messages = [message.identity for message in operations.messages()] or ["MBX1\\1\\1"]
            identity = chance.choice((chance.choice(queues), chance.choice(messages)))
            match chance.randrange(4):
                case 0:
                    node.world.change(send_connectors=(smart_host(chance.choice(("one.example", "two.example"))),))
                    await node.service.reload()
                case 1:
                    await operations.retry(queues[0])
                case 2:
                    await node.dispatcher.sweep.once()
                case _:
                    with suppress(UsageError):  # it has left meanwhile
                        await operations.suspend(identity)
                        await asyncio.sleep(0.01)
                        await operations.resume(identity)

    async def clears_up(self, node: QueueNode) -> None:
        self.calm = True
        for message in list(node.operations.messages()):
            if message.status == "Suspended":
                await node.operations.resume(message.identity)
        await node.empty()


def books(world: World, peers: dict[str, Peer]) -> tuple[Books, Books]:
    """What was delivered, and what was returned."""
    delivered, returned = Books(), Books()

    def number(content: bytes) -> int:
        found = re.search(rb"^Subject: (\d+)\r", content, re.MULTILINE)
        assert found is not None
        return int(found[1])

    for letter in (letter for peer in peers.values() for letter in peer.letters):
        delivered.update((number(letter.content), line[9:-1]) for line in letter.recipients)
    for file in (world.folder / "mail").glob("*/new/*"):
        owner = file.parent.parent.name
        if owner.startswith("sender"):
            groups = reported(file.read_bytes())
            returned.update((int(owner[6:].partition("@")[0]), address) for address in groups)
        else:
            delivered[number(file.read_bytes()), owner] += 1
    return delivered, returned


@pytest.mark.parametrize("breaks", [False, True], ids=["bad answers", "breaks and restarts"])
def test_each_message_is_delivered_or_returned(world: World, monkeypatch: pytest.MonkeyPatch, *, breaks: bool) -> None:
    """Exactly once as long as no verdict gets lost; then twice at most by what got lost."""
    monkeypatch.setattr(session_queue, "CROWDED", 0.02)
    monkeypatch.setattr(send, "GOODBYE", 0.05)
    storm = Storm(4 + breaks, breaks=breaks)

    async def session() -> tuple[Books, Books]:
        peers = {"one.example": Peer(*PLAIN, said=storm.said), "two.example": Peer(*CHUNKS, said=storm.said)}
        for last in (False, True) if breaks else (True,):
            async with relaying(
                world,
                peers,
                connectors=(smart_host("one.example"),),
                idle_timeout=0.1,
                sessions_per_destination=3,
                glitch_retry_interval=0.02,
                transient_failure_retry_interval=0.02,
                outbound_connection_failure_retry_interval=0.02,
                message_retry_interval=0.03,
            ) as node:
                await asyncio.gather(storm.sends(node), storm.meddles(node))
                if last:
                    await storm.clears_up(node)
                else:
                    node.patience = 0.0
        return books(world, peers)

    delivered, returned = run(session())
    sent = {(number, address) for number, addresses in storm.sent.items() for address in addresses}
    hopeless = {one for one in sent if one[1].startswith("nobody@") and not one[1].endswith("@contoso.com")}
    assert set(returned) == hopeless
    assert set(delivered) == sent - hopeless
    assert breaks or set((delivered + returned).values()) == {1}
