"""TLS handshakes of receiving sessions, in threads beside the event loop.

Most of a handshake is arithmetic of the TLS library, which lets the interpreter go meanwhile; it is half the work of a
short session.  Sessions with next hops are reused, so that theirs are few, and are done in the loop.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from anontls.tls import TlsPump

Done = Callable[[Exception | None], None]

#: One processor is the event loop's.  More than four are not kept busy by what it can hand over.
THREADS = min(4, max(1, (os.cpu_count() or 1) - 1))


class Handshakes:
    """The threads, and what waits for them; made in a running loop, where it is told how things went."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[tuple[TlsPump, bytes, Done] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def received(self, pump: TlsPump, data: bytes, done: Done) -> None:
        """``pump.received(data)``; ``done`` gets what it raised.  Nobody else may touch the pump until then."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"handshakes {number}", daemon=True)
                for number in range(THREADS)
            ]
            for thread in self._threads:
                thread.start()
        self._waiting.put((pump, data, done))

    def close(self) -> None:
        """End the threads behind what waits."""
        for _ in self._threads:
            self._waiting.put(None)
        self._threads = []

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            pump, data, done = job
            raised: Exception | None = None
            try:
                pump.received(data)
            except Exception as e:  # noqa: BLE001 the thread has to go on, and the session to be told
                raised = e
            with suppress(RuntimeError):  # the event loop has been closed, nobody waits
                self._loop.call_soon_threadsafe(done, raised)
            del job, pump, done, raised  # no session is kept until the next one comes
