"""Builds a node from a configuration, runs it, reloads it, stops it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

from anontls.certstore.files import Passphrase
from anontls.certstore.folder import FolderStore
from anontls.config import Config, host_and_port
from anontls.directory import open_organization
from anontls.errors import AnontlsError, UsageError
from anontls.eventlog import Events, JsonLines, Sink, Stream, Syslog
from anontls.facts import (
    Organization,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    is_unknown,
    same_name,
)
from anontls.protocol_log import Direction, ProtocolLog
from anontls.selection import Decision
from anontls.selection.sessions import send_connectors
from anontls.transport.deliver import MaildirDelivery, NextHopDelivery
from anontls.transport.node import Node
from anontls.transport.receive import Delivery, Receiver
from anontls.transport.send import NextHop

DRAIN = 30.0  # seconds that a stopping node gives its sessions
FLUSH = 0.5  # seconds that a line of the protocol log may wait
BACKLOG = 1024


class Service:
    """A running node.

    ``base`` is the folder that relative paths of the configuration start from; ``console`` gets what an operator sees.
    """

    def __init__(
        self, config: Config, base: Path, *, now: Callable[[], datetime], console: TextIO | None = None
    ) -> None:
        self.config = config
        self.base = base
        self.now = now
        self.console = console or sys.stderr
        organization, server = self._organization()
        store = self._store()
        sinks: list[Sink] = [Stream(self.console)]
        if config.log.events:
            sinks.append(JsonLines(base / config.log.events))
        if config.log.syslog:
            sinks.append(Syslog(config.log.syslog))
        events = Events(server.name, tuple(sinks), now)
        self.certificates = store
        self.node = Node(organization, server, store, events, now, config.selection_rules)
        self.receive_log = self._log(Direction.RECEIVE)
        self.send_log = self._log(Direction.SEND)
        self.delivery = self._delivery()
        self.receivers: list[Receiver] = []
        self.servers: list[asyncio.Server] = []
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._say_problems()

    # --- what it is made of -------------------------------------------------------------------------------------------

    def _organization(self) -> tuple[Organization, Server]:
        organization = open_organization(str(self.base / self.config.node.organization))
        server = organization.server(self.config.node.server)
        if server is None:
            known = ", ".join(s.name for s in organization.servers)
            raise UsageError(
                f"node.server: no server {self.config.node.server} in the organisation", hint=f"known: {known}"
            )
        return organization, server

    def _store(self) -> FolderStore:
        passphrase = self.config.store.passphrase_file
        return FolderStore(
            self.base / self.config.store.folder,
            now=self.now(),
            passphrase=Passphrase(file=self.base / passphrase) if passphrase else None,
        )

    def _log(self, direction: Direction) -> ProtocolLog | None:
        log = self.config.log
        if log.protocol is None:
            return None
        return ProtocolLog(
            self.base / log.protocol / f"Smtp{direction.value}",
            direction,
            self.now,
            layout=log.layout,
            max_file_size=log.max_file_size,
            max_directory_size=log.max_directory_size,
            max_age=timedelta(days=log.max_age_days),
        )

    def _delivery(self) -> Delivery:
        delivery = self.config.delivery
        if delivery.next_hop is None:
            folder = self.base / (delivery.maildir or "mail")
            return MaildirDelivery(folder, self.node.fqdn, create=delivery.create_mailboxes)
        return NextHopDelivery(self.node, next_hop(self.node, self.config), self.send_log)

    def _say_problems(self) -> None:
        for problem in self.certificates.problems:
            self._say(f"certificate store: {problem}")

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            print(text, file=self.console, flush=True)

    # --- running ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Perform the selection of a service start, then listen."""
        decision = self.startup()
        certificate = decision.certificate
        shown = certificate.thumbprint if certificate else "none"
        self._say(f"{self.node.server.name} starts; internal transport certificate: {shown}")
        loop = asyncio.get_running_loop()
        for entry in self.config.listen:
            host, port = host_and_port(entry.address)
            receiver = Receiver(
                self.node,
                receive_connector(self.node.server, entry.connector),
                self.config.limits,
                self.delivery,
                self.receive_log,
            )
            try:
                server = await loop.create_server(receiver, host, port, backlog=BACKLOG)
            except OSError as e:
                await self.stop(0)
                raise UsageError(f"{entry.address}: cannot listen: {e.strerror or e}") from None
            self.receivers.append(receiver)
            self.servers.append(server)
            bound = server.sockets[0].getsockname()
            self._say(f"{receiver.connector.identity} listens on {bound[0]}:{bound[1]}")
        self._tasks.append(loop.create_task(self._flush_logs()))

    def startup(self) -> Decision:
        """The selection of a service start."""
        return self.node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)

    async def _flush_logs(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            self._flush()

    def _flush(self) -> None:
        for log in (self.receive_log, self.send_log):
            if log is not None:
                log.flush()

    def reload(self) -> None:
        """Read the organisation and the certificate store again; what is faulty leaves things as they were."""
        try:
            organization, server = self._organization()
            connectors = [receive_connector(server, entry.connector) for entry in self.config.listen]
            self.certificates.reload(self.now())
        except AnontlsError as e:
            self._say(f"reload failed, nothing has changed: {e}")
            return
        self.node.organization, self.node.server = organization, server
        for receiver, connector in zip(self.receivers, connectors, strict=True):
            receiver.connector = connector
        self._say_problems()
        self._say("reloaded")
        self.startup()

    async def run(self) -> None:
        """Start, and serve until SIGTERM or SIGINT; SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        await self.start()
        await self._stopping.wait()
        self._say("draining")
        await self.stop(DRAIN)

    async def stop(self, patience: float) -> None:
        """Stop listening, let messages that are on their way be settled, close."""
        for server in self.servers:
            server.close()
        for receiver in self.receivers:
            receiver.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while any(r.sessions for r in self.receivers) and loop.time() < end:  # noqa: ASYNC110 sessions end by themselves
            await asyncio.sleep(0.02)
        for receiver in self.receivers:
            for session in tuple(receiver.sessions):
                session.abort()
        for task in self._tasks:
            task.cancel()
        self._flush()
        self._say("stopped")


def receive_connector(server: Server, name: str) -> ReceiveConnector:
    """The Receive connector of that name.

    Raises:
        UsageError: there is none; says which there are.
    """
    connectors = () if is_unknown(server.receive_connectors) else server.receive_connectors
    for connector in connectors:
        if same_name(name, connector.identity) or same_name(name, connector.name):
            return connector
    known = ", ".join(connector.name for connector in connectors) or "none"
    raise UsageError(f"{server.name} has no Receive connector {name}", hint=f"known: {known}")


def next_hop(node: Node, config: Config) -> NextHop:
    """The next hop of the configuration."""
    delivery = config.delivery
    host, port = host_and_port(delivery.next_hop or "")
    connector: SendConnector | None = None
    if delivery.send_connector is not None:
        known = send_connectors(node.server, node.organization)
        connector = next((c for c in known if same_name(c.identity, delivery.send_connector)), None)
        if connector is None:
            names = ", ".join(c.identity for c in known) or "none"
            raise UsageError(
                f"{node.server.name} has no Send connector {delivery.send_connector}", hint=f"known: {names}"
            )
    return NextHop(
        host=host,
        port=port,
        server=delivery.next_hop_server,
        lmtp=delivery.protocol == "lmtp",
        queue=Queue(identity=None, delivery_type=delivery.delivery_type),
        send_connector=connector,
        timeout=delivery.timeout,
    )


def system_now() -> datetime:
    """The clock of a running service."""
    return datetime.now(UTC)
