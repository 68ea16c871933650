"""SMTP protocol logs in Exchange's own format [FACT D 4.1], with the certificate strings of both layouts [FACT O 4.2]."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Literal

from anontls.facts import Certificate, is_unknown

FIELDS = "date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context"
VERSION = "15.0.0.0"  # what real files say, whatever the build [FACT O 4.1]
ROW_CONTEXT = " certificate Subject Issuer name Serial number Thumbprint Not before Not after Subject alternate names"
MAX_KEPT = 256  # fields of certificates, and as many of replies, that are kept: most come again in each session
MAX_KEPT_SIZE = 8 * 1024  # characters of such a reply, octets of such a certificate
FLUSH_AT = 512  # lines gathered before a write, most of them of about 100 octets
HOUR = "%Y%m%d%H"  # of the file names [FACT O 4.1]


class Direction(Enum):
    """Whose log: file name prefix and log type."""

    SEND = "Send"
    RECEIVE = "Receive"


PREFIX = {Direction.SEND: "SEND", Direction.RECEIVE: "RECV"}  # of the file names [FACT O 4.1]


class Mark(StrEnum):
    """The event column."""

    CONNECT = "+"
    DISCONNECT = "-"
    SENT = ">"
    RECEIVED = "<"
    INFORMATION = "*"


def _time(moment: datetime) -> str:
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[:23] + "Z"


def _field(text: str) -> str:
    """A CSV field.  Line breaks and whatever else is not printable, which a peer may send, become blanks."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


class ProtocolLog:
    """The log files of one direction: a new one each hour or when it is full; old ones go by age (of their names) and
    total size.

    Lines are gathered and written in one piece: :meth:`flush` is called by the transport when it is idle.  ``lost`` is told
    why lines could not be written, and how many they were.
    """

    def __init__(
        self,
        folder: Path,
        direction: Direction,
        now: Callable[[], datetime],
        *,
        layout: Literal["row", "rows"] = "row",
        max_file_size: int = 10_485_760,
        max_directory_size: int = 262_144_000,
        max_age: timedelta = timedelta(days=30),
        lost: Callable[[OSError, int], None] = lambda _problem, _lines: None,
    ) -> None:
        self.folder = folder
        self.direction = direction
        self.layout = layout
        self._now = now
        self._limits = (max_file_size, max_directory_size, max_age)
        self._lost = lost
        self.lines: list[str] = []  #: gathered, for :meth:`flush`
        self.stamp = ""  #: the time of a line that is written before the monotonic clock shows ``stamp_until``
        self.stamp_until = 0.0
        self._second = (datetime.min.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC))  # its beginning and end
        self._second_shown = ""
        self._file: Path | None = None
        self._hour = ""
        self._size = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def session(self, connector: str, session_id: str, local: str, remote: str) -> SessionLog:
        """The log of one session."""
        return SessionLog(self, connector, session_id, local, remote)

    def renew_stamp(self, tick: float) -> None:
        """Look at the clock again: sessions write many lines in the millisecond that their time shows."""
        if len(self.lines) >= FLUSH_AT:
            self.flush()
        self.stamp_until = tick + 0.001
        now = self._now()
        begin, end = self._second
        if not begin <= now < end:
            begin = now.replace(microsecond=0)
            self._second = (begin, begin + timedelta(seconds=1))
            self._second_shown = _time(begin)[:-4]
        self.stamp = f"{self._second_shown}{now.microsecond // 1000:03}Z"

    def flush(self) -> None:
        """Write what was gathered; a full disk loses log lines, never mail."""
        if not self.lines:
            return
        data, count = "".join(self.lines).encode("utf-8", "replace"), len(self.lines)
        self.lines.clear()
        try:
            self._append(data)
        except OSError as e:
            self._lost(e, count)

    def _append(self, data: bytes) -> None:
        now = self._now()
        hour = now.astimezone(UTC).strftime(HOUR)
        if self._file is None or hour != self._hour or self._size >= self._limits[0]:
            self._file, self._hour, self._size = self._next(now, hour), hour, 0
        if self._size == 0:  # also when nothing could be written to it before
            head = (
                f"#Software: Microsoft Exchange Server\r\n#Version: {VERSION}\r\n"
                f"#Log-type: SMTP {self.direction.value} Protocol Log\r\n#Date: {_time(now)}\r\n#Fields: {FIELDS}\r\n"
            )
            data = head.encode() + data
        with self._file.open("ab", buffering=0) as file:
            fits = file.write(data)
            if fits < len(data):  # no half line in front of the next one
                file.truncate(file.tell() - fits)
                raise OSError(f"{fits} of {len(data)} octets could be written")
        self._size += len(data)

    def _next(self, now: datetime, hour: str) -> Path:
        """The next file of this hour, after making room for it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = sorted(self._files())
        max_size, max_total, max_age = self._limits
        sizes = {path: path.stat().st_size for _, _, path in files}
        total = sum(sizes.values()) + min(max_size, max_total)
        for begun, _, path in files:
            if now - begun <= max_age and total <= max_total:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= sizes[path]
        this = datetime.strptime(hour, HOUR).replace(tzinfo=UTC)
        number = max((n for begun, n, _ in files if begun == this), default=0) + 1
        return self.folder / f"{PREFIX[self.direction]}{hour}-{number}.LOG"

    def _files(self) -> Iterator[tuple[datetime, int, Path]]:
        """Hour, number and path of each file of this log."""
        pattern = re.compile(rf"{PREFIX[self.direction]}(\d{{10}})-(\d+)\.LOG", re.IGNORECASE)
        for path in self.folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is not None:
                with contextlib.suppress(ValueError):
                    yield datetime.strptime(match[1], HOUR).replace(tzinfo=UTC), int(match[2]), path


class SessionLog:
    """The lines of one session, numbered."""

    __slots__ = ("_log", "_prefix", "_remote", "_sequence", "_way")

    def __init__(self, log: ProtocolLog, connector: str, session_id: str, local: str, remote: str) -> None:
        self._log = log
        self._prefix = f"{_field(connector)},{session_id},"
        self._sequence = 0
        self._remote = remote
        self.local(local)

    def local(self, endpoint: str) -> None:
        """From now on this is the address here."""
        self._way = f",{endpoint},{self._remote},"

    def add(self, mark: str, data: str = "", context: str = "") -> None:
        """One line; ``mark`` is a `Mark`, or its text."""
        self._row(mark, data and _field(data), context and _field(context))

    def _row(self, mark: str, data: str, context: str) -> None:
        """One line whose fields are made already."""
        log, sequence = self._log, self._sequence
        tick = monotonic()
        if tick >= log.stamp_until:
            log.renew_stamp(tick)
        log.lines.append(f"{log.stamp},{self._prefix}{sequence}{self._way}{mark},{data},{context}\r\n")
        self._sequence = sequence + 1

    def dialogue(self, mark: str, data: bytes) -> None:
        """A command, or a reply with all its lines: in one row, or a row each [FACT O 4.2]."""
        text = data.decode("utf-8", "replace")
        if text.isprintable() and "," not in text and '"' not in text:  # nearly always; the same as `_row`, in one call
            log, sequence = self._log, self._sequence
            tick = monotonic()
            if tick >= log.stamp_until:
                log.renew_stamp(tick)
            log.lines.append(f"{log.stamp},{self._prefix}{sequence}{self._way}{mark},{text},\r\n")
            self._sequence = sequence + 1
        elif "\r\n" not in text:
            self.add(mark, text)
        elif self._log.layout == "rows":
            for line in text.split("\r\n"):
                self.add(mark, line)
        else:
            self._row(mark, _reply(text), "")

    def information(self, data: str = "", context: str = "") -> None:
        """A line of the program's own."""
        self.add(Mark.INFORMATION, data, context)

    def certificate(self, what: Literal["Sending", "Received"], certificate: Certificate) -> None:
        """A certificate, in the layout of the log."""
        if self._log.layout == "row":
            self._row(Mark.INFORMATION, _certificate(certificate), what + ROW_CONTEXT)
            return
        subject, issuer, serial, thumbprint, *_, names = _properties(certificate)
        self.information("", f"{what} certificate")
        if what == "Received":  # nothing else of a peer's is observed
            self.information(thumbprint, "Certificate thumbprint")
            return
        rows = (
            ("subject", subject),
            ("issuer name", issuer),
            ("serial number", serial),
            ("thumbprint", thumbprint),
            ("alternate names", ";".join(names)),
        )
        for name, value in rows:
            self.information(value, f"Certificate {name}")


def _reply(text: str) -> str:
    """The field of a reply of several lines."""
    return _kept_reply_field(text) if len(text) <= MAX_KEPT_SIZE else _reply_field(text)


def _reply_field(text: str) -> str:
    return _field(f"{text[:3]}  " + " ".join(line[4:] for line in text.split("\r\n")))


def _certificate(certificate: Certificate) -> str:
    """The field of a certificate."""
    small = len(certificate.der or b"") <= MAX_KEPT_SIZE
    return _kept_certificate_field(certificate) if small else _certificate_field(certificate)


def _certificate_field(certificate: Certificate) -> str:
    *properties, names = _properties(certificate)
    return _field(" ".join(("", *properties, ";".join(names))))


_kept_reply_field = lru_cache(maxsize=MAX_KEPT)(_reply_field)
_kept_certificate_field = lru_cache(maxsize=MAX_KEPT)(_certificate_field)


def _properties(certificate: Certificate) -> tuple[str, str, str, str, str, str, Iterable[str]]:
    parsed = certificate.x509
    before, after = certificate.not_before, certificate.not_after
    names = certificate.certificate_domains
    return (
        _known(certificate.subject),
        _known(certificate.issuer),
        f"{parsed.serial_number:X}" if parsed else "-",
        _known(certificate.thumbprint),
        _time(before) if isinstance(before, datetime) else "-",
        _time(after) if isinstance(after, datetime) else "-",
        names if isinstance(names, tuple) else (),
    )


def _known(value: object) -> str:
    return "-" if value is None or is_unknown(value) else str(value)
