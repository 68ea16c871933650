"""A lab that can be changed, nodes of it in this process, a client and a next hop that do what a test tells them."""

from __future__ import annotations

import asyncio
import io
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from anontls import config
from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.cli.serve import event_loop
from anontls.directory import snapshot
from anontls.facts import InternalTlsCert, Organization, ReceiveConnector, Server
from anontls.facts.own_certificate import OwnCertificate
from anontls.tls import TlsFailed, TlsPump, client_context, server_context
from anontls.transport.lab import EDGE, MAILBOX, write_lab
from anontls.transport.service import Service, system_now

T = TypeVar("T")
ANNA = "anna@contoso.com"
BEN = "ben@fabrikam.com"
MESSAGE = b"From: <ben@fabrikam.com>\r\nSubject: test\r\n\r\nHello.\r\n"
PATIENCE = 20.0


def run(work: Coroutine[Any, Any, T], *, patience: float = 2 * PATIENCE) -> T:
    """Run a test's coroutine; nothing may stay behind."""

    async def timed() -> T:
        async with asyncio.timeout(patience):
            result = await work
        left: list[asyncio.Task[Any]] = []
        for _ in range(100):
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if not left:
                return result
            await asyncio.sleep(0.02)
        raise AssertionError(f"tasks stayed behind: {left}")

    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(timed())


# --- a lab ------------------------------------------------------------------------------------------------------------


class World:
    """The files of a lab, and what a test changes in them."""

    def __init__(self, folder: Path, certificates: Mapping[str, OwnCertificate]) -> None:
        self.folder = folder
        self.certificates = certificates
        self.consoles: dict[str, io.StringIO] = {}

    def config(self, name: str) -> Path:
        return self.folder / f"{name.lower()}.toml"

    def store(self, name: str) -> Path:
        return self.folder / f"{name.lower()}-certificates"

    def configure(self, name: str, old: str, new: str) -> None:
        path = self.config(name)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def limits(self, name: str, **values: object) -> None:
        lines = "\n".join(f"{key.replace('_', '-')} = {value}" for key, value in values.items())
        self.configure(name, "[delivery]", f"[limits]\n{lines}\n\n[delivery]")

    def deliver(self, name: str, table: str) -> None:
        path = self.config(name)
        before, _, after = path.read_text().partition("[delivery]\n")
        path.write_text(f"{before}[delivery]\n{table}\n\n[log]{after.partition('[log]')[2]}")

    @property
    def organization(self) -> Organization:
        return snapshot.load((self.folder / "org.json").read_bytes(), "org.json")

    def change(self, **fields: Any) -> None:
        changed = msgspec.structs.replace(self.organization, **fields)
        (self.folder / "org.json").write_bytes(snapshot.dump(changed))

    def change_server(self, name: str, **fields: Any) -> None:
        self.change(
            servers=tuple(
                msgspec.structs.replace(server, **fields) if server.name == name else server
                for server in self.organization.servers
            )
        )

    def change_connector(self, name: str, **fields: Any) -> None:
        server = self.organization.server(name)
        assert server is not None
        assert isinstance(server.receive_connectors, tuple)
        connectors = tuple(msgspec.structs.replace(one, **fields) for one in server.receive_connectors)
        self.change_server(name, receive_connectors=connectors)

    def add_certificate(self, name: str, own: OwnCertificate, services: tuple[str, ...] = ("SMTP",)) -> None:
        write.add(self.store(name), own.certificate, own.key)
        write.bind(self.store(name), own.thumbprint, Binding(services=services))

    def publish(self, name: str, own: OwnCertificate) -> None:
        """The directory now holds ``own`` for the server."""
        attribute = InternalTlsCert(der=own.der)
        fields: dict[str, Any] = {"internal_transport_certificate_thumbprint": own.thumbprint}
        fields["internal_tls_cert"] = attribute
        if name == EDGE:
            fields["internal_tls_cert_adlds"] = attribute
        self.change_server(name, **fields)

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name.lower()}-events.jsonl"
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def event_ids(self, name: str) -> list[int]:
        return [event["id"] for event in self.events(name)]

    def messages(self, address: str = ANNA) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.folder / "mail" / address / "new").glob("*"))]

    def log(self, name: str, kind: str) -> str:
        return "".join(
            path.read_text() for path in sorted((self.folder / f"{name.lower()}-log" / f"Smtp{kind}").glob("*"))
        )

    def server(self, name: str) -> Server:
        found = self.organization.server(name)
        assert found is not None
        return found

    def connector(self, name: str) -> ReceiveConnector:
        connectors = self.server(name).receive_connectors
        assert isinstance(connectors, tuple)
        return connectors[0]

    @asynccontextmanager
    async def node(self, name: str, now: Callable[[], datetime] = system_now) -> AsyncIterator[Running]:
        """A running node, stopped at the end."""
        console = self.consoles[name] = io.StringIO()
        path = self.config(name)
        service = Service(config.load(path), self.folder, now=now, console=console, file=path)
        await service.start()
        try:
            yield Running(service, console)
        finally:
            await service.stop(2)


class Running:
    def __init__(self, service: Service, console: io.StringIO) -> None:
        self.service = service
        self.console = console
        self.port = int(service.servers[0].sockets[0].getsockname()[1])

    @property
    def receiver(self) -> Any:
        return self.service.receivers[0]


def make_world(folder: Path) -> World:
    lab = write_lab(folder, datetime.now(UTC), {MAILBOX: 0, EDGE: 0})
    return World(folder, lab.certificates)


def copy_world(world: World, folder: Path) -> World:
    return World(Path(shutil.copytree(world.folder, folder)), world.certificates)


# --- a client ---------------------------------------------------------------------------------------------------------


class Client:
    """One session with a node; what it writes is what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.pump: TlsPump | None = None
        self._plain = b""

    async def read(self) -> bytes:
        """The next octets; empty at the end."""
        pump = self.pump
        while True:
            if pump is not None and pump.eof:
                return b""
            async with asyncio.timeout(PATIENCE):
                data = await self.reader.read(65536)
            if pump is None or not data:
                return data
            pump.received(data)
            await self.flush()
            plain = pump.read()
            if plain:
                return plain

    async def line(self) -> str:
        while b"\r\n" not in self._plain:
            data = await self.read()
            if not data:
                raise EOFError(self._plain)
            self._plain += data
        line, _, self._plain = self._plain.partition(b"\r\n")
        return line.decode()

    async def reply(self) -> str:
        """A whole reply; its lines joined by LF."""
        lines = [await self.line()]
        while lines[-1][3:4] == "-":
            lines.append(await self.line())
        return "\n".join(lines)

    async def flush(self) -> None:
        if self.pump is not None:
            self.writer.write(self.pump.output())
        await self.writer.drain()

    async def send(self, data: bytes) -> None:
        if self.pump is not None:
            self.pump.write(data)
            await self.flush()
        else:
            self.writer.write(data)
            await self.writer.drain()

    async def ask(self, line: str) -> str:
        await self.send(line.encode() + b"\r\n")
        return await self.reply()

    async def handshake(self, own: OwnCertificate | None = None) -> None:
        pump = self.pump = TlsPump(client_context(own))
        pump.start()
        await self.flush()
        while not pump.handshake_done:
            async with asyncio.timeout(PATIENCE):
                data = await self.reader.read(65536)
            if not data:
                raise EOFError
            pump.received(data)
            await self.flush()

    async def secure(self, verb: str = "X-ANONYMOUSTLS", own: OwnCertificate | None = None) -> None:
        assert await self.ask(verb) == "220 2.0.0 SMTP server ready"
        await self.handshake(own)

    async def message(self, *recipients: str, sender: str = BEN, content: bytes = MESSAGE) -> list[str]:
        """MAIL to the end of data; all replies, up to the first that says no more makes sense."""
        replies = [await self.ask(f"MAIL FROM:<{sender}>")]
        replies += [await self.ask(f"RCPT TO:<{recipient}>") for recipient in recipients or (ANNA,)]
        replies.append(await self.ask("DATA"))
        if replies[-1].startswith("354"):
            await self.send(content + b".\r\n")
            replies.append(await self.reply())
        return replies

    async def rest(self) -> bytes:
        """Everything until the connection ends, however it does."""
        data = self._plain
        try:
            while more := await self.read():
                data += more
        except (ConnectionError, TlsFailed):
            pass
        return data

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError, TimeoutError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(port: int, *, banner: bool = True, source: str = "127.0.0.1") -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    client = Client(reader, writer)
    try:
        if banner:
            assert (await client.reply()).startswith("220 ")
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def greeted(port: int, name: str = "mail.fabrikam.com") -> AsyncIterator[Client]:
    async with connected(port) as client:
        assert (await client.ask(f"EHLO {name}")).startswith("250-")
        yield client


@asynccontextmanager
async def exchange_server(port: int, name: str, own: OwnCertificate | None) -> AsyncIterator[Client]:
    """A session inside X-ANONYMOUSTLS, greeted as ``name``."""
    async with greeted(port, name) as client:
        await client.secure("X-ANONYMOUSTLS", own)
        assert (await client.ask(f"EHLO {name}")).startswith("250-")
        yield client


async def eventually(holds: Callable[[], bool], what: str = "") -> None:
    for _ in range(int(PATIENCE / 0.02)):
        if holds():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


# --- a next hop -------------------------------------------------------------------------------------------------------

EHLO_CLEAR = b"250-mbx1.contoso.com Hello [127.0.0.1]\r\n250-PIPELINING\r\n250-X-ANONYMOUSTLS\r\n250 8BITMIME\r\n"
EHLO_TLS = b"250-mbx1.contoso.com Hello [127.0.0.1]\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
EVERYTHING = (
    b"250-next Hello\r\n250-PIPELINING\r\n250-SIZE\r\n250-DSN\r\n250-8BITMIME\r\n250-BINARYMIME\r\n250-CHUNKING\r\n"
    b"250 SMTPUTF8\r\n"
)

Answer = bytes | Callable[[str], Awaitable[bytes]]


def behind(gate: asyncio.Event) -> Answer:
    """An answer to MAIL that comes when the gate opens."""

    async def answer(_line: str) -> bytes:
        await gate.wait()
        return b"250 2.1.0 ok\r\n"

    return answer


class Hop:
    """A server with answers of the test's own; a value of ``b""`` closes the connection instead of an answer."""

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        *,
        own: OwnCertificate | None = None,
        ehlo: bytes = EHLO_CLEAR,
        ehlo_tls: bytes = EHLO_TLS,
        end: bytes = b"250 2.6.0 taken\r\n",
        instead_of_tls: bytes | None = None,
    ) -> None:
        self.answers: dict[str, Answer] = {
            "EHLO": ehlo,
            "LHLO": ehlo,
            "X-ANONYMOUSTLS": b"220 2.0.0 go\r\n",
            "STARTTLS": b"220 2.0.0 go\r\n",
            "MAIL": b"250 2.1.0 ok\r\n",
            "RCPT": b"250 2.1.5 ok\r\n",
            "DATA": b"354 go\r\n",
            "RSET": b"250 2.0.0 ok\r\n",
            "QUIT": b"221 2.0.0 bye\r\n",
            **(answers or {}),
        }
        self.own = own
        self.ehlo_tls = ehlo_tls
        self.end = end
        self.instead_of_tls = instead_of_tls
        self.sessions = 0
        self.clear: list[str] = []  # commands that came in clear
        self.commands: list[str] = []
        self.contents: list[bytes] = []
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Hop]:
        server = await asyncio.start_server(self._session, "127.0.0.1", 0, limit=4 * 1024 * 1024)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        try:
            await _HopSession(self, reader, writer).run()
        except (ConnectionError, EOFError, TlsFailed):
            pass
        finally:
            writer.close()


class _HopSession:
    def __init__(self, hop: Hop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hop, self.reader, self.writer = hop, reader, writer
        self.pump: TlsPump | None = None
        self.data = b""

    async def more(self) -> None:
        raw = await self.reader.read(65536)
        if not raw:
            raise EOFError
        if self.pump is not None:
            self.pump.received(raw)
            raw = self.pump.read()
            self.writer.write(self.pump.output())
        self.data += raw

    async def say(self, data: bytes) -> None:
        if self.pump is not None:
            self.pump.write(data)
            data = self.pump.output()
        self.writer.write(data)
        await self.writer.drain()

    async def until(self, end: bytes) -> bytes:
        while end not in self.data:
            await self.more()
        found, _, self.data = self.data.partition(end)
        return found

    async def octets(self, count: int) -> bytes:
        while len(self.data) < count:
            await self.more()
        found, self.data = self.data[:count], self.data[count:]
        return found

    async def run(self) -> None:
        hop = self.hop
        await self.say(b"220 mbx1.contoso.com ready\r\n")
        chunks = b""
        while True:
            line = (await self.until(b"\r\n")).decode()
            verb = line.partition(" ")[0].upper()
            hop.commands.append(line)
            if self.pump is None:
                hop.clear.append(line)
            if verb == "BDAT":
                chunks += await self.octets(int(line.split()[1]))
                if line.upper().endswith("LAST"):
                    hop.contents.append(chunks)
                    chunks = b""
                    await self.say(hop.end)
                else:
                    await self.say(b"250 2.6.0 chunk\r\n")
                continue
            answer = hop.answers.get(verb, b"500 what\r\n")
            if verb in ("EHLO", "LHLO") and self.pump is not None and "EHLO TLS" in hop.answers:
                answer = hop.answers["EHLO TLS"]
            elif verb in ("EHLO", "LHLO") and self.pump is not None:
                answer = hop.ehlo_tls
            said = answer if isinstance(answer, bytes) else await answer(line)
            if not said:
                return
            await self.say(said)
            if verb == "QUIT":
                return
            if verb == "DATA" and said.startswith(b"354"):
                self.data = b"\r\n" + self.data
                hop.contents.append((await self.until(b"\r\n.\r\n") + b"\r\n")[2:])
                if not hop.end:
                    return
                await self.say(hop.end)
            if verb in ("X-ANONYMOUSTLS", "STARTTLS") and said.startswith(b"220"):
                if hop.instead_of_tls is not None:
                    await self.reader.read(65536)
                    self.writer.write(hop.instead_of_tls)
                    await self.writer.drain()
                    return
                assert hop.own is not None
                self.pump = TlsPump(server_context(hop.own))
                self.pump.start()
                while not self.pump.handshake_done:
                    await self.more()
