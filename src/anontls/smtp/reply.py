"""Replies: a code and lines of text; bytes to values and back."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from anontls.smtp.errors import RemoteProtocolError

# A whole reply.  [RFC5321 4.5.3.1.5] allows 512 octets a line and sets no limit on the lines; a real EHLO answer is
# under 1 KiB, a quoted policy text under 4.  aiosmtplib draws the same line.
MAX_REPLY = 32 * 1024

# Lines up to this long are kept: they are few, and a peer cannot fill memory with them.
SHORT = 128

# Reply codes are 2yz to 5yz.  [RFC5321 4.2.1]
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n]*))?")
_ENHANCED = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?: |$)")
_UNSENDABLE = re.compile(r"[^ -~]")


class Reply(msgspec.Struct, frozen=True, gc=False):
    """One reply.  Enhanced codes stand at the head of the text, as on the wire."""

    code: int
    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (200 <= self.code <= 599 and self.lines):
            raise ValueError(f"not a reply: {self.code} {self.lines}")

    @property
    def text(self) -> str:
        return " ".join(line for line in self.lines if line)

    @property
    def enhanced(self) -> tuple[int, int, int] | None:
        """Enhanced status code of the first line [RFC2034 4].

        Its class need not be that of the code: Exchange says ``451 5.7.3`` [FACT D 3.4].
        """
        match = _ENHANCED.match(self.lines[0])
        return None if match is None else (int(match[1]), int(match[2]), int(match[3]))

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300

    @property
    def permanent(self) -> bool:
        """Whether trying again is pointless."""
        return self.code >= 500

    def encode(self) -> bytes:
        """The bytes on the wire; a text can never end its line early or open another."""
        if len(self.lines) == 1:
            line = self.lines[0]
            if not (line.isascii() and line.isprintable()):
                line = _tame(line)
            return f"{self.code} {line}\r\n".encode("ascii")
        return _encoded(self.code, self.lines)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()


@lru_cache(maxsize=256)  # answers to EHLO, the same again and again
def _encoded(code: int, lines: tuple[str, ...]) -> bytes:
    last = len(lines) - 1
    return "".join(
        f"{code}{' ' if number == last else '-'}{line if line.isascii() and line.isprintable() else _tame(line)}\r\n"
        for number, line in enumerate(lines)
    ).encode("ascii")


def _tame(line: str) -> str:
    return _UNSENDABLE.sub("?", line)


@lru_cache(maxsize=256)  # a server says the same few things to every message
def _single(line: bytes) -> Reply | None:
    """A reply of one line; ``None``: it is not that."""
    match = _REPLY_LINE.fullmatch(line)
    if match is None or match[2] == b"-":
        return None
    return Reply(int(match[1]), (match[3].decode("utf-8", "replace") if match[3] else "",))


class LocalReply(Reply, frozen=True, gc=False):
    """What this side says of a message that it does not send, in the place of the peer's answer."""


class ReplyReader:
    """Turns received bytes into replies.

    ``receive`` raises nothing; what is wrong with the bytes is kept in ``fault`` and follows the replies before it,
    so the cut of the bytes into pieces changes nothing.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._code = b""
        self._lines: list[str] = []
        self._size = 0  # of the lines of the unfinished reply
        self.fault: RemoteProtocolError | None = None

    def receive(self, data: bytes) -> list[Reply]:
        replies: list[Reply] = []
        if self.fault:
            return replies
        lines = (self._rest + data if self._rest else data).split(b"\r\n")
        self._rest = lines.pop()
        for line in lines:
            if not self._lines and len(line) <= SHORT:
                reply = _single(line)
                if reply is not None:
                    replies.append(reply)
                    continue
            self._size += len(line) + 2
            if self._size > MAX_REPLY:
                return self._failed(f"reply longer than {MAX_REPLY} octets", replies)
            match = _REPLY_LINE.fullmatch(line)
            if match is None:
                return self._failed(f"not a reply line: {line[:60]!r}", replies)
            code, separator, text = match.groups()
            if self._lines and code != self._code:  # [RFC5321 4.2.1] one code a reply
                return self._failed(f"reply changes its code from {self._code.decode()} to {code.decode()}", replies)
            decoded = text.decode("utf-8", "replace") if text else ""
            if separator == b"-":
                self._code = code
                self._lines.append(decoded)
            elif self._lines:
                self._lines.append(decoded)
                replies.append(Reply(int(code), tuple(self._lines)))
                self._lines, self._size = [], 0
            else:
                replies.append(Reply(int(code), (decoded,)))
                self._size = 0
        # A line is judged when it is complete; one that can no longer become short enough is judged now.
        if self._size + len(self._rest) > MAX_REPLY + 1:
            return self._failed(f"reply longer than {MAX_REPLY} octets", replies)
        return replies

    @property
    def pending(self) -> bool:
        """Whether part of a reply has arrived."""
        return bool(self._rest or self._lines)

    def _failed(self, message: str, replies: list[Reply]) -> list[Reply]:
        self.fault = RemoteProtocolError(message)
        self._rest, self._lines = b"", []
        return replies
