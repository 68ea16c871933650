"""The tables of the queue: many changes in one transaction, messages in slices."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.body import IN_MEMORY, Body
from anontls.transport.queue import New, Pending, Queued, Work
from anontls.transport.queue_file import located

LARGE = IN_MEMORY  # octets of content; more is written in pieces, and read in pieces of this size
ROWS = 32  # of a statement; each number of rows is a text of its own, which SQLite keeps prepared
SLICE = 256  # messages that are read at a time
KEPT = 4096  # free pages, 16 MiB
STEP = 256  # pages, 1 MiB

# {} stands for the rows.  Look at the query plan after a change: (a, b) IN (VALUES ...) reads the whole table,
# (a, b) IN (SELECT * FROM (VALUES ...)) searches its key.
ADD = "INSERT INTO message VALUES {}"
ADD_RECIPIENTS = "INSERT INTO recipient (message, number, address, notify, orcpt) VALUES {}"
DEFER = (
    "UPDATE recipient SET attempts = column3, due = column4, last_error = column5, delayed = column6"
    " FROM (VALUES {}) WHERE message = column1 AND number = column2"
)
SUSPEND = "UPDATE recipient SET suspended = column2 FROM (VALUES {}) WHERE message = column1"
SETTLE = "DELETE FROM recipient WHERE (message, number) IN (SELECT * FROM (VALUES {}))"
REMOVE = "DELETE FROM recipient WHERE message IN (VALUES {})"
END = "DELETE FROM message WHERE id IN (VALUES {}) AND NOT EXISTS (SELECT 1 FROM recipient WHERE message = id)"

_ADD_LARGE = "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, zeroblob(?))"
_MESSAGES = "SELECT id, arrived, sender, size, declared, body, smtputf8, ret, envid, auth, {} FROM message WHERE {}"
_RECIPIENTS = (
    "SELECT message, number, address, notify, orcpt, attempts, due, last_error, delayed, suspended FROM recipient"
    " WHERE message BETWEEN ? AND ? ORDER BY message, number"
)

Row = tuple[Any, ...]


class Change(NamedTuple):
    """A Work, and of the bodies of what it accepts those that are in memory."""

    work: Work
    bodies: tuple[bytes | None, ...]


class Writer:
    """Makes changes; ``last`` is an id below all new ones."""

    def __init__(self, db: sqlite3.Connection, last: int) -> None:
        self._db = db
        self._last = last

    def write(self, changes: Iterable[Change]) -> tuple[list[list[int]], int]:
        """Make all changes durable, or none; the ids of what each accepts, and by how much there are more messages.

        Raises:
            sqlite3.Error: as SQLite found it.
            OSError, OverflowError, TypeError, ValueError: a value cannot be stored, or a body cannot be read.
        """
        ids: list[list[int]] = []
        messages: list[Row] = []
        large: list[tuple[Row, New, bytes | None]] = []
        recipients: list[Row] = []
        deferred: dict[tuple[int, int], Row] = {}
        suspended: dict[int, Row] = {}
        settled: list[Row] = []
        removed: list[Row] = []
        for work, bodies in changes:
            mine: list[int] = []
            for new, body in zip(work.accepted, bodies, strict=True):
                self._last += 1
                mine.append(self._last)
                row = _row(self._last, new)
                if row[3] > LARGE:
                    large.append((row, new, body))
                else:
                    messages.append((*row, _content(new, body, row[3])))
                for number, one in enumerate(new.envelope.recipients):
                    recipients.append((self._last, number, one.address, one.notify or "", one.orcpt or ""))
            ids.append(mine)
            for message, late in work.deferred:
                row = (message, late.number, late.attempts, late.due, late.last_error, int(late.delayed))
                deferred[message, late.number] = row
            suspended.update((message, (message, int(yes))) for message, yes in work.suspended)
            settled += work.settled
            removed += [(message,) for message in work.removed]
        # In this order it is as if one came after the other: who is settled or removed is not deferred any more, and
        # nobody knows the ids of what is accepted here.
        self._db.execute("BEGIN IMMEDIATE")
        self._many(ADD, messages)
        for row, new, body in large:
            self._add_large(row, new, body)
        self._many(ADD_RECIPIENTS, recipients)
        self._many(DEFER, list(deferred.values()))
        self._many(SUSPEND, list(suspended.values()))
        self._many(SETTLE, settled)
        self._many(REMOVE, removed)
        gone = self._many(END, removed + [(message,) for message, _ in settled])
        self._db.execute("COMMIT")
        return ids, len(messages) + len(large) - gone

    def give_up(self) -> None:
        """Undo what was not committed."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def tidy(self) -> bool:
        """Give a little of the file back to the file system; whether there is more."""
        [(free,)] = self._db.execute("PRAGMA freelist_count").fetchall()
        much = free - KEPT
        if much > 0:
            self._db.executescript(f"PRAGMA incremental_vacuum({min(STEP, much)})")  # execute() frees one page only
            if much <= STEP:  # the file itself becomes smaller with this
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return bool(much > STEP)

    def _many(self, sql: str, rows: Sequence[Row]) -> int:
        """Run a statement for all rows, in as few calls as possible: each lets another thread run and waits for it.

        Returns how many rows of the database were changed.
        """
        changed = 0
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            text = statement(sql, len(some), len(some[0]))
            changed += self._db.execute(text, tuple(chain.from_iterable(some))).rowcount
        return changed

    def _add_large(self, row: Row, new: New, body: bytes | None) -> None:
        self._db.execute(_ADD_LARGE, (*row, row[3]))
        with self._db.blobopen("message", "content", row[0]) as blob:
            for piece in _pieces(new, body):
                blob.write(piece)
            if blob.tell() != row[3]:
                raise ValueError("the body has been let go of")


@lru_cache(maxsize=16 * ROWS)
def statement(sql: str, rows: int, columns: int) -> str:
    """The SQL with that many rows of that many values."""
    row = f"({', '.join('?' * columns)})"
    return sql.format(", ".join([row] * rows))


def _row(id_: int, new: New) -> Row:
    """All but the content.  Python's sqlite3 takes much longer for None and bool than for text and numbers."""
    envelope = new.envelope
    return (
        id_,
        new.arrived,
        envelope.sender,
        len(new.head) + (new.body.size if isinstance(new.body, Body) else len(new.body)),
        envelope.size,
        envelope.body or "",
        int(envelope.smtputf8),
        envelope.ret or "",
        envelope.envid or "",
        envelope.auth or "",
    )


def _content(new: New, body: bytes | None, size: int) -> bytes:
    content = new.head + body if body is not None else b"".join(_pieces(new, body))
    if len(content) != size:  # its session has ended
        raise ValueError("the body has been let go of")
    return content


def _pieces(new: New, body: bytes | None) -> Iterator[bytes]:
    yield new.head
    if body is not None:
        yield body
    else:
        assert isinstance(new.body, Body)
        yield from new.body.pieces()


class Reader:
    """Reads what is in the tables, and never for long: while somebody reads, the write-ahead log cannot start again, and grows.

    Raises:
        StoreFailed: it cannot be read.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def count(self) -> tuple[int, int]:
        """Messages, and the last id."""
        with located(self._path):
            [(count, last)] = self._db.execute("SELECT count(*), coalesce(max(id), 0) FROM message").fetchall()
        return count, last

    def messages(self, after: int) -> Iterator[Queued]:
        while found := self._read(_MESSAGES.format("NULL", "id > ? ORDER BY id LIMIT ?"), (after, SLICE)):
            yield from found
            after = found[-1].id

    def message(self, id_: int, *, content: bool) -> Queued | None:
        most = LARGE if content else -1
        found = self._read(_MESSAGES.format("CASE WHEN size <= ? THEN content END", "id = ?"), (most, id_))
        return found[0] if found else None

    def pieces(self, id_: int) -> Iterator[bytes]:
        at, size = 0, 1
        while at < size:
            with located(self._path), self._db.blobopen("message", "content", id_, readonly=True) as blob:
                size = len(blob)
                blob.seek(at)
                piece = blob.read(LARGE)  # SQLite goes through all pages before it
            at += len(piece)
            yield piece

    def _read(self, sql: str, parameters: Row) -> list[Queued]:
        with located(self._path):
            self._db.execute("BEGIN")  # so that both see the same
            try:
                messages = self._db.execute(sql, parameters).fetchall()
                ends = (messages[0][0], messages[-1][0]) if messages else (0, 0)
                recipients = self._db.execute(_RECIPIENTS, ends).fetchall()
            finally:
                self._db.execute("COMMIT")
        pending: dict[int, list[Pending]] = {}
        suspended: set[int] = set()
        for message, number, address, notify, orcpt, attempts, due, last_error, delayed, is_suspended in recipients:
            pending.setdefault(message, []).append(
                Pending(
                    number=number,
                    recipient=Recipient(address, notify or None, orcpt or None),
                    attempts=attempts,
                    due=due,
                    last_error=last_error,
                    delayed=bool(delayed),
                )
            )
            if is_suspended:
                suspended.add(message)
        return [
            Queued(
                id=id_,
                arrived=arrived,
                envelope=Envelope(
                    sender,
                    [one.recipient for one in pending[id_]],
                    size=declared,
                    body=body or None,
                    smtputf8=bool(smtputf8),
                    ret=ret or None,
                    envid=envid or None,
                    auth=auth or None,
                ),
                pending=pending[id_],
                size=size,
                content=content,
                suspended=id_ in suspended,
            )
            for id_, arrived, sender, size, declared, body, smtputf8, ret, envid, auth, content in messages
        ]
