"""A relay that turns any STARTTLS client into an X-ANONYMOUSTLS client.

It stands between client and server and passes everything, but until TLS begins the client sees the server's keyword
X-ANONYMOUSTLS as STARTTLS (and the real STARTTLS not at all), and the server sees the client's command STARTTLS as
X-ANONYMOUSTLS.  By hand::

    python -m tests.peers.relay 2526 127.0.0.1:2525
    openssl s_client -starttls smtp -connect 127.0.0.1:2526
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from queue import SimpleQueue

Rewrite = Callable[[bytes], tuple[bytes, bool]]
ANONYMOUS = re.compile(rb"X-ANONYMOUSTLS[ \t]*\Z", re.IGNORECASE)
STARTTLS = re.compile(rb"STARTTLS[ \t]*\Z", re.IGNORECASE)


def from_client(line: bytes) -> tuple[bytes, bool]:
    """A command for the server, and whether it was the last one in clear."""
    if STARTTLS.fullmatch(line.rstrip(b"\r\n")):
        return b"X-ANONYMOUSTLS\r\n", True
    return line, False


def from_server(line: bytes) -> tuple[bytes, bool]:
    """A line of an answer for the client.  STARTTLS must not stand in the last line of EHLO; Exchange has it inside."""
    code, word = line[:4], line[4:].rstrip(b"\r\n")
    if code == b"250-" and STARTTLS.fullmatch(word):
        return b"", False
    if code in {b"250-", b"250 "} and ANONYMOUS.fullmatch(word):
        return code + b"STARTTLS\r\n", False
    return line, False


class Relay:
    """Sessions to one server."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(self.host, self.port)
            async with _closing(writer, server_writer):
                clear = asyncio.Event()
                clear.set()
                await asyncio.gather(
                    self._pass(reader, server_writer, from_client, clear),
                    self._pass(server_reader, writer, from_server, clear),
                )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rewrite: Rewrite, clear: asyncio.Event
    ) -> None:
        """Line by line while the session is in clear, then whatever comes."""
        while data := await (reader.readline() if clear.is_set() else reader.read(65536)):
            if clear.is_set():
                data, last = rewrite(data)
                if last:
                    clear.clear()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def _closing(*writers: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
        for writer in writers:
            with suppress(OSError):
                await writer.wait_closed()


async def serve(port: int, target: str, ready: Callable[[int], None]) -> None:
    """Listen on loopback until cancelled; ``ready`` hears the port."""
    host, _, target_port = target.rpartition(":")
    server = await asyncio.start_server(Relay(host, int(target_port)).session, "127.0.0.1", port)
    ready(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


@contextmanager
def relay(target: str) -> Iterator[int]:
    """A relay in a thread; its port."""
    started: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[None], int]] = SimpleQueue()

    async def work() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        await serve(0, target, lambda port: started.put((loop, task, port)))

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(work())

    thread = threading.Thread(target=run, name="relay")
    thread.start()
    loop, task, port = started.get(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def main(port: str, target: str) -> None:
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(int(port), target, lambda number: print(f"listening on 127.0.0.1:{number}", flush=True)))  # noqa: T201 a program's word


if __name__ == "__main__":
    main(*sys.argv[1:])
