"""Accepted mail goes into the queue: 250 when it is durable there."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import msgspec

from anontls.config import Config
from anontls.delivery.retry import LOOP, MAX_HOPS, hops
from anontls.errors import UsageError
from anontls.protocol_log import ProtocolLog
from anontls.smtp import Reply, exchange
from anontls.smtp.syntax import Envelope
from anontls.transport.body import IN_MEMORY, Body
from anontls.transport.control import ControlServer, socket_path
from anontls.transport.deliver import DECLARED, MaildirDelivery
from anontls.transport.destinations import Destinations
from anontls.transport.dispatch import Dispatcher
from anontls.transport.node import Node
from anontls.transport.operations import QueueOperations
from anontls.transport.queue import New, StoreFailed, Work
from anontls.transport.queue_sqlite import SqliteQueue
from anontls.transport.settlement import queued_from

#: What another place for the queue, or other permissions, would cure; a disk that is full or broken may get better.
MISPLACED = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,  # a file where a folder has to be
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class QueueDelivery:
    """Takes responsibility for a message by making it durable.  Created and used in a running loop.

    Raises:
        UsageError: the configuration names a place where the database cannot be.
        AnontlsError: the database cannot be opened, or another process has it.
    """

    def __init__(
        self,
        config: Config,
        base: Path,
        node: Node,
        log: ProtocolLog | None,
        *,
        wall: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        queue, delivery = config.queue, config.delivery
        assert queue.database is not None
        mailboxes = None
        if delivery.maildir is not None:
            mailboxes = MaildirDelivery(base / delivery.maildir, node.fqdn, create=delivery.create_mailboxes)
        destinations = Destinations(node, delivery, queue)
        control = socket_path(config, base)
        path = base / queue.database
        if path.is_dir():  # before there is a lock beside it
            raise UsageError(f"queue.database: {path}: is a folder", hint="it names a file, which is made when missing")
        try:
            store = SqliteQueue(path, minimum_free=queue.minimum_free, max_messages=queue.max_messages, say=say)
        except StoreFailed as e:
            if isinstance(e.__cause__, OSError) and e.__cause__.errno in MISPLACED:
                hint = "its folder is made when missing; this user must be able to write there"
                raise UsageError(f"queue.database: {e}", hint=hint) from None
            raise
        self.dispatcher = Dispatcher(node, store, destinations, queue, log, mailboxes=mailboxes, wall=wall, say=say)
        self.operations = QueueOperations(self.dispatcher)
        self._control = ControlServer(control, self.operations)

    async def start(self) -> None:
        """Send what is there, and listen to `anontls queue`."""
        await self._control.start()
        self.dispatcher.start()

    def on_their_way(self) -> int:
        """Messages that are being sent."""
        return sum(len(queue.in_flight) for queue in self.dispatcher.queues.values())

    def drain(self) -> None:
        """Begin to send nothing more."""
        self.dispatcher.stopping = True

    async def stop(self) -> None:
        """Cut off what is still on its way: it stays in the database, like all else."""
        await self.dispatcher.stop(0)
        await self._control.close()
        await self.dispatcher.store.close()

    def refusal(self) -> Reply | None:
        """Back pressure, while the disk is nearly full."""
        return self.dispatcher.store.refusal()

    def accepts(self, address: str, *, local: bool) -> Reply | None:
        """Refused under back pressure, and for a mailbox of this machine that does not exist."""
        refusal, mailboxes = self.refusal(), self.dispatcher.mailboxes
        if refusal is not None or mailboxes is None or not self.dispatcher.destinations.of(address).local:
            return refusal
        return mailboxes.accepts(address, local=local)

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Store it; then its queues have it."""
        dispatcher = self.dispatcher
        refusal = self.refusal()  # it may be full by now
        if refusal is not None:
            return refusal
        small = body.in_memory()
        if hops(small if small is not None else next(body.pieces(), b"")) >= MAX_HOPS:
            return LOOP
        need = body.needs() if small is not None else await asyncio.to_thread(body.needs)
        size = len(received) + body.size
        if small is None or size > IN_MEMORY:
            # Many senders declare nothing and send eight bits; what is sent in pieces is held to what was declared.
            envelope = msgspec.structs.replace(envelope, size=size, body=DECLARED.get(need, envelope.body))
        if small is not None:
            new = New(envelope=envelope, arrived=dispatcher.clock(), head=b"", body=received + small, need=need)
        else:
            new = New(envelope=envelope, arrived=dispatcher.clock(), head=received, body=body)
        try:
            (number,) = await dispatcher.store.commit(Work(accepted=(new,)))
        except StoreFailed:
            return exchange.INSUFFICIENT_RESOURCES
        dispatcher.accepted(queued_from(number, new))
        return exchange.queued(f"<{number}@{dispatcher.node.fqdn}>")
