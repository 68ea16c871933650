"""SMTP protocol logs in Exchange's own format [FACT D 4.1], with the certificate strings of both layouts [FACT O 4.2]."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from pathlib import Path
from typing import Literal

from anontls.facts import Certificate, is_unknown

FIELDS = "date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context"
VERSION = "15.0.0.0"  # what real files say, whatever the build [FACT O 4.1]
ROW_CONTEXT = " certificate Subject Issuer name Serial number Thumbprint Not before Not after Subject alternate names"
FLUSH_AT = 64 * 1024  # octets gathered before a write


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
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def _field(text: str) -> str:
    """A CSV field; a line break, which no field may hold, becomes a blank."""
    text = text.replace("\r", " ").replace("\n", " ")
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


class ProtocolLog:
    """The log files of one direction: a new one each hour or when it is full; old ones go by age and total size.

    Lines are gathered and written in one piece: :meth:`flush` is called by the transport when it is idle.
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
    ) -> None:
        self.folder = folder
        self.direction = direction
        self.layout = layout
        self._now = now
        self._limits = (max_file_size, max_directory_size, max_age)
        self._lines: list[str] = []
        self._waiting = 0
        self._file: Path | None = None
        self._size = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def session(self, connector: str, session_id: str, local: str, remote: str) -> SessionLog:
        """The log of one session."""
        return SessionLog(self, connector, session_id, local, remote)

    def write(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)
        self._waiting += len(line)
        if self._waiting >= FLUSH_AT:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; a full disk loses log lines, never mail."""
        if not self._lines:
            return
        data = "".join(self._lines).encode("utf-8", "replace")
        self._lines.clear()
        self._waiting = 0
        with contextlib.suppress(OSError):
            self._append(data)

    def _append(self, data: bytes) -> None:
        now = self._now()
        prefix = f"{PREFIX[self.direction]}{now.astimezone(UTC):%Y%m%d%H}-"
        max_size = self._limits[0]
        if self._file is None or not self._file.name.startswith(prefix) or self._size >= max_size:
            taken = [int(p.stem.partition("-")[2]) for p in self._files() if p.name.startswith(prefix)]
            self._file = self.folder / f"{prefix}{max(taken, default=0) + 1}.LOG"
            head = (
                f"#Software: Microsoft Exchange Server\r\n#Version: {VERSION}\r\n"
                f"#Log-type: SMTP {self.direction.value} Protocol Log\r\n#Date: {_time(now)}\r\n#Fields: {FIELDS}\r\n"
            )
            data = head.encode() + data
            self._size = 0
            self._clean_up(now)
        with self._file.open("ab") as file:
            file.write(data)
        self._size += len(data)

    def _files(self) -> list[Path]:
        pattern = re.compile(rf"{PREFIX[self.direction]}\d{{10}}-\d+\.LOG", re.IGNORECASE)
        return sorted(path for path in self.folder.iterdir() if pattern.fullmatch(path.name))

    def _clean_up(self, now: datetime) -> None:
        _, max_total, max_age = self._limits
        files = [(path, path.stat()) for path in self._files()]
        total = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda each: each[1].st_mtime):
            too_old = now - datetime.fromtimestamp(stat.st_mtime, UTC) > max_age
            if not too_old and total <= max_total:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size


class SessionLog:
    """The lines of one session, numbered."""

    __slots__ = ("_log", "_prefix", "_sequence", "local", "remote")

    def __init__(self, log: ProtocolLog, connector: str, session_id: str, local: str, remote: str) -> None:
        self._log = log
        self._prefix = f"{_field(connector)},{session_id},"
        self._sequence = 0
        self.local = local
        self.remote = remote

    def add(self, mark: Mark, data: str = "", context: str = "") -> None:
        """One line."""
        log = self._log
        log.write(
            f"{_time(log._now())},{self._prefix}{self._sequence},{self.local},{self.remote},{mark.value},{_field(data)},{_field(context)}\r\n"
        )
        self._sequence += 1

    def information(self, data: str = "", context: str = "") -> None:
        """A line of the program's own."""
        self.add(Mark.INFORMATION, data, context)

    def certificate(self, what: Literal["Sending", "Received"], certificate: Certificate) -> None:
        """A certificate, in the layout of the log."""
        subject, issuer, serial, thumbprint, before, after, names = _properties(certificate)
        if self._log.layout == "row":
            data = " ".join(("", subject, issuer, serial, thumbprint, before, after, ";".join(names)))
            self.information(data, what + ROW_CONTEXT)
            return
        self.information("", f"{what} certificate")
        rows = (
            ("subject", subject),
            ("issuer name", issuer),
            ("serial number", serial),
            ("thumbprint", thumbprint),
            ("alternate names", ";".join(names)),
        )
        for name, value in rows:
            self.information(value, f"Certificate {name}")


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
