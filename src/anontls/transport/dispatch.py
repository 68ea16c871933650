"""Sends what is queued: takes each message to the queues of its destinations.

::

    QueueDelivery.deliver ──> store (durable) ──250──> peer
                                │
                                v
    Dispatcher ── destination of each recipient ──> SessionQueue or MailboxQueue ── sessions, mailboxes
        ^                                                │
        └── notifications ── Settlement <────────────────┘ verdicts
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Set
from itertools import islice
from typing import Any

import msgspec

from anontls.config import Queue as QueueConfig
from anontls.delivery.retry import Schedule
from anontls.protocol_log import ProtocolLog
from anontls.smtp import Reply
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.deliver import MaildirDelivery
from anontls.transport.destination_queue import DestinationQueue, Job
from anontls.transport.destinations import Destination, Destinations
from anontls.transport.mailbox_queue import MailboxQueue
from anontls.transport.memory import Memory
from anontls.transport.node import Node
from anontls.transport.queue import PAUSE, Pending, Queued, QueueStore, StoreFailed
from anontls.transport.send import NextHop, OutboundSession, SessionFailed
from anontls.transport.session_queue import SessionQueue
from anontls.transport.settlement import Settlement
from anontls.transport.sweep import Sweep
from anontls.transport.writes import Writes

MAX_SESSIONS = 1000  # to all destinations together, as MaxOutboundConnections
AT_ONCE = 512  # messages that are looked at before sessions have their turn again


class Dispatcher:
    """All queues of a node.

    ``wall`` is the system's clock, Unix seconds; it is read once: time that jumps must not expire messages.
    """

    def __init__(
        self,
        node: Node,
        store: QueueStore,
        destinations: Destinations,
        config: QueueConfig,
        log: ProtocolLog | None = None,
        *,
        mailboxes: MaildirDelivery | None = None,
        wall: Callable[[], float],
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.node = node
        self.store = store
        self.destinations = destinations
        self.mailboxes = mailboxes
        self.schedule = msgspec.convert(config, Schedule, from_attributes=True)
        self.idle_timeout = config.idle_timeout
        self.sessions_per_destination = config.sessions_per_destination
        self.stopping = False
        self.sessions = 0
        self.queues: dict[str, DestinationQueue] = {}
        self.memory = Memory(store)
        self._writes = Writes()
        self._log = log
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._began = wall() - self._loop.time()
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self.settlement = Settlement(
            store,
            self.memory,
            self.schedule,
            node.metrics,
            clock=self.clock,
            mta=node.fqdn,
            postmaster=config.postmaster or f"postmaster@{destinations.postmaster_domain() or node.fqdn}",
            accepted=self.accepted,
            eased=self._wake_all,
            say=say,
        )
        self.sweep = Sweep(self, say=say, wall=wall)

    # --- what a node does with it -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what the store holds; sessions go on meanwhile."""
        self._loading = self._task(self._load())
        self._task(self.sweep.run())

    async def stop(self, patience: float) -> None:
        """Begin nothing more, wait for what is on its way, say goodbye."""
        self.stopping = True
        end = self._loop.time() + patience
        while any(queue.in_flight for queue in self.queues.values()) and self._loop.time() < end:  # noqa: ASYNC110 verdicts come by themselves
            await asyncio.sleep(0.02)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*(queue.close() for queue in self.queues.values()))
        self.settlement.commit()

    def reroute(self) -> None:
        """The organisation is another: every message that is not on its way finds its queue anew."""
        self.destinations.forget()
        on_their_way: set[tuple[int, int]] = set()
        for queue in self.queues.values():
            queue.clear()
            for number, job in queue.in_flight.items():
                on_their_way.update((number, each.number) for each in job.pending)
        if self._loading is not None:
            self._loading.cancel()  # it would take everything to its queue a second time
        self._loading = self._task(self._load(on_their_way))

    async def _load(self, on_their_way: Set[tuple[int, int]] = frozenset()) -> None:
        """Take everything to its queue, but for recipients that had no verdict yet."""
        last = 0
        while True:
            try:
                # Read and taken in one round of the loop: what an administrator resumes has then been read as it was
                # before, and is in its queue, or is read as it is now.
                some = list(islice(self.store.messages(after=last), AT_ONCE))
            except StoreFailed as e:
                self._say(f"the queue cannot be read: {e}")
                await asyncio.sleep(PAUSE)
                continue
            for stored in some:
                queued = self.memory.current(stored)
                self.enqueue(queued, [p for p in queued.pending if (stored.id, p.number) not in on_their_way])
            if len(some) < AT_ONCE:
                return
            last = some[-1].id
            await asyncio.sleep(0)

    def oldest(self) -> float | None:
        """When the message came that waits longest; Unix seconds."""
        return next((queued.arrived for queued in self.store.messages()), None)

    def _wake_all(self) -> None:
        for queue in self.queues.values():
            queue.wake()

    @property
    def paused(self) -> bool:
        """Whether nothing is to be sent now."""
        return self.stopping or self.settlement.congested

    def clock(self) -> float:
        """Unix seconds as they have passed since the start, whatever becomes of the system's clock."""
        return self._began + self._loop.time()

    # --- messages come ------------------------------------------------------------------------------------------------

    def accepted(self, queued: Queued) -> None:
        """A message has just become durable."""
        self.memory.keep(queued)
        self.enqueue(queued)

    def enqueue(self, queued: Queued, pending: Iterable[Pending] | None = None) -> None:
        """Into the queue of each destination that its recipients have, or some of them."""
        now = self.clock()
        due: dict[str, float] = {}
        for each in queued.pending if pending is None else pending:
            there = self.destinations.of(each.recipient.address)
            due[there.key] = min(each.due, due.get(there.key, each.due))
            queue = self.queues.get(there.key)
            if queue is None:
                self._numbers += 1
                kind = MailboxQueue if there.local else SessionQueue
                self.queues[there.key] = kind(self, self._numbers, there)
            elif not there.unreachable:  # of these each recipient has its own
                queue.destination = there
        for key, when in due.items():
            queue = self.queues[key]
            if queued.id in queue.in_flight:
                continue
            queue.incoming.add(now)
            if queued.suspended:
                queue.held.add(queued.id)
            elif when > now:
                # No due time lies further ahead than the longest pause: the clock may have been set back meanwhile.
                queue.defer(queued.id, min(when, now + self.schedule.longest))
            else:
                queue.add(queued.id)
                if not queue.sending:
                    self.memory.cool(queued.id)

    # --- what queues ask for ------------------------------------------------------------------------------------------

    def take(self, queue: DestinationQueue, number: int) -> Job | None:
        """The message with its recipients at the queue's destination; ``None``: there is nothing to be sent."""
        # What came in while the store was being read may be in the queue twice.
        queued = None if number in queue.in_flight else self.memory.message(number)
        if queued is None:
            return None  # or it was removed
        if queued.suspended:
            queue.held.add(number)
            return None
        pending = self.pending(queue, queued)
        if not pending:
            return None
        self.memory.hold(queued)
        envelope = queued.envelope
        if len(pending) < len(envelope.recipients):
            envelope = msgspec.structs.replace(envelope, recipients=[each.recipient for each in pending])
        return Job(queued, pending, envelope)

    def pending(self, queue: DestinationQueue, queued: Queued) -> list[Pending]:
        """The recipients of a message that wait in that queue."""
        of, key = self.destinations.of, queue.destination.key
        return [each for each in queued.pending if of(each.recipient.address).key == key]

    def content(self, queued: Queued) -> bytes | Iterable[bytes]:
        return self.memory.content(queued)

    def cool(self, queue: DestinationQueue) -> None:
        """The queue does not send for a while: its messages need not stay in memory."""
        for number in queue.ready:
            self.memory.cool(number)

    def session(self, hop: NextHop) -> OutboundSession | None:
        """A new session, not open yet; ``None``: there are enough."""
        if self.sessions >= MAX_SESSIONS:
            return None
        self.sessions += 1
        session = OutboundSession(self.node, hop, self._log, writes=self._writes)
        session.ended.add_done_callback(self._session_ended)
        return session

    def _session_ended(self, _: object) -> None:
        self.sessions -= 1

    async def hosts(self, destination: Destination) -> list[NextHop]:
        return await self.destinations.hosts(destination)

    async def deliver_here(self, envelope: Envelope, body: Body) -> Reply:
        """Into the mailboxes of this machine."""
        assert self.mailboxes is not None
        return await self.mailboxes.deliver(envelope, body, b"")

    def failed_here(self, error: Exception) -> None:
        """Tell why a message could not be read or written."""
        self._say(f"a message could not be delivered: {getattr(error, 'strerror', None) or error}")

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def settle(
        self, queue: DestinationQueue, job: Job, replies: tuple[Reply, ...], session: OutboundSession | None
    ) -> None:
        """The last word on each recipient of the job, which that session carried; ``None``: mailboxes here."""
        queue.outgoing.add(self.clock())
        due = self.settlement.replies(
            job.queued,
            job.pending,
            replies,
            remote=None if session is None else session.hop.server or session.hop.host,
            tells=session is not None and "DSN" in session.extensions,
        )
        if due is not None:
            self._wait(queue, job, due)
        self._take_up(queue, job)

    def postpone(self, queue: DestinationQueue, job: Job, failure: SessionFailed, seconds: float) -> None:
        """The session broke while the job was on its way: try again later, unless it is too old by then."""
        due = self.clock() + seconds
        remote = failure.hop.server or failure.hop.host
        if self.settlement.failed_session(job.queued, job.pending, failure.reply, remote, failure.why, due):
            self._wait(queue, job, due)
        self._take_up(queue, job)

    def put_back(self, queue: DestinationQueue, job: Job) -> None:
        """The session broke before the job had its turn."""
        self.memory.unhold(job.queued.id)
        if self._still_there(queue, job):
            queue.ready.appendleft(job.queued.id)
        else:
            self.enqueue(job.queued, job.pending)
        self._take_up(queue, job)

    def _take_up(self, queue: DestinationQueue, job: Job) -> None:
        """Recipients that came to the queue while their message was on its way there to others."""
        if not job.queued.pending:
            return
        known = {each.number for each in job.pending}
        late = [each for each in self.pending(queue, job.queued) if each.number not in known]
        if late:
            self.enqueue(job.queued, late)

    def _wait(self, queue: DestinationQueue, job: Job, due: float) -> None:
        if self._still_there(queue, job):
            queue.defer(job.queued.id, due)
        else:
            self.enqueue(job.queued, [each for each in job.pending if each in job.queued.pending])

    def _still_there(self, queue: DestinationQueue, job: Job) -> bool:
        """Whether all its recipients would come to that queue again; the organisation may have changed meanwhile."""
        of, key = self.destinations.of, queue.destination.key
        return all(of(each.recipient.address).key == key for each in job.pending)

    # --- what an administrator does -----------------------------------------------------------------------------------

    def hold(self, number: int, *, hold: bool) -> None:
        """The store says now that the message is suspended, or that it is not any more."""
        if number in self.memory and (queued := self.memory.message(number)) is not None:
            queued.suspended = hold
        for queue in self.queues.values():
            if not hold and number in queue.held:
                queue.held.discard(number)
                queue.add(number)

    async def give_up(self, queue: DestinationQueue, queued: Queued, reply: Reply | None) -> None:
        """Send the message to none of its recipients in that queue; with ``reply``, tell its sender.  Then it is durable.

        Raises:
            StoreFailed: it is not, and the message waits in its queue again.
        """
        pending = self.pending(queue, queued)
        queue.forget({queued.id})
        self.memory.hold(queued)
        try:
            await self.settlement.give_up(queued, pending, reply)
        except StoreFailed:
            self.enqueue(queued, pending)
            raise

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
