"""A node of a lab that runs in a thread of its own."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anontls import config
from anontls.transport.service import Service, system_now


@contextmanager
def running(configuration: Path, console: io.StringIO | None = None) -> Iterator[int]:
    """Run the node; gives the port that it listens on."""
    port: list[int] = []
    failed: list[BaseException] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        service = Service(
            config.load(configuration), configuration.parent, now=system_now, console=console or io.StringIO()
        )
        await service.start()
        port.append(int(service.servers[0].sockets[0].getsockname()[1]))
        ready.set()
        while not done.is_set():  # noqa: ASYNC110 the word comes from another thread
            await asyncio.sleep(0.01)
        await service.stop(2)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as e:  # noqa: BLE001 told to the test below
            failed.append(e)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait(20)
        if failed:
            raise failed[0]
        yield port[0]
    finally:
        done.set()
        thread.join(20)
