"""The durable queue: what goes in comes out, and is durable when it is acknowledged."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport import queue_file, queue_sqlite, queue_tables
from anontls.transport.body import PIECE, Body
from anontls.transport.queue import New, Pending, Queued, StoreFailed, Work
from tests.transport.queue_store import ANNA, BEN, CARL, contents, new, opened
from tests.transport.vfs import RecordingVfs, Sync
from tests.transport.world import run

EVERYTHING = Envelope(
    "jörg@fabrikam.com",
    [
        Recipient("用户@例子.测试", "SUCCESS,FAILURE", "utf-8;\\x{7528}"),
        Recipient('"a b"@[192.0.2.1]', "NEVER", "rfc822;a+2Bb@contoso.com"),
        Recipient("postmaster"),
    ],
    size=4711,
    body="BINARYMIME",
    smtputf8=True,
    ret="HDRS",
    envid="QQ+2B314159",
    auth="<>",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def vfs() -> Iterator[RecordingVfs]:
    with RecordingVfs().installed() as installed:
        yield installed


# --- what goes in comes out -------------------------------------------------------------------------------------------


def test_a_message_survives_a_restart_with_all_that_was_said_about_it(path: Path) -> None:
    async def accept() -> int:
        queue = opened(path)
        (number,) = await queue.commit(
            Work(
                accepted=[
                    New(envelope=EVERYTHING, arrived=1700000000.123456, head=b"Received: x\r\n", body=b"Hi\0\xff")
                ]
            )
        )
        assert queue.count == 1
        await queue.close()
        return number

    async def read(number: int) -> Queued | None:
        queue = opened(path)
        assert queue.count == 1
        [listed] = queue.messages()
        message = queue.message(number)
        assert message is not None
        assert listed == queue.message(number, content=False) == msgspec.structs.replace(message, content=None)
        assert b"".join(queue.pieces(number)) == message.content
        await queue.close()
        return message

    number = run(accept())
    assert run(read(number)) == Queued(
        id=number,
        arrived=1700000000.123456,
        envelope=EVERYTHING,
        pending=[Pending(number=n, recipient=one) for n, one in enumerate(EVERYTHING.recipients)],
        size=17,
        content=b"Received: x\r\nHi\0\xff",
    )


def test_recipients_are_settled_deferred_and_removed_by_their_number(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (first, second) = await queue.commit(Work(accepted=[new(ANNA, BEN, CARL), new(ANNA)]))
        late = Pending(number=2, recipient=CARL, attempts=3, due=2000.5, last_error="[{LRT=…}]", delayed=True)
        await queue.commit(Work(settled=[(first, 0)], deferred=[(first, late)], suspended=[(first, True)]))
        message = queue.message(first)
        assert message is not None
        assert message.suspended
        assert message.pending == [Pending(number=1, recipient=BEN), late]
        assert message.envelope.recipients == [BEN, CARL]
        assert [queued.id for queued in queue.messages(after=first)] == [second]

        await queue.commit(Work(settled=[(first, 1)], suspended=[(first, False)], removed=[second]))
        assert [(queued.id, queued.suspended) for queued in queue.messages()] == [(first, False)]
        assert (queue.count, queue.message(second)) == (1, None)
        await queue.commit(Work(settled=[(first, 2)]))
        assert (queue.count, list(queue.messages())) == (0, [])
        await queue.close()

    run(work())


def test_what_is_settled_is_not_brought_back_by_what_comes_later(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new(ANNA)]))
        again = Pending(number=0, recipient=ANNA, attempts=1)
        changes = Work(settled=[(number, 0)]), Work(deferred=[(number, again)]), Work(settled=[(number, 0)])
        await asyncio.gather(*map(queue.commit, changes), queue.commit(Work(removed=[number])))
        assert (queue.count, contents(queue)) == (0, [])
        await queue.close()

    run(work())


def test_the_later_of_two_deferrals_counts(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new(ANNA)]))
        both = [Pending(number=0, recipient=ANNA, attempts=n) for n in (1, 2)]
        await asyncio.gather(*(queue.commit(Work(deferred=[(number, one)])) for one in both))
        assert [queued.pending for queued in queue.messages()] == [[both[1]]]
        await queue.close()

    run(work())


def test_more_messages_and_recipients_than_go_into_a_statement_or_a_slice(path: Path) -> None:
    many = [Recipient(f"{n}@contoso.com") for n in range(3 * queue_tables.ROWS + 1)]

    async def work() -> None:
        queue = opened(path)
        numbers = await queue.commit(Work(accepted=[new(*many), *(new() for _ in range(2 * queue_tables.SLICE))]))
        assert [queued.id for queued in queue.messages()] == numbers
        assert next(queue.messages()).envelope.recipients == many
        await queue.commit(Work(settled=[(numbers[0], n) for n in range(len(many))], removed=numbers[2:]))
        assert ([queued.id for queued in queue.messages()], queue.count) == ([numbers[1]], 1)
        await queue.close()

    run(work())


def test_a_large_message_goes_in_and_out_in_pieces(path: Path) -> None:
    size = 12 * 1024 * 1024
    part = random.Random(1).randbytes(PIECE)

    async def work() -> int:
        queue = opened(path)
        with Body() as body:
            for _ in range(size // PIECE):
                body.add(part)
            body.complete()
            tracemalloc.start()
            (number,) = await queue.commit(Work(accepted=[new(body=body)]))
        message = queue.message(number)
        assert message is not None
        assert (message.size, message.content) == (13 + size, None)
        content = b""
        for piece in queue.pieces(number):
            assert len(piece) <= queue_tables.LARGE
            content = content[-PIECE:] + piece
        assert content.endswith(part)
        await queue.close()
        return tracemalloc.get_traced_memory()[1]

    try:
        assert run(work()) < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, queue_tables.LARGE - 13, queue_tables.LARGE - 12, 3 * PIECE])
def test_sizes_about_the_limits(path: Path, size: int) -> None:
    async def work() -> None:
        queue = opened(path)
        data = random.Random(size).randbytes(size)
        (number,) = await queue.commit(Work(accepted=[new(body=data)]))
        message = queue.message(number)
        assert message is not None
        assert (message.content is None) == (size + 13 > queue_tables.LARGE)
        assert b"".join(queue.pieces(number)) == b"Received: x\r\n" + data
        await queue.close()

    run(work())


def test_pieces_of_what_is_gone_are_refused(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new(body=bytes(queue_tables.LARGE))]))
        pieces = queue.pieces(number)
        assert len(next(pieces)) == queue_tables.LARGE
        await queue.commit(Work(removed=[number]))
        with pytest.raises(StoreFailed, match="no such rowid"):
            next(pieces)
        await queue.close()

    run(work())


def test_ids_grow_over_restarts_and_when_the_clock_goes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept() -> int:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new()]))
        await queue.close()
        return number

    first = run(accept())
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    assert run(accept()) == first + 1


# --- as a random model does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_changes_does_what_a_dictionary_does(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    model: dict[int, Queued] = {}

    def change() -> Work:
        """Some of everything, also for what is not there any more, applied to the model as well."""
        known = [*model, 1]
        work = Work(
            accepted=[
                new(
                    *chance.sample((ANNA, BEN, CARL), chance.randrange(1, 4)),
                    body=chance.randbytes(chance.randrange(9000)),
                )
                for _ in range(chance.randrange(3))
            ],
            settled=[(chance.choice(known), chance.randrange(3)) for _ in range(chance.randrange(3))],
            removed=chance.sample(known, 1) if chance.random() < 0.2 else [],
            suspended=[(chance.choice(known), chance.random() < 0.5) for _ in range(chance.randrange(2))],
            deferred=[
                (number, msgspec.structs.replace(one, attempts=one.attempts + 1, due=chance.random(), last_error="é"))
                for number in chance.sample(known, min(len(known), 2))
                if number in model
                for one in model[number].pending[:1]
            ],
        )
        for number, late in work.deferred:
            model[number].pending = [late if one.number == late.number else one for one in model[number].pending]
        for number, is_suspended in work.suspended:
            if number in model:
                model[number].suspended = is_suspended
        for number in work.removed:
            model.pop(number, None)
        for number, place in work.settled:
            if number in model:
                model[number].pending = [one for one in model[number].pending if one.number != place]
                if not model[number].pending:
                    del model[number]
        return work

    def accepted(work: Work, numbers: Sequence[int]) -> None:
        for number, one in zip(numbers, work.accepted, strict=True):
            assert isinstance(one.body, bytes)
            model[number] = Queued(
                id=number,
                arrived=one.arrived,
                envelope=one.envelope,
                pending=[Pending(number=n, recipient=to) for n, to in enumerate(one.envelope.recipients)],
                size=len(one.head + one.body),
                content=one.head + one.body,
            )

    async def work(rounds: int) -> None:
        queue = opened(path)
        for _ in range(rounds):
            works = [change() for _ in range(chance.randrange(1, 6))]
            for one, numbers in zip(works, await asyncio.gather(*map(queue.commit, works)), strict=True):
                accepted(one, numbers)
        found = {message.id: queue.message(message.id) for message in queue.messages()}
        assert list(found) == sorted(found)
        for message in model.values():
            envelope = msgspec.structs.replace(message.envelope, recipients=[one.recipient for one in message.pending])
            assert found.pop(message.id) == msgspec.structs.replace(message, envelope=envelope)
        assert (found, queue.count) == ({}, len(model))
        await queue.close()

    for _ in range(4):
        run(work(10))


# --- durable, together ------------------------------------------------------------------------------------------------


def test_what_arrives_during_a_commit_is_committed_together(path: Path, vfs: RecordingVfs) -> None:
    async def work() -> int:
        queue = opened(path)
        await queue.commit(Work(accepted=[new()]))
        del vfs.records[:]
        await asyncio.gather(*(queue.commit(Work(accepted=[new()])) for _ in range(200)))
        synced = sum(isinstance(record, Sync) for record in vfs.records)
        await queue.close()
        return synced

    assert 1 <= run(work()) < 20


def test_what_only_settles_rides_with_new_mail(path: Path, monkeypatch: pytest.MonkeyPatch, vfs: RecordingVfs) -> None:
    monkeypatch.setattr(queue_sqlite, "RIDE", 60.0)

    async def work() -> int:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new(ANNA)]))
        del vfs.records[:]
        settled = queue.commit(Work(settled=[(number, 0)]))
        await asyncio.sleep(0.1)
        assert not settled.done()
        await queue.commit(Work(accepted=[new(BEN)]))
        assert settled.done()
        syncs = sum(isinstance(entry, Sync) for entry in vfs.records)
        assert contents(queue) == [("dora@fabrikam.com", [0])]
        await queue.close()
        return syncs

    assert run(work()) == 1


def test_what_only_settles_does_not_wait_long(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new(ANNA)]))
        await asyncio.wait_for(queue.commit(Work(settled=[(number, 0)])), 5)
        assert queue.count == 0
        closing = queue.commit(Work(deferred=[(number, Pending(number=0, recipient=ANNA))]))
        await queue.close()
        assert closing.done()

    run(work())


def test_the_future_is_done_only_after_the_sync(path: Path, vfs: RecordingVfs) -> None:
    async def work() -> None:
        queue = opened(path)
        for _ in range(20):
            del vfs.records[:]
            await queue.commit(Work(accepted=[new()]))
            assert isinstance(vfs.records[-1], Sync)
        await queue.close()

    run(work())


def test_a_transaction_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch, vfs: RecordingVfs) -> None:
    monkeypatch.setattr(queue_sqlite, "BATCH_OCTETS", 10_000)

    async def work() -> int:
        queue = opened(path)
        del vfs.records[:]
        await asyncio.gather(*(queue.commit(Work(accepted=[new(body=bytes(5000))])) for _ in range(40)))
        synced = sum(isinstance(record, Sync) for record in vfs.records)
        await queue.close()
        return synced

    assert run(work()) >= 20


def test_no_statement_reads_a_whole_table() -> None:
    """With many messages in the queue it would be slow, and nobody would notice before."""
    columns = {"ADD": 11, "ADD_RECIPIENTS": 5, "DEFER": 6, "SUSPEND": 2, "SETTLE": 2, "REMOVE": 1, "END": 1}
    with closing(sqlite3.connect(":memory:")) as db:
        for sql in queue_file.STEPS[0]:
            db.execute(sql)
        for name, count in columns.items():
            sql = queue_tables.statement(getattr(queue_tables, name), queue_tables.ROWS, count)
            plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * (queue_tables.ROWS * count)).fetchall()
            assert not [step for *_, step in plan if step in ("SCAN message", "SCAN recipient")], name


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_a_change_that_cannot_be_stored_fails_alone(path: Path) -> None:
    impossible = msgspec.structs.replace(EVERYTHING, size=10**19)

    async def work() -> None:
        queue = opened(path)
        (first,) = await queue.commit(Work(accepted=[new()]))
        with Body() as closed:
            closed.add(b"Hello.")
        works = [
            Work(accepted=[new(sender="1@fabrikam.com")]),
            Work(accepted=[New(envelope=impossible, arrived=1, head=b"", body=b"")], settled=[(first, 0)]),
            Work(accepted=[new(sender="2@fabrikam.com"), new(body=closed)]),
            Work(accepted=[new(sender="3@fabrikam.com")]),
        ]
        answers = await asyncio.gather(*map(queue.commit, works), return_exceptions=True)
        assert [isinstance(answer, StoreFailed) for answer in answers] == [False, True, True, False]
        expected = [(sender, [0]) for sender in ("dora@fabrikam.com", "1@fabrikam.com", "3@fabrikam.com")]
        assert (contents(queue), queue.count, queue.refusal()) == (expected, 3, None)
        await queue.close()

    run(work())


def test_a_body_in_a_file_that_is_closed_too_early_is_not_stored_in_part(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        for size in (queue_tables.LARGE - 1000, queue_tables.LARGE + 1000):
            with Body() as body:
                for _ in range(2):
                    body.add(bytes(queue_tables.LARGE))  # in a file
                body.size = size - 13
                body.complete()
                with pytest.raises(StoreFailed):
                    await queue.commit(Work(accepted=[new(body=body)]))
        assert contents(queue) == []
        await queue.close()

    run(work())


def test_who_does_not_wait_any_more_does_no_harm(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        given_up = queue.commit(Work(accepted=[new()]))
        given_up.cancel()
        await queue.commit(Work(accepted=[new()]))
        assert queue.count == 2
        await queue.close()

    run(work())


def test_closing_finishes_what_was_handed_over_and_takes_nothing_more(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        futures = [queue.commit(Work(accepted=[new()])) for _ in range(1000)]
        await queue.close()
        await queue.close()
        assert len({number for numbers in await asyncio.gather(*futures) for number in numbers}) == 1000
        with pytest.raises(StoreFailed, match="closed"):
            await queue.commit(Work(accepted=[new()]))
        assert sorted(file.name for file in path.parent.iterdir()) == ["queue.db", "queue.db.lock"]
        queue = opened(path)
        assert queue.count == 1000
        await queue.close()

    run(work())
