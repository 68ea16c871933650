"""The load of the session and message rows: one program for every server, so that only the server differs.

``python -m bench.client --port N --verb X-ANONYMOUSTLS ...`` opens ``--connections`` sessions at a time.  A session is
banner, EHLO, TLS verb, handshake with a client certificate, EHLO; then ``--messages 0`` says QUIT and begins the next
session, anything else sends that many messages: over sessions that stay, or with ``--reconnect`` each over a session of
its own.  With ``--verb none`` there is no TLS.  The last line printed is JSON: what was completed, between which moments
of the monotonic clock (that of all processes), with how many failures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import uvloop

from anontls.certstore.folder import FolderStore
from anontls.tls import TlsPump, client_context

LINE = 78


class Load:
    """What all sessions share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.port: int = arguments.port
        self.verb: str = arguments.verb
        self.context = None
        if self.verb != "none":
            store = FolderStore(Path(arguments.store), now=datetime.now(UTC))
            own = store.find(arguments.thumbprint)
            assert own is not None
            self.context = client_context(own)
        self.hello = f"EHLO {arguments.hello}\r\n".encode()
        self.messages: int = arguments.messages
        self.short = arguments.reconnect or not self.messages  # sessions, of one message or none
        self.left: int = arguments.messages or arguments.sessions
        self.size: int = arguments.size
        self.envelope = f"MAIL FROM:<{arguments.sender}>\r\nRCPT TO:<{arguments.recipient}>\r\nDATA\r\n".encode()
        self.content = content(arguments.size) + b".\r\n"
        self.done = 0
        self.failed = 0
        self.first_failure = ""
        self.running = 0
        self.tls = ""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.start = time.monotonic()
        self.end = self.start

    async def run(self, connections: int) -> None:
        """Open the sessions, and wait until there is nothing left to do."""
        loop = asyncio.get_running_loop()
        self.start = time.monotonic()
        self.running = connections
        for _ in range(connections):
            self.open(loop)
        await self.finished

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a session, or end this strand when there is nothing left."""
        if self.left <= 0:
            self.running -= 1
            if not self.running and not self.finished.done():
                self.end = time.monotonic()
                self.finished.set_result(None)
            return
        if self.short:
            self.left -= 1
        loop.create_task(self.connect(loop))

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        """One connection; a refused one is a failure like any other."""
        try:
            await loop.create_connection(lambda: Session(self), "127.0.0.1", self.port)
        except OSError as e:
            self.fail(f"{type(e).__name__}: {e}")
            self.open(loop)

    def fail(self, why: str) -> None:
        """Count what went wrong; too much of it ends the run."""
        self.failed += 1
        self.first_failure = self.first_failure or why
        if self.failed > 20:
            self.left = 0


class Session(asyncio.Protocol):
    """One session, lock-step but for the envelope, which is one pipelined group."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.loop = asyncio.get_running_loop()
        self.step = self.banner
        self.replies = 1
        self.buffer = b""
        self.pump: TlsPump | None = None
        self.complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        pump = self.pump
        if pump is not None:
            before = pump.handshake_done
            pump.received(data)
            if not before:
                if not pump.handshake_done:
                    self.transport.write(pump.output())
                    return
                if not self.load.tls:
                    self.load.tls = f"{pump.protocol} {pump.group} {pump.cipher}"
                self.say(self.load.hello, self.secured)
            data = pump.read()
        if not data:
            return
        buffer = self.buffer = self.buffer + data
        if not buffer.endswith(b"\r\n"):
            return
        codes = [line[:3] for line in buffer.split(b"\r\n")[:-1] if line[3:4] == b" "]
        if len(codes) >= self.replies:
            self.buffer = b""
            bad = [code for code in codes if code[:1] not in b"23"]
            if bad:
                self.load.fail(f"{self.step.__name__}: {buffer[:200]!r}")
                self.transport.close()
                return
            self.step()

    def say(self, data: bytes, then: object, replies: int = 1) -> None:
        self.step, self.replies = then, replies  # type: ignore[assignment] # a method of this class
        if self.pump is not None:
            self.pump.write(data)
            data = self.pump.output()
        self.transport.write(data)

    def banner(self) -> None:
        self.say(self.load.hello, self.secured if self.load.context is None else self.greeted)

    def greeted(self) -> None:
        self.say(self.load.verb.encode() + b"\r\n", self.ready)

    def ready(self) -> None:
        assert self.load.context is not None
        self.pump = TlsPump(self.load.context)
        self.pump.start()
        self.transport.write(self.pump.output())

    def secured(self) -> None:
        if not self.load.messages:
            self.quit()
        elif self.load.short:
            self.message()
        else:
            self.next_message()

    def next_message(self) -> None:
        if self.load.left <= 0:
            self.quit()
            return
        self.load.left -= 1
        self.message()

    def message(self) -> None:
        self.say(self.load.envelope, self.go_ahead, 3)

    def quit(self) -> None:
        self.say(b"QUIT\r\n", self.goodbye)

    def go_ahead(self) -> None:
        self.say(self.load.content, self.accepted)

    def accepted(self) -> None:
        self.load.done += 1
        if self.load.short:
            self.quit()
        else:
            self.next_message()

    def goodbye(self) -> None:
        self.complete = True
        if not self.load.messages:
            self.load.done += 1
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete:
            self.load.fail(f"connection lost while waiting for {self.step.__name__}: {exc}")
        self.load.open(self.loop)


def content(size: int) -> bytes:
    """A message of ``size`` octets, without lines that begin with a dot."""
    head = b"From: <a@fabrikam.com>\r\nTo: <b@contoso.com>\r\nSubject: load\r\n\r\n"
    line = b"X" * (LINE - 2) + b"\r\n"
    body = line * ((size - len(head)) // LINE)
    rest = size - len(head) - len(body)
    return head + body + (b"Y" * (rest - 2) + b"\r\n" if rest >= 2 else b"")


async def _main(arguments: argparse.Namespace) -> None:
    load = Load(arguments)
    start_up = time.process_time()  # starting Python and reading the certificates is no load
    await load.run(arguments.connections)
    print(
        json.dumps(
            {
                "done": load.done,
                "start": load.start,
                "end": load.end,
                "failed": load.failed,
                "first_failure": load.first_failure,
                "tls": load.tls,
                "start_up": start_up,
            }
        )
    )


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--verb", choices=("X-ANONYMOUSTLS", "STARTTLS", "none"), required=True)
    parser.add_argument("--store", default="")
    parser.add_argument("--thumbprint", default="")
    parser.add_argument("--hello", default="mbx1.contoso.com")
    parser.add_argument("--connections", type=int, default=48)
    parser.add_argument("--sessions", type=int, default=0)
    parser.add_argument("--messages", type=int, default=0)
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sender", default="a@fabrikam.com")
    parser.add_argument("--recipient", default="anna@contoso.com")
    uvloop.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
