"""The account of every message: what was sent, what was acknowledged, what arrived.

Each message has an identity of its own, the local part of its sender; what is accounted is the pair of identity and
recipient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

MARK = b"Message-ID: <"  # how the content begins; fields that servers put in front stand before it

Key = tuple[str, str]  # identity, recipient


def say(text: str) -> None:
    """Figures of a run: seen with ``-s``, and when it fails."""
    print(text, flush=True)  # noqa: T201 it is what it is for


class Message(NamedTuple):
    identity: str
    recipients: tuple[str, ...]
    content: bytes


class Copy(NamedTuple):
    """One that arrived: which life of the node sent it, and when (Unix seconds)."""

    life: int
    at: float


class Ledger:
    """What was sent, what was acknowledged with 250, and what arrived."""

    def __init__(self) -> None:
        self.life = 0  # starts of the node so far
        self.sent: dict[str, tuple[tuple[str, ...], bytes]] = {}  # recipients, and the hash of the content
        self.acknowledged: set[str] = set()
        self.copies: dict[Key, list[Copy]] = {}
        self.wrong: list[str] = []  # what arrived and should not have
        self.refused: list[str] = []
        self._owed = 0

    def send(self, message: Message) -> None:
        """It is about to be sent."""
        self.sent[message.identity] = message.recipients, _hash(message.content)

    def acknowledge(self, identity: str) -> None:
        self.acknowledged.add(identity)
        self._owed += len(self.sent[identity][0])

    def arrive(self, identity: str, recipients: Sequence[str], content: bytes, copy: Copy) -> None:
        begin = content.find(MARK)
        for recipient in recipients:
            known, digest = self.sent.get(identity, ((), b""))
            if recipient not in known:
                self.wrong.append(f"{identity} to {recipient}: nobody sent it")
            elif begin < 0 or _hash(content[begin:]) != digest:
                self.wrong.append(f"{identity} to {recipient}: its content was changed")
            else:
                self.copies.setdefault((identity, recipient), []).append(copy)

    @property
    def backlog(self) -> int:
        """About as many recipients wait for their message."""
        return self._owed - len(self.copies)

    def missing(self, queued: Collection[Key] = ()) -> set[Key]:
        """What was acknowledged, did not arrive, and is not queued: lost."""
        owed = {(identity, recipient) for identity in self.acknowledged for recipient in self.sent[identity][0]}
        return owed - self.copies.keys() - set(queued)

    def arrived_in(self, life: int) -> dict[Key, float]:
        """What that life of the node delivered, and when."""
        return {key: copy.at for key, copies in self.copies.items() for copy in copies if copy.life == life}

    def duplicates(self) -> dict[Key, list[Copy]]:
        """All copies but the last of what came more than once."""
        return {key: copies[:-1] for key, copies in self.copies.items() if len(copies) > 1}


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
