"""What time alone brings about in the queues: messages that are late or expire, empty queues, a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from anontls.delivery.retry import Schedule, last_error
from anontls.smtp import Reply
from anontls.transport.destination_queue import DestinationQueue
from anontls.transport.destinations import Destinations
from anontls.transport.memory import Memory
from anontls.transport.queue import Pending, Queued, QueueStore, StoreFailed
from anontls.transport.settlement import Settlement

EVERY = 60.0  # seconds
AT_ONCE = 500  # messages that are looked at before sessions have their turn again
QUEUE_STAYS = 180.0  # seconds that an empty queue is still shown
JUMP = 60.0  # seconds that the clock of the system may go another way than time does without being mentioned


class Owner(Protocol):
    """What it asks of the dispatcher."""

    store: QueueStore
    memory: Memory
    schedule: Schedule
    destinations: Destinations
    settlement: Settlement
    queues: dict[str, DestinationQueue]

    def clock(self) -> float: ...

    def pending(self, queue: DestinationQueue, queued: Queued) -> list[Pending]: ...


class Sweep:
    """Looks at all queues again and again.  Each message is looked at twice in its life: when it is late, and expired."""

    def __init__(self, owner: Owner, *, say: Callable[[str], None], wall: Callable[[], float]) -> None:
        self.owner = owner
        self._say = say
        self._wall = wall
        self._jumped = 0.0
        self._seen = {"late": 0, "expired": 0}  # the last message that it was looked at for
        self._untried: dict[str, set[int]] = {}  # messages that were looked at before their queue had been tried

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.once()
            except StoreFailed as e:
                self._say(f"the queue cannot be read: {e}")

    async def once(self) -> None:
        """Tell senders of messages that are late, return those that have expired, forget empty queues."""
        self._look_at_the_clock()
        owner = self.owner
        now = owner.clock()
        gone: dict[DestinationQueue, set[int]] = {}
        overdue = chain(
            self._tried_meanwhile(),
            self._older("late", now - owner.schedule.delay_notification_timeout),
            self._older("expired", now - owner.schedule.message_expiration_timeout),
        )
        for count, number in enumerate(overdue, 1):
            for queue in self._overdue(number):
                gone.setdefault(queue, set()).add(number)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)
        for queue, numbers in gone.items():
            queue.forget(numbers)
        for key, queue in tuple(owner.queues.items()):
            if not queue.idle:
                queue.emptied = now
            elif now - queue.emptied > QUEUE_STAYS:
                del owner.queues[key]
                await queue.close()

    def _older(self, what: str, before: float) -> Iterator[int]:
        """Messages that arrived earlier; they lie in the store in the order in which they came."""
        for stored in self.owner.store.messages(after=self._seen[what]):
            if before < stored.arrived <= self.owner.clock():  # later ones came when the clock of the system was ahead
                return
            self._seen[what] = stored.id
            yield stored.id

    def _tried_meanwhile(self) -> Iterator[int]:
        for key in tuple(self._untried):
            queue = self.owner.queues.get(key)
            if queue is None or queue.last_error:
                yield from self._untried.pop(key)

    def _overdue(self, number: int) -> Iterator[DestinationQueue]:
        """A message that waits too long in a queue that could not be tried, or not with success.

        Gives the queues in which it waits no longer.
        """
        owner = self.owner
        queued = owner.memory.message(number, content=False)
        if queued is None:
            return
        now = owner.clock()
        expired = now >= owner.schedule.expires(queued.arrived)
        waits: list[Pending] = []
        queues: set[DestinationQueue] = set()
        for each in queued.pending:
            there = owner.destinations.of(each.recipient.address)
            queue = owner.queues.get(there.key)
            if queue is None or number in queue.in_flight or not (each.last_error or queue.last_error):
                self._untried.setdefault(there.key, set()).add(number)
            elif expired or not each.delayed:
                each.last_error = each.last_error or queue.last_error
                if there.unreachable:
                    each.last_error = last_error(Reply(451, (f"4.4.0 {there.unreachable}",)), "", "", now)
                waits.append(each)
                queues.add(queue)
        if waits:
            owner.memory.hold(queued)
            owner.settlement.late(queued, waits, now)
            yield from (queue for queue in queues if not owner.pending(queue, queued))

    def _look_at_the_clock(self) -> None:
        ahead = self._wall() - self.owner.clock()
        if abs(ahead - self._jumped) > JUMP:
            self._say(f"the clock of the system jumped by {ahead - self._jumped:+.0f} s; the ages of messages do not")
            self._jumped = ahead
