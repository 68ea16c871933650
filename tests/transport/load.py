"""A node as a process, clients that load it, and a next hop and mailboxes that say what arrives."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from anontls.transport.lab import EDGE
from anontls.transport.queue_sqlite import SqliteQueue
from tests.transport.ledger import MARK, Copy, Key, Ledger, Message
from tests.transport.world import PATIENCE, World

PROGRAM = Path(sys.executable).with_name("anontls")
DATABASE = "queue.db"
DOMAIN = "contoso.com"
SENDER = "fabrikam.com"
CHUNK = 256 * 1024
LARGE = 2 * 1024 * 1024  # octets; a message has no more
LIMIT = 2 * LARGE  # what the next hop takes


# --- a node -----------------------------------------------------------------------------------------------------------


async def queued(database: Path) -> set[Key]:
    """What waits in the queue of a node that does not run; the files are left as they are."""
    folder = database.with_name("looked-at")
    folder.mkdir()
    for suffix in ("", "-wal", "-journal"):
        with suppress(FileNotFoundError):
            shutil.copy(f"{database}{suffix}", folder)
    store = SqliteQueue(folder / database.name, minimum_free=0, max_messages=1)
    try:
        return {
            (message.envelope.sender.partition("@")[0], recipient.address)
            for message in store.messages()
            for recipient in message.envelope.recipients
        }
    finally:
        await store.close()
        shutil.rmtree(folder)


class Node:
    """``anontls serve`` with a queue, again and again on the same files."""

    def __init__(self, world: World, delivery: str, queue: str = "") -> None:
        world.deliver(EDGE, f'{delivery}\n\n[queue]\ndatabase = "{DATABASE}"\n{queue}')
        self.config = world.config(EDGE)
        self.database = world.folder / DATABASE
        self.control = world.folder / f"{DATABASE}.sock"
        self.log = world.folder / "console.txt"  # of all lives
        self.process: subprocess.Popen[bytes] | None = None
        self._began = 0

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as console:
            self._began = console.tell()
            self.process = subprocess.Popen(
                [str(PROGRAM), "serve", str(self.config)], stdout=console, stderr=subprocess.STDOUT
            )

    async def port(self) -> int:
        """Where it listens, once it does."""
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(rb"listens on 127\.0\.0\.1:(\d+)", self._printed())):
                assert self.process is not None and self.process.poll() is None, self._printed().decode()
                await asyncio.sleep(0.01)
        return int(found[1])

    def _printed(self) -> bytes:
        return self.log.read_bytes()[self._began :] if self.log.exists() else b""

    async def end(self, *, kill: bool) -> int:
        """End it now, or let it drain; its exit status."""
        assert self.process is not None
        (self.process.kill if kill else self.process.terminate)()
        status = await asyncio.to_thread(self.process.wait, 2 * PATIENCE)
        printed = self._printed()
        assert b"Traceback" not in printed, printed[printed.index(b"Traceback") :][:2000].decode()
        return status

    def memory(self) -> int:
        """Resident octets now."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


# --- clients ----------------------------------------------------------------------------------------------------------

STYLES = ("lock-step", "pipelined", "chunked", "burst")
Step = tuple[bytes, list[str | None]]  # octets, and the answers to wait for; one that acknowledges has the identity


class Load:
    """Clients that send until they are told to stop; ``size`` chooses how long a message is.

    While ``most`` recipients wait for their message, they wait too.
    """

    def __init__(self, ledger: Ledger, seed: int, size: Callable[[random.Random], int], *, most: float = 1000) -> None:
        self.ledger = ledger
        self.seed = seed
        self.size = size
        self.most = most
        self.left = float("inf")  # messages
        self._port: int | None = None
        self._numbers = 0
        rng = random.Random(seed)
        words = [rng.randbytes(rng.randint(1, 30)).hex().encode() for _ in range(500)]
        lines = b"\r\n".join(rng.choice((b"", b".", b"..", b"a ")) + rng.choice(words) for _ in range(5000))
        self._text = lines * (2 * LARGE // len(lines))

    def go(self, port: int) -> None:
        """The node listens there."""
        self._port = port

    def wait(self) -> None:
        """There is no node."""
        self._port = None

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        """That many clients; those that are in the middle of something are cut off at the end."""
        tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

    async def finished(self) -> None:
        """All that was to be sent is acknowledged."""
        while self.left > 0 or len(self.ledger.acknowledged) < len(self.ledger.sent):  # noqa: ASYNC110 for tests
            await asyncio.sleep(0.01)

    async def _client(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        while self.left > 0:
            if self._port is None or self.ledger.backlog >= self.most:
                await asyncio.sleep(0.01)
                continue
            try:
                await self._session(self._port, rng)
            except (OSError, EOFError):
                await asyncio.sleep(0.005)

    async def _session(self, port: int, rng: random.Random) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await self._ask(reader, writer, (b"", [None]))
            await self._ask(reader, writer, (b"EHLO mail.fabrikam.com\r\n", [None]))
            style = rng.choice(STYLES)
            for _ in range(rng.randint(1, 20)):
                if self.left <= 0 or self.ledger.backlog >= self.most:
                    break
                messages = [self._message(rng) for _ in range(int(min(5 if style == "burst" else 1, self.left)))]
                self.left -= len(messages)
                for message in messages:
                    self.ledger.send(message)
                if style == "burst":
                    steps = [step for message in messages for step in _chunked(message)]
                    await self._ask(reader, writer, (b"".join(s[0] for s in steps), [a for s in steps for a in s[1]]))
                for message in messages if style != "burst" else ():
                    for step in {"lock-step": _lock_step, "pipelined": _pipelined, "chunked": _chunked}[style](message):
                        await self._ask(reader, writer, step)
            await self._ask(reader, writer, (b"QUIT\r\n", [None]))
        finally:
            writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Step) -> None:
        data, answers = step
        writer.write(data)
        await writer.drain()
        for identity in answers:
            line = await reader.readline()
            while line[3:4] == b"-":
                line = await reader.readline()
            if line[:1] not in b"23" or not line.endswith(b"\n"):
                if line.endswith(b"\n") and not line.startswith(b"421"):
                    self.ledger.refused.append(line.decode())
                raise EOFError(line)
            if identity is not None:
                self.ledger.acknowledge(identity)

    def _message(self, rng: random.Random) -> Message:
        self._numbers += 1
        identity = f"m{self._numbers}"
        recipients = rng.sample([f"user{n}@{DOMAIN}" for n in range(20)], rng.choice((1, 1, 1, 2, 5)))
        size = self.size(rng)
        begin = self._text.find(b"\r\n", rng.randrange(LARGE // 2)) + 2
        head = MARK + f"{identity}@{SENDER}>\r\nSubject: {size}\r\n\r\n".encode()
        return Message(identity, tuple(recipients), head + self._text[begin : begin + size].rstrip(b"\r\n") + b"\r\n")


def _envelope(message: Message) -> list[bytes]:
    return [
        f"MAIL FROM:<{message.identity}@{SENDER}>\r\n".encode(),
        *(f"RCPT TO:<{recipient}>\r\n".encode() for recipient in message.recipients),
    ]


def _data(message: Message) -> bytes:
    return (b"\r\n" + message.content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


def _lock_step(message: Message) -> Iterator[Step]:
    for command in (*_envelope(message), b"DATA\r\n"):
        yield command, [None]
    yield _data(message), [message.identity]


def _pipelined(message: Message) -> Iterator[Step]:
    commands = [*_envelope(message), b"DATA\r\n"]
    yield b"".join(commands), [None] * len(commands)
    yield _data(message), [message.identity]


def _chunked(message: Message) -> Iterator[Step]:
    commands, content = _envelope(message), message.content
    while len(content) > CHUNK:
        commands.append(b"BDAT %d\r\n%b" % (CHUNK, content[:CHUNK]))
        content = content[CHUNK:]
    commands.append(b"BDAT %d LAST\r\n%b" % (len(content), content))
    yield b"".join(commands), [*(None for _ in commands[1:]), message.identity]


# --- the next hop -----------------------------------------------------------------------------------------------------

OFFERS = (
    b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 SIZE\r\n",
    b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    b"250 sink.test\r\n",
)


class Sink:
    """Takes messages and enters them into the ledger.

    ``defers`` is the part of the recipients that it puts off, ``pause`` the seconds that a message takes.  Each session
    is offered other extensions than the one before.
    """

    def __init__(self, ledger: Ledger, *, defers: float = 0.0, pause: float = 0.0, seed: int = 0) -> None:
        self.ledger = ledger
        self.defers = defers
        self.pause = pause
        self.port = 0
        self.sessions = 0  # open now
        self._count = 0
        self._rng = random.Random(seed)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Sink]:
        server = await asyncio.start_server(self._session, "127.0.0.1", 0, limit=LIMIT)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()

    async def deserted(self) -> None:
        """Nobody is connected any more: all that was sent has been read."""
        await asyncio.sleep(0.02)  # whoever has just connected
        while self.sessions:  # noqa: ASYNC110 for tests
            await asyncio.sleep(0.005)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self._count += 1
        try:
            with suppress(OSError, EOFError):
                await self._dialogue(reader, writer, OFFERS[self._count % len(OFFERS)])
        finally:
            self.sessions -= 1
            writer.close()

    async def _dialogue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, offer: bytes) -> None:
        life = self.ledger.life
        identity, recipients, content = "", list[str](), b""
        writer.write(b"220 sink.test\r\n")
        while line := (await reader.readline()).decode():
            verb, _, rest = line.rstrip().partition(" ")
            address = rest.partition("<")[2].partition(">")[0]
            reply = b"250 ok\r\n"
            whole = False
            if verb == "EHLO":
                reply = offer
            elif verb == "MAIL":
                identity, recipients, content = address.partition("@")[0], [], b""
            elif verb == "RCPT":
                if self._rng.random() < self.defers:
                    reply = b"451 4.3.0 later\r\n"
                else:
                    recipients.append(address)
            elif verb == "DATA" and recipients:
                await _answer(writer, b"354 go\r\n")
                stuffed = await reader.readuntil(b"\r\n.\r\n")
                content = (b"\r\n" + stuffed[:-3]).replace(b"\r\n.", b"\r\n")[2:]
                whole = True
            elif verb == "BDAT":
                content += await reader.readexactly(int(rest.split()[0]))
                whole = rest.endswith("LAST")
            if verb in ("DATA", "BDAT") and not recipients:
                reply = b"503 5.5.1 nobody\r\n"
            elif whole:
                if self.pause:
                    await asyncio.sleep(self.pause)
                self.ledger.arrive(identity, recipients, content, Copy(life, time.time()))
            await _answer(writer, reply)
            if verb == "QUIT":
                return


async def _answer(writer: asyncio.StreamWriter, reply: bytes) -> None:
    """Even when nobody hears it any more, what was sent before counts."""
    if not writer.is_closing():
        writer.write(reply)
        await writer.drain()


class Mailboxes:
    """Maildirs; what is new in them is entered into the ledger."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self._seen: set[Path] = set()

    def look(self) -> None:
        for path in self.folder.glob("*/new/*"):
            if path not in self._seen:
                self._seen.add(path)
                content = path.read_bytes()
                sender = re.match(rb"Return-Path: <(.*?)@", content)
                identity = sender[1].decode() if sender else path.name
                # the time of change is that of the move from tmp/ to new/
                copy = Copy(self.ledger.life, path.stat().st_ctime)
                self.ledger.arrive(identity, [path.parent.parent.name], content, copy)
