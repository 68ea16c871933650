"""The file of the queue: whose it is, its format, and how older formats become this one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

from anontls.errors import MalformedInput
from anontls.transport.queue import StoreFailed

BUSY = 5.0  # seconds to wait for another process that has locked the database
READER_BUSY = 0.5  # the same for who must not wait: the event loop
ONE_AT_A_TIME = "one at a time may use a queue"

PAGE = 4096  # octets; for messages of 4 KiB and 64 KiB smaller and larger ones are slower
CHECKPOINT = 4000  # pages of the write-ahead log, 16 MiB; a page that was used several times by then is copied once
LOG_SIZE = 32 * 1024 * 1024

APPLICATION = 0x616E746C  # "antl", at octet 68 of the file: tells whose it is

# https://www.sqlite.org/fileformat2.html: section 1.3 the header of a database, 4.1 of a write-ahead log
SQLITE = b"SQLite format 3\0"
HEADER = 108  # octets of the first page: the header of the database, and that of the page itself
PAGES = {1, *(1 << n for n in range(9, 16))}  # octets of a page; 1 stands for 65,536
LOG_MAGIC = {b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"}
LOG_HEADER, FRAME_HEADER = 32, 24  # octets
LOG_SEEN = 1 << 30  # octets of a log that are looked at

#: Step N brings a database from version N (``user_version``) to N + 1; 0 is an empty one.  Released steps never change.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE message (
            id INTEGER PRIMARY KEY,
            arrived REAL NOT NULL,  -- Unix seconds
            sender TEXT NOT NULL,
            size INTEGER NOT NULL,  -- octets of content
            declared INTEGER,  -- SIZE, and the other parameters of MAIL; '' where one was not given
            body TEXT NOT NULL,
            smtputf8 INTEGER NOT NULL,
            ret TEXT NOT NULL,
            envid TEXT NOT NULL,
            auth TEXT NOT NULL,
            content BLOB NOT NULL  -- last: who reads the rest need not read it
        )""",
        """CREATE TABLE recipient (
            message INTEGER NOT NULL,
            number INTEGER NOT NULL,
            address TEXT NOT NULL,
            notify TEXT NOT NULL,
            orcpt TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0,
            due REAL NOT NULL DEFAULT 0,  -- Unix seconds
            last_error TEXT NOT NULL DEFAULT '',
            delayed INTEGER NOT NULL DEFAULT 0,
            suspended INTEGER NOT NULL DEFAULT 0,  -- the message is; in its row, a change would write its content again
            PRIMARY KEY (message, number)
        ) WITHOUT ROWID""",
    ),
)


def foreign(path: Path) -> str:
    """Why a file is no queue of ours; empty when it is, or when it is still empty.

    Its octets are looked at and nothing else: SQLite itself would make files beside it, and those of another user would
    lock the node out.  For a process of its own, because to close a file lets go of the locks that SQLite has on it.

    Raises:
        OSError: it cannot be read.
    """
    # First the log: what is no longer in it has been copied into the database before.
    logged, pages = _logged(path.with_name(f"{path.name}-wal"))
    with path.open("rb") as file:
        first = file.read(HEADER)
        octets = os.fstat(file.fileno()).st_size
    if not first:
        return ""
    if not first.startswith(SQLITE) or int.from_bytes(first[16:18], "big") not in PAGES:
        return "not a SQLite database"
    if first[18:20] == b"\2\2" and logged:  # it has a log, and what is there is newer
        first = logged
    version, application = (int.from_bytes(first[at : at + 4], "big") for at in (60, 68))
    if application != APPLICATION:
        # As a node makes it before its tables: a page of a table, with no entry.
        empty = not application and not version and first[100:101] == b"\x0d" and first[103:105] == b"\0\0"
        return "" if empty else "a SQLite database, but not of a queue"
    if version > len(STEPS):
        return f"a queue of format {version}, made by a newer version"
    size, changed, wanted, valid_for = (
        int.from_bytes(first[at:end], "big") for at, end in ((16, 18), (24, 28), (28, 32), (92, 96))
    )
    pages = pages or -(-octets // (65_536 if size == 1 else size))
    # Section 1.3.7: the size in the header counts while both counters agree.
    return f"cut off: it has {pages} of its {wanted} pages" if changed == valid_for and pages < wanted else ""


def _logged(path: Path) -> tuple[bytes, int]:
    """How the first page of a database begins as its write-ahead log last committed it, and pages of the database then.

    Empty and 0 where that says nothing of them.
    """
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return b"", 0
    with file:
        header = file.read(LOG_HEADER)
        size, salts = int.from_bytes(header[8:12], "big"), header[16:24]
        if header[:4] not in LOG_MAGIC or not 512 <= size <= 65_536:
            return b"", 0
        committed = last = b""
        pages = 0
        frames = (min(os.fstat(file.fileno()).st_size, LOG_SEEN) - LOG_HEADER) // (FRAME_HEADER + size)
        for number in range(frames):
            file.seek(LOG_HEADER + number * (FRAME_HEADER + size))
            frame = file.read(FRAME_HEADER + HEADER)
            if frame[8:16] != salts:  # of an earlier round
                break
            if frame[:4] == b"\0\0\0\1":
                last = frame[FRAME_HEADER:]
            if any(frame[4:8]):  # the size of the database: the last frame of a transaction
                committed, pages = last, int.from_bytes(frame[4:8], "big")
        return committed, pages


def owner(path: Path) -> str:
    """The process that has the queue, as it says; empty when none has it.

    Nothing is made or written, but a node that starts in this very moment finds the queue taken.

    Raises:
        OSError: it cannot be told.
    """
    try:
        lock = _lock(path).open(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return ""
    with lock:
        return "" if _locked(lock, exclusive=False) else _written(lock)


@contextmanager
def located(path: Path) -> Iterator[None]:
    """Turns what SQLite and the system raise into StoreFailed with the file's name."""
    try:
        yield
    except sqlite3.Error as e:
        raise StoreFailed(f"{path}: {e}") from e
    except OSError as e:
        raise StoreFailed(f"{path}: {e.strerror or e}") from e


@contextmanager
def opened(path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    """A connection to write and one to read, of the only process that may have the file; it is made when missing.

    Raises:
        StoreFailed: it cannot be opened, or another process has it.
        MalformedInput: it is something else, or made by a newer version.
    """
    with _owned(path):
        _make(path)
        with closing(_connect(path, BUSY)) as writer:
            with located(path):
                _prepare(writer, path)
            # closed first: the last connection copies the write-ahead log into the database, and removes it
            with closing(_connect(path, READER_BUSY)) as reader:
                reader.execute("PRAGMA query_only = ON")
                yield writer, reader


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    """Holds a lock on a file beside; it stays there, because who removed it would remove another's lock."""
    lock = _lock(path)
    with located(lock):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii", errors="replace")
    with file:
        with located(lock):
            if not _locked(file):
                raise StoreFailed(f"{path}: process {_written(file)} has it", hint=ONE_AT_A_TIME)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _locked(file: TextIO, *, exclusive: bool = True) -> bool:
    """Whether the lock was got; it lasts until the file is closed."""
    try:
        import fcntl  # not on Windows, which has nothing like it

        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except ImportError:
        pass
    except BlockingIOError:
        return False
    return True


def _written(file: TextIO) -> str:
    """The process that holds the lock."""
    return file.read(20).strip() or "unknown"


def _make(path: Path) -> None:
    # Before SQLite opens it: to close a file lets go of the locks that SQLite has on it in this process.
    with located(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # SQLite does this for its journals only
            finally:
                os.close(folder)


def _connect(path: Path, busy: float) -> sqlite3.Connection:
    with located(path):
        return sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False, cached_statements=512)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Checks what it is before anything is changed, and brings it to the present format."""
    try:
        [(application,)] = db.execute("PRAGMA application_id").fetchall()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as e:
        raise MalformedInput(str(path), f"not a SQLite database: {e}") from None
    [(version,)] = db.execute("PRAGMA user_version").fetchall()
    [(tables,)] = db.execute("SELECT count(*) FROM sqlite_master").fetchall()
    if application != APPLICATION and (application or version or tables):
        raise MalformedInput(str(path), "a SQLite database, but not of a queue")
    if version > len(STEPS):
        raise MalformedInput(str(path), f"a queue of format {version}; this version knows formats up to {len(STEPS)}")
    db.execute(f"PRAGMA page_size = {PAGE}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if db.execute("PRAGMA journal_mode = WAL").fetchall() != [("wal",)]:
        raise StoreFailed(f"{path}: its file system cannot share memory, which a write-ahead log needs")
    db.execute("PRAGMA synchronous = FULL")
    # Debian's SQLite overwrites what is deleted with zeros; so do we, as long as that costs no page more to write.
    db.execute("PRAGMA secure_delete = FAST").fetchall()
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}").fetchall()
    db.execute(f"PRAGMA journal_size_limit = {LOG_SIZE}").fetchall()
    for done, step in enumerate(STEPS[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in step:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {done}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
