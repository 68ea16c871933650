"""``kill -9`` at any moment under load: what was acknowledged arrives, and what arrives twice was not settled yet.

``ANONTLS_CRASH_ROUNDS`` is how often the node is killed (``make soak``: 100 times), ``ANONTLS_CRASH_SEED`` repeats the
choices of a run, though not its timing.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from anontls.smtp.client import MAX_WINDOW
from anontls.transport.mailbox_queue import AT_A_TIME
from tests.transport.ledger import Copy, Key, Ledger, Message, say
from tests.transport.load import LARGE, Load, Mailboxes, Node, Sink, queued
from tests.transport.world import PATIENCE, World, eventually, run

ROUNDS = int(os.environ.get("ANONTLS_CRASH_ROUNDS", "10"))
SEED = int(os.environ.get("ANONTLS_CRASH_SEED", str(random.randrange(10_000))))
EACH = 30.0  # seconds that a round may take
CLIENTS = 8
SESSIONS = 6
QUEUE = f"sessions-per-destination = {SESSIONS}\nmessage-retry-interval = 0.3\nglitch-retry-interval = 0.2\n"
MOMENT = 2.0  # seconds before a kill, in which what was delivered may still have to be settled


def size(rng: random.Random) -> int:
    """Mostly little, some larger than what is kept in memory."""
    return rng.choice((200, 2000, 4000, 4000, 20_000, 100_000)) if rng.random() < 0.99 else LARGE


def waiting(database: Path) -> int:
    """Recipients in the queue of a node that runs."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM recipient").fetchone()[0])


class Crashes:
    """A node that is killed again and again.

    ``settle`` waits until all that a dead node has delivered is in the ledger.  ``again`` is what has to come again:
    for each pair of identity and recipient, how often it had arrived and still was in the queue when the node died.
    """

    def __init__(self, node: Node, load: Load, settle: Callable[[], Awaitable[None]]) -> None:
        self.node = node
        self.load = load
        self.ledger = load.ledger
        self.settle = settle
        self.again: Counter[Key] = Counter()
        self.most = 0

    async def round(self, rng: random.Random, *, kill: bool = True) -> None:
        """One life of the node."""
        ledger, load, node = self.ledger, self.load, self.node
        ledger.life += 1
        acknowledged = len(ledger.acknowledged)
        node.start()
        if kill and rng.random() < 0.15:
            seconds, when = rng.uniform(0, 0.5), "after its start"
        else:
            load.go(await node.port())
            seconds, when = rng.uniform(0.05, 0.6), "after it listened"
        await asyncio.sleep(seconds)
        at = time.time()
        assert await node.end(kill=kill) == (-9 if kill else 0)
        load.wait()
        await self.settle()
        left = await queued(node.database)
        assert not ledger.missing(left), f"round {ledger.life} lost what was acknowledged"
        twice = {key: at - arrived for key, arrived in ledger.arrived_in(ledger.life).items() if key in left}
        self.again.update(twice.keys())
        self.most = max(self.most, len({identity for identity, _ in twice}))
        say(
            f"round {ledger.life}: {'killed' if kill else 'stopped'} {seconds:.3f} s {when},"
            f" {len(ledger.acknowledged) - acknowledged} messages acknowledged, {len(left)} recipients left in the queue,"
            f" {len(twice)} of them had arrived, at most {max(twice.values(), default=0):.3f} s before"
        )
        assert max(twice.values(), default=0) < MOMENT

    async def finish(self) -> None:
        """Once more, without load: until nothing is left.  Then the account is made."""
        ledger, node = self.ledger, self.node
        ledger.life += 1
        node.start()
        await node.port()
        await eventually(lambda: waiting(node.database) == 0, "an empty queue")
        assert await node.end(kill=False) == 0
        await self.settle()
        assert await queued(node.database) == set()
        duplicates = ledger.duplicates()
        say(
            f"{len(ledger.acknowledged)} of {len(ledger.sent)} messages acknowledged, to {len(ledger.copies)} recipients;"
            f" {sum(map(len, duplicates.values()))} duplicates, of no more than {self.most} messages a round"
        )
        assert ledger.acknowledged
        assert not ledger.missing()
        assert not ledger.wrong
        assert not ledger.refused
        assert {key: len(copies) for key, copies in duplicates.items()} == dict(self.again)
        for key, copies in duplicates.items():
            lives = [copy.life for copy in ledger.copies[key]]
            assert sorted(set(lives)) == lives, f"{key}: twice in a life"
            assert len(copies) < ledger.life


def test_what_was_acknowledged_arrives_at_the_next_hop(world: World) -> None:
    async def session() -> None:
        rng, ledger = random.Random(SEED), Ledger()
        say(f"seed {SEED}")
        async with Sink(ledger, defers=0.02, pause=0.002, seed=SEED).listening() as sink:
            load = Load(ledger, SEED, size, most=200)
            with Node(world, f'next-hop = "127.0.0.1:{sink.port}"', QUEUE) as node:
                crashes = Crashes(node, load, sink.deserted)
                async with load.running(CLIENTS):
                    for _ in range(ROUNDS):
                        await crashes.round(rng)
                await crashes.finish()
        assert crashes.most <= SESSIONS * MAX_WINDOW

    run(session(), patience=PATIENCE + ROUNDS * EACH)


def test_what_was_acknowledged_arrives_in_the_mailboxes(world: World) -> None:
    async def session() -> None:
        rng, ledger = random.Random(SEED), Ledger()
        say(f"seed {SEED}")
        mailboxes = Mailboxes(ledger, world.folder / "mail")

        async def settle() -> None:
            await asyncio.to_thread(mailboxes.look)

        load = Load(ledger, SEED, size)
        with Node(world, 'maildir = "mail"\ncreate-mailboxes = true') as node:
            crashes = Crashes(node, load, settle)
            async with load.running(CLIENTS):
                for number in range(
                    10 * ROUNDS
                ):  # more than wanted only while all were killed before they took any mail
                    if number < max(1, ROUNDS // 4) or not ledger.acknowledged:
                        await crashes.round(rng)
            await crashes.finish()
        assert crashes.most <= AT_A_TIME

    run(session(), patience=PATIENCE + ROUNDS * EACH)


def test_a_node_that_drains_leaves_nothing_to_come_again(world: World) -> None:
    async def session() -> None:
        rng, ledger = random.Random(SEED), Ledger()
        say(f"seed {SEED}")
        async with Sink(ledger, defers=0.2, pause=0.02, seed=SEED).listening() as sink:
            load = Load(ledger, SEED, size)
            with Node(world, f'next-hop = "127.0.0.1:{sink.port}"', QUEUE) as node:
                crashes = Crashes(node, load, sink.deserted)
                async with load.running(CLIENTS):
                    await crashes.round(rng, kill=False)
                assert await queued(node.database), "those that were deferred wait"
                await crashes.finish()
        assert not ledger.duplicates()

    run(session())


def test_the_account_shows_what_is_lost_and_what_is_wrong() -> None:
    ledger, now = Ledger(), Copy(1, 0.0)
    content = b"Message-ID: <1@fabrikam.com>\r\n\r\nHello.\r\n"
    ledger.send(Message("1", ("a", "b"), content))
    ledger.arrive("1", ["a"], b"Received: here\r\n" + content, now)
    assert ledger.missing() == set(), "nobody was promised anything"
    ledger.acknowledge("1")
    assert ledger.missing() == {("1", "b")}
    assert ledger.missing({("1", "b")}) == set(), "it is in the queue"
    ledger.arrive("1", ["a"], content, Copy(2, 1.0))
    assert ledger.duplicates() == {("1", "a"): [now]}
    assert ledger.wrong == []
    ledger.arrive("1", ["b"], content.replace(b"Hello", b"Hallo"), now)
    ledger.arrive("1", ["c"], content, now)
    ledger.arrive("2", ["a"], content, now)
    assert ledger.wrong == [
        "1 to b: its content was changed",
        "1 to c: nobody sent it",
        "2 to a: nobody sent it",
    ]
    assert ledger.missing() == {("1", "b")}
