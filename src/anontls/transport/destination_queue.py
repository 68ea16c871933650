"""The queue of one destination: what waits there, when it is tried, and how it looks from outside.

Messages are numbers here, so that a long queue costs little; what is being sent is in memory, with its content.
"""

from __future__ import annotations

import asyncio
import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Coroutine, Iterable, Set
from typing import Any, Protocol

import msgspec

from anontls.delivery.retry import Schedule, last_error
from anontls.smtp import Reply
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.destinations import Destination
from anontls.transport.queue import Pending, Queued, StoreFailed
from anontls.transport.send import NextHop, OutboundSession, SessionFailed
from anontls.transport.status import QueueStatus, Status

NOT_READ = Reply(451, ("4.3.0 The message cannot be read",))


class Job(msgspec.Struct):
    """A message on its way to one destination, with the recipients that it has there."""

    queued: Queued
    pending: list[Pending]
    envelope: Envelope


class Owner(Protocol):
    """What a queue asks of the dispatcher."""

    schedule: Schedule
    idle_timeout: float
    sessions_per_destination: int
    stopping: bool

    @property
    def paused(self) -> bool:
        """Whether nothing is to be sent now."""
        ...

    def clock(self) -> float:
        """Unix seconds; does not jump."""
        ...

    def take(self, queue: DestinationQueue, number: int) -> Job | None:
        """The message with the recipients that are due there; ``None``: there is nothing to be sent."""
        ...

    def content(self, queued: Queued) -> bytes | Iterable[bytes]: ...

    def settle(
        self, queue: DestinationQueue, job: Job, replies: tuple[Reply, ...], session: OutboundSession | None
    ) -> None:
        """The last word on each recipient of the job, which that session carried; ``None``: mailboxes here."""
        ...

    def postpone(self, queue: DestinationQueue, job: Job, failure: SessionFailed, seconds: float) -> None:
        """The session broke while the job was on its way: try again later."""
        ...

    def put_back(self, queue: DestinationQueue, job: Job) -> None:
        """The session broke before the job had its turn."""
        ...

    def cool(self, queue: DestinationQueue) -> None:
        """The queue does not send for a while: its messages need not stay in memory."""
        ...

    def session(self, hop: NextHop) -> OutboundSession | None:
        """A new session, not open yet; ``None``: there are enough."""
        ...

    async def hosts(self, destination: Destination) -> list[NextHop]: ...

    async def deliver_here(self, envelope: Envelope, body: Body) -> Reply: ...

    def failed_here(self, error: Exception) -> None:
        """Tell why a message could not be read or written."""
        ...


class Rate:
    """Messages a second, of the last minute."""

    __slots__ = ("_before", "_now", "_since")

    def __init__(self) -> None:
        self._since, self._now, self._before = 0.0, 0, 0

    def add(self, now: float) -> None:
        if now - self._since >= 60:
            self._turn(now)
        self._now += 1

    def value(self, now: float) -> float:
        if now - self._since >= 60:
            self._turn(now)
        part = (now - self._since) / 60
        return (self._now + self._before * (1 - part)) / 60

    def _turn(self, now: float) -> None:
        self._before = self._now if now - self._since < 120 else 0
        self._now, self._since = 0, now


class DestinationQueue(ABC):
    """What waits for one destination."""

    def __init__(self, owner: Owner, number: int, destination: Destination) -> None:
        self.owner = owner
        self.number = number
        self.destination = destination
        self.ready: deque[int] = deque()
        self.waiting: list[tuple[float, int]] = []  # a heap: (due, message)
        self.held: set[int] = set()  # suspended messages
        self.in_flight: dict[int, Job] = {}
        self.suspended = False
        self.last_error = ""
        self.retry_count = 0
        self.first_retry: float | None = None
        self.last_retry: float | None = None
        self.next_retry: float | None = None
        self.emptied = owner.clock()  # when it last had nothing
        self.incoming, self.outgoing = Rate(), Rate()
        self._loop = asyncio.get_running_loop()
        self._woken = False
        self._due_timer: asyncio.TimerHandle | None = None
        self._retry_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what the dispatcher calls ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ready) + len(self.waiting) + len(self.held) + len(self.in_flight)

    def numbers(self) -> list[int]:
        """Its messages, those on their way first."""
        return [*self.in_flight, *self.ready, *(number for _, number in sorted(self.waiting)), *sorted(self.held)]

    def clear(self) -> None:
        """Forget what waits and what was tried: it is in the store, and comes again."""
        self.waiting.clear()
        self.retry()
        self.ready.clear()
        self.held.clear()
        self._recovered()

    def forget(self, numbers: Set[int]) -> None:
        """These messages are no longer in this queue."""
        self.held -= numbers
        self.ready = deque(number for number in self.ready if number not in numbers)
        self.waiting = [entry for entry in self.waiting if entry[1] not in numbers]
        heapq.heapify(self.waiting)

    @property
    def sending(self) -> bool:
        """Whether what comes in is likely to leave soon."""
        return not self.suspended and self.next_retry is None

    @property
    def status(self) -> Status:
        if self.suspended:
            return Status.SUSPENDED
        if self.next_retry is not None:
            return Status.RETRY
        if self.in_flight:
            return Status.ACTIVE
        return Status.CONNECTING if self._connecting else Status.READY

    def add(self, number: int) -> None:
        """A message that is to be sent now."""
        self.ready.append(number)
        self.wake()

    def defer(self, number: int, due: float) -> None:
        """A message that is to be sent later."""
        heapq.heappush(self.waiting, (due, number))
        if self.waiting[0] == (due, number):
            self._set_due_timer()

    def wake(self) -> None:
        """Look for something to do, once, soon."""
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._pump)

    def retry(self) -> None:
        """Try everything now: a new connection, and messages that wait for their time."""
        self._end_retry_timer()
        self.next_retry = None
        self.ready.extend(number for _, number in sorted(self.waiting))
        self.waiting.clear()
        self.wake()

    def suspend(self) -> None:
        """Send nothing more; what is on its way arrives."""
        self.suspended = True
        self.owner.cool(self)

    def resume(self) -> None:
        self.suspended = False
        self.wake()

    def status_of_queue(self, server: str) -> QueueStatus:
        """As ``Get-Queue`` shows it."""
        now = self.owner.clock()
        incoming, outgoing = self.incoming.value(now), self.outgoing.value(now)
        there = self.destination
        return QueueStatus(
            identity=f"{server}\\{self.number}",
            delivery_type=there.delivery_type,
            next_hop_domain=there.next_hop_domain,
            next_hop_connector=there.next_hop_connector,
            next_hop_category=there.category,
            tls_domain=None,
            status=self.status.value,
            message_count=len(self),
            deferred_message_count=len(self.waiting),
            locked_message_count=0,
            last_error=self.last_error,
            first_retry_time=self.first_retry,
            last_retry_time=self.last_retry,
            next_retry_time=self.next_retry,
            retry_count=self.retry_count,
            incoming_rate=round(incoming, 3),
            outgoing_rate=round(outgoing, 3),
            velocity=round(outgoing - incoming, 3),
        )

    async def close(self) -> None:
        """Let go; what is on its way stays in the store."""
        for timer in (self._retry_timer, self._due_timer):
            if timer is not None:
                timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()

    # --- inside -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _send(self) -> None:
        """Send what can be sent now of what is ready."""

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by forgetting the queue."""
        return not len(self) and not self.suspended

    @property
    def _connecting(self) -> bool:
        return False

    def _pump(self) -> None:
        self._woken = False
        if self.sending and not self.owner.paused:
            self._send()

    def _take(self) -> Job | None:
        """The next message, which is on its way now."""
        while self.ready:
            number = self.ready.popleft()
            try:
                job = self.owner.take(self, number)
            except StoreFailed as e:
                self.owner.failed_here(e)
                self.ready.appendleft(number)
                self._retry_later(NOT_READ, None)
                return None
            if job is not None:
                self.in_flight[job.queued.id] = job
                return job
        return None

    def _retry_later(self, reply: Reply, hop: NextHop | None, why: str = "") -> None:
        """Nothing can be sent now: retry all of it later."""
        self.last_error = self._error(reply, hop, why)
        if self.next_retry is not None or self.owner.stopping:
            return
        now = self.owner.clock()
        pause = self.owner.schedule.next_retry(self.retry_count)
        self.retry_count += 1
        self.first_retry = self.first_retry or now
        self.last_retry = now
        self.next_retry = now + pause
        self._retry_timer = self._loop.call_later(pause, self._try_again)
        self.owner.cool(self)

    def _try_again(self) -> None:
        self._retry_timer = None
        self.next_retry = None
        self.wake()

    def _recovered(self) -> None:
        self.retry_count = 0
        self.first_retry = self.last_retry = None
        self.last_error = ""

    def _end_retry_timer(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def _error(self, reply: Reply, hop: NextHop | None, why: str) -> str:
        return last_error(reply, "" if hop is None else hop.server or hop.host, "", self.owner.clock(), why)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _set_due_timer(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
        wait = max(0.0, self.waiting[0][0] - self.owner.clock())
        self._due_timer = self._loop.call_later(min(wait, 86_400.0), self._due)

    def _due(self) -> None:
        self._due_timer = None
        now = self.owner.clock()
        while self.waiting and self.waiting[0][0] <= now:
            self.ready.append(heapq.heappop(self.waiting)[1])
        if self.waiting:
            self._set_due_timer()
        self.wake()

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
