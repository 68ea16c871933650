"""The content of a message on its way through: in memory while small, in a file when not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO, ClassVar

from anontls.smtp.content import LineEnds, Needs, needs

IN_MEMORY = 1024 * 1024  # octets of a message that stay in memory
LITTLE = 64 * 1024  # octets that always do
SMALL = 4096  # octets; smaller pieces are put together, or a peer that sends octet by octet would fill memory with them
ALL_IN_MEMORY = 256 * 1024 * 1024  # octets of all messages together; beyond, only little ones stay in memory
PIECE = 256 * 1024


class Body:
    """Grows by :meth:`add`; closed when the message is settled.

    ``lines``: each line is known to end with CRLF, and CR and LF stand nowhere else.
    """

    __slots__ = ("_error", "_file", "_lines", "_pieces", "size")

    in_use: ClassVar[int] = 0  #: octets in memory, of all messages

    def __init__(self, *, lines: bool = False) -> None:
        self.size = 0
        self._lines = lines
        self._pieces: list[bytes | bytearray] = []
        self._file: IO[bytes] | None = None
        self._error: OSError | None = None

    def add(self, data: bytes) -> None:
        """The next piece.  A full disk shows only at :meth:`complete`: the rest is taken and dropped."""
        self.size += len(data)
        if self._error is not None:
            return
        if self._file is None:
            pieces = self._pieces
            if not pieces or len(data) >= SMALL:
                pieces.append(data)  # mostly the whole message
            elif isinstance(pieces[-1], bytearray):
                pieces[-1] += data
            else:
                pieces.append(bytearray(data))
            Body.in_use += len(data)
            if self.size <= LITTLE or (self.size <= IN_MEMORY and Body.in_use <= ALL_IN_MEMORY):
                return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="anontls-")  # noqa: SIM115 closed with the message
                self._file.write(b"".join(self._forget()))
            else:
                self._file.write(data)
        except OSError as e:
            self._error = e
            self.close()

    def _forget(self) -> list[bytes | bytearray]:
        pieces, self._pieces = self._pieces, []
        Body.in_use -= sum(map(len, pieces))
        return pieces

    def complete(self) -> None:
        """All has been added.

        Raises:
            OSError: it could not all be kept.
        """
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as e:
                self._error = e
        if self._error is not None:
            raise self._error

    def in_memory(self) -> bytes | None:
        """All of it, when it is in memory."""
        return self._joined() if self._file is None else None

    def _joined(self) -> bytes:
        if len(self._pieces) != 1 or not isinstance(self._pieces[0], bytes):
            self._pieces = [b"".join(self._pieces)]
        return bytes(self._pieces[0])

    def pieces(self) -> Iterator[bytes]:
        """All of it, piece by piece; may be asked again."""
        if self._file is None:
            yield self._joined()
            return
        self._file.seek(0)
        while piece := self._file.read(PIECE):
            yield piece

    def needs(self) -> Needs:
        """What it asks of a peer, whatever its sender declared; reads all of it."""
        if self._file is None:
            whole = self._joined()
            if not self._lines:
                return needs(whole)
            return Needs.SEVEN_BIT if whole.isascii() else Needs.EIGHT_BIT
        ends, ascii_only = LineEnds(), True
        for piece in self.pieces():
            if not ends.add(piece):
                return Needs.BINARY
            ascii_only = ascii_only and piece.isascii()
        if not ends.finish():
            return Needs.BINARY
        return Needs.SEVEN_BIT if ascii_only else Needs.EIGHT_BIT

    def close(self) -> None:
        """Let go of it."""
        self._forget()
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as e:  # it could not write what was left
                self._error = self._error or e

    def __enter__(self) -> Body:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
