"""A lab of two Mailbox servers, MBX1 that sends and MBX2 that delivers, with keytabs of a real KDC; and who may stand between."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from anontls.certstore import write
from anontls.certstore.new import new_internal_certificate
from anontls.facts import Certificate, InternalTlsCert
from anontls.facts.own_certificate import OwnCertificate
from anontls.tls import TlsFailed, TlsPump, server_context, server_end_point
from anontls.transport.service import system_now
from lab.samba import Samba
from tests.ad.tickets import Tickets
from tests.transport.world import ANNA, Client, World, connected, greeted, run

SENDER, RECEIVER = "MBX1", "MBX2"
FQDN = {SENDER: "mbx1.contoso.com", RECEIVER: "mbx2.contoso.com"}
RULES = '\n[rules]\nmailbox-to-mailbox = "verb-without-certificate"\n'


@contextmanager
def computer_accounts(samba: Samba) -> Iterator[Tickets]:
    """The two servers as computers of Active Directory, in the realm of their names, with a keytab each."""
    keytabs = {}
    for name in (SENDER, RECEIVER):
        keytabs[name] = samba.add_computer(name)
        samba.add_spn(f"SMTPSVC/{FQDN[name]}", f"{name}$")
        samba.export_keytab(f"SMTPSVC/{FQDN[name]}", keytab=keytabs[name])
    try:
        yield cast("Tickets", SimpleNamespace(realm=None, keytab=keytabs[SENDER], service_keytab=keytabs[RECEIVER]))
    finally:
        for name in (SENDER, RECEIVER):
            samba.tool("computer", "delete", name)


class MailboxServers(World):
    """The lab with a second Mailbox server, and Kerberos on both."""

    def __init__(self, lab: World, tickets: Tickets, folder: Path) -> None:
        shutil.copytree(lab.folder, folder)
        own = new_internal_certificate(RECEIVER, FQDN[RECEIVER], now=system_now())
        super().__init__(folder, {**lab.certificates, RECEIVER: own})
        self.tickets = tickets
        self._add(own)
        self._kerberos: dict[str, dict[str, object]] = {SENDER: {}, RECEIVER: {}}
        self.kerberos(SENDER, keytab=str(tickets.keytab), realm=tickets.realm)
        self.kerberos(RECEIVER, keytab=str(tickets.service_keytab), realm=tickets.realm)
        # Anybody may hand mail to the sender; what reaches the receiver must come from an Exchange server.
        self.let_in(SENDER, "AnonymousUsers, ExchangeServers")
        self.let_in(RECEIVER, "ExchangeServers")

    def _add(self, own: OwnCertificate) -> None:
        write.prepare(self.store(RECEIVER))
        self.add_certificate(RECEIVER, own)
        first = self.server(SENDER)
        second = msgspec.structs.replace(
            first,
            name=RECEIVER,
            fqdn=FQDN[RECEIVER],
            internal_transport_certificate_thumbprint=own.thumbprint,
            internal_tls_cert=InternalTlsCert(der=own.der),
            certificates=(Certificate(der=own.der, services="SMTP", status="Valid", has_private_key=True),),
            receive_connectors=(
                msgspec.structs.replace(self.connector(SENDER), identity="MBX2\\Default MBX2", fqdn=FQDN[RECEIVER]),
            ),
        )
        self.change(servers=(*self.organization.servers, second))
        text = self.config(SENDER).read_text()
        self.config(RECEIVER).write_text(text.replace(SENDER, RECEIVER).replace("mbx1", "mbx2"))

    def kerberos(self, name: str, **keys: object) -> None:
        """Change keys of the table [kerberos]; ``None`` takes one out."""
        table = self._kerberos[name]
        table.update({key.replace("_", "-"): value for key, value in keys.items()})
        lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in table.items() if value is not None]
        before = self.config(name).read_text().partition("\n[kerberos]")[0]
        self.config(name).write_text("\n".join([before, "", "[kerberos]", *lines, RULES]))

    def let_in(self, name: str, groups: str, **more: Any) -> None:
        """The permission groups of a server's Receive connector."""
        connector = msgspec.structs.replace(self.connector(name), permission_groups=groups, **more)
        self.change_server(name, receive_connectors=(connector,))

    def name_certificate(self, own: OwnCertificate) -> None:
        """Let the sender's directory, and not the receiver's, say that this is the receiver's certificate."""
        poisoned = World(self.folder / "poisoned", {})
        poisoned.folder.mkdir()
        shutil.copy(self.folder / "org.json", poisoned.folder)
        poisoned.publish(RECEIVER, own)
        self.configure(SENDER, '"org.json"', '"poisoned/org.json"')

    def send_to(self, port: int, timeout: float = 10) -> None:
        self.deliver(
            SENDER,
            f'next-hop = "127.0.0.1:{port}"\nnext-hop-server = "MBX2"\ndelivery-type = "SmtpRelayToDag"\n'
            f"timeout = {timeout}",
        )

    def relayed(self, between: Between | None = None) -> str:
        """What a client is told who hands a message to the sender, whose next hop is the receiver."""

        async def session() -> str:
            async with self.node(RECEIVER) as receiver:
                if between is None:
                    return await self.handed(receiver.port)
                async with between.listening(receiver.port):
                    return await self.handed(between.port)

        return run(session())

    async def handed(self, port: int) -> str:
        """What a client is told by the sender, whose next hop is on that port."""
        self.send_to(port)
        async with self.node(SENDER) as sender, greeted(sender.port) as client:
            answer = (await client.message(ANNA))[-1]
            assert (await client.ask("NOOP")).startswith("250"), "the session with the client goes on"
            return answer

    def event(self, name: str, number: int) -> dict[str, Any]:
        """Its values, and that there is no other event of an authentication."""
        found = [event for event in self.events(name) if event["id"] in {1035, 2016, 2017}]
        assert [event["id"] for event in found] == [number], found
        return {"text": found[0]["text"], **found[0]["values"]}


class Between:
    """Somebody between sender and receiver, who ends TLS towards both and passes everything on, tokens too."""

    def __init__(self, own: OwnCertificate) -> None:
        self.own = own
        self.port = 0
        self.heard: list[bytes] = []  # what the sender said inside TLS

    @asynccontextmanager
    async def listening(self, target: int) -> AsyncIterator[None]:
        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, TlsFailed, EOFError):
                async with connected(target, banner=False) as onward:
                    await self._session(Client(reader, writer), onward)
            writer.close()

        listener = await asyncio.start_server(session, "127.0.0.1", 0)
        self.port = int(listener.sockets[0].getsockname()[1])
        try:
            yield
        finally:
            listener.close()

    async def _session(self, sender: Client, receiver: Client) -> None:
        await sender.send((await receiver.reply()).encode().replace(b"\n", b"\r\n") + b"\r\n")
        while True:
            line = await sender.line()
            answer = await receiver.ask(line)
            await sender.send(answer.encode().replace(b"\n", b"\r\n") + b"\r\n")
            if line == "X-ANONYMOUSTLS":
                break
        await receiver.handshake()
        pump = sender.pump = TlsPump(server_context(self.own))
        while not pump.handshake_done:
            data = await sender.reader.read(65536)
            if not data:
                raise EOFError
            pump.received(data)
            await sender.flush()
        early = pump.read()
        if early:
            self.heard.append(early)
            await receiver.send(early)
        ways = [asyncio.create_task(self._pass(*way)) for way in ((sender, receiver), (receiver, sender))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, one: Client, other: Client) -> None:
        while data := await one.read():
            if one.pump is not None and one.pump.side.name == "SERVER":
                self.heard.append(data)
            await other.send(data)


# --- a client that says X-EXPS ----------------------------------------------------------------------------------------


def channel(client: Client) -> bytes:
    """The binding to the session that the client is in."""
    assert client.pump is not None
    shown = client.pump.peer
    assert shown is not None
    assert shown.der is not None
    return b"tls-server-end-point:" + server_end_point(shown.der)


@asynccontextmanager
async def in_tls(port: int, name: str = FQDN[SENDER]) -> AsyncIterator[Client]:
    """A session inside X-ANONYMOUSTLS without a certificate."""
    async with greeted(port, name) as client:
        await client.secure()
        assert " GSSAPI" in await client.ask(f"EHLO {name}")
        yield client


async def x_exps(client: Client, token: bytes) -> str:
    """Show a token, and the last answer to it; our side of the proof is taken for granted."""
    assert await client.ask("X-EXPS GSSAPI") == "334 "
    answer = await client.ask(base64.b64encode(token).decode())
    return await client.ask("") if answer.startswith("334 ") else answer
