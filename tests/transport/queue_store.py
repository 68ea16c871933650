"""Queues and messages for the tests of the store."""

from __future__ import annotations

from pathlib import Path

from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.body import Body
from anontls.transport.queue import New
from anontls.transport.queue_sqlite import SqliteQueue

ANNA, BEN, CARL = Recipient("anna@contoso.com"), Recipient("ben@contoso.com"), Recipient("carl@contoso.com")


def new(*recipients: Recipient, body: bytes | Body = b"Hello.\r\n", sender: str = "dora@fabrikam.com") -> New:
    return New(
        envelope=Envelope(sender, list(recipients or (ANNA,))), arrived=1000.25, head=b"Received: x\r\n", body=body
    )


def opened(path: Path) -> SqliteQueue:
    return SqliteQueue(path, minimum_free=0, max_messages=10**6)


def contents(queue: SqliteQueue) -> list[tuple[str, list[int]]]:
    return [(queued.envelope.sender, [one.number for one in queued.pending]) for queued in queue.messages()]
