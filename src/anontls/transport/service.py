"""Builds a node from a configuration, runs it, reloads it, stops it."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, NamedTuple, TextIO

import msgspec

from anontls.certstore.files import Passphrase
from anontls.certstore.folder import FolderStore
from anontls.config import Config, Limits, host_and_port, load
from anontls.directory import open_organization
from anontls.directory.ldap import ldap_settings
from anontls.directory.ldap.follow import Follower
from anontls.errors import AnontlsError, UsageError
from anontls.eventlog import Events, JsonLines, JsonStream, Sink, Stream, Syslog
from anontls.facts import (
    Organization,
    Phase,
    ReceiveConnector,
    Scenario,
    Server,
)
from anontls.protocol_log import Direction, ProtocolLog
from anontls.selection import Decision, select
from anontls.selection.sessions import session_facts
from anontls.transport.authentication import Authentication
from anontls.transport.connector import receive_connector as receive_connector
from anontls.transport.deliver import MaildirDelivery, NextHopDelivery
from anontls.transport.destinations import configured_hop
from anontls.transport.metrics import Log, Metrics, Observed
from anontls.transport.metrics_server import MetricsServer
from anontls.transport.node import Node
from anontls.transport.open_files import SPARE_FILES as SPARE_FILES
from anontls.transport.open_files import allow_sessions
from anontls.transport.queue_delivery import QueueDelivery
from anontls.transport.receive import Delivery, Receiver
from anontls.transport.send import NextHop

DRAIN = 30.0  # seconds that a stopping node gives its sessions
FLUSH = 0.5  # seconds that a line of the protocol log may wait
BACKLOG = 1024
QUIET = timedelta(minutes=1)  # in which an operator is told the same once
MOST_COMPLAINTS = 1000  # remembered at a time


class _Again(NamedTuple):
    """What a reload has read."""

    config: Config
    organization: Organization
    server: Server
    connectors: dict[str, ReceiveConnector]
    hop: NextHop | None


class Service:
    """A running node.

    ``base`` is the folder that relative paths of the configuration start from; ``console`` gets what an operator sees.
    ``file`` is the configuration's own, which a reload reads again.
    """

    def __init__(
        self,
        config: Config,
        base: Path,
        *,
        now: Callable[[], datetime],
        console: TextIO | None = None,
        file: Path | None = None,
    ) -> None:
        self.config = config
        self.base = base
        self.file = file
        self.now = now
        self.console = console or sys.stderr
        self.follower = self._follower()
        try:
            if self.follower is not None:
                self.follower.first()
            organization, server = self._organization()
            store = self._store()
            self._out = JsonStream(self.console, now) if config.log.console == "json" else Stream(self.console)
            sinks: list[Sink] = [self._out]
            if config.log.events:
                path = _writable(base / config.log.events)
                sinks.append(JsonLines(path, partial(self._lost, "events", path)))
            if config.log.syslog:
                sinks.append(Syslog(config.log.syslog))
            metrics = Metrics()
            events = Events(server.name, tuple(sinks), now, raised=metrics.event)
            self.certificates = store
            kerberos = Authentication(config.kerberos, base, server, metrics) if config.kerberos.wanted else None
            rules = config.selection_rules
            self.node = Node(organization, server, store, events, now, rules, metrics, kerberos, self.follower)
            self.receive_log = self._log(Direction.RECEIVE)
            self.send_log = self._log(Direction.SEND)
        except BaseException:  # nobody gets what could be stopped
            if self.follower is not None:
                self.follower.close()
            raise
        self.delivery: Delivery | None = None  # from the start on
        self.receivers: list[Receiver] = []
        self.servers: list[asyncio.Server] = []
        self._metrics: MetricsServer | None = None
        self._loaded = now()
        self._startup: Decision | None = None
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complained: dict[str, datetime] = {}
        self._say_problems()

    # --- what it is made of -------------------------------------------------------------------------------------------

    def _follower(self) -> Follower | None:
        """Of the directory, where one is followed; not read yet."""
        if not self.config.directory.urls:
            return None
        organization = open_organization(str(self.base / self.config.node.organization))
        return follower_of(self.config, self.base, organization, self.now)

    def _organization(self) -> tuple[Organization, Server]:
        organization = open_organization(str(self.base / self.config.node.organization))
        if self.follower is not None:
            organization = self.follower.rebase(organization)
        server = organization.server(self.config.node.server)
        if server is None:
            known = ", ".join(s.name for s in organization.servers)
            problem = self.follower.status.problem if self.follower is not None else None
            raise UsageError(
                f"node.server: no server {self.config.node.server} in the organisation"
                + (f", and the directory cannot be read: {problem}" if problem else ""),
                hint=f"known: {known}",
            )
        return organization, server

    def _directory_changed(self, organization: Organization) -> None:
        """What the directory says from now on."""
        server = organization.server(self.config.node.server)
        if server is None:
            self._complain(f"the directory shows no server {self.config.node.server}; what was known of it serves")
            return
        self.node.take(organization, server)
        for receiver in self.receivers:
            with suppress(UsageError):  # a connector that is gone goes on until the next reload, which says so
                receiver.connector = receive_connector(server, receiver.connector.identity)
        if isinstance(self.delivery, QueueDelivery):
            try:
                self.delivery.dispatcher.reroute()
            except UsageError as e:  # what the configuration names is gone, so that mail for it waits
                self._complain(f"the directory has changed: {e}")
        # For health: whether there is a certificate now.  The events of a start belong to the start.
        word = self.follower.word if self.follower is not None else None
        facts = session_facts(server, Scenario.INBOUND_ANONYMOUS, self.now(), phase=Phase.STARTUP, directory=word)
        self._startup = select(msgspec.structs.replace(facts, store=self.node.store.store()), self.node.rules)
        self._loaded = self.now()

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
        folder = self.base / log.protocol / f"Smtp{direction.value}"
        which: Log = "receive" if direction is Direction.RECEIVE else "send"
        try:
            return ProtocolLog(
                folder,
                direction,
                self.now,
                layout=log.layout,
                max_file_size=log.max_file_size,
                max_directory_size=log.max_directory_size,
                max_age=timedelta(days=log.max_age_days),
                lost=partial(self._lost, which, folder),
            )
        except OSError as e:
            raise UsageError(f"log.protocol: {folder}: {e.strerror}") from None

    def _lost(self, log: Log, path: Path, problem: OSError, lines: int) -> None:
        """Lines of a log could not be written."""
        self.node.metrics.log_lines_lost(log, lines)
        self._complain(f"log lines are lost until {path} can be written: {problem.strerror or problem}")

    def _delivery(self) -> Delivery:
        delivery = self.config.delivery
        if self.config.queue.database is not None:
            return QueueDelivery(
                self.config,
                self.base,
                self.node,
                self.send_log,
                wall=lambda: self.now().timestamp(),
                say=self._complain,
            )
        hop = configured_hop(self.node.server, self.node.organization, delivery)
        if hop is None:
            folder = self.base / (delivery.maildir or "mail")
            return MaildirDelivery(folder, self.node.fqdn, create=delivery.create_mailboxes)
        return NextHopDelivery(self.node, hop, self.send_log)

    def _say_problems(self) -> None:
        for problem in self.certificates.problems:
            self._say(f"certificate store: {problem}")

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._out.say(text)

    def _complain(self, text: str) -> None:
        """The same once a minute: what is wrong with one message is wrong with the next thousand."""
        now = self.now()
        said = self._complained.get(text)
        if said is None or abs(now - said) > QUIET:
            if len(self._complained) >= MOST_COMPLAINTS:
                self._complained.clear()
            self._complained[text] = now
            self._say(text)

    # --- running ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Perform the selection of a service start, then listen.

        Raises:
            UsageError: an address cannot be listened on, or a Receive connector is not there or not enabled.
        """
        listens = [(entry, receive_connector(self.node.server, entry.connector)) for entry in self.config.listen]
        limits = {connector.identity: self.config.limits_of(connector.identity) for _, connector in listens}
        self._allow_sessions(limits.values())
        certificate = self.startup().certificate
        shown = certificate.thumbprint if certificate else "none"
        self._say(f"{self.node.server.name} starts; internal transport certificate: {shown}")
        loop = asyncio.get_running_loop()
        delivery = self.delivery = self._delivery()
        if isinstance(delivery, QueueDelivery):
            await delivery.start()
        receivers: dict[str, Receiver] = {}  # the limits are those of a connector, however many addresses it has
        for entry, connector in listens:
            receiver = receivers.get(connector.identity)
            if receiver is None:
                receiver = receivers[connector.identity] = Receiver(
                    self.node,
                    connector,
                    self.config.limits_of(connector.identity),
                    delivery,
                    self.receive_log,
                    self._complain,
                )
                self.receivers.append(receiver)
            host, port = host_and_port(entry.address)
            try:
                server = await loop.create_server(receiver, host, port, backlog=BACKLOG)
            except OSError as e:
                await self.stop(0)
                raise UsageError(f"{entry.address}: cannot listen: {e.strerror or e}") from None
            self.servers.append(server)
            for listening in server.sockets:
                bound = listening.getsockname()
                self._say(f"{connector.identity} listens on {_shown(*bound[:2])}")
        if self.config.metrics.listen is not None:
            try:
                self._metrics = MetricsServer(
                    self.node.metrics, self._observed, *host_and_port(self.config.metrics.listen)
                )
            except OSError as e:
                await self.stop(0)
                raise UsageError(
                    f"metrics.listen: {self.config.metrics.listen}: cannot listen: {e.strerror or e}"
                ) from None
            self._say(f"metrics and health at http://{_shown(*self._metrics.address)}")
        if self.follower is not None:
            status = self.follower.status
            if status.problem is not None:
                self._say(f"the directory does not answer: {status.problem}")
            else:
                self._say(f"the directory is read from {status.url}")
            self.follower.start(self._directory_changed, self._say)
        self._task(self._flush_logs())

    def _observed(self) -> Observed:
        """What a scrape sees."""
        delivery = self.delivery
        dispatcher = delivery.dispatcher if isinstance(delivery, QueueDelivery) else None
        seen = Observed(
            now=self.now().timestamp(),
            loaded=self._loaded.timestamp(),
            receiving=sum(len(receiver.sessions) for receiver in self.receivers),
            sending=dispatcher.sessions if dispatcher else 0,
            draining=self._stopping.is_set(),
            listening=any(server.is_serving() for server in self.servers),
            startup=self._startup,
            store=self.node.store.store(),
            directory=self.follower.status if self.follower is not None else None,
        )
        if dispatcher is None or not isinstance(delivery, QueueDelivery):
            return seen
        return msgspec.structs.replace(
            seen,
            refusal=dispatcher.store.refusal(),
            queues=delivery.operations.queues(),
            messages=dispatcher.store.count,
            oldest=dispatcher.oldest(),
            free=disk_usage(self.base / (self.config.queue.database or "")).free,
        )

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _allow_sessions(self, limits: Iterable[Limits]) -> None:
        told = allow_sessions(sum(each.sessions for each in limits))
        if told:
            self._say(told)

    def startup(self) -> Decision:
        """The selection of a service start; a certificate that the TLS library refuses is told of now."""
        decision = self.node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)
        self._startup = decision
        return decision

    async def _flush_logs(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            self._flush()

    def _flush(self) -> None:
        for log in (self.receive_log, self.send_log):
            if log is not None:
                log.flush()

    async def reload(self) -> None:
        """Read configuration, organisation and certificate store again; what is faulty leaves things as they were.

        Sessions go on meanwhile, with what they have.  Of the configuration, limits and rules are taken; for all else
        it is said that it needs a restart.
        """
        async with self._reloading:
            try:
                again = await asyncio.to_thread(self._read_again)
            except (AnontlsError, OSError) as e:
                self._say(f"reload failed, nothing has changed: {e}")
                return
            self._take_configuration(again.config)
            self.node.take(again.organization, again.server)
            for receiver in self.receivers:
                receiver.connector = again.connectors[receiver.connector.identity]
            if isinstance(self.delivery, QueueDelivery):
                self.delivery.dispatcher.reroute()
            elif again.hop is not None and isinstance(self.delivery, NextHopDelivery):
                self.delivery.hop = again.hop
            self._loaded = self.now()
            self._say_problems()
            self._say("reloaded")
            self.startup()

    def _read_again(self) -> _Again:
        config = load(self.file) if self.file is not None else self.config
        organization, server = self._organization()
        connectors = {
            receiver.connector.identity: receive_connector(server, receiver.connector.identity)
            for receiver in self.receivers
        }
        hop = configured_hop(server, organization, self.config.delivery)
        self.certificates.reload(self.now())
        return _Again(config, organization, server, connectors, hop)

    def _take_configuration(self, new: Config) -> None:
        if new == self.config:
            return
        if new.rules != self.config.rules:
            self.node.rules = new.selection_rules
        for receiver in self.receivers:
            receiver.limits = new.limits_of(receiver.connector.identity)
        self._allow_sessions(receiver.limits for receiver in self.receivers)
        listens = [[(entry.connector, entry.address) for entry in each.listen] for each in (new, self.config)]
        listen = new.listen if listens[0] == listens[1] else self.config.listen
        taken = msgspec.structs.replace(self.config, limits=new.limits, rules=new.rules, listen=listen)
        waiting = [
            f"[[{field.encode_name}]]" if field.name == "listen" else f"[{field.encode_name}]"
            for field in msgspec.structs.fields(Config)
            if getattr(new, field.name) != getattr(taken, field.name)
        ]
        if waiting:
            self._say(f"the configuration has changed: restart to use {', '.join(waiting)}")
        self.config = taken

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Start, and serve until SIGTERM or SIGINT, the second of which ends the drain; SIGHUP reloads.

        ``ready`` is called when it has started, and signals are understood.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, lambda: (self._hurried if self._stopping.is_set() else self._stopping).set())
        await self.start()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._task(self.reload()))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one that has come since `anontls serve` began
        ready()
        gc.freeze()  # organisation and certificates stay; the collector need not look at them again and again
        await self._stopping.wait()
        self._say(f"draining: {self._on_their_way()}; {DRAIN:g} seconds at most, a second signal ends it")
        await self.stop(DRAIN)

    async def stop(self, patience: float) -> None:
        """Let messages that are on their way be settled; new sessions are told 421; then close."""
        for receiver in self.receivers:
            receiver.drain()
        queue = self.delivery if isinstance(self.delivery, QueueDelivery) else None
        end = asyncio.get_running_loop().time() + patience
        await self._wait_while(lambda: any(r.sessions or r.deliveries for r in self.receivers), end)
        if queue is not None:
            queue.drain()
            await self._wait_while(queue.on_their_way, end)
        if any(r.sessions or r.deliveries for r in self.receivers) or (queue is not None and queue.on_their_way()):
            self._say(f"cut off: {self._on_their_way()}")
        for server in self.servers:
            server.close()
        for receiver in self.receivers:
            for session in tuple(receiver.sessions):
                session.abort()
            for delivery in tuple(receiver.deliveries):
                delivery.cancel()
        if self.follower is not None:
            await self.follower.stop()
        if queue is not None:
            await queue.stop()
        for task in tuple(self._tasks):
            task.cancel()
        if self._metrics is not None:
            await self._metrics.close()
        await asyncio.sleep(0)  # so that what was cut off says so in the log
        self._flush()
        self._say("stopped")

    def _on_their_way(self) -> str:
        """What a drain waits for."""
        sessions = sum(len(receiver.sessions) for receiver in self.receivers)
        deliveries = sum(len(receiver.deliveries) for receiver in self.receivers)
        if isinstance(self.delivery, QueueDelivery):
            deliveries += self.delivery.on_their_way()
        return f"sessions {sessions}, deliveries {deliveries}"

    async def _wait_while(self, busy: Callable[[], object], end: float) -> None:
        """Until ``end`` at most, or the second signal."""
        loop = asyncio.get_running_loop()
        while busy() and loop.time() < end and not self._hurried.is_set():  # noqa: ASYNC110 sessions end by themselves
            await asyncio.sleep(0.02)


def follower_of(config: Config, base: Path, organization: Organization, now: Callable[[], datetime]) -> Follower:
    """Of the directory that a configuration names, and what ``organization`` says besides; not read yet.

    Raises:
        UsageError: the configuration, or what it names.
    """
    directory = config.directory
    settings = ldap_settings(
        ",".join(directory.urls),
        bind=directory.bind,
        password_file=base / directory.password_file if directory.password_file else None,
        ca=base / directory.ca if directory.ca else None,
        environment={},  # that of who happened to start the node
    )
    return Follower(settings, organization, now=now, interval=directory.interval, grace=directory.grace)


def _shown(host: str, port: int) -> str:
    """An address as a URL has it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _writable(path: Path) -> Path:
    """A file that lines can be added to; told at the start, because later a log must not stop the mail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab"):
            return path
    except OSError as e:
        raise UsageError(f"log.events: {path}: {e.strerror}") from None


def system_now() -> datetime:
    """The clock of a running service."""
    return datetime.now(UTC)
