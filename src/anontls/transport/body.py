"""The content of a message on its way through: in memory while small, in a file when not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO

IN_MEMORY = 1024 * 1024  # octets of a message that stay in memory; with 5,000 sessions that is what memory can bear
PIECE = 256 * 1024


class Body:
    """Grows by :meth:`add`; closed when the message is settled."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None

    def add(self, data: bytes) -> None:
        """The next piece."""
        self.size += len(data)
        if self._file is None:
            self._pieces.append(data)
            if self.size <= IN_MEMORY:
                return
            self._file = tempfile.TemporaryFile(prefix="anontls-")  # noqa: SIM115 closed with the message
            self._file.writelines(self._pieces)
            self._pieces.clear()
        else:
            self._file.write(data)

    def in_memory(self) -> bytes | None:
        """All of it, when it is in memory."""
        return b"".join(self._pieces) if self._file is None else None

    def pieces(self) -> Iterator[bytes]:
        """All of it, piece by piece; may be asked again."""
        if self._file is None:
            yield from self._pieces
            return
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            yield piece

    def close(self) -> None:
        """Let go of it."""
        self._pieces.clear()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Body:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
