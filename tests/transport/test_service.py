"""The life of a node: start, reload, drain; some of it as a real process."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from anontls import config
from anontls.certstore.new import new_internal_certificate
from anontls.errors import UsageError
from anontls.transport.lab import EDGE, INBOUND, MAILBOX
from anontls.transport.service import Service, system_now
from tests.transport.world import (
    ANNA,
    EVERYTHING,
    MESSAGE,
    Hop,
    World,
    behind,
    connected,
    eventually,
    exchange_server,
    greeted,
    run,
)

PROGRAM = Path(sys.executable).with_name("anontls")
LISTENS = re.compile(r"listens on 127\.0\.0\.1:(\d+)")


class Process:
    """``anontls serve`` as an operator starts it."""

    def __init__(self, world: World, name: str) -> None:
        self.process = subprocess.Popen(
            [str(PROGRAM), "serve", str(world.config(name))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            match = re.search(pattern, line)
            if match is not None:
                return match
        raise AssertionError(f"ended without {pattern}: {self.said}")

    def memory(self) -> int:
        """Resident octets now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index] # Linux has the line

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def process(world: World, name: str) -> Iterator[tuple[Process, int]]:
    node = Process(world, name)
    try:
        yield node, int(node.until(LISTENS.pattern)[1])
    finally:
        node.process.kill()
        node.process.communicate(timeout=20)


async def shown(port: int) -> str | None:
    """The thumbprint behind X-ANONYMOUSTLS."""
    async with greeted(port) as client:
        await client.secure()
        assert client.pump is not None
        peer = client.pump.peer
        return None if peer is None else str(peer.thumbprint)


# --- reload -----------------------------------------------------------------------------------------------------------


def test_reload_takes_a_new_certificate_without_a_restart(world: World) -> None:
    new = new_internal_certificate("MBX1", "mbx1.contoso.com", now=datetime.now(UTC))
    renewed_peer = new_internal_certificate("EDGE1", "edge1.contoso.com", now=datetime.now(UTC))

    async def session() -> None:
        async with world.node(MAILBOX) as node:
            assert await shown(node.port) == world.certificates[MAILBOX].thumbprint
            async with exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as held:
                world.add_certificate(MAILBOX, new)
                world.publish(MAILBOX, new)
                world.publish(EDGE, renewed_peer)
                await node.service.reload()
                assert (await held.message())[-1].startswith("250"), "a session keeps what it has"
            assert await shown(node.port) == new.thumbprint
            async with exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as client:
                assert (await client.ask("MAIL FROM:<>")).startswith("530"), "the directory no longer holds it"
            async with exchange_server(node.port, "edge1.contoso.com", renewed_peer) as client:
                assert (await client.ask("MAIL FROM:<>")).startswith("250")

    run(session())
    assert "reloaded" in world.consoles[MAILBOX].getvalue()


def broken_org(world: World) -> None:
    (world.folder / "org.json").write_text("{")


def no_server(world: World) -> None:
    world.change(servers=tuple(server for server in world.organization.servers if server.name != EDGE))


def no_connector(world: World) -> None:
    world.change_server(EDGE, receive_connectors=())


def disabled_connector(world: World) -> None:
    world.change_connector(EDGE, enabled=False)


def no_send_connector(world: World) -> None:
    world.change(send_connectors=())


def no_next_hop(world: World) -> None:
    world.change(servers=tuple(server for server in world.organization.servers if server.name != MAILBOX))


def no_store(world: World) -> None:
    world.store(EDGE).rename(world.folder / "away")


FAULTS = [broken_org, no_server, no_connector, disabled_connector, no_send_connector, no_next_hop, no_store]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faulty_files_leave_things_as_they_were(world: World, fault: object) -> None:
    async def session() -> None:
        async with world.node(EDGE) as node:
            before = (node.service.node.organization, node.service.node.server, node.receiver.connector)
            assert callable(fault)
            fault(world)
            await node.service.reload()
            assert before == (node.service.node.organization, node.service.node.server, node.receiver.connector)
            assert await shown(node.port) == world.certificates[EDGE].thumbprint

    run(session())
    assert "reload failed, nothing has changed: " in world.consoles[EDGE].getvalue()
    assert "reloaded" not in world.consoles[EDGE].getvalue()


def test_reload_takes_a_changed_send_connector(world: World) -> None:
    hop = Hop(own=world.certificates[MAILBOX])

    async def session() -> None:
        async with hop.listening():
            world.deliver(
                EDGE, f'next-hop = "127.0.0.1:{hop.port}"\nnext-hop-server = "MBX1"\nsend-connector = "{INBOUND}"'
            )
            async with world.node(EDGE) as node, greeted(node.port) as client:
                assert (await client.message())[-1].startswith("250")
                connectors = world.organization.send_connectors
                assert isinstance(connectors, tuple)
                world.change(
                    send_connectors=(msgspec.structs.replace(connectors[0], smart_host_auth_mechanism="None"),)
                )
                await node.service.reload()
                assert (await client.message())[-1].startswith("451 5.7.3")

    run(session())


def test_reload_raises_the_events_of_a_start_each_reason_once(world: World) -> None:
    from anontls.facts import InternalTlsCert

    async def session() -> None:
        async with world.node(EDGE) as node:
            for attribute in (
                null := InternalTlsCert(value=None),
                InternalTlsCert(error="access denied"),
                null,
                InternalTlsCert(error="access denied again"),
            ):
                world.change_server(EDGE, internal_tls_cert=attribute, internal_tls_cert_adlds=attribute)
                await node.service.reload()
            async with greeted(node.port) as client:
                assert (await client.ask("X-ANONYMOUSTLS")).startswith("500")

    run(session())
    assert world.event_ids(EDGE) == [12012, 12012]
    assert [event["values"]["reason"] for event in world.events(EDGE)] == ["null", "access denied"]


# --- drain ------------------------------------------------------------------------------------------------------------


def test_draining_settles_what_is_on_its_way_and_answers_421(world: World) -> None:
    async def session() -> None:
        gate = asyncio.Event()
        hop = Hop({"MAIL": behind(gate)}, ehlo=EVERYTHING)
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
            async with (
                world.node(EDGE) as node,
                greeted(node.port) as idle,
                greeted(node.port) as content,
                greeted(node.port) as waiting,
                greeted(node.port) as gone,
            ):
                deliveries = [asyncio.create_task(waiting.message())]
                await content.ask("MAIL FROM:<ben@fabrikam.com>")
                await content.ask(f"RCPT TO:<{ANNA}>")
                await content.ask("DATA")
                await gone.send(b"MAIL FROM:<c@d.example>\r\nRCPT TO:<anna@contoso.com>\r\nBDAT 3 LAST\r\na\r\n")
                await eventually(lambda: len(node.receiver.deliveries) == 2)
                await gone.close()
                stopping = asyncio.create_task(node.service.stop(10))
                assert await idle.rest() == b"421 4.3.2 Service not active\r\n"
                async with connected(node.port, banner=False) as late:
                    assert await late.reply() == "421 4.3.2 Service not active"
                await content.send(MESSAGE + b".\r\n")
                await asyncio.sleep(0.1)
                assert not stopping.done()
                gate.set()
                assert (await deliveries[0])[-1] == "250 2.6.0 taken"
                assert await content.reply() == "250 2.6.0 taken"
                assert await content.rest() == b"421 4.3.2 Service not active\r\n"
                await stopping
            assert len(hop.contents) == 3, "also that of the one who did not wait"
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", node.port)

    run(session())


def test_draining_has_an_end(world: World) -> None:
    async def session() -> None:
        async def never(_line: str) -> bytes:
            await asyncio.sleep(1)
            return b""

        hop = Hop({"MAIL": never}, ehlo=EVERYTHING)
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
            async with world.node(EDGE) as node, greeted(node.port) as client:
                sending = asyncio.create_task(client.message())
                await eventually(lambda: len(node.receiver.deliveries) == 1)
                await node.service.stop(0.2)
                with pytest.raises((EOFError, ConnectionError)):
                    await sending

    run(session())


def test_a_second_signal_cuts_off_what_the_queue_sends_and_loses_nothing(world: World) -> None:
    async def session() -> None:
        gate = asyncio.Event()
        hop = Hop({"MAIL": behind(gate)}, ehlo=EVERYTHING)
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"\n\n[queue]\ndatabase = "queue.db"')
            with process(world, EDGE) as (node, port):
                async with greeted(port) as client:
                    assert (await client.message())[-1].startswith("250 ")
                await eventually(lambda: "MAIL" in " ".join(hop.commands))
                node.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(node.until, "^draining: sessions 0, deliveries 1; ")
                node.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(node.until, "^cut off: sessions 0, deliveries 1$")
                assert await asyncio.to_thread(node.process.wait, 10) == 0
            gate.set()
            assert not hop.contents
            with process(world, EDGE):
                await eventually(lambda: len(hop.contents) == 1)

    run(session())


# --- start ------------------------------------------------------------------------------------------------------------


def test_two_addresses_of_one_connector_share_its_limits(world: World) -> None:
    name = world.connector(EDGE).name
    world.limits(EDGE, sessions=1)
    world.configure(EDGE, "[limits]", f'[[listen]]\nconnector = "{name}"\naddress = "[::1]:0"\n\n[limits]')

    async def session() -> None:
        async with world.node(EDGE) as node:
            assert "listens on [::1]:" in node.console.getvalue()
            other = int(node.service.servers[1].sockets[0].getsockname()[1])
            async with connected(node.port):
                reader, writer = await asyncio.open_connection("::1", other)
                assert (await reader.readline()).startswith(b"421 ")
                writer.close()

    run(session())


def test_over_ipv6(world: World) -> None:
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')
    world.configure(EDGE, "127.0.0.1:0", "[::1]:0")
    world.configure(EDGE, "[log]", '[metrics]\nlisten = "[::1]:0"\n\n[log]')

    async def session() -> None:
        from tests.transport.world import Client

        async with world.node(EDGE) as node:
            assert "metrics and health at http://[::1]:" in node.console.getvalue()
            client = Client(*await asyncio.open_connection("::1", node.port))
            await client.reply()
            assert (await client.ask("EHLO a")).startswith("250-edge1.contoso.com Hello [::1]")
            assert (await client.message())[-1].startswith("250")
            await client.close()

    run(session())
    (file,) = world.messages()
    assert b"from a ([IPv6:::1]) by edge1.contoso.com" in file
    assert ",[::1]:" in world.log(EDGE, "Receive")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_start_that_cannot_be_says_why(world: World, fault: object) -> None:
    assert callable(fault)
    fault(world)
    with pytest.raises(Exception, match=r".") as raised:
        run(_start(world))
    from anontls.errors import AnontlsError

    assert isinstance(raised.value, AnontlsError)


async def _start(world: World) -> None:
    service = Service(config.load(world.config(EDGE)), world.folder, now=system_now, console=io.StringIO())
    await service.start()
    await service.stop(0)


@pytest.mark.parametrize("key", ["events", "protocol"])
def test_a_log_that_cannot_be_written(world: World, key: str) -> None:
    (world.folder / "file").write_text("")
    path = world.config(EDGE)
    path.write_text(re.sub(rf"^{key} = .*$", f'{key} = "file/below"', path.read_text(), flags=re.MULTILINE))
    with pytest.raises(UsageError, match=f"log.{key}"):
        run(_start(world))


def test_an_address_in_use(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        world.configure(EDGE, "127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        node = Process(world, EDGE)
        out, _ = node.process.communicate(timeout=20)
    assert node.process.returncode == 2
    assert "cannot listen" in out
    assert "in use" in out
    assert "Traceback" not in out


# --- a real process ---------------------------------------------------------------------------------------------------


def test_signals(world: World) -> None:
    new = new_internal_certificate("EDGE1", "edge1.contoso.com", now=datetime.now(UTC))
    hop = Hop(ehlo=EVERYTHING)

    async def session() -> None:
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
            with process(world, EDGE) as (node, port):
                assert await shown(port) == world.certificates[EDGE].thumbprint
                world.add_certificate(EDGE, new)
                world.publish(EDGE, new)
                node.process.send_signal(signal.SIGHUP)
                await asyncio.to_thread(node.until, "^reloaded$")
                assert await shown(port) == new.thumbprint
                async with greeted(port) as idle, greeted(port) as busy:
                    await busy.ask("MAIL FROM:<ben@fabrikam.com>")
                    await busy.ask(f"RCPT TO:<{ANNA}>")
                    await busy.ask("DATA")
                    node.process.send_signal(signal.SIGTERM)
                    await asyncio.to_thread(node.until, "^draining: sessions 2, deliveries 0; ")
                    assert await idle.rest() == b"421 4.3.2 Service not active\r\n"
                    await busy.send(MESSAGE + b".\r\n")
                    assert await busy.reply() == "250 2.6.0 taken"
                assert await asyncio.to_thread(node.process.wait, 20) == 0

    run(session())
    assert len(hop.contents) == 1


def test_a_gibibyte_is_refused_with_flat_memory(world: World) -> None:
    """By DATA until the patience ends; by SIZE and by BDAT at once."""
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')
    gibibyte = 1024 * 1024 * 1024
    piece = (b"x" * 998 + b"\r\n") * 1000

    async def session() -> None:
        with process(world, EDGE) as (node, port):
            async with greeted(port) as client:
                assert (await client.message())[-1].startswith("250")
            before = node.memory()
            highest = before
            async with greeted(port) as client:
                too_large = "552 5.3.4 Message size exceeds fixed maximum message size"
                assert await client.ask(f"MAIL FROM:<ben@fabrikam.com> SIZE={gibibyte}") == too_large
                await client.ask("MAIL FROM:<ben@fabrikam.com>")
                await client.ask(f"RCPT TO:<{ANNA}>")
                await client.ask("DATA")
                sent = 0
                try:
                    while sent < gibibyte:
                        await client.send(piece)
                        sent += len(piece)
                        if sent % (32 * len(piece)) == 0:
                            highest = max(highest, node.memory())
                except ConnectionError:
                    pass
                assert sent < gibibyte
            async with greeted(port) as client:
                await client.send(b"MAIL FROM:<>\r\nRCPT TO:<anna@contoso.com>\r\nBDAT %d LAST\r\n" % gibibyte)
                try:
                    for _ in range(400):
                        await client.send(piece)
                    highest = max(highest, node.memory())
                except ConnectionError:
                    pass
            async with greeted(port) as client:
                assert (await client.message())[-1].startswith("250")
            # 36 MiB of the message were taken, through a file
            assert highest - before < 16 * 1024 * 1024, (before, highest)
            assert not list(world.folder.glob("*tmp*"))

    run(session())
    assert len(world.messages()) == 2


def test_memory_and_descriptors_stay_flat(world: World) -> None:
    """Sessions of every unlucky kind, again and again."""
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')

    async def unlucky(port: int, number: int) -> None:
        async with greeted(port) as client:
            match number % 5:
                case 0:
                    await client.ask("X-ANONYMOUSTLS")
                    await client.send(os.urandom(500))
                    await client.rest()
                case 1:
                    await client.secure()
                    await client.ask("EHLO a")
                    await client.send(b"MAIL FROM:<>\r\nRCPT TO:<anna@contoso.com>\r\nBDAT 90000\r\n" + b"x" * 80000)
                case 2:
                    await client.send(b"x" * 300_000)
                case 3:
                    await client.ask("STARTTLS")
                case _:
                    await client.secure("STARTTLS")

    async def session() -> None:
        with process(world, EDGE) as (node, port):

            async def rounds(count: int) -> None:
                for _ in range(count):
                    await asyncio.gather(*(unlucky(port, number) for number in range(50)))

            await rounds(4)
            before, descriptors = node.memory(), node.descriptors()
            await rounds(8)
            await eventually(lambda: node.descriptors() <= descriptors, "no descriptor is lost")
            assert node.memory() - before < 12 * 1024 * 1024

    run(session())


def test_certificates_expire_while_it_runs(world: World) -> None:
    """The clock is asked in each session; 12015 is written once an hour."""
    clock = [datetime.now(UTC)]

    async def session() -> None:
        async with world.node(EDGE, lambda: clock[0]) as node:
            async with greeted(node.port):
                pass
            assert world.event_ids(EDGE) == []
            clock[0] += timedelta(days=3000)
            for _ in range(3):
                for _ in range(5):
                    async with greeted(node.port):
                        pass
                clock[0] += timedelta(minutes=61)

    run(session())
    times = [event for event in world.events(EDGE) if event["id"] == 12015]
    assert [event["repeated"] for event in times] == [0, 4, 4]
