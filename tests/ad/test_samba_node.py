"""Two running Mailbox servers that follow Active Directory and prove themselves by its KDC, while both change.

Samba is the domain controller.  MBX1 has a queue and follows it by Kerberos with its computer account, MBX2 by LDAPS with
a reader's password.  What their files say of the attribute is something else than what the directory says.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from anontls.certstore.new import new_internal_certificate
from anontls.directory.ldap.follow import Follower
from anontls.facts.own_certificate import OwnCertificate
from anontls.kerberos import Kerberos, computer_account
from anontls.transport.queue_delivery import QueueDelivery
from anontls.transport.service import system_now
from lab.exchange import Exchange
from lab.samba import Samba
from tests.ad.mailbox_servers import (
    FQDN,
    RECEIVER,
    SENDER,
    MailboxServers,
    channel,
    computer_accounts,
    in_tls,
    x_exps,
)
from tests.ad.tickets import Tickets
from tests.transport.world import ANNA, Client, Running, World, connected, eventually, greeted, make_world, run

ATTRIBUTE = "msExchServerInternalTLSCert"
DEFERRED = "451 5.7.3 Cannot achieve Exchange Server authentication"
READER = "mbx2-reader"
PASSWORD = "P@ss-planted-for-the-reader"
PATIENCE = 100.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("lab") / "world")


@pytest.fixture(scope="module")
def accounts(samba: Samba) -> Iterator[Tickets]:
    samba.tool("user", "create", READER, PASSWORD)
    with computer_accounts(samba) as tickets:
        yield tickets
    samba.tool("user", "delete", READER)


@pytest.fixture
def domain(
    samba: Samba, lab: World, accounts: Tickets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Domain]:
    environment = {"KRB5_CLIENT_KTNAME": str(accounts.keytab), "KRB5CCNAME": f"FILE:{tmp_path / 'reading'}"}
    for name, value in {**samba.environment, **environment}.items():
        monkeypatch.setenv(name, value)
    domain = Domain(samba, MailboxServers(lab, accounts, tmp_path / "world"))
    samba.add(
        *domain.exchange.containers(services=False),
        *(domain.exchange.server(name, domain.named[name].der) for name in (SENDER, RECEIVER)),
    )
    try:
        yield domain
    finally:
        samba.delete(domain.exchange.exchange)


def certificate(name: str) -> OwnCertificate:
    return new_internal_certificate(name, FQDN[name], now=system_now())


class Domain:
    """The two servers and their directory."""

    def __init__(self, samba: Samba, servers: MailboxServers) -> None:
        self.samba = samba
        self.servers = servers
        self.exchange = Exchange(samba.configuration)
        self.tickets = servers.folder / "tickets"
        self.named = {name: certificate(name) for name in (SENDER, RECEIVER)}
        for name, own in self.named.items():
            servers.add_certificate(name, own)
        (servers.folder / "password").touch(mode=0o600)
        (servers.folder / "password").write_text(f"{PASSWORD}\n")
        (servers.folder / "password").chmod(0o600)
        self._follow(SENDER, f'urls = ["{samba.ldap_url}"]')
        self._follow(
            RECEIVER,
            f'urls = ["{samba.ldaps_url}"]\nbind = "{READER}@{samba.realm}"\npassword-file = "password"\n'
            f'ca = "{samba.ca}"',
        )
        servers.kerberos(SENDER, credential_cache=f"FILE:{self.tickets}")
        self._client = Kerberos(
            computer_account(SENDER, samba.realm), keytab=servers.tickets.keytab, credential_cache="MEMORY:samba node"
        )

    def _follow(self, name: str, table: str) -> None:
        self.servers.configure(name, "[store]", f"[directory]\n{table}\ninterval = 0.2\n\n[store]")

    def send_to(self, port: int) -> None:
        """The sender's next hop is the receiver, on that port."""
        self.servers.deliver(
            SENDER,
            f'next-hop = "127.0.0.1:{port}"\nnext-hop-server = "{RECEIVER}"\ndelivery-type = "SmtpRelayToDag"\n'
            '\n[queue]\ndatabase = "queue.sqlite"\nminimum-free = 0\nidle-timeout = 0.1\n'
            "glitch-retry-count = 1000\nglitch-retry-interval = 0.2\nmessage-retry-interval = 0.2",
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Nodes]:
        async with self.servers.node(RECEIVER) as receiver:
            self.send_to(receiver.port)
            async with self.servers.node(SENDER) as sender:
                yield Nodes(self, sender, receiver)

    async def set(self, name: str, value: bytes | None) -> None:
        """The attribute of a server; ``None`` is null."""
        await asyncio.to_thread(self.samba.set, self.exchange.server_dn(name), ATTRIBUTE, value)

    async def hide(self, attribute: str) -> str:
        """From the receiver, an attribute of its own object or all of it; its access list before."""
        dn = self.exchange.server_dn(RECEIVER)
        return await asyncio.to_thread(self.samba.deny_reading, dn, attribute, READER)

    async def show(self, before: str) -> None:
        await asyncio.to_thread(self.samba.set_access, self.exchange.server_dn(RECEIVER), before)

    def token(self, client: Client) -> bytes:
        """By which the sender's account proves itself on the channel of a session."""
        target = f"SMTPSVC/{FQDN[RECEIVER]}@{self.samba.realm}"
        return self._client.initiator(target, channel(client)).step() or b""


class Nodes:
    """Both while they run."""

    def __init__(self, domain: Domain, sender: Running, receiver: Running) -> None:
        self.domain = domain
        self.sender = sender
        self.receiver = receiver
        assert isinstance(sender.service.delivery, QueueDelivery)
        self.queue = sender.service.delivery
        self._sent = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Client]:
        """One of the sender's account to the receiver, which stays open."""
        async with in_tls(self.receiver.port) as client:
            assert (await x_exps(client, self.domain.token(client))).startswith("235 ")
            yield client

    async def goes_on(self, client: Client) -> None:
        """A message arrives in a session that is open."""
        subject = self._new()
        replies = await client.message(ANNA, content=content(subject))
        assert replies[-1].startswith("250 2.6.0 <"), replies
        await self.arrives(subject)

    async def hand(self) -> str:
        """Hand a message to the sender, which takes it; its subject."""
        subject = self._new()
        async with greeted(self.sender.port) as client:
            assert (await client.message(ANNA, content=content(subject)))[-1].startswith("250 2.6.0 <")
        return subject

    async def arrives(self, subject: str) -> None:
        servers = self.domain.servers
        await eventually(lambda: any(content(subject) in each for each in servers.messages()), f"{subject} arrives")

    async def relays(self) -> None:
        """A message arrives through both, in a session of its own."""
        await eventually(lambda: not self.queue.dispatcher.sessions, "the session before is closed")
        await self.arrives(await self.hand())

    async def waits(self) -> str:
        """A message that the sender takes and cannot send on, however often it tries; its subject."""
        await eventually(lambda: not self.queue.dispatcher.sessions, "the session before is closed")
        subject = await self.hand()
        await eventually(lambda: self._tried(2), "it is tried")
        assert not any(content(subject) in each for each in self.domain.servers.messages())
        return subject

    def _tried(self, times: int) -> bool:
        (queue,) = self.queue.operations.queues()
        return queue.retry_count >= times and f"{{LED={DEFERRED}}}" in queue.last_error

    async def until_shown(self, own: OwnCertificate | None) -> None:
        """Until the receiver shows that certificate; ``None``: until it does not offer X-ANONYMOUSTLS."""
        der = own and own.der
        for _ in range(400):
            if await shown(self.receiver) == der:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(self.receiver.console.getvalue())

    async def until_named(self, own: OwnCertificate) -> None:
        """Until the sender knows that this is the receiver's certificate."""
        node = self.sender.service.node
        await eventually(lambda: node.peer_certificates(RECEIVER) == (own.der,), "the sender knows it")

    def _new(self) -> str:
        self._sent += 1
        return f"number {self._sent}"


def content(subject: str) -> bytes:
    return f"From: <ben@fabrikam.com>\r\nSubject: {subject}\r\n\r\nHello.\r\n".encode()


def followed_by(node: Running) -> Follower:
    follower = node.service.follower
    assert follower is not None
    return follower


async def shown(node: Running) -> bytes | None:
    """The certificate that a node shows inside X-ANONYMOUSTLS; ``None``: it does not offer it."""
    async with connected(node.port) as client:
        if "X-ANONYMOUSTLS" not in await client.ask("EHLO mail.fabrikam.com"):
            return None
        await client.secure()
        assert client.pump is not None
        peer = client.pump.peer
        assert peer is not None
        return peer.der


def sessions(world: World, name: str, kind: str) -> list[list[str]]:
    """What was said in each session of a protocol log."""
    found: dict[str, list[str]] = {}
    for line in world.log(name, kind).splitlines():
        if not line.startswith("#"):
            _, _, session, _, _, _, said = line.split(",", 6)
            found.setdefault(session, []).append(said)
    return list(found.values())


SENT = (">,X-ANONYMOUSTLS,", ">,X-EXPS GSSAPI,", "<,235 2.7.0 Authentication successful,", ">,MAIL FROM:")
TAKEN = ("<,X-ANONYMOUSTLS,", "<,X-EXPS GSSAPI,", "*,MBX1$@CONTOSO.COM,authenticated", "<,MAIL FROM:")


def in_order(said: list[str], steps: tuple[str, ...]) -> bool:
    """Whether the first of each step comes behind the first of the one before."""
    first = [next((at for at, row in enumerate(said) if row.startswith(step)), -1) for step in steps]
    return -1 not in first and first == sorted(first)


def test_mail_in_clear_would_be_found() -> None:
    assert in_order([*SENT, *SENT], SENT)
    assert not in_order([SENT[-1], *SENT], SENT)
    assert not in_order([SENT[0], SENT[-1]], SENT)


def nothing_went_in_clear(world: World) -> None:
    """No mail was sent, nor taken, before the sender had proved itself inside X-ANONYMOUSTLS."""
    for name, kind, steps in ((SENDER, "Send", SENT), (RECEIVER, "Receive", TAKEN)):
        mail = [said for said in sessions(world, name, kind) if any(row.startswith(steps[-1]) for row in said)]
        assert mail
        assert all(in_order(said, steps) for said in mail)


def told(world: World) -> str:
    """All that the nodes have written: consoles, events, protocol logs."""
    files = [path.read_text() for path in world.folder.rglob("*") if path.suffix.lower() in {".log", ".jsonl"}]
    return "".join([*(console.getvalue() for console in world.consoles.values()), *files])


# --- the attribute ----------------------------------------------------------------------------------------------------


def test_the_attribute_is_followed_by_both_while_sessions_run(domain: Domain) -> None:
    servers, before = domain.servers, domain.named[RECEIVER]
    second, renewed = certificate(RECEIVER), certificate(RECEIVER)
    servers.add_certificate(RECEIVER, second)

    async def session() -> None:
        async with domain.running() as nodes, nodes.session() as kept:
            receiver = nodes.receiver.service
            for name, node in ((SENDER, nodes.sender), (RECEIVER, nodes.receiver)):
                assert await shown(node) == domain.named[name].der
                status = followed_by(node).status
                assert (status.means, status.problem) == ("notification", None)
            await nodes.relays()

            # null: not offered, no event during a session; what waits arrives by itself
            await domain.set(RECEIVER, None)
            await nodes.until_shown(None)
            waiting = await nodes.waits()
            await nodes.goes_on(kept)
            await domain.set(RECEIVER, before.der)
            await nodes.arrives(waiting)

            # what is no certificate cannot be read
            for value in (b"garbage" * 150_000, b"\x30\x03\x02\x01\x05", bytes((1 << 20) + 1)):
                await domain.set(RECEIVER, value)
                await eventually(lambda: isinstance(receiver.node.server.internal_tls_cert.error, str))
                await nodes.until_shown(None)
                await domain.set(RECEIVER, before.der)
                await nodes.until_shown(before)
            assert servers.event_ids(RECEIVER) == []

            # another one of the store: new sessions show it, and the sender takes it
            await domain.set(RECEIVER, second.der)
            await nodes.until_shown(second)
            await nodes.until_named(second)
            await nodes.goes_on(kept)
            await nodes.relays()
            assert servers.event_ids(RECEIVER) == []

            # one that is not in the store: 12013, until it is put there
            await domain.set(RECEIVER, renewed.der)
            await nodes.until_shown(None)
            assert servers.event_ids(RECEIVER) == [12013]
            assert servers.events(RECEIVER)[0]["values"]["thumbprint"] == renewed.thumbprint
            waiting = await nodes.waits()
            await nodes.goes_on(kept)
            servers.add_certificate(RECEIVER, renewed)
            await receiver.reload()
            await nodes.arrives(waiting)
            assert await shown(nodes.receiver) == renewed.der

            # the attribute, and then the whole object, is hidden from the receiver's account
            for attribute in (ATTRIBUTE, ""):
                access = await domain.hide(attribute)
                await nodes.until_shown(None)
                known = receiver.node.server.internal_tls_cert
                if attribute:
                    assert known.value is None  # Samba 4.17 takes what may not be read for absent; Windows does not
                else:
                    assert "shows no such server" in str(known.error)
                waiting = await nodes.waits()
                await nodes.goes_on(kept)
                await domain.show(access)
                await nodes.arrives(waiting)
            await nodes.until_shown(renewed)

    run(session(), patience=PATIENCE)
    assert servers.event_ids(RECEIVER) == [12013]
    assert servers.event_ids(SENDER) == []
    nothing_went_in_clear(servers)
    assert PASSWORD not in told(servers)


def test_a_next_hop_that_only_the_directory_shows_goes_and_comes_back(domain: Domain) -> None:
    """The sender's file has no such server."""
    servers, there = domain.servers, domain.exchange.server(RECEIVER, domain.named[RECEIVER].der)
    (servers.folder / "alone").mkdir()
    alone = World(servers.folder / "alone", {})
    shutil.copy(servers.folder / "org.json", alone.folder)
    alone.change(servers=tuple(each for each in servers.organization.servers if each.name != RECEIVER))
    servers.configure(SENDER, '"org.json"', '"alone/org.json"')

    async def session() -> None:
        uncaught: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(context))
        async with domain.running() as nodes:
            await nodes.relays()
            await asyncio.to_thread(domain.samba.delete, domain.exchange.server_dn(RECEIVER))
            await nodes.until_shown(None)
            await eventually(lambda: nodes.sender.service.node.server_called(RECEIVER) is None)
            waiting = await nodes.waits()
            assert "no server MBX2 in the organisation" in nodes.sender.console.getvalue()
            await asyncio.to_thread(domain.samba.add, there)
            await nodes.arrives(waiting)
            assert await shown(nodes.receiver) == domain.named[RECEIVER].der
        assert not uncaught

    run(session(), patience=PATIENCE)
    assert [servers.event_ids(name) for name in (SENDER, RECEIVER)] == [[], []]
    nothing_went_in_clear(servers)


# --- the domain controller --------------------------------------------------------------------------------------------


def test_the_domain_controller_stops_and_starts_while_sessions_run(domain: Domain) -> None:
    servers, samba, own = domain.servers, domain.samba, domain.named[RECEIVER]

    async def session() -> None:
        async with domain.running() as nodes, nodes.session() as kept, in_tls(nodes.receiver.port) as opening:
            await nodes.relays()
            followers = [followed_by(node) for node in (nodes.sender, nodes.receiver)]
            await asyncio.to_thread(samba.stop)
            try:
                await eventually(lambda: all(each.status.problem for each in followers))
                for node in (nodes.sender, nodes.receiver):
                    assert f"the directory does not answer, {ATTRIBUTE} is what it was" in node.console.getvalue()

                # within the grace, and with a ticket: all as before, in sessions old, half open and new
                await nodes.goes_on(kept)
                assert (await x_exps(opening, domain.token(opening))).startswith("235 ")
                await nodes.goes_on(opening)
                assert await shown(nodes.receiver) == own.der
                await nodes.relays()

                # without a ticket the message waits
                assert servers.event_ids(SENDER) == []
                domain.tickets.unlink()
                waiting = [await nodes.waits()]
                event = servers.event(SENDER, 2017)
                assert event["error"].startswith("KDC not reachable")
                assert event["target"] == f"SMTPSVC/{FQDN[RECEIVER]}"

                # after the grace the verb is not offered, without an event; what is open stays
                for each in followers:
                    each.grace = 0.1
                await nodes.until_shown(None)
                await eventually(lambda: nodes.sender.service.node.peer_certificates(RECEIVER) == ())
                waiting.append(await nodes.hand())
                await nodes.goes_on(kept)
                for node in (nodes.sender, nodes.receiver):
                    assert f"{ATTRIBUTE} cannot be read: the directory has not answered" in node.console.getvalue()
                assert len(servers.messages()) == 5
            finally:
                await asyncio.to_thread(samba.start)
            for subject in waiting:
                await nodes.arrives(subject)
            await nodes.until_shown(own)
            await nodes.relays()

    run(session(), patience=PATIENCE)
    assert servers.event_ids(RECEIVER) == []
    assert servers.event_ids(SENDER) == [2017]
    nothing_went_in_clear(servers)
    assert PASSWORD not in told(servers)


def test_nodes_that_start_without_the_domain_controller_recover(domain: Domain) -> None:
    servers, samba = domain.servers, domain.samba

    async def session() -> None:
        await asyncio.to_thread(samba.stop)
        try:
            context = domain.running()
            nodes = await context.__aenter__()
            for name, node in ((SENDER, nodes.sender), (RECEIVER, nodes.receiver)):
                assert servers.event_ids(name) == [12012]
                assert await shown(node) is None
            waiting = await nodes.waits()
        finally:
            await asyncio.to_thread(samba.start)
        try:
            await nodes.arrives(waiting)
            assert await shown(nodes.receiver) == domain.named[RECEIVER].der
        finally:
            await context.__aexit__(None, None, None)

    run(session(), patience=PATIENCE)
    assert [servers.event_ids(name) for name in (SENDER, RECEIVER)] == [[12012], [12012]]
    nothing_went_in_clear(servers)


def test_an_account_that_is_refused_is_12012_and_its_password_is_not_told(domain: Domain) -> None:
    servers, wrong = domain.servers, "planted-secret-that-is-wrong"
    (servers.folder / "password").write_text(f"{wrong}\n")
    servers.configure(RECEIVER, "[delivery]", '[metrics]\nlisten = "127.0.0.1:0"\n\n[delivery]')

    def scraped(console: str) -> str:
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", console)
        pages = []
        for page in ("metrics", "decisions"):
            with urlopen(f"{url}/{page}", timeout=5) as answer:
                pages.append(answer.read().decode())
        return "".join(pages)

    async def session() -> str:
        async with servers.node(RECEIVER) as node:
            assert await shown(node) is None
            return await asyncio.to_thread(scraped, node.console.getvalue())

    found = run(session()) + told(servers)
    assert servers.event_ids(RECEIVER) == [12012]
    assert "the account is refused" in found
    assert wrong not in found
