"""A node with a queue and short intervals, and peers that take its mail as a test says."""

from __future__ import annotations

import asyncio
import email.policy
import io
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from anontls import config
from anontls.facts import SendConnector
from anontls.smtp import Reply
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.body import Body
from anontls.transport.destination_queue import DestinationQueue
from anontls.transport.dispatch import Dispatcher
from anontls.transport.lab import MAILBOX
from anontls.transport.metrics import Metrics
from anontls.transport.operations import QueueOperations
from anontls.transport.queue_delivery import QueueDelivery
from anontls.transport.queue_sqlite import SqliteQueue
from anontls.transport.service import Service, system_now
from anontls.transport.status import MessageStatus
from tests.transport.world import BEN, MESSAGE, World, eventually

CARL = "carl@tailspin.example"
DORA = "dora@wingtip.example"
EVA = "eva@wingtip.example"
RECEIVED = b"Received: from somewhere by mbx1.contoso.com\r\n"

PLAIN = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "DSN")
CHUNKS = (*PLAIN, "CHUNKING", "BINARYMIME")
HANG = "hang"  # no answer, until the connection is closed
BREAK = "break"  # the connection is closed instead of an answer

TO_INTERNET = SendConnector(
    identity="To Internet",
    enabled=True,
    address_spaces=("SMTP:*;1",),
    smart_hosts=(),
    dns_routing_enabled=True,
    smart_host_auth_mechanism="None",
    source_transport_servers=(MAILBOX,),
)


def smart_host(name: str) -> SendConnector:
    """A connector that sends all mail there."""
    return msgspec.structs.replace(TO_INTERNET, smart_hosts=(name,), dns_routing_enabled=False)


QUICK = {
    "glitch_retry_interval": 0.05,
    "transient_failure_retry_interval": 0.05,
    "outbound_connection_failure_retry_interval": 0.05,
    "message_retry_interval": 0.05,
}


def free_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- a peer -----------------------------------------------------------------------------------------------------------


class Letter(NamedTuple):
    """A message that a peer has taken: what came in which session; the content with the dots undone."""

    session: int
    mail: str
    recipients: tuple[str, ...]
    content: bytes


class Peer:
    """A mail server without TLS.

    ``said`` is asked for the answer to each line, with the content so far; ``None`` is the usual one.  It is asked as well
    when the header has come (as "HEADER"; with DATA), and at its end (as ".").  While ``gate`` is
    closed, the end is not answered.
    """

    def __init__(
        self,
        *keywords: str,
        said: Callable[[str, bytes], str | None] = lambda _line, _content: None,
        greeting: str = "220 peer.example ready",
        port: int = 0,
    ) -> None:
        self.keywords = keywords or PLAIN
        self.said = said
        self.greeting = greeting
        self.port = port
        self.gate = asyncio.Event()
        self.gate.set()
        self.letters: list[Letter] = []
        self.lines: list[str] = []
        self.sessions = self.open = self.most = self.waiting = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Peer]:
        server = await asyncio.start_server(self._session, "127.0.0.1", self.port, limit=8 * 1024 * 1024)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            self.cut()
            self.gate.set()
            await eventually(lambda: not self._writers, "the peer's sessions end")

    def cut(self) -> None:
        """Break all connections that do not wait at the gate."""
        for writer in self._writers:
            writer.transport.abort()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self.open += 1
        self.most = max(self.most, self.open)
        self._writers.add(writer)
        try:
            await self._talk(self.sessions, reader, writer)
        except (ConnectionError, EOFError):
            pass
        finally:
            self.open -= 1
            writer.close()
            self._writers.discard(writer)

    async def _talk(self, session: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail, recipients, content = "", list[str](), b""

        async def say(line: str, usual: str) -> bool:
            """Answer, and whether that was in the affirmative."""
            answer = self.said(line, content)
            answer = usual if answer is None else answer
            if answer == HANG:
                await reader.read(-1)
            if answer in (HANG, BREAK) or writer.is_closing():
                raise EOFError
            if not answer:
                return True
            writer.write(answer.encode() + b"\r\n")
            await writer.drain()
            if answer.startswith("421"):
                raise EOFError
            return answer[0] in "23"

        async def taken() -> None:
            self.waiting += 1
            await self.gate.wait()
            self.waiting -= 1
            letter = Letter(session, mail, tuple(recipients), content)
            if await say(".", "250 2.6.0 taken"):
                self.letters.append(letter)

        await say("", self.greeting)
        while line := (await reader.readuntil(b"\r\n")).decode().removesuffix("\r\n"):
            self.lines.append(line)
            match line.partition(" ")[0]:
                case "EHLO":
                    names = ("peer.example", *self.keywords)
                    shown = [f"250{' ' if name is names[-1] else '-'}{name}" for name in names]
                    await say(line, "\r\n".join(shown))
                case "MAIL":
                    recipients, content = [], b""
                    mail = line if await say(line, "250 2.1.0 ok") else ""
                case "RCPT":
                    if await say(line, "250 2.1.5 ok" if mail else "503 5.5.1 who?") and mail:
                        recipients.append(line)
                case "DATA":
                    if await say(line, "354 go on" if recipients else "503 5.5.1 nobody"):
                        content = await reader.readuntil(b"\r\n\r\n")
                        await say("HEADER", "")
                        while not content.endswith(b"\r\n.\r\n"):
                            content += await reader.readuntil(b".\r\n")
                        content = (b"\r\n" + content[:-3]).replace(b"\r\n.", b"\r\n")[2:]
                        await taken()
                case "BDAT":
                    content += await reader.readexactly(int(line.split()[1]))
                    if not recipients:
                        await say(line, "503 5.5.1 nobody")
                    elif line.endswith("LAST"):
                        await taken()
                    else:
                        await say(line, "250 2.6.0 chunk")
                case "QUIT":
                    await say(line, "221 2.0.0 bye")
                    return
                case _:
                    await say(line, "250 2.0.0 ok")


# --- a node -----------------------------------------------------------------------------------------------------------


class QueueNode:
    """A running node, and what a test asks of it."""

    def __init__(self, world: World, service: Service) -> None:
        assert isinstance(service.delivery, QueueDelivery)
        self.world = world
        self.service = service
        self.delivery = service.delivery
        self.dispatcher: Dispatcher = service.delivery.dispatcher
        self.operations = QueueOperations(self.dispatcher)
        self.patience = 2.0  # seconds that it has to stop
        self.port = int(service.servers[0].sockets[0].getsockname()[1])

    @property
    def console(self) -> str:
        return self.world.consoles[MAILBOX].getvalue()

    @property
    def metrics(self) -> Metrics:
        return self.service.node.metrics

    @property
    def store(self) -> SqliteQueue:
        store = self.dispatcher.store
        assert isinstance(store, SqliteQueue)
        return store

    async def accept(
        self, *recipients: str | Recipient, sender: str = BEN, content: bytes = MESSAGE, **parameters: Any
    ) -> Reply:
        """Give it a message, as a session that has received one; the answer that the session gives."""
        to = [Recipient(one) if isinstance(one, str) else one for one in recipients]
        with Body() as body:
            body.add(content)
            body.complete()
            return await self.delivery.deliver(Envelope(sender, to, **parameters), body, RECEIVED)

    async def send(self, *recipients: str | Recipient, **message: Any) -> None:
        """The same for a message that is taken."""
        reply = await self.accept(*recipients, **message)
        assert reply.code == 250, reply

    def queue(self, domain: str) -> DestinationQueue:
        """The queue to that domain, or that host."""
        found = [queue for queue in self.dispatcher.queues.values() if queue.destination.next_hop_domain == domain]
        assert len(found) == 1, f"{domain}: {list(self.dispatcher.queues)}"
        return found[0]

    def message(self) -> MessageStatus:
        """The only message of all queues."""
        (message,) = self.operations.messages()
        return message

    async def empty(self) -> None:
        """Wait until the store is."""
        await eventually(lambda: not self.store.count, "the queue is empty")


@asynccontextmanager
async def relaying(
    world: World,
    peers: Mapping[str, Peer | int] | None = None,
    *,
    now: Callable[[], datetime] = system_now,
    delivery: str = 'maildir = "mail"\ncreate-mailboxes = true\ntimeout = 5.0',
    connectors: tuple[SendConnector, ...] = (TO_INTERNET,),
    **queue: float | str,
) -> AsyncIterator[QueueNode]:
    """The Mailbox server of the lab, which sends to the peers of these domains (or ports); contoso.com is here.

    ``queue`` are settings of its queue.  What nobody catches in the event loop is an error.
    """
    async with AsyncExitStack() as stack:
        ports = {}
        for name, peer in (peers or {}).items():
            if isinstance(peer, Peer):
                await stack.enter_async_context(peer.listening())
            ports[name] = peer if isinstance(peer, int) else peer.port
        hosts = "\n".join(f'"{name}" = "127.0.0.1:{port}"' for name, port in ports.items())
        settings = {"database": "queue.sqlite", "minimum_free": 0, **QUICK, **queue}
        lines = "\n".join(f"{key.replace('_', '-')} = {value!r}" for key, value in settings.items())
        world.deliver(MAILBOX, f"{delivery}\n\n[delivery.hosts]\n{hosts}\n\n[queue]\n{lines}")
        world.change(send_connectors=connectors)
        uncaught: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(context))
        console = world.consoles[MAILBOX] = io.StringIO()
        service = Service(config.load(world.config(MAILBOX)), world.folder, now=now, console=console)
        await service.start()
        node = QueueNode(world, service)
        try:
            yield node
        finally:
            left = node.store.count
            await service.stop(node.patience)
        dispatcher = node.dispatcher
        await eventually(lambda: not dispatcher.sessions, "all sessions are given back")
        if not left:
            assert len(dispatcher.memory) == 0, "nothing is held that is gone"
            assert sum(map(len, dispatcher.queues.values())) == 0, "nor shown"
    assert not uncaught, uncaught


# --- a notification ---------------------------------------------------------------------------------------------------


def reported(content: bytes) -> dict[str, dict[str, str]]:
    """The fields of each recipient in a notification, by its address."""
    _, status, _ = email.message_from_bytes(content, policy=email.policy.default).iter_parts()
    groups = [{name: " ".join(value.split()) for name, value in part.items()} for part in status.iter_parts()]
    return {group["Final-Recipient"].partition("; ")[2]: group for group in groups[1:]}
