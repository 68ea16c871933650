"""The queue of a node that does not run: the messages of its store, by where they would go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import TracebackType

import msgspec

from anontls.certstore import MemoryStore
from anontls.config import Config
from anontls.delivery.retry import Schedule
from anontls.directory import open_organization
from anontls.errors import AnontlsError, Unreachable, UsageError
from anontls.eventlog import Events
from anontls.facts import same_name
from anontls.transport.control import heading, nearest
from anontls.transport.destinations import Destination, Destinations
from anontls.transport.node import Node
from anontls.transport.queue import Pending, Queued, StoreFailed, Work, message_id
from anontls.transport.queue_sqlite import SqliteQueue
from anontls.transport.status import MessageStatus, QueueStatus, RecipientStatus


class StoredQueue:
    r"""What `ControlClient` has, on the store itself; it is locked until the end of the ``with``, so no node starts.

    Numbers of queues are those of a running node.  Here a queue is named by its NextHopDomain: ``MBX1\contoso.com`` and
    ``MBX1\contoso.com\4711``.

    Raises:
        UsageError: there is no store.
        Unreachable: it cannot be opened; another process has it.
    """

    def __init__(self, config: Config, base: Path, now: datetime) -> None:
        assert config.queue.database is not None
        path = base / config.queue.database
        if not path.exists():
            raise UsageError(f"no node runs, and there is no {path}", hint="`anontls serve` makes it")
        self.server = config.node.server
        self.now = now.timestamp()
        self._schedule = Schedule(message_expiration_timeout=config.queue.message_expiration_timeout)
        self._of = self._destinations(config, base, now)
        try:
            self._store = SqliteQueue(path, minimum_free=0, max_messages=config.queue.max_messages)
        except StoreFailed as e:
            raise Unreachable(str(e), hint=e.hint) from None

    def __enter__(self) -> StoredQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run(self._store.close())

    def _destinations(self, config: Config, base: Path, now: datetime) -> Callable[[str], Destination]:
        """Where mail for an address goes; the address's domain when organisation and configuration do not tell."""
        try:
            organization = open_organization(str(base / config.node.organization))
            server = organization.server(config.node.server)
            if server is None:
                return _by_domain
            self.server = server.name
            node = Node(organization, server, MemoryStore(), Events(server.name, (), lambda: now), lambda: now)
            return Destinations(node, config.delivery, config.queue).of
        except AnontlsError:
            return _by_domain

    # --- to look ------------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueStatus]:
        """The destinations of what is stored; nobody sends, so they have no status."""
        found: dict[str, QueueStatus] = {}
        for message in self._store.messages():
            for there, pending in self._by_destination(message):
                before = found.get(there.key) or self._empty(there)
                found[there.key] = msgspec.structs.replace(
                    before,
                    message_count=before.message_count + 1,
                    deferred_message_count=before.deferred_message_count + any(each.due > self.now for each in pending),
                    last_error=_last_error(pending) or before.last_error,
                )
        return list(found.values())

    def messages(
        self, queue: str | None = None, *, status: str | None = None, limit: int | None = None
    ) -> Iterator[MessageStatus]:
        if queue is not None:
            known = [each.identity for each in self.queues()]
            if not any(same_name(queue, each) for each in known):
                raise UsageError(f"no queue {queue} without a running node", hint=nearest(queue, known))
        shown = (
            self._shown(message, there, pending)
            for message in self._store.messages()
            for there, pending in self._by_destination(message)
            if queue is None or same_name(queue, self._name(there))
        )
        return islice((each for each in shown if status is None or same_name(status, each.status)), limit)

    def show(self, identity: str) -> MessageStatus:
        message, there, pending = self._message(identity)
        subject, message_id = heading(self._store.pieces(message.id))
        shown = self._shown(message, there, pending)
        return msgspec.structs.replace(shown, subject=subject, internet_message_id=message_id)

    # --- to act -------------------------------------------------------------------------------------------------------

    def retry(self, queue: str) -> None:
        raise UsageError(f"{queue}: no node runs that could try; at its start it tries everything")

    def suspend(self, identity: str) -> None:
        self._hold(identity, hold=True)

    def resume(self, identity: str) -> None:
        self._hold(identity, hold=False)

    def remove(self, message: str, *, with_ndr: bool) -> None:
        if with_ndr:
            raise UsageError(
                f"{message}: no node runs that could return it",
                hint="--without-ndr removes it without telling the sender",
            )
        found, _, pending = self._message(message)
        self._commit(Work(settled=[(found.id, each.number) for each in pending], at_once=True))

    def _hold(self, identity: str, *, hold: bool) -> None:
        if identity.count("\\") < 2:
            raise UsageError(
                f"{identity}: no node runs, and what is kept without it are suspended messages, not queues"
            )
        message, _, _ = self._message(identity)
        self._commit(Work(suspended=[(message.id, hold)], at_once=True))

    def _commit(self, work: Work) -> None:
        async def commit() -> None:
            await self._store.commit(work)

        asyncio.run(commit())

    # --- what is there ------------------------------------------------------------------------------------------------

    def _name(self, there: Destination) -> str:
        return f"{self.server}\\{there.next_hop_domain}"

    def _message(self, identity: str) -> tuple[Queued, Destination, list[Pending]]:
        queue, _, number = identity.rpartition("\\")
        wanted = message_id(number)
        if wanted is not None:
            message = self._store.message(wanted)
            for there, pending in self._by_destination(message) if message is not None else ():
                assert message is not None
                if same_name(queue, self._name(there)):
                    return message, there, pending
        raise UsageError(
            f"no message {identity} without a running node",
            hint="`anontls queue list --messages` shows their identities",
        )

    def _by_destination(self, message: Queued) -> Iterable[tuple[Destination, list[Pending]]]:
        found: dict[str, tuple[Destination, list[Pending]]] = {}
        for pending in message.pending:
            there = self._of(pending.recipient.address)
            found.setdefault(there.key, (there, []))[1].append(pending)
        return found.values()

    def _empty(self, there: Destination) -> QueueStatus:
        return QueueStatus(
            identity=self._name(there),
            delivery_type=there.delivery_type,
            next_hop_domain=there.next_hop_domain,
            next_hop_connector=there.next_hop_connector,
            next_hop_category=there.category,
            tls_domain=None,
            status="",
            message_count=0,
            deferred_message_count=0,
            locked_message_count=0,
            last_error=there.unreachable,
            first_retry_time=None,
            last_retry_time=None,
            next_retry_time=None,
            retry_count=0,
            incoming_rate=0.0,
            outgoing_rate=0.0,
            velocity=0.0,
        )

    def _shown(self, message: Queued, there: Destination, pending: list[Pending]) -> MessageStatus:
        recipients = tuple(
            RecipientStatus(
                address=each.recipient.address,
                status="Retry" if each.due > self.now else "Ready",
                last_error=each.last_error,
            )
            for each in pending
        )
        return MessageStatus(
            identity=f"{self._name(there)}\\{message.id}",
            queue=self._name(there),
            from_address=message.envelope.sender or "<>",
            status="Suspended" if message.suspended else max(each.status for each in recipients),
            size=message.size,
            date_received=message.arrived,
            expiration_time=self._schedule.expires(message.arrived),
            retry_count=max(each.attempts for each in pending),
            last_error=_last_error(pending),
            recipients=recipients,
        )


def _last_error(pending: list[Pending]) -> str:
    return next((each.last_error for each in pending if each.last_error), "")


def _by_domain(address: str) -> Destination:
    domain = address.rpartition("@")[2].lower()
    return Destination(key=domain, delivery_type="", next_hop_domain=domain, category="")
