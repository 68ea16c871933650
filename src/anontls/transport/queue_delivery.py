"""Accepted mail goes into the queue: 250 when it is durable there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from anontls.config import Config
from anontls.delivery.retry import LOOP, MAX_HOPS, hops
from anontls.protocol_log import ProtocolLog
from anontls.smtp import Reply, exchange
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.control import ControlServer, socket_path
from anontls.transport.deliver import DECLARED, MaildirDelivery
from anontls.transport.destinations import Destinations
from anontls.transport.dispatch import Dispatcher
from anontls.transport.node import Node
from anontls.transport.operations import QueueOperations
from anontls.transport.queue import New, StoreFailed, Work
from anontls.transport.queue_sqlite import SqliteQueue
from anontls.transport.settlement import queued_from


class QueueDelivery:
    """Takes responsibility for a message by making it durable.  Created and used in a running loop.

    Raises:
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
        store = SqliteQueue(
            base / queue.database, minimum_free=queue.minimum_free, max_messages=queue.max_messages, say=say
        )
        self.dispatcher = Dispatcher(node, store, destinations, queue, log, mailboxes=mailboxes, wall=wall, say=say)
        self.operations = QueueOperations(self.dispatcher)
        self._control = ControlServer(control, self.operations)

    async def start(self) -> None:
        """Send what is there, and listen to `anontls queue`."""
        await self._control.start()
        self.dispatcher.start()

    async def stop(self, patience: float) -> None:
        """Let what is on its way arrive; the rest stays in the database."""
        await self.dispatcher.stop(patience)
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
        if small is not None:
            new = New(envelope=envelope, arrived=dispatcher.clock(), head=b"", body=received + small, need=body.needs())
        else:
            # Many senders declare nothing and send eight bits; what is sent in pieces is held to what was declared.
            need = await asyncio.to_thread(body.needs)
            envelope = msgspec.structs.replace(
                envelope, size=len(received) + body.size, body=DECLARED.get(need, envelope.body)
            )
            new = New(envelope=envelope, arrived=dispatcher.clock(), head=received, body=body)
        try:
            (number,) = await dispatcher.store.commit(Work(accepted=(new,)))
        except StoreFailed:
            return exchange.INSUFFICIENT_RESOURCES
        dispatcher.accepted(queued_from(number, new))
        return exchange.queued(f"<{number}@{dispatcher.node.fqdn}>")
