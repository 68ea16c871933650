"""Writes of many sessions at the end of a round of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from anontls.transport.writes import AT_ONCE, Writes
from tests.transport.world import run


class Transport(asyncio.Transport):
    """Notes what is written."""

    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        super().__init__()
        self.log, self.name, self.closing = log, name, False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.log.append((self.name, data))

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


def test_they_wait_for_the_end_of_the_round_and_keep_their_order() -> None:
    async def session() -> None:
        log: list[tuple[str, bytes]] = []
        writes, a, b = Writes(), Transport(log, "a"), Transport(log, "b")
        for transport, data in ((a, b"1"), (b, b"2"), (a, b"3")):
            writes.add(transport, data)
        assert log == []
        await asyncio.sleep(0)
        assert log == [("a", b"13"), ("b", b"2")]
        writes.add(b, b"4")
        await asyncio.sleep(0)
        assert log[2:] == [("b", b"4")]

    run(session())


def test_much_goes_at_once_behind_what_waits() -> None:
    async def session() -> None:
        log: list[tuple[str, bytes]] = []
        writes, a, b = Writes(), Transport(log, "a"), Transport(log, "b")
        much = bytes(AT_ONCE)
        writes.add(a, b"1")
        writes.add(b, b"2")
        writes.add(a, much)
        assert log == [("a", b"1"), ("a", much)]
        writes.add(a, b"3")
        await asyncio.sleep(0)
        assert log[2:] == [("b", b"2"), ("a", b"3")]

    run(session())


def test_the_last_words_of_a_session_come_before_its_end_and_nothing_after() -> None:
    async def session() -> None:
        log: list[tuple[str, bytes]] = []
        writes, a, b = Writes(), Transport(log, "a"), Transport(log, "b")
        writes.add(a, b"221")
        writes.add(b, b"250")
        writes.flush(a)
        writes.flush(a)
        assert log == [("a", b"221")]
        b.close()  # aborted: what waits is dropped
        writes.flush(b)
        writes.add(a, b"late")
        a.close()
        await asyncio.sleep(0)
        assert log == [("a", b"221")]

    run(session())
