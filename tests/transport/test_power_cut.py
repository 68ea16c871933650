"""What the queue's files may look like after the power has gone, and what must be in them then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from anontls.errors import AnontlsError
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport import queue_file, queue_sqlite, queue_tables
from anontls.transport.queue import New, Pending, Queued, Work
from anontls.transport.queue_sqlite import SqliteQueue
from tests.transport.vfs import Delete, Mark, Record, RecordingVfs, Sync, Truncate, Write
from tests.transport.world import run

SECTOR = 512
ROUNDS = 60
CUTS = 250


# --- the disk ---------------------------------------------------------------------------------------------------------


class Disk:
    """Files as they were synced, and what was done to them since."""

    def __init__(self) -> None:
        self.synced: dict[str, bytearray] = {}
        self.since: dict[str, list[Write | Truncate]] = {}
        self.deleted: dict[str, bytes] = {}  # whose folder was not synced: they may be back

    def take(self, record: Record) -> None:
        match record:
            case Write(path) | Truncate(path):
                self.synced.setdefault(path, bytearray())
                self.since.setdefault(path, []).append(record)
            case Sync(path, folder):
                for done in self.since.pop(path, []):
                    _apply(self.synced[path], done)
                if folder:
                    self.deleted.clear()
            case Delete(path, durable):
                content = self.synced.pop(path, bytearray())
                for done in self.since.pop(path, []):
                    _apply(content, done)
                if durable:
                    self.deleted.clear()
                else:
                    self.deleted[path] = bytes(content)

    def after_a_cut(self, chance: random.Random) -> dict[str, bytes]:
        """All that was synced, and of the rest some sectors: none, any, most, all."""
        kept = chance.choice((0.0, 0.5, 0.9, 1.0))
        files = {}
        for path, content in self.synced.items():
            content = bytearray(content)
            for done in self.since.get(path, []):
                for part in _sectors(done):
                    if chance.random() < kept:
                        _apply(content, part)
            files[path] = bytes(content)
        return files | {path: content for path, content in self.deleted.items() if chance.random() >= kept}


def _apply(content: bytearray, done: Write | Truncate) -> None:
    match done:
        case Write(_, offset, data):
            if offset > len(content):
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        case Truncate(_, size):
            del content[size:]


def _sectors(done: Write | Truncate) -> Iterator[Write | Truncate]:
    if isinstance(done, Truncate):
        yield done
        return
    at = 0
    while at < len(done.data):
        end = at + SECTOR - (done.offset + at) % SECTOR
        yield Write(done.path, done.offset + at, done.data[at:end])
        at = end


# --- what is done, and what must be found -----------------------------------------------------------------------------


class Asked(NamedTuple):
    """A mark: a Work has been handed over."""

    number: int


class Acknowledged(NamedTuple):
    """A mark: its future is done."""

    number: int


class Told:
    """A message, and the numbers of the Works that made, changed and ended it."""

    def __init__(self, new: New, made: int) -> None:
        assert isinstance(new.body, bytes)
        self.new = new
        self.content = new.head + new.body
        self.made = made
        self.id = 0
        self.ended: dict[int, int] = {}  # recipient: Work
        self.deferred: dict[int, list[tuple[int, int]]] = {}  # recipient: Work, attempts
        self.suspended: list[tuple[int, bool]] = []
        self.instead_of: tuple[Told, int] | None = None  # the recipient that this is the notification for


class Story:
    """Does things to a queue at random, and knows what has to be there when only some of them were acknowledged."""

    def __init__(self, seed: int, vfs: RecordingVfs) -> None:
        self.chance = random.Random(seed)
        self.vfs = vfs
        self.messages: list[Told] = []
        self.works = 0

    async def go(self, path: Path, rounds: int) -> None:
        queue = SqliteQueue(path, minimum_free=0, max_messages=10_000)
        for _ in range(rounds):
            free = [one for one in self.messages if one.id and len(one.ended) < len(one.new.envelope.recipients)]
            self.chance.shuffle(free)
            await asyncio.gather(*[self._do(queue, free) for _ in range(self.chance.randrange(1, 8))])
            if self.chance.random() < 0.2:
                await asyncio.sleep(4 * queue_sqlite.IDLE)  # it tidies up
        await queue.close()

    async def _do(self, queue: SqliteQueue, free: list[Told]) -> None:
        self.works += 1
        number = self.works
        work = Work()
        told = free.pop() if free and self.chance.random() < 0.75 else None
        waiting = [n for n in range(len(told.new.envelope.recipients)) if n not in told.ended] if told else []
        match self.chance.choice(("settle", "settle", "settle", "defer", "notify", "remove", "suspend")):
            case _ if told is None:
                work.accepted = [self._new(number).new for _ in range(self.chance.randrange(1, 3))]
            case "settle":
                told.ended[waiting[0]] = number
                work.settled = [(told.id, waiting[0])]
            case "notify":
                told.ended[waiting[0]] = number
                notification = self._new(number)
                notification.instead_of = (told, waiting[0])
                work.settled, work.accepted = [(told.id, waiting[0])], [notification.new]
            case "remove":
                told.ended.update(dict.fromkeys(waiting, number))
                work.removed = [told.id]
            case "suspend":
                told.suspended.append((number, self.chance.random() < 0.5))
                work.suspended = [(told.id, told.suspended[-1][1])]
            case _:
                before = told.deferred.setdefault(waiting[-1], [])
                before.append((number, len(before) + 1))
                recipient = told.new.envelope.recipients[waiting[-1]]
                pending = Pending(number=waiting[-1], recipient=recipient, attempts=len(before), due=number)
                work.deferred = [(told.id, pending)]
        self.vfs.mark(Asked(number))
        ids = await queue.commit(work)
        self.vfs.mark(Acknowledged(number))
        for one, id_ in zip([one for one in self.messages if one.made == number], ids, strict=True):
            one.id = id_

    def _new(self, made: int) -> Told:
        recipients = [Recipient(f"{n}@contoso.com") for n in range(self.chance.randrange(1, 4))]
        size = self.chance.choice((100, 1_000, 3_000, 4_000, 9_000, 30_000))
        body = self.chance.randbytes(size)
        new = New(
            envelope=Envelope(f"{len(self.messages)}@fabrikam.com", recipients),
            arrived=made,
            head=b"X: y\r\n",
            body=body,
        )
        self.messages.append(Told(new, made))
        return self.messages[-1]

    def check(self, found: Sequence[tuple[Queued, bytes]], asked: set[int], acknowledged: set[int]) -> None:
        """What was acknowledged holds; what was not asked for did not happen; the rest may be either, but not in part."""
        by_sender = {queued.envelope.sender: (queued, content) for queued, content in found}
        assert len(by_sender) == len(found)
        there: dict[str, set[int]] = {sender: {p.number for p in q.pending} for sender, (q, _) in by_sender.items()}
        for told in self.messages:
            sender, recipients = told.new.envelope.sender, told.new.envelope.recipients
            numbers = there.get(sender, set())
            if told.made not in asked:
                assert not numbers, f"{sender} was never accepted"
                continue
            must = {n for n in range(len(recipients)) if told.ended.get(n) not in asked}
            may = {n for n in range(len(recipients)) if told.ended.get(n) not in acknowledged}
            if numbers or told.made in acknowledged:
                assert must <= numbers <= may, f"{sender} is for {numbers} instead of {must} to {may}"
            if told.instead_of is not None and must:
                other, number = told.instead_of
                settled = number not in there.get(other.new.envelope.sender, set())
                assert settled == bool(numbers), f"{sender} and the recipient that it stands for"
            if not numbers:
                continue
            queued, content = by_sender.pop(sender)
            assert content == told.content
            assert queued.envelope.recipients == [recipients[n] for n in sorted(numbers)]
            for pending in queued.pending:
                tried = told.deferred.get(pending.number, [])
                least = max((attempts for work, attempts in tried if work in acknowledged), default=0)
                most = max((attempts for work, attempts in tried if work in asked), default=0)
                assert least <= pending.attempts <= most
            last = [(work, yes) for work, yes in told.suspended if work in asked]
            if not last or last[-1][0] in acknowledged:
                assert queued.suspended == (last[-1][1] if last else False)
        assert not by_sender


async def _read(path: Path) -> list[tuple[Queued, bytes]]:
    queue = SqliteQueue(path, minimum_free=0, max_messages=10_000)
    found = [(queued, b"".join(queue.pieces(queued.id))) for queued in queue.messages()]
    assert queue.count == len(found)
    await queue.close()
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens often: large messages, checkpoints, giving back of pages."""
    monkeypatch.setattr(queue_tables, "LARGE", 20_000)
    monkeypatch.setattr(queue_tables, "KEPT", 8)
    monkeypatch.setattr(queue_tables, "STEP", 4)
    monkeypatch.setattr(queue_file, "CHECKPOINT", 40)
    monkeypatch.setattr(queue_file, "LOG_SIZE", 100_000)
    monkeypatch.setattr(queue_sqlite, "IDLE", 0.001)


def _told(seed: int, folder: Path) -> tuple[Story, list[Record]]:
    """A story, with a restart in it, and what it did to the disk."""
    vfs = RecordingVfs()
    story = Story(seed, vfs)
    with vfs.installed():
        for _ in range(2):
            run(story.go(folder / "queue.db", ROUNDS // 2))
    return story, vfs.records


async def _cut(story: Story, records: Sequence[Record], folder: Path, *, cuts: int, seed: int) -> None:
    """Rebuild the files for some moments, and check each."""
    chance = random.Random(seed)
    disk = Disk()
    asked: set[int] = set()
    acknowledged: set[int] = set()
    moments = set(chance.sample(range(len(records)), cuts))
    for moment, record in enumerate(records):
        match record:
            case Mark(Asked(number)):
                asked.add(number)
            case Mark(Acknowledged(number)):
                acknowledged.add(number)
            case _:
                disk.take(record)
        if moment in moments:
            _rebuild(folder, disk.after_a_cut(chance))
            story.check(await _read(folder / "queue.db"), asked, acknowledged)


def _rebuild(folder: Path, files: Mapping[str, bytes]) -> None:
    for old in folder.iterdir():
        old.unlink()
    for path, content in files.items():
        (folder / Path(path).name).write_bytes(content)


@pytest.mark.usefixtures("small")
def test_all_that_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    (tmp_path / "now").mkdir()
    story, records = _told(1, tmp_path / "then")
    kinds = {(type(r), Path(r.path).suffix) for r in records if not isinstance(r, Mark)}
    assert {
        (Write, ".db"),
        (Write, ".db-wal"),
        (Sync, ".db"),
        (Sync, ".db-wal"),
        (Truncate, ".db"),
        (Truncate, ".db-wal"),
    } <= kinds
    run(_cut(story, records, tmp_path / "now", cuts=CUTS, seed=2))


@pytest.mark.usefixtures("small")
def test_a_disk_that_does_not_sync_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "then").mkdir()
    (tmp_path / "now").mkdir()
    story, records = _told(1, tmp_path / "then")
    lying = [record for record in records if not isinstance(record, Sync)]
    with pytest.raises((AssertionError, AnontlsError)):
        run(_cut(story, lying, tmp_path / "now", cuts=20, seed=2))
