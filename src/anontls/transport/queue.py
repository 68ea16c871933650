"""The durable queue: what has been acknowledged with 250 and not yet settled."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from anontls.errors import Unreachable
from anontls.smtp import Reply, exchange
from anontls.smtp.content import Needs
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.body import Body

ROOM = "make room on its disk"
#: The cure of what SQLite and the system say.
CURES = {
    "database or disk is full": ROOM,
    os.strerror(errno.ENOSPC): ROOM,
    "disk I/O error": f"{ROOM}, or see whether it is broken",  # also where shared memory cannot grow on a full one
}


def message_id(text: str) -> int | None:
    """The id that is written there; ``None``: no message of any store has such a one."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None  # SQLite has 63 bits


class Refusal(Reply, frozen=True, gc=False):
    """What new mail is told, and why: that is for administrators."""

    why: str


class StoreFailed(Unreachable):
    """The store cannot be opened or read, or could not make a change durable; then nothing of that change is in it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or next((cure for said, cure in CURES.items() if said in message), None))


class Pending(msgspec.Struct, kw_only=True):
    """A recipient that is not settled yet.

    ``number`` is its place in the envelope as it was accepted, the key of a recipient within its message.  Times are
    Unix seconds.
    """

    number: int
    recipient: Recipient
    attempts: int = 0
    due: float = 0.0  #: not to be tried before
    last_error: str = ""  #: in the form of ``LastError``
    delayed: bool = False  #: the sender was told that it is late


class Queued(msgspec.Struct, kw_only=True):
    """One message of the queue; the recipients of ``envelope`` are those of ``pending``, in the same order.

    ``content`` is the whole message, with the fields that this server put in front; ``None`` where it is large
    (`QueueStore.pieces`) or was not asked for.  ``need`` is what it asks of a peer, while that is known.
    """

    id: int
    arrived: float
    envelope: Envelope
    pending: list[Pending]
    size: int
    content: bytes | None = None
    need: Needs | None = None
    suspended: bool = False


class New(msgspec.Struct, kw_only=True):
    """A message to be accepted; ``head`` are header fields to put in front of ``body``."""

    envelope: Envelope
    arrived: float
    head: bytes
    body: Body | bytes
    need: Needs | None = None  #: see `Queued`


class Work(msgspec.Struct, kw_only=True):
    """One change of the store, made whole or not at all.

    ``settled`` and ``deferred`` name recipients as (message, number); a message without recipients is gone.
    ``at_once``: somebody waits for it, and rather hears that it failed than that it is tried again.
    """

    accepted: Sequence[New] = ()
    settled: Sequence[tuple[int, int]] = ()
    deferred: Sequence[tuple[int, Pending]] = ()
    removed: Sequence[int] = ()
    suspended: Sequence[tuple[int, bool]] = ()
    at_once: bool = False


class QueueStore(Protocol):
    """Keeps messages through crashes and power cuts."""

    @property
    def count(self) -> int:
        """Messages in the store."""
        ...

    def commit(self, work: Work) -> asyncio.Future[list[int]]:
        """Make a change; done once it is durable, with the ids of what was accepted.

        What settles, defers, removes or suspends is tried until it holds; what only accepts, or is ``at_once``, may
        fail at once with StoreFailed, and then nothing of it was done.  A `Body` must stay open until the future is done.
        """
        ...

    def messages(self, after: int = 0) -> Iterator[Queued]:
        """All messages with a greater id, without their content, in the order of their ids, which is that of arrival."""
        ...

    def message(self, number: int, *, content: bool = True) -> Queued | None:
        """The message with that id; with ``content``, and with its content where that is small."""
        ...

    def pieces(self, number: int) -> Iterator[bytes]:
        """The content of a message, piece by piece; may be asked again."""
        ...

    def refusal(self) -> Refusal | None:
        """Why no mail is taken now: back pressure.  ``None``: it is."""
        ...

    async def close(self) -> None:
        """Make durable what is under way, and let go of the files."""
        ...


LOOK = 1.0  # seconds that the free space is believed
PAUSE = 1.0  # seconds without mail after a failure to write


class BackPressure:
    """Whether a store takes mail: not while its disk is nearly full, it holds too much, or it cannot write.

    ``free`` are the free octets of the disk, ``clock`` are seconds from any start.  Mail is refused with fewer than
    ``minimum_free`` octets and from ``max_messages`` on, and taken again with 1.1 and 0.95 times as much, so that it
    does not change with each message.  ``say`` is told of each change.
    """

    def __init__(
        self,
        free: Callable[[], int],
        *,
        minimum_free: int,
        max_messages: int,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self.minimum_free = minimum_free
        self.max_messages = max_messages
        self._free = free
        self._clock = clock
        self._say = say
        self._look = self._pause = float("-inf")  # the ends of these times
        self._no_space = self._too_many = False
        self._failure: str | None = None  # of the last attempt to write

    def refusal(self, count: int) -> Refusal | None:
        """What new mail is told while the store holds ``count`` messages.  ``None``: it is taken."""
        now = self._clock()
        if now >= self._look:
            self._look = now + LOOK
            try:
                free = self._free()
            except OSError:
                free = 0
            no_space = free < self.minimum_free * (1.1 if self._no_space else 1)
            if no_space != self._no_space:
                self._no_space = no_space
                self._changed(no_space, f"{free:,} octets are free on its disk")
        too_many = count >= self.max_messages * (0.95 if self._too_many else 1)
        if too_many != self._too_many:
            self._too_many = too_many
            self._changed(too_many, f"it holds {count:,} messages")
        if not (self._no_space or self._too_many or now < self._pause):
            return None
        reasons = ["the disk is nearly full"] if self._no_space else []
        if self._too_many:
            reasons.append("the queue is full")
        if now < self._pause:
            reasons.append(f"the database cannot be written: {self._failure}")
        told = exchange.INSUFFICIENT_RESOURCES
        return Refusal(told.code, told.lines, "; ".join(reasons))

    def wrote(self, failure: str | None) -> None:
        """What became of an attempt to write; after a failure mail is refused for `PAUSE`, then it is tried."""
        failing, was_failing = failure is not None, self._failure is not None
        self._pause = self._clock() + PAUSE if failing else float("-inf")
        self._failure = failure
        if failing != was_failing:
            self._changed(failing, f"it cannot be written: {failure}" if failing else "it can be written")

    def _changed(self, refused: bool, why: str) -> None:
        self._say(f"queue: {why}; new mail is {'refused with 452' if refused else 'taken again'}")
