"""The queue of a destination elsewhere: sessions are opened as they are needed, filled, reused, and given up."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from anontls.smtp import Reply
from anontls.transport.destination_queue import DestinationQueue, Job, Owner
from anontls.transport.destinations import Destination, HostsFailed
from anontls.transport.send import NextHop, OutboundSession, SessionFailed, Verdict

HOSTS_KNOWN = 60.0  # seconds that the hosts of a destination are not looked up again
RETURNED_AT_ONCE = 100  # messages to a destination that does not exist
MOST_KNOWN = 600.0  # seconds that the number of messages that the destination takes in a session is believed
ACCIDENT = 60.0  # the same where it took none, which may have other causes
UNLIMITED = 1 << 30  # messages
CLOSES = 421  # "closing transmission channel" [RFC5321 4.2.3]
CROWDED = 10.0  # seconds without another session after one was refused while others go on
BACKLOG = 8  # messages for each session that may wait for it before there is another one
BEHIND = 1.0  # seconds that one may wait
NO_HOSTS = Reply(451, ("4.4.0 No host of the destination could be reached",))


class Way(msgspec.Struct, eq=False):
    """A session, and what became of it."""

    session: OutboundSession
    taken: int = 0  # messages that were given to it, and
    delivered: int = 0  # those with a verdict
    used: float = 0.0  # when it last had something to do; seconds of the loop
    lost: list[Job] = []
    failure: SessionFailed | None = None
    timer: asyncio.TimerHandle | None = None


class SessionQueue(DestinationQueue):
    """What waits for servers that are reached by SMTP."""

    def __init__(self, owner: Owner, number: int, destination: Destination) -> None:
        super().__init__(owner, number, destination)
        self.ways: list[Way] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._hosts: list[NextHop] = []
        self._hosts_until = 0.0
        self._crowded = False  # for `CROWDED` there is no place for another session
        self._behind_since: float | None = None
        self._most, self._most_until = UNLIMITED, 0.0  # messages in a session

    @property
    def idle(self) -> bool:
        return super().idle and not self.ways

    @property
    def _connecting(self) -> bool:
        return bool(self._opening) and not self.ways

    def retry(self) -> None:
        self._hosts_until = 0.0
        self._crowded = False
        super().retry()

    def clear(self) -> None:
        super().clear()
        self._most = UNLIMITED
        for way in tuple(self.ways):  # they may lead elsewhere than new ones
            self._retire(way)

    def _retire(self, way: Way) -> None:
        """Give it nothing more."""
        self.ways.remove(way)
        if way.timer is not None:
            way.timer.cancel()
        self._task(self._leave(way))

    async def _leave(self, way: Way) -> None:
        """End a session once what is on its way has arrived."""
        try:
            while way.session.on_the_way:  # noqa: ASYNC110 verdicts come by themselves
                await asyncio.sleep(0.05)
            await way.session.close()
        finally:
            self._forget(way)

    async def close(self) -> None:
        """Say goodbye to the peers."""
        await super().close()
        for task in tuple(self._opening):
            task.cancel()
        ways, self.ways = self.ways, []
        for way in ways:
            if way.timer is not None:
                way.timer.cancel()
        await asyncio.gather(*(way.session.close() for way in ways), return_exceptions=True)

    def _send(self) -> None:
        """Give each session what it has room for; open one more when that is not enough."""
        for way in self.ways:
            if not self.ready:
                break
            self._fill(way)
        if not self.ready:
            self._behind_since = None
        elif self._is_behind():
            self._open_more()

    def _is_behind(self) -> bool:
        """Whether the sessions there are are too few.  One that is kept busy costs less than two that are not."""
        now = self._loop.time()
        if self._behind_since is None:
            self._behind_since = now
            self._loop.call_later(BEHIND, self.wake)
        return len(self.ready) > BACKLOG * len(self.ways) or now - self._behind_since >= BEHIND

    def _fill(self, way: Way) -> None:
        session = way.session
        if self._loop.time() >= self._most_until:
            self._most = UNLIMITED
        room = min(session.room, self._most - way.taken)
        if room <= 0:
            return
        while room > 0 and (job := self._take()) is not None:
            queued = job.queued
            session.submit(job.envelope, self.owner.content(queued), partial(self._said, way, job), queued.need)
            way.taken += 1
            room -= 1
        session.flush()

    def _said(self, way: Way, job: Job, word: Verdict) -> None:
        if isinstance(word, SessionFailed):
            way.failure = way.failure or word
            way.lost.append(job)
            if len(way.lost) == 1:
                self._loop.call_soon(self._broken, way)
            return
        way.delivered += 1
        way.used = self._loop.time()
        self.in_flight.pop(job.queued.id, None)
        if way.taken == way.delivered >= self._most and way in self.ways:
            self._retire(way)
        if self.retry_count:
            self._recovered()
        self.owner.settle(self, job, word, way.session)
        self.wake()

    def _broken(self, way: Way) -> None:
        """What was on its way has no verdict.  The first may be what broke the session; the others had not their turn."""
        failure, lost = way.failure, way.lost
        assert failure is not None
        way.lost = []
        for job in lost:
            self.in_flight.pop(job.queued.id, None)
        if self.owner.stopping:
            return  # all that is in the store is tried at the next start
        enough = failure.reply.code == CLOSES and way.delivered  # of messages in one session, or of sessions
        for job in reversed(lost if enough else lost[1:]):
            self.owner.put_back(self, job)
        if not enough:
            self.last_error = self._error(failure.reply, way.session.hop, failure.why)
            self.owner.postpone(self, lost[0], failure, self.owner.schedule.next_retry(0))
        self._forget(way)
        if way.taken > 1:
            # A peer that ends sessions after some messages does not read what was sent ahead, and its word on those that
            # it took may be lost with that: they would be sent again, each time.
            self._most = max(1, way.delivered)
            self._most_until = self._loop.time() + (MOST_KNOWN if way.delivered else ACCIDENT)
        if not way.delivered:
            self._failed(failure.reply, way.session.hop, failure.why)
        self.wake()

    def _forget(self, way: Way) -> None:
        if way in self.ways:
            self.ways.remove(way)
        if way.timer is not None:
            way.timer.cancel()
        way.session.abort()

    def _ended(self, way: Way, _: object) -> None:
        """The connection is gone."""
        if not way.lost:
            self._forget(way)
            self.wake()

    def _idle(self, way: Way) -> None:
        """Close a session that has had nothing to do for a while."""
        left = way.used + self.owner.idle_timeout - self._loop.time()
        if way.session.on_the_way or left > 0:
            way.timer = self._loop.call_later(left if left > 0 else self.owner.idle_timeout, self._idle, way)
            return
        self.ways.remove(way)
        self._task(way.session.close())

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _open_more(self) -> None:
        """One more session at first, then twice as many as there are, up to the limit."""
        while (
            len(self._opening) < max(1, len(self.ways))
            and len(self.ways) + len(self._opening) < self.owner.sessions_per_destination
            and len(self.ready) > len(self._opening)
            and not self._crowded
        ):
            task = self._loop.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.result()
            self.wake()

    async def _open(self) -> None:
        failed: tuple[Reply, NextHop | None, str] = (NO_HOSTS, None, "")
        try:
            for hop in await self._known_hosts():
                session = self.owner.session(hop)
                if session is None:
                    self._crowd()
                    return
                try:
                    await session.open()
                except SessionFailed as e:
                    failed = e.reply, hop, e.why
                    await session.close()
                    continue
                except BaseException:  # cancelled
                    session.abort()
                    raise
                way = Way(session, used=self._loop.time())
                self.ways.append(way)
                session.ended.add_done_callback(partial(self._ended, way))
                way.timer = self._loop.call_later(self.owner.idle_timeout, self._idle, way)
                return
        except HostsFailed as e:
            if e.reply.permanent:
                self._return(e.reply)
                return
            failed = e.reply, None, ""
        self._failed(*failed)

    def _return(self, reply: Reply) -> None:
        """There is no such destination: what waits goes back to its senders, some at a time."""
        for _ in range(RETURNED_AT_ONCE):
            if not self.ready:
                return
            job = self._take()
            if job is not None:
                del self.in_flight[job.queued.id]
                self.owner.settle(self, job, (reply,) * len(job.pending), None)

    async def _known_hosts(self) -> list[NextHop]:
        """The hosts, each time beginning with another one."""
        now = self._loop.time()
        if now >= self._hosts_until:
            self._hosts = await self.owner.hosts(self.destination)
            self._hosts_until = now + HOSTS_KNOWN
            return list(self._hosts)
        if self.destination.balanced:
            self._hosts = [*self._hosts[1:], *self._hosts[:1]]
        return list(self._hosts)

    def _failed(self, reply: Reply, hop: NextHop | None, why: str) -> None:
        """No session could be had; while others go on, they are enough for now."""
        self._hosts_until = 0.0
        if self.ways:
            self.last_error = self._error(reply, hop, why)
            self._crowd()
        else:
            self._retry_later(reply, hop, why)

    def _crowd(self) -> None:
        if not self._crowded:
            self._crowded = True
            self._loop.call_later(CROWDED, self._try_more)

    def _try_more(self) -> None:
        self._crowded = False
        self.wake()
