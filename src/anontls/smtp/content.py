"""Message content on its way: dot-stuffing, the one end of data, and what a content needs from a peer."""

from __future__ import annotations

import enum
from io import IncrementalNewlineDecoder
from typing import Final

# The only end of data.  [RFC5321 4.1.1.4]
_END: Final = b"\r\n.\r\n"
_GOOD_NEWLINES: Final = (None, "\r\n")


def only_crlf(piece: bytes) -> bool:
    """Whether each CR stands before a LF and each LF behind a CR.

    The decoder of text files notes which kinds of line end it has seen, in one pass; counting CR, LF and CRLF takes
    four times as long, a regular expression twelve times.
    """
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(piece.decode("latin-1"), final=True)
    return decoder.newlines in _GOOD_NEWLINES


class DotReader:
    """Finds the end of a message sent with DATA and takes its dot-stuffing away.

    A dot counts only between CRLF and CRLF; bare CR or LF around it make it content.  What may belong to the end is
    left for the next call, so no piece starts or ends inside a CRLF.
    """

    __slots__ = ("_fresh",)

    def __init__(self) -> None:
        self._fresh = True

    def begin(self) -> None:
        """A message starts: the CRLF before its first line is that of DATA."""
        self._fresh = True

    def take(self, data: bytes, at: int) -> tuple[bytes, int, bool]:
        """Content from ``at`` on, where to go on, and whether this was the end."""
        if self._fresh:
            head = data[at : at + 3]
            if head == b".\r\n":
                return b"", at + 3, True
            if b".\r\n".startswith(head):
                return b"", at, False
            self._fresh = False
            if head[:1] == b".":
                at += 1
        # Searching from the end is twice as fast here: mostly the one dot of a message ends it.
        dot = data.rfind(b"\r\n.", at)
        if dot < 0:
            stop = len(data) - _tail(data, at)
            return data[at:stop], stop, False
        if data.rfind(b"\r\n.", at, dot + 2) >= 0:
            dot = data.find(b"\r\n.", at)
        end = dot if data.startswith(b"\r\n", dot + 3) else data.find(_END, dot + 3)
        if end == dot:
            return data[at : end + 2], end + 5, True
        if end > 0:
            return data[at : end + 2].replace(b"\r\n.", b"\r\n"), end + 5, True
        stop = len(data) - _tail(data, at)
        return data[at:stop].replace(b"\r\n.", b"\r\n"), stop, False


def _tail(data: bytes, at: int) -> int:
    """Octets at the end of data, from ``at``, that may be the beginning of the end."""
    for length in (4, 3, 2, 1):
        if len(data) - at >= length and data.endswith(_END[:length]):
            return length
    return 0


class LineEnds:
    """`only_crlf` for a content in pieces, which may be cut inside a CRLF."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = IncrementalNewlineDecoder(None, translate=False)

    def add(self, piece: bytes) -> bool:
        self._decoder.decode(piece.decode("latin-1"))
        return self._decoder.newlines in _GOOD_NEWLINES

    def finish(self) -> bool:
        """Whether the last octet may end the content."""
        self._decoder.decode("", final=True)
        return self._decoder.newlines in _GOOD_NEWLINES


def dotted(content: bytes) -> bytes:
    """A whole content, free of bare CR and LF, as DATA sends it: dots stuffed, and its end."""
    if content.rfind(b"\r\n.") >= 0:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    if content.endswith(b"\r\n") or not content:
        return content + b".\r\n"
    return content + _END


class DotWriter:
    """`dotted` for a content in pieces, which may be cut anywhere."""

    __slots__ = ("_held", "_line_start")

    def __init__(self) -> None:
        self._held = b""  # a CR or CRLF at the end of the last piece
        self._line_start = True

    def write(self, piece: bytes) -> bytes:
        piece = self._held + piece
        self._held = b"\r\n" if piece.endswith(b"\r\n") else b"\r" if piece.endswith(b"\r") else b""
        if self._held:
            piece = piece[: -len(self._held)]
        if piece and self._line_start:
            self._line_start = False
            if piece.startswith(b"."):
                piece = b"." + piece
        return piece.replace(b"\r\n.", b"\r\n..")

    def end(self) -> bytes:
        """What ends the message; a last line without CRLF gets one."""
        return b".\r\n" if self._line_start and not self._held else _END


class Needs(enum.IntEnum):
    """What the octets of a content ask of a peer; each includes the one before."""

    SEVEN_BIT = 0
    EIGHT_BIT = 1
    BINARY = 2  # a bare CR or LF


def needs(content: bytes) -> Needs:
    """What a whole content needs.  [RFC6152 3] [RFC3030 3]"""
    if not only_crlf(content):
        return Needs.BINARY
    return Needs.SEVEN_BIT if content.isascii() else Needs.EIGHT_BIT
