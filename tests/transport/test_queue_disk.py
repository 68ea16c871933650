"""The durable queue and its disk: full, faulty, locked, the files of others, and how large it becomes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from anontls.errors import MalformedInput
from anontls.smtp import exchange
from anontls.transport import queue_file, queue_sqlite, queue_tables
from anontls.transport.queue import BackPressure, Pending, Refusal, StoreFailed, Work
from anontls.transport.queue_sqlite import SqliteQueue
from tests.transport.queue_store import ANNA, BEN, CARL, contents, new, opened
from tests.transport.vfs import FULL, IO_ERROR, READ_ONLY, RecordingVfs
from tests.transport.world import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def vfs() -> Iterator[RecordingVfs]:
    with RecordingVfs().installed() as installed:
        yield installed


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_sqlite, "PAUSE", 0.02)
    monkeypatch.setattr(queue_sqlite, "IDLE", 0.005)
    monkeypatch.setattr(queue_file, "BUSY", 0.05)


def told(refusal: Refusal | None) -> str:
    """What administrators are told; senders hear the same of all."""
    if refusal is None:
        return ""
    assert str(refusal) == str(exchange.INSUFFICIENT_RESOURCES)
    return refusal.why


# --- faults of the disk -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("code", "message"), [(FULL, "full"), (IO_ERROR, "I/O error"), (READ_ONLY, "readonly")], ids=["full", "io", "ro"]
)
def test_mail_is_refused_and_what_was_done_is_not_forgotten(
    path: Path, vfs: RecordingVfs, code: int, message: str
) -> None:
    said: list[str] = []

    async def work() -> None:
        queue = SqliteQueue(path, minimum_free=0, max_messages=100, say=said.append)
        first, second, third = await queue.commit(Work(accepted=[new(ANNA, BEN), new(BEN), new(CARL)]))
        vfs.fail = code
        late = Pending(number=1, recipient=BEN, attempts=1)
        owed = [
            queue.commit(Work(settled=[(first, 0)])),
            queue.commit(Work(settled=[(second, 0)], accepted=[new(sender="")])),
            queue.commit(Work(deferred=[(first, late)], suspended=[(first, True)])),
            queue.commit(Work(removed=[third])),
        ]
        for _ in range(3):
            with pytest.raises(StoreFailed, match=f"queue.db: .*{message}"):
                await queue.commit(Work(accepted=[new()]))
            assert told(queue.refusal()).startswith("the database cannot be written: ")
        with pytest.raises(StoreFailed, match=f"cannot be written: .*{message}") as caught:
            await queue.commit(Work(settled=[(first, 0)], accepted=[new(sender="")], at_once=True))
        assert str(caught.value.hint).startswith("make room") == (code != READ_ONLY)
        assert not any(future.done() for future in owed)
        assert len(contents(queue)) == queue.count == 3
        vfs.fail = 0
        (_, (number,), _, _) = await asyncio.gather(*owed)
        assert queue.refusal() is None
        assert contents(queue) == [("dora@fabrikam.com", [1]), ("", [0])]
        assert queue.count == 2
        assert [queued.pending for queued in queue.messages() if queued.id == first] == [[late]]
        assert number > third
        await queue.close()

    run(work())
    assert [text.split("; ")[1] for text in said] == ["new mail is refused with 452", "new mail is taken again"]


@pytest.mark.usefixtures("hasty")
def test_a_store_that_is_closed_on_a_full_disk_says_what_it_did_not_do(path: Path, vfs: RecordingVfs) -> None:
    async def work() -> None:
        queue = opened(path)
        (number,) = await queue.commit(Work(accepted=[new()]))
        vfs.fail = FULL
        settled = queue.commit(Work(settled=[(number, 0)]))
        await queue.close()
        with pytest.raises(StoreFailed, match="full"):
            await settled
        vfs.fail = 0
        queue = opened(path)
        assert queue.count == 1
        await queue.close()

    run(work())


FILLS_ITS_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.queue import New, StoreFailed, Work
from anontls.transport.queue_sqlite import SqliteQueue

async def main():
    queue = SqliteQueue(Path(sys.argv[1]), minimum_free=0, max_messages=1000)
    stored = []
    try:
        while True:
            new = New(envelope=Envelope("", [Recipient("a@contoso.com")]), arrived=0, head=b"", body=bytes(100_000))
            stored += await queue.commit(Work(accepted=[new]))
    except StoreFailed as e:
        print(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await queue.commit(Work(settled=[(stored.pop(), 0)]))
    print(*stored)
    await queue.close()

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
asyncio.run(main())
"""


def test_a_file_that_the_system_does_not_let_grow(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLS_ITS_DISK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    error, stored = done.stdout.splitlines()
    assert error.startswith(f"{path}: ")
    assert len(stored.split()) > 10

    async def read() -> list[int]:
        queue = opened(path)
        found = [queued.id for queued in queue.messages() if b"".join(queue.pieces(queued.id)) == bytes(100_000)]
        await queue.close()
        return found

    assert run(read()) == [int(number) for number in stored.split()]


HOLDS_IT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
db.close()
print("released", flush=True)
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Has the database locked until a line is written to it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_IT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


@pytest.mark.usefixtures("hasty")
def test_a_database_that_another_process_has_locked(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        (first,) = await queue.commit(Work(accepted=[new()]))
        with another_process(path) as process:
            settled = queue.commit(Work(settled=[(first, 0)]))
            with pytest.raises(StoreFailed, match="locked"):
                await queue.commit(Work(accepted=[new()]))
            assert len(list(queue.messages())) == 1  # reading goes on
            assert not settled.done()
            process.communicate("go\n")
        await settled
        assert queue.count == 0
        await queue.close()

    run(work())


# --- whose file it is -------------------------------------------------------------------------------------------------


def test_one_at_a_time_has_the_queue(path: Path) -> None:
    async def work() -> None:
        queue = opened(path)
        with pytest.raises(StoreFailed, match=f"queue.db: process {os.getpid()} has it"):
            opened(path)
        await queue.commit(Work(accepted=[new()]))  # it was not disturbed
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == dict.fromkeys(("queue.db", "queue.db-wal", "queue.db-shm", "queue.db.lock"), 0o600)
        await queue.close()
        await opened(path).close()

    run(work())


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_text("Dear colleagues, " * 100)
    with pytest.raises(MalformedInput, match=r"queue\.db: not a SQLite database"):
        opened(path)
    assert path.read_text().startswith("Dear")


def test_a_database_of_somebody_else_is_not_touched(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE bookmark (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(MalformedInput, match=r"queue\.db: a SQLite database, but not of a queue"):
        opened(path)
    assert path.read_bytes() == before


def test_a_queue_of_a_newer_version_is_not_touched(path: Path) -> None:
    run(opened(path).close())
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {len(queue_file.STEPS) + 1}")
    with pytest.raises(MalformedInput, match=r"queue.db: a queue of format 2; .* up to 1"):
        opened(path)


def test_a_queue_of_an_older_version_is_brought_to_the_present_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def with_a_message() -> None:
        queue = opened(path)
        if not queue.count:
            await queue.commit(Work(accepted=[new()]))
        assert contents(queue) == [("dora@fabrikam.com", [0])]
        await queue.close()

    run(with_a_message())
    later = ("CREATE INDEX by_sender ON message (sender)", "CREATE INDEX by_due ON recipient (due)")
    monkeypatch.setattr(queue_file, "STEPS", (*queue_file.STEPS, (*later, "CREATE mistake")))
    with pytest.raises(StoreFailed, match=r"queue\.db: near"):
        opened(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchall() == [(1,)]
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'by_%'").fetchall() == [(0,)]
    monkeypatch.setattr(queue_file, "STEPS", (queue_file.STEPS[0], later))
    run(with_a_message())
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchall() == [(2,)]
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'by_%'").fetchall() == [(2,)]


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions of Unix")
def test_a_file_that_may_not_be_written() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory(prefix="anontls-test-", dir="/tmp") as folder:
        path = Path(folder) / "queue.db"
        run(opened(path).close())
        Path(folder).chmod(0o755)
        path.chmod(0o444)
        (Path(folder) / "queue.db.lock").chmod(0o666)
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(StoreFailed, match=r"queue\.db: Permission denied"):
                opened(path)
        finally:
            os.seteuid(user)


def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StoreFailed, match=r"queue\.db: Is a directory"):
        opened(path)


# --- its size ---------------------------------------------------------------------------------------------------------


def test_mail_that_has_gone_leaves_its_place_to_other_mail(path: Path) -> None:
    async def work() -> tuple[int, int]:
        queue = opened(path)
        before: list[int] = []
        for _ in range(80):
            futures = [queue.commit(Work(accepted=[new(body=bytes(2000))])) for _ in range(250)]
            await queue.commit(Work(settled=[(number, 0) for number in before]))
            before = [number for numbers in await asyncio.gather(*futures) for number in numbers]
        assert queue.count == 250
        sizes = path.stat().st_size, path.with_name("queue.db-wal").stat().st_size  # noqa: ASYNC240 nobody else waits
        await queue.close()
        return sizes

    database, log = run(work())
    assert database < 4 * 1024 * 1024
    assert log < queue_file.LOG_SIZE


@pytest.mark.usefixtures("hasty")
def test_a_queue_that_was_long_becomes_small_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_tables, "KEPT", 256)
    monkeypatch.setattr(queue_file, "CHECKPOINT", 1000)  # so that the file has become long
    least = 3_000_000
    small = least + (queue_tables.KEPT + 50) * queue_file.PAGE

    def size() -> int:
        return path.stat().st_size

    async def work() -> None:
        queue = opened(path)
        mail = [new(body=bytes(100_000)) for _ in range(100)]
        numbers = await queue.commit(Work(accepted=mail))
        (last,) = await queue.commit(Work(accepted=[new(body=bytes(least))]))
        await queue.commit(Work(removed=numbers))
        assert size() > 9_000_000
        async with asyncio.timeout(10):
            while size() > small:  # noqa: ASYNC110 it happens in a thread
                await asyncio.sleep(0.01)
        assert size() > least
        assert b"".join(queue.pieces(last)).endswith(bytes(least))
        await queue.close()

    run(work())


# --- back pressure ----------------------------------------------------------------------------------------------------


def test_mail_is_refused_before_the_disk_is_full_and_taken_when_there_is_room_again() -> None:
    said: list[str] = []
    now, free = 0.0, 2000
    pressure = BackPressure(lambda: free, minimum_free=1000, max_messages=10**6, clock=lambda: now, say=said.append)

    def refused(octets: int, seconds: float = 1.0) -> bool:
        nonlocal now, free
        now, free = now + seconds, octets
        return told(pressure.refusal(0)) == "the disk is nearly full"

    assert [refused(octets) for octets in (1000, 999, 1000, 1099, 1100, 1000, 999)] == [
        False, True, True, True, False, False, True,
    ]  # fmt: skip
    assert refused(5000, seconds=0.5)  # the disk is not asked for each message
    assert not refused(5000, seconds=0.5)
    assert [text.partition(": ")[2] for text in said] == [
        "999 octets are free on its disk; new mail is refused with 452",
        "1,100 octets are free on its disk; new mail is taken again",
        "999 octets are free on its disk; new mail is refused with 452",
        "5,000 octets are free on its disk; new mail is taken again",
    ]


def test_a_disk_that_does_not_answer_takes_no_mail() -> None:
    def free() -> int:
        raise OSError(5, "Input/output error")

    pressure = BackPressure(free, minimum_free=1000, max_messages=10, clock=lambda: 0, say=lambda _: None)
    assert told(pressure.refusal(0)) == "the disk is nearly full"


def test_mail_is_refused_while_there_is_too_much() -> None:
    said: list[str] = []
    pressure = BackPressure(lambda: 1, minimum_free=0, max_messages=100, clock=lambda: 0, say=said.append)
    assert [pressure.refusal(count) is not None for count in (99, 100, 99, 95, 94, 99, 100)] == [
        False, True, True, True, False, False, True,
    ]  # fmt: skip
    assert told(pressure.refusal(100)) == "the queue is full"
    pressure.wrote("disk I/O error")
    assert told(pressure.refusal(100)) == "the queue is full; the database cannot be written: disk I/O error"
    assert said[:2] == [
        "queue: it holds 100 messages; new mail is refused with 452",
        "queue: it holds 94 messages; new mail is taken again",
    ]


def test_after_a_failure_mail_is_refused_for_a_second_and_then_tried() -> None:
    said: list[str] = []
    now = 0.0
    pressure = BackPressure(lambda: 1, minimum_free=0, max_messages=1, clock=lambda: now, say=said.append)
    pressure.wrote("disk I/O error")
    pressure.wrote("disk I/O error")
    now = 0.9
    assert told(pressure.refusal(0)) == "the database cannot be written: disk I/O error"
    now = 1.0
    assert pressure.refusal(0) is None
    pressure.wrote(None)
    pressure.wrote(None)
    assert said == [
        "queue: it cannot be written: disk I/O error; new mail is refused with 452",
        "queue: it can be written; new mail is taken again",
    ]


def test_the_queue_asks_the_disk_that_it_is_on(path: Path) -> None:
    asked: list[Path] = []

    async def work() -> None:
        def free(folder: Path) -> int:
            asked.append(folder)
            return 0

        queue = SqliteQueue(path, minimum_free=1, max_messages=10, free=free)
        assert told(queue.refusal()) == "the disk is nearly full"
        await queue.close()

    run(work())
    assert asked == [path.parent]
