"""Much of everything, for one process: idle TLS sessions (``make soak``: 5,000), messages through the queue (100,000).

Every run has fewer.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anontls.transport.control_client import ControlClient
from anontls.transport.lab import EDGE, MAILBOX
from anontls.transport.queue_file import CHECKPOINT, LOG_SIZE, PAGE
from anontls.transport.queue_sqlite import BATCH_OCTETS
from anontls.transport.queue_tables import KEPT, STEP
from tests.transport.ledger import Ledger, say
from tests.transport.load import Load, Node, Sink, queued
from tests.transport.test_service import process
from tests.transport.world import Client, World, eventually, greeted, run

SESSIONS = int(os.environ.get("ANONTLS_SOAK_SESSIONS", "1000"))
MOST = 100 * 1024  # octets for each
TOGETHER = 50  # sessions that are opened at a time

MESSAGES = int(os.environ.get("ANONTLS_SOAK_MESSAGES", "2000"))
MIB = 1024 * 1024
BACKLOG = 1000  # messages of 64 KiB that wait in a queue that is suspended: more than the database keeps free
MORE_MEMORY = 8 * MIB  # octets that a node may grow by from a fifth of the messages to all
EMPTY = (KEPT + STEP + CHECKPOINT) * PAGE  # octets of a database in which nothing is; the log may say that it has less
FLOW = EMPTY + 16 * MIB  # of one in which a little is
CLIENTS = 16


async def held(port: int, world: World) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", port, limit=1024))
    await client.reply()
    await client.ask("EHLO mbx1.contoso.com")
    await client.secure("X-ANONYMOUSTLS", world.certificates[MAILBOX])
    assert (await client.ask("EHLO mbx1.contoso.com")).startswith("250-")
    return client


def test_idle_tls_sessions(world: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SESSIONS + 500
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true\n\n[queue]\ndatabase = "queue.db"')
    world.limits(EDGE, sessions=SESSIONS + 100, sessions_per_peer=SESSIONS + 100)

    async def session() -> None:
        with process(world, EDGE) as (node, port):
            warm = [await held(port, world) for _ in range(20)]
            before = node.memory()
            clients = []
            for _ in range(0, SESSIONS, TOGETHER):
                clients += await asyncio.gather(*(held(port, world) for _ in range(TOGETHER)))
            each = (node.memory() - before) / len(clients)
            say(f"{len(clients)} idle TLS sessions: {each / 1024:.1f} KiB each")
            assert each < MOST
            async with greeted(port) as client:
                assert (await client.message())[-1].startswith("250"), "it still takes mail"
            for client in (clients[0], clients[-1]):
                assert (await client.message("far@fabrikam.com"))[1] == "250 2.1.5 Recipient OK"
            for client in (*warm, *clients):
                client.writer.transport.abort()

    run(session(), patience=600)


class Sizes:
    """The most octets that a node and its files took while somebody looked."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.memory = self.database = self.log = 0

    def look(self) -> None:
        database = self.node.database
        self.memory = max(self.memory, self.node.memory())
        self.database = max(self.database, database.stat().st_size)
        self.log = max(self.log, database.with_name(f"{database.name}-wal").stat().st_size)

    def __str__(self) -> str:
        return f"{_mib(self.memory)} resident, {_mib(self.database)} database, {_mib(self.log)} write-ahead log"


def _mib(octets: int) -> str:
    return f"{octets / MIB:.1f} MiB"


@asynccontextmanager
async def watched(node: Node) -> AsyncIterator[Sizes]:
    sizes = Sizes(node)

    async def watch() -> None:
        while True:
            sizes.look()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(watch())
    try:
        yield sizes
    finally:
        task.cancel()


def test_messages_through_the_queue(world: World) -> None:
    """A steady flow, then a backlog: memory stays flat, the files become small again, and everything arrives once."""

    async def session() -> None:
        ledger = Ledger()
        load = Load(ledger, 1, lambda rng: rng.choice((1000, 4000, 4000, 16_000)))

        async def send(messages: int) -> None:
            load.left = messages
            async with load.running(CLIENTS):
                await load.finished()

        async def all_arrived() -> None:
            await eventually(lambda: ledger.backlog == 0, "all arrive")

        async with Sink(ledger).listening() as sink:
            with Node(world, f'next-hop = "127.0.0.1:{sink.port}"') as node:
                node.start()
                load.go(await node.port())
                fifth = MESSAGES // 5
                resident = []
                for count in (fifth, MESSAGES - fifth):
                    began = time.monotonic()
                    async with watched(node) as sizes:
                        await send(count)
                        await all_arrived()
                    rate = count / (time.monotonic() - began)
                    resident.append(node.memory())
                    say(f"{count} messages, {rate:.0f} a second; {_mib(resident[-1])} resident after; most: {sizes}")
                    assert sizes.database <= FLOW
                    assert sizes.log <= LOG_SIZE + BATCH_OCTETS
                assert resident[1] - resident[0] < MORE_MEMORY

                control = ControlClient(node.control)
                [queue] = await asyncio.to_thread(lambda: list(control.queues()))
                await asyncio.to_thread(control.suspend, queue.identity)
                load.size, load.most = (lambda _: 64 * 1024), float("inf")
                async with watched(node) as sizes:
                    await send(BACKLOG)
                    sizes.look()
                    await asyncio.to_thread(control.resume, queue.identity)
                    await all_arrived()
                say(f"backlog of {BACKLOG} messages of 64 KiB; most: {sizes}")
                assert sizes.database > EMPTY
                await eventually(lambda: node.database.stat().st_size <= EMPTY, "what is free goes back to the disk")

                assert await node.end(kill=False) == 0
                assert await queued(node.database) == set()
        assert not ledger.wrong
        assert not ledger.duplicates()

    run(session(), patience=60 + MESSAGES / 50)
