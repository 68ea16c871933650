"""Many idle TLS sessions held by one process: 5,000 must be possible (``make soak``), fewer are in every run."""

from __future__ import annotations

import asyncio
import os
import resource

from anontls.transport.lab import EDGE, MAILBOX
from tests.transport.test_service import process
from tests.transport.world import Client, World, greeted, run

SESSIONS = int(os.environ.get("ANONTLS_SOAK_SESSIONS", "1000"))
MOST = 100 * 1024  # octets for each
TOGETHER = 50  # sessions that are opened at a time


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
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')
    world.limits(EDGE, sessions=SESSIONS + 100, sessions_per_peer=SESSIONS + 100)

    async def session() -> None:
        with process(world, EDGE) as (node, port):
            warm = [await held(port, world) for _ in range(20)]
            before = node.memory()
            clients = []
            for _ in range(0, SESSIONS, TOGETHER):
                clients += await asyncio.gather(*(held(port, world) for _ in range(TOGETHER)))
            each = (node.memory() - before) / len(clients)
            print(f"{len(clients)} idle TLS sessions: {each / 1024:.1f} KiB each")  # noqa: T201 seen with -s
            assert each < MOST
            async with greeted(port) as client:
                assert (await client.message())[-1].startswith("250"), "it still takes mail"
            for client in (clients[0], clients[-1]):
                assert (await client.message("far@fabrikam.com"))[1] == "250 2.1.5 Recipient OK"
            for client in (*warm, *clients):
                client.writer.transport.abort()

    run(session(), patience=600)
