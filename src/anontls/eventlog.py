"""Where events go: JSON lines, standard error, syslog.  The same cause is written once an hour, as in a service that
runs for years.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from anontls.events import CATALOGUE, Event

QUIET = timedelta(hours=1)
MOST_CAUSES = 10_000  # remembered at a time: a peer that invents names must not fill the memory
MOST_OF_A_NAME = 256  # characters that tell one cause from another

#: What each event is about: of what its text names, that which is no measure, such as how long ago something expired.
_ABOUT = {
    id_: tuple(
        key
        for key in ("server", "connector", "thumbprint", "name", "subject", "address", "target")
        if key in type_.fields
    )
    for id_, type_ in CATALOGUE.items()
}

#: syslog severities [RFC5424 6.2.1], with the facility "mail" (2)
SEVERITY = {"error": 3, "warning": 4, "information": 6}
MAIL = 2


class Written(msgspec.Struct, frozen=True):
    """One line of the event log.  ``repeated`` counts the same cause since the line before."""

    time: datetime
    id: int
    source: str
    name: str | None
    level: str
    category: str
    server: str
    text: str
    values: Mapping[str, object]
    repeated: int = 0


class EventLog(Protocol):
    """What the transport asks of an event log."""

    def write(self, event: Event, **names: object) -> None:
        """Log an event; ``names`` are what its text names beside its own values."""


class Sink(Protocol):
    """Takes one line."""

    def __call__(self, written: Written, /) -> None:
        """Write it; must not raise."""


class Events:
    """The event log of one server.

    ``now`` is the clock.  An event with the same id, source and cause about the same thing within an hour is counted,
    not written; the next one that is written says how many there were.  ``raised`` is told the id of each one.
    """

    def __init__(
        self,
        server: str,
        sinks: tuple[Sink, ...],
        now: Callable[[], datetime],
        raised: Callable[[int], None] = lambda _id: None,
    ) -> None:
        self.server = server
        self.sinks = sinks
        self._now = now
        self._raised = raised
        self._causes: dict[tuple[object, ...], tuple[datetime, int]] = {}

    def write(self, event: Event, **names: object) -> None:
        """Log an event."""
        self._raised(event.id)
        now = self._now()
        values = {"server": self.server, **names, **event.values}
        about = (str(values.get(key))[:MOST_OF_A_NAME] for key in _ABOUT[event.id])
        cause = (event.id, event.source, event.cause, *about)
        since, count = self._causes.get(cause, (None, 0))
        if since is not None and abs(now - since) < QUIET:  # abs: a clock that was set back silences nothing for long
            self._causes[cause] = (since, count + 1)
            return
        self._causes.pop(cause, None)
        if len(self._causes) >= MOST_CAUSES:
            del self._causes[next(iter(self._causes))]  # the one written longest ago
        self._causes[cause] = (now, 0)
        kind = event.type
        shown = {key: _plain(value) for key, value in values.items()}
        text = kind.text.format_map({**dict.fromkeys(kind.fields, "-"), **shown})
        if "reason" in shown and "reason" not in kind.fields:
            text += f" ({shown['reason']})"
        written = Written(
            now, event.id, event.source, kind.name, kind.level, kind.category, self.server, text, shown, count
        )
        for sink in self.sinks:
            sink(written)


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case None | str() | int():
            return value
        case tuple() | list():
            return ", ".join(str(_plain(each)) for each in value)
        case _:
            return str(value)


class MemoryEventLog:
    """Keeps everything, without the hourly silence; for tests and for ``send``, which shows what happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event, **names: object) -> None:
        """Keep it."""
        self.events.append(event)


class JsonLines:
    """A file of JSON lines, opened anew for each line, so that it can be rotated by others.

    ``lost`` is told why lines could not be written, and how many they were.
    """

    def __init__(self, path: Path, lost: Callable[[OSError, int], None] = lambda _problem, _lines: None) -> None:
        self.path = path
        self._lost = lost

    def __call__(self, written: Written) -> None:
        """Append it; a full disk must not stop the mail."""
        line = msgspec.json.encode(written) + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                fits = file.write(line)
                if fits < len(line):  # no half line in front of the next one
                    file.truncate(file.tell() - fits)
                    raise OSError(f"{fits} of {len(line)} octets could be written")
        except OSError as e:
            self._lost(e, 1)


class Stream:
    """A terminal or a service manager's journal: events, and what else an operator is told, a line each."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr

    def __call__(self, written: Written) -> None:
        """Print an event."""
        more = f" ({written.repeated} more in the last hour)" if written.repeated else ""
        self.say(f"{written.level}: event {written.id} {written.name or ''}: {written.text}{more}")

    def say(self, text: str) -> None:
        """Print it; a terminal that is gone must not stop the mail."""
        with contextlib.suppress(OSError, ValueError):
            print(_one_line(text), file=self.stream, flush=True)


class JsonStream(Stream):
    """The same as JSON, a document a line: an event as in :class:`JsonLines`; for all else ``time`` and ``text``."""

    def __init__(self, stream: TextIO | None, now: Callable[[], datetime]) -> None:
        super().__init__(stream)
        self._now = now

    def __call__(self, written: Written) -> None:
        """Print an event."""
        self._document(msgspec.to_builtins(written))

    def say(self, text: str) -> None:
        """Print it."""
        self._document(msgspec.to_builtins({"time": self._now(), "text": text}))

    def _document(self, document: object) -> None:
        super().say(json.dumps(document))  # ASCII: nothing in it reaches a terminal as a command


class Syslog:
    """A syslog daemon's datagram socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, written: Written) -> None:
        """Send it; a daemon that is away must not stop the mail."""
        priority = MAIL * 8 + SEVERITY[written.level]
        text = _one_line(f"<{priority}>anontls: {written.source} {written.id}: {written.text}")
        data = text.encode("utf-8", "replace")[:2048].decode("utf-8", "ignore")  # no half character
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.setblocking(False)
            daemon.sendto(data.encode(), self.path)


def _one_line(text: str) -> str:
    """Names in certificates and of peers may hold anything."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
