"""Which messages of the queue are in memory: those that are being sent, and those that are likely to be soon."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from anontls.transport.body import IN_MEMORY as SMALL
from anontls.transport.queue import Queued, QueueStore, StoreFailed

IN_MEMORY = 64 * 1024 * 1024  # octets of content that are kept because they are likely to leave soon


class _Live(msgspec.Struct):
    queued: Queued
    holds: int = 0  # queues that send it now, and changes of it that are not durable yet
    hot: int = 0  # octets of its content that count as kept


class Memory:
    """Each message at most once, so that all see the same state; what is in the store is older while it is held."""

    def __init__(self, store: QueueStore) -> None:
        self.store = store
        self._live: dict[int, _Live] = {}
        self._hot = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, number: int) -> bool:
        return number in self._live

    def message(self, number: int, *, content: bool = True) -> Queued | None:
        """The message as it is now; ``None``: it is gone.  Without ``content`` it may have it all the same."""
        live = self._live.get(number)
        return self.store.message(number, content=content) if live is None else live.queued

    def current(self, stored: Queued) -> Queued:
        """The same message as it is now."""
        live = self._live.get(stored.id)
        return stored if live is None else live.queued

    def content(self, queued: Queued) -> bytes | Iterable[bytes]:
        """All of it; in pieces where it is large."""
        if queued.content is not None:
            return queued.content
        pieces = self.store.pieces(queued.id)
        return b"".join(pieces) if queued.size <= SMALL else pieces

    def head(self, queued: Queued) -> bytes:
        """The content, or at least what it begins with; nothing when it cannot be read."""
        if queued.content is not None:
            return queued.content
        try:
            return next(iter(self.store.pieces(queued.id)), b"")
        except StoreFailed:
            return b""

    def keep(self, queued: Queued) -> None:
        """A new message, which is likely to leave at once; while there is room."""
        size = len(queued.content or b"")
        if queued.id in self._live:  # who read the whole store found it before its sender heard of it
            return
        if queued.content is not None and self._hot + size <= IN_MEMORY:
            self._hot += size
            self._live[queued.id] = _Live(queued, 0, size)

    def cool(self, number: int) -> None:
        """The message will not leave soon."""
        live = self._live.get(number)
        if live is not None and not live.holds:
            self._drop(number, live)

    def hold(self, queued: Queued) -> None:
        """It is sent or changed: until `release` this is the truth."""
        live = self._live.get(queued.id)
        if live is None:
            live = self._live[queued.id] = _Live(queued)
        live.holds += 1

    def release(self, numbers: Iterable[int]) -> None:
        """What is in the store is true again."""
        for number in numbers:
            live = self._live[number]
            live.holds -= 1
            if not live.holds:
                self._drop(number, live)

    def unhold(self, number: int) -> None:
        """It was not sent after all, but soon will be."""
        self._live[number].holds -= 1

    def _drop(self, number: int, live: _Live) -> None:
        del self._live[number]
        self._hot -= live.hot
