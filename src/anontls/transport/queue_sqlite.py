"""The durable queue in a SQLite database.

One thread writes.  What arrives while it commits is its next transaction (natural group commit), and is acknowledged
when that is on the disk (write-ahead log, ``synchronous=FULL``).  New mail never waits for a timer; what settles mail rides
with it, or goes by itself after ``RIDE``.

The file is as large as the most mail that was in it at a time: the pages of settled mail are used again.  While nothing
arrives, free pages beyond ``KEPT`` go back to the file system, ``STEP`` at a time (``auto_vacuum=INCREMENTAL``).  The
commit that takes the write-ahead log over ``CHECKPOINT`` copies it into the database, and takes longer for that; then the
log is written from its start again, and what a large message has made longer than ``LOG_SIZE`` is cut off.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple

from anontls.transport.body import Body
from anontls.transport.queue import BackPressure, Queued, Refusal, StoreFailed, Work
from anontls.transport.queue_file import opened
from anontls.transport.queue_tables import Change, Reader, Writer

BATCH = 256  # changes in a transaction, and
BATCH_OCTETS = 8 * 1024 * 1024  # octets of content; a change is not divided
PAUSE = 1.0  # seconds between attempts to make durable what must not be forgotten
RIDE = 0.02  # seconds that what only settles or defers waits for new mail, to be in its transaction
IDLE = 0.05  # seconds without a change, after which there is time to tidy up

#: What is wrong with a change itself, not with the database: a value that cannot be stored, a body that cannot be read.
_FAULTS = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OSError,
    OverflowError,
    TypeError,
    ValueError,
)

Answer = list[int] | StoreFailed


class _Job(NamedTuple):
    change: Change
    future: asyncio.Future[list[int]]

    @property
    def must_hold(self) -> bool:
        work = self.change.work
        return not work.at_once and bool(work.settled or work.deferred or work.removed or work.suspended)

    @property
    def octets(self) -> int:
        return sum(len(body) for body in self.change.bodies if body is not None)


class SqliteQueue:
    """A `QueueStore` in the file ``path``, which is made when missing; one at a time may have it.

    New mail is refused while fewer than ``minimum_free`` octets are free on the disk (``free`` of a folder), while
    there are ``max_messages``, and for a second after a failure; ``say`` is told.  ``clock``: see `BackPressure`.

    What only accepts may fail with StoreFailed.  What settles, defers, removes or suspends is tried until it holds:
    the peer has the mail, and would get it again.  Unless it is ``at_once``, it fails only when its own values cannot be
    stored, and when the store is closed before it holds.  A `Body` must stay open until the future is done.

    Raises:
        StoreFailed: it cannot be opened, or another process has it.
        MalformedInput: the file is something else, or made by a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        minimum_free: int,
        max_messages: int,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda _: None,
        free: Callable[[Path], int] = lambda folder: disk_usage(folder).free,
    ) -> None:
        self.path = path
        with ExitStack() as stack:
            writer, reader = stack.enter_context(opened(path))
            self._reader = Reader(reader, path)
            self.count, last = self._reader.count()
            self._files = stack.pop_all()
        # microseconds: ids are not used again after a start, as no node accepts a million messages a second
        self._writer = Writer(writer, max(last, time.time_ns() // 1000))
        self._pressure = BackPressure(
            lambda: free(path.parent), minimum_free=minimum_free, max_messages=max_messages, clock=clock, say=say
        )
        self._closing = False
        self._failure = ""  # of the last attempt that failed
        self._handing: list[_Job] = []  # jobs that the thread does not know of yet
        self._hands: asyncio.Handle | None = None  # what will hand them over
        self._rides = False  # and is a timer
        self._handed: deque[_Job] = deque()  # of the thread: it knows of them, and has not begun
        self._waiting: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="queue", daemon=True)
        self._thread.start()

    # --- in the thread of the event loop ------------------------------------------------------------------------------

    def commit(self, work: Work) -> asyncio.Future[list[int]]:
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[list[int]] = self._loop.create_future()
        if self._closing:
            future.set_exception(self._error("closed"))
        else:
            bodies = tuple(n.body.in_memory() if isinstance(n.body, Body) else n.body for n in work.accepted)
            self._handing.append(_Job(Change(work, bodies), future))
            # Nobody waits for what only settles or defers; a crash meanwhile costs no more than one before the verdict.
            rides = not (work.accepted or work.removed or work.suspended or work.at_once)
            if self._hands is None or (self._rides and not rides):
                if self._hands is not None:
                    self._hands.cancel()
                self._rides = rides
                self._hands = (
                    self._loop.call_later(RIDE, self._hand_over) if rides else self._loop.call_soon(self._hand_over)
                )
        return future

    def _hand_over(self) -> None:
        """All that came in this round of the loop; waking the thread costs more than the rest."""
        jobs, self._handing, self._hands = self._handing, [], None
        if jobs:
            self._waiting.put(jobs)

    def refusal(self) -> Refusal | None:
        return self._pressure.refusal(self.count)

    def messages(self, after: int = 0) -> Iterator[Queued]:
        return self._reader.messages(after)

    def message(self, number: int, *, content: bool = True) -> Queued | None:
        return self._reader.message(number, content=content)

    def pieces(self, number: int) -> Iterator[bytes]:
        return self._reader.pieces(number)

    async def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._hand_over()
            self._waiting.put(None)
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.join()
        self._files.close()

    def _answer(self, answers: list[tuple[_Job, Answer]], more: int, failure: str | None) -> None:
        self.count += more
        self._pressure.wrote(failure)
        for job, answer in answers:
            if job.future.done():  # who asked has gone
                continue
            if isinstance(answer, StoreFailed):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)

    # --- in the thread that writes ------------------------------------------------------------------------------------

    def _write(self) -> None:
        owed: list[_Job] = []  # what could not be made durable, and must be
        rest: float | None = IDLE
        closing = False
        while not closing:
            jobs, closing = self._take(PAUSE if owed else rest)
            if owed:
                owed = self._make_durable(owed)
            if owed:  # it is no better, so the others need not wait for the same
                owed += self._failed(jobs, self._failure)
            elif jobs:
                owed = self._make_durable(jobs)
                rest = IDLE
            else:
                rest = 0 if self._tidy() else None
        if owed:
            self._tell([(job, self._error(self._failure)) for job in owed], 0, self._failure)

    def _take(self, wait: float | None) -> tuple[list[_Job], bool]:
        """What waits, as much as goes into one transaction, and whether nothing follows any more."""
        jobs: list[_Job] = []
        octets = 0
        while True:
            while self._handed:
                job = self._handed.popleft()
                jobs.append(job)
                octets += job.octets
                if len(jobs) == BATCH or octets >= BATCH_OCTETS:
                    return jobs, False
            try:
                handed = self._waiting.get_nowait() if jobs else self._waiting.get(timeout=wait)
            except queue.Empty:
                return jobs, False
            if handed is None:
                return jobs, True
            self._handed.extend(handed)

    def _make_durable(self, jobs: list[_Job]) -> list[_Job]:
        """Answers the jobs; returns those that have to be tried again."""
        try:
            ids, more = self._writer.write(job.change for job in jobs)
        except Exception as e:  # noqa: BLE001 whatever it is, the thread has to go on, and who waits to be told
            with suppress(sqlite3.Error):
                self._writer.give_up()
            if not isinstance(e, _FAULTS):
                return self._failed(jobs, str(e))
            if len(jobs) > 1:  # one of them is at fault
                return [job for one in jobs for job in self._make_durable([one])]
            self._tell([(jobs[0], self._error(e))], 0, None)
        else:
            self._tell(list(zip(jobs, ids, strict=True)), more, None)
        return []

    def _failed(self, jobs: list[_Job], why: str) -> list[_Job]:
        """Tells those that only accept; returns the others."""
        self._failure = why
        self._tell([(job, self._error(why)) for job in jobs if not job.must_hold], 0, why)
        return [job for job in jobs if job.must_hold]

    def _error(self, why: object) -> StoreFailed:
        return StoreFailed(f"{self.path}: cannot be written: {why}")

    def _tell(self, answers: list[tuple[_Job, Answer]], more: int, failure: str | None) -> None:
        with suppress(RuntimeError):  # the event loop has been closed, nobody waits
            self._loop.call_soon_threadsafe(self._answer, answers, more, failure)

    def _tidy(self) -> bool:
        with suppress(sqlite3.Error):  # later, then
            return self._writer.tidy()
        return False
