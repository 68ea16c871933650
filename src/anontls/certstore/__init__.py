"""The local computer's certificate store: what we ask of it, and a store in memory.

``folder`` keeps one in files, ``new`` makes the certificate that Exchange makes at set-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import msgspec

from anontls.facts import Certificate, Store, normal_thumbprint
from anontls.facts.own_certificate import OwnCertificate


class Problem(msgspec.Struct, frozen=True):
    """Something in a store that cannot be used, and the cure.  It never keeps the rest from being used."""

    file: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message} ({self.cure})"


class CertificateStore(Protocol):
    """What a transport service asks of the local computer's store."""

    def store(self) -> Store:
        """All certificates as facts, with or without a private key; a value that does not change."""
        ...

    def find(self, thumbprint: str) -> OwnCertificate | None:
        """The certificate with its private key; ``None`` when it or its key is not there.

        Raises:
            OwnCertificateRefused: the key is there, and does not open or does not fit.
        """
        ...

    def named(self, name: str) -> tuple[Certificate, ...]:
        """The certificates whose Subject CN or a DNS name stands for ``name``, newest first."""
        ...

    def __iter__(self) -> Iterator[Certificate]: ...


def named(store: Store, name: str) -> tuple[Certificate, ...]:
    """Those of ``store`` that stand for ``name``, newest first; names that are not known stand for nothing."""
    return tuple(sorted((c for c in store if c.named(name) is True), key=lambda c: c.sort_key))


class MemoryStore:
    """A store that was put together by hand: for demonstrations and tests."""

    def __init__(self, own: Iterable[OwnCertificate] = (), others: Iterable[Certificate] = ()) -> None:
        self._own = {one.thumbprint: one for one in own}
        self._store = Store((*(one.certificate for one in self._own.values()), *others))

    def store(self) -> Store:
        """All certificates as facts."""
        return self._store

    def find(self, thumbprint: str) -> OwnCertificate | None:
        """The certificate with its private key."""
        return self._own.get(normal_thumbprint(thumbprint))

    def named(self, name: str) -> tuple[Certificate, ...]:
        """The certificates that stand for ``name``, newest first."""
        return named(self._store, name)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self._store)
