"""What an administrator does with the queues of a running node: look, retry, suspend, resume, remove."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from anontls.errors import Unreachable, UsageError
from anontls.facts import same_name
from anontls.smtp import Reply
from anontls.transport.control import heading, nearest
from anontls.transport.destination_queue import DestinationQueue
from anontls.transport.dispatch import Dispatcher
from anontls.transport.queue import Queued, StoreFailed, Work, message_id
from anontls.transport.status import MessageStatus, QueueStatus, RecipientStatus

REMOVED = Reply(550, ("5.7.1 The message was removed from the queue by an administrator",))


class QueueOperations:
    """The operations of `anontls.transport.control` on a dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.server = dispatcher.node.server.name

    def queues(self) -> list[QueueStatus]:
        return [queue.status_of_queue(self.server) for queue in tuple(self.dispatcher.queues.values())]

    def messages(self, queue: str | None = None) -> Iterator[MessageStatus]:
        chosen = tuple(self.dispatcher.queues.values()) if queue is None else (self._queue(queue),)
        for each in chosen:
            for number in each.numbers():
                message = self.dispatcher.memory.message(number, content=False)
                if message is not None and (shown := self._shown(each, message)) is not None:
                    yield shown

    def show(self, identity: str) -> MessageStatus:
        queue, message = self._message(identity)
        shown = self._shown(queue, message)
        if shown is None:
            raise UsageError(f"no message {identity}")
        subject, message_id = heading((self.dispatcher.memory.head(message),))
        return msgspec.structs.replace(shown, subject=subject, internet_message_id=message_id)

    async def retry(self, queue: str) -> None:
        found = self._queue(queue)
        if found.suspended:
            raise UsageError(
                f"{queue} is suspended, and is not tried", hint=f"`anontls queue resume {queue}` undoes that"
            )
        found.retry()

    async def suspend(self, identity: str) -> None:
        if self._names_a_queue(identity):
            self._queue(identity).suspend()
        else:
            await self._hold(identity, hold=True)

    async def resume(self, identity: str) -> None:
        if self._names_a_queue(identity):
            self._queue(identity).resume()
        else:
            await self._hold(identity, hold=False)

    async def remove(self, message: str, *, with_ndr: bool) -> None:
        queue, queued = self._message(message)
        if queued.id in queue.in_flight:
            raise UsageError(f"{message} is being sent", hint="suspend its queue, and remove it then")
        with _as_it_was(message):
            await self.dispatcher.give_up(queue, queued, REMOVED if with_ndr else None)

    async def _hold(self, identity: str, *, hold: bool) -> None:
        """A message is held as a whole, in each queue that it is in."""
        _, queued = self._message(identity)
        with _as_it_was(identity):
            await self.dispatcher.store.commit(Work(suspended=((queued.id, hold),), at_once=True))
        self.dispatcher.hold(queued.id, hold=hold)

    # --- names --------------------------------------------------------------------------------------------------------

    def _names_a_queue(self, identity: str) -> bool:
        return identity.count("\\") < 2

    def _queue(self, identity: str) -> DestinationQueue:
        server, _, number = identity.rpartition("\\")
        queues = tuple(self.dispatcher.queues.values())
        if not server or same_name(server, self.server):
            for queue in queues:
                if str(queue.number) == number:
                    return queue
        known = [f"{self.server}\\{queue.number}" for queue in queues]
        raise UsageError(f"no queue {identity}", hint=nearest(identity, known))

    def _message(self, identity: str) -> tuple[DestinationQueue, Queued]:
        name, _, number = identity.rpartition("\\")
        wanted = message_id(number)
        if not self._names_a_queue(identity) and wanted is not None:
            queue = self._queue(name)
            message = self.dispatcher.memory.message(wanted, content=False)
            if message is not None and self.dispatcher.pending(queue, message):
                return queue, message
        raise UsageError(f"no message {identity}", hint="`anontls queue list --messages` shows them as SERVER\\3\\4711")

    def _shown(self, queue: DestinationQueue, message: Queued) -> MessageStatus | None:
        pending = self.dispatcher.pending(queue, message)
        if not pending:
            return None
        now = self.dispatcher.clock()
        sending = message.id in queue.in_flight
        later = not sending and any(each.due > now for each in pending)
        status = "Active" if sending else "Suspended" if message.suspended else "Retry" if later else "Ready"
        queue_name = f"{self.server}\\{queue.number}"
        return MessageStatus(
            identity=f"{queue_name}\\{message.id}",
            queue=queue_name,
            from_address=message.envelope.sender or "<>",
            status=status,
            size=message.size,
            date_received=message.arrived,
            expiration_time=message.arrived + self.dispatcher.schedule.message_expiration_timeout,
            retry_count=max(each.attempts for each in pending),
            last_error=next((each.last_error for each in pending if each.last_error), ""),
            recipients=tuple(
                RecipientStatus(
                    address=each.recipient.address,
                    status="Locked" if sending else "Retry" if each.due > now else "Ready",
                    last_error=each.last_error,
                )
                for each in pending
            ),
        )


@contextmanager
def _as_it_was(message: str) -> Iterator[None]:
    """Says what a change that failed means for the message."""
    try:
        yield
    except StoreFailed as e:
        raise Unreachable(f"{message} is as it was: {e}", hint=e.hint) from None
