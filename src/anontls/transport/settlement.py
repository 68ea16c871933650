"""What becomes of messages: done, deferred, or returned to their senders, each change of the store made once for many."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from anontls.delivery.notification import Action, Report, notification, wanted
from anontls.delivery.retry import EXPIRED, Deferred, Done, Failed, Schedule, last_error, verdict, waiting
from anontls.smtp import LocalReply, Reply
from anontls.transport.memory import Memory
from anontls.transport.metrics import Metrics
from anontls.transport.queue import New, Pending, Queued, QueueStore, Work

MAX_WAITING = 1000  # messages whose verdict is not durable yet; a crash would send all of them again
DELAYED = Reply(451, ("4.4.7 Delivery is delayed",))


class Settlement:
    """Applies verdicts.

    A message that comes in here is held in `Memory`; it is released when the store has what was decided.  ``accepted``
    hears of notifications once they are durable: they are messages like any others.  ``eased`` is called when
    `congested` ends.
    """

    def __init__(
        self,
        store: QueueStore,
        memory: Memory,
        schedule: Schedule,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        mta: str,
        postmaster: str,
        accepted: Callable[[Queued], None],
        eased: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self.store = store
        self.memory = memory
        self.schedule = schedule
        self.metrics = metrics
        self.clock = clock
        self.mta = mta
        self.postmaster = postmaster
        self._accepted = accepted
        self._eased = eased
        self._say = say
        self._outstanding = 0
        self._settled: list[tuple[int, int]] = []
        self._deferred: list[tuple[int, Pending]] = []
        self._held: list[int] = []
        self._changing = False

    def replies(
        self,
        queued: Queued,
        pending: list[Pending],
        replies: Sequence[Reply],
        *,
        remote: str | None,
        tells: bool,
    ) -> float | None:
        """The last word on each of these recipients; when the earliest of them is to be tried again.

        ``remote`` is the server that gave it, ``None`` when that is this one; ``tells``: it tells the sender itself of
        what it has taken, because it took over the DSN parameters [RFC3461 5.2.1].
        """
        now = self.clock()
        some, every = False, True
        for reply in replies:
            some = some or reply.positive
            every = every and reply.positive
        if every and (tells or not any(map(_wants_success, pending))):
            self.metrics.delivered(now - queued.arrived, len(pending))
            self._settled += [(queued.id, each.number) for each in pending]
            _remove(queued, pending)
            self.release(queued.id)
            return None
        gone: list[Pending] = []
        reports: list[tuple[Action, Report]] = []
        due: list[float] = []
        for each, reply in zip(pending, replies, strict=True):
            said = verdict(reply, now=now, arrived=queued.arrived, delayed=each.delayed, schedule=self.schedule)
            if isinstance(said, Done):
                gone.append(each)
                self.metrics.delivered(now - queued.arrived)
                if not tells:
                    action: Action = "delivered" if remote is None else "relayed"
                    reports.append((action, Report(recipient=each.recipient, reply=reply, remote=remote)))
                continue
            each.last_error = last_error(reply, remote or "", "", now)
            if self._waits(queued, each, said, reports, None if isinstance(reply, LocalReply) else remote):
                each.attempts += 1
                if some and _too_many_recipients(reply):
                    each.due = now  # those that were left over follow [RFC5321 4.5.3.1.10]
                due.append(each.due)
            else:
                gone.append(each)
        self._finish(queued, gone, reports)
        return min(due, default=None)

    def failed_session(
        self, queued: Queued, pending: list[Pending], reply: Reply, remote: str, why: str, due: float
    ) -> bool:
        """The session broke while they were on their way, and there is no word on them; whether any still waits."""
        now = self.clock()
        for each in pending:
            each.attempts += 1
            each.last_error = last_error(reply, remote, "", now, why)
        return self.late(queued, pending, due)

    def late(self, queued: Queued, pending: list[Pending], due: float) -> bool:
        """They could not be sent, and wait until ``due``, unless they are too old by now; whether any still waits."""
        now = self.clock()
        gone: list[Pending] = []
        reports: list[tuple[Action, Report]] = []
        for each in pending:
            said = waiting(
                max(due, each.due), now=now, arrived=queued.arrived, delayed=each.delayed, schedule=self.schedule
            )
            if not self._waits(queued, each, said, reports, None):
                gone.append(each)
        self._finish(queued, gone, reports)
        return len(gone) < len(pending)

    async def give_up(self, queued: Queued, pending: list[Pending], reply: Reply | None) -> None:
        """Send it to none of these; with ``reply``, tell its sender so.

        Raises:
            StoreFailed: that cannot be made durable now; they wait again.
        """
        reports: list[tuple[Action, Report]] = []
        if reply is not None:
            reports = [("failed", Report(recipient=each.recipient, reply=reply)) for each in pending]
        notices = self._notices(queued, reports)
        _remove(queued, pending)  # so that nobody sends it meanwhile
        settled = [(queued.id, each.number) for each in pending]
        future = self.store.commit(Work(accepted=notices, settled=settled, at_once=True))
        future.add_done_callback(partial(self._given_up, queued, pending, notices))
        await asyncio.shield(future)

    def release(self, number: int) -> None:
        """All is decided; what was is made durable with all that comes together with it."""
        self._held.append(number)
        if not self._changing:
            self._changing = True
            asyncio.get_running_loop().call_soon(self.commit)

    @property
    def congested(self) -> bool:
        """Whether the disk does not keep up: nothing more should be sent now."""
        return self._outstanding >= MAX_WAITING

    def commit(self) -> None:
        """Hand what was decided to the store."""
        self._changing = False
        held, self._held = self._held, []
        settled, self._settled = self._settled, []
        deferred, self._deferred = self._deferred, []
        if settled or deferred:
            self._outstanding += len(held)
            future = self.store.commit(Work(settled=settled, deferred=deferred))
            future.add_done_callback(partial(self._durable, held))
        else:
            self.memory.release(held)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _waits(
        self,
        queued: Queued,
        pending: Pending,
        said: Deferred | Failed,
        reports: list[tuple[Action, Report]],
        remote: str | None,
    ) -> bool:
        """Whether the recipient is tried again; what its sender is told goes to ``reports``."""
        recipient, error = pending.recipient, pending.last_error
        if isinstance(said, Failed):
            if said.reply is EXPIRED:
                self.metrics.expired()
                reports.append(("failed", Report(recipient=recipient, reply=said.reply, last_error=error)))
            else:
                self.metrics.failed()
                reports.append(("failed", Report(recipient=recipient, reply=said.reply, remote=remote)))
            return False
        self.metrics.deferred()
        if said.tell_delay:
            pending.delayed = True
            until = self.schedule.expires(queued.arrived)
            reports.append(("delayed", Report(recipient=recipient, reply=DELAYED, last_error=error, retry_until=until)))
        pending.due = said.due
        self._deferred.append((queued.id, pending))
        return True

    def _finish(self, queued: Queued, gone: list[Pending], reports: list[tuple[Action, Report]]) -> None:
        """Recipients that are done with, and what their sender is told."""
        notices = self._notices(queued, reports)
        if notices:
            # Told of a delay, and that it was told, are one change too.
            deferred = [each for each in self._deferred if each[0] == queued.id]
            self._deferred = [each for each in self._deferred if each[0] != queued.id]
            self._change(queued, gone, notices, deferred)
        else:
            self._settled += [(queued.id, each.number) for each in gone]
            _remove(queued, gone)
            self.release(queued.id)

    def _change(
        self,
        queued: Queued,
        gone: list[Pending],
        notices: list[New],
        deferred: Sequence[tuple[int, Pending]] = (),
    ) -> asyncio.Future[list[int]]:
        """One change of the store: none of it without the rest."""
        settled = [(queued.id, each.number) for each in gone]
        _remove(queued, gone)
        future = self.store.commit(Work(accepted=notices, settled=settled, deferred=deferred))
        future.add_done_callback(partial(self._changed, queued.id, notices))
        return future

    def _notices(self, queued: Queued, reports: list[tuple[Action, Report]]) -> list[New]:
        """A notification for each action that the sender wants to know of."""
        original, notices = queued.envelope, []
        told = [(of, report) for of, report in reports if wanted(of, original.sender, report.recipient)]
        for action in dict.fromkeys(action for action, _ in told):
            made = notification(
                action,
                original,
                [report for of, report in told if of == action],
                content=self.memory.head(queued),
                size=queued.size,
                arrived=queued.arrived,
                date=self.clock(),
                reporting_mta=self.mta,
                postmaster=self.postmaster,
                unique=secrets.token_hex(12),
            )
            if made is not None:
                self.metrics.notified(action)
                notices.append(New(envelope=made[0], arrived=self.clock(), head=b"", body=made[1]))
        return notices

    def _changed(self, number: int, accepted: list[New], future: asyncio.Future[list[int]]) -> None:
        self.release(number)
        if self._holds(future):
            for identity, new in zip(future.result(), accepted, strict=True):
                self._accepted(queued_from(identity, new))

    def _given_up(
        self, queued: Queued, pending: list[Pending], accepted: list[New], future: asyncio.Future[list[int]]
    ) -> None:
        if future.cancelled() or future.exception() is not None:
            _put_back(queued, pending)
        else:
            self.metrics.failed(len(pending))
            for identity, new in zip(future.result(), accepted, strict=True):
                self._accepted(queued_from(identity, new))
        self.release(queued.id)

    def _durable(self, held: list[int], future: asyncio.Future[list[int]]) -> None:
        was_congested = self.congested
        self._outstanding -= len(held)
        if self._holds(future):
            self.memory.release(held)
        if was_congested and not self.congested:
            self._eased()

    def _holds(self, future: asyncio.Future[list[int]]) -> bool:
        """Whether the change is durable.  The store gives up on none of this kind, unless it is closed before."""
        failure = None if future.cancelled() else future.exception()
        if failure is not None:
            self._say(f"{failure}; what was settled since then is sent again after the next start")
        return failure is None and not future.cancelled()


def queued_from(number: int, new: New) -> Queued:
    """A message that was just accepted under that number."""
    body = new.body
    return Queued(
        id=number,
        arrived=new.arrived,
        envelope=new.envelope,
        pending=[Pending(number=place, recipient=each) for place, each in enumerate(new.envelope.recipients)],
        size=len(new.head) + (len(body) if isinstance(body, bytes) else body.size),
        content=new.head + body if isinstance(body, bytes) else None,
        need=new.need,
    )


def _remove(queued: Queued, gone: list[Pending]) -> None:
    if len(gone) == len(queued.pending):
        queued.pending = []
        return
    numbers = {each.number for each in gone}
    queued.pending = [each for each in queued.pending if each.number not in numbers]
    queued.envelope = msgspec.structs.replace(queued.envelope, recipients=[each.recipient for each in queued.pending])


def _put_back(queued: Queued, pending: list[Pending]) -> None:
    queued.pending = sorted([*queued.pending, *pending], key=lambda each: each.number)
    queued.envelope = msgspec.structs.replace(queued.envelope, recipients=[each.recipient for each in queued.pending])


def _too_many_recipients(reply: Reply) -> bool:
    return reply.code in {452, 552} and (reply.enhanced is None or reply.enhanced[1:] == (5, 3))


def _wants_success(pending: Pending) -> bool:
    return pending.recipient.notify is not None and "SUCCESS" in pending.recipient.notify
