"""The event log of a service that runs for years."""

from __future__ import annotations

import io
import resource
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from anontls import eventlog
from anontls.eventlog import Events, JsonLines, JsonStream, MemoryEventLog, Stream, Syslog, Written
from anontls.events import FRONT_END_TRANSPORT, TRANSPORT, Event

START = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Log:
    """An event log with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = START
        self.written: list[Written] = []
        self.events = Events("MBX1", (self.written.append,), lambda: self.now)

    def raised(self, id_: int = 12015, source: str = TRANSPORT, connector: str = "", **values: object) -> int:
        """How many lines it made."""
        before = len(self.written)
        self.events.write(Event(id_, source, {"thumbprint": "AA", "not_after": START, **values}), connector=connector)
        return len(self.written) - before


def test_the_same_cause_once_an_hour() -> None:
    log = Log()
    assert [log.raised() for _ in range(5)] == [1, 0, 0, 0, 0]
    log.now += timedelta(minutes=59, seconds=59)
    assert log.raised() == 0
    log.now += timedelta(seconds=1)
    assert [log.raised(), log.raised()] == [1, 0]
    assert [line.repeated for line in log.written] == [0, 5]
    log.now += timedelta(days=365)
    assert log.raised() == 1
    assert log.written[-1].repeated == 1


def test_another_cause_is_another_line() -> None:
    log = Log()
    assert log.raised(thumbprint="AA") == 1
    assert log.raised(thumbprint="BB") == 1
    assert log.raised(12013, thumbprint="AA") == 1
    assert log.raised(source=FRONT_END_TRANSPORT) == 1
    assert log.raised(12014, name="a", fqdn="a", connector="one") == 1
    assert log.raised(12014, name="a", fqdn="a", connector="two") == 1
    assert log.raised(12014, name="a", fqdn="a", connector="two") == 0


def test_another_reason_is_another_line_and_another_wording_is_not() -> None:
    """A word of ours tells them apart; what a peer says must not fill the log."""
    log = Log()

    def failed(cause: str, error: str) -> int:
        before = len(log.written)
        values = {"target": "SMTPSVC/mbx2.contoso.com", "mechanism": "Gssapi", "address": "192.0.2.1", "error": error}
        log.events.write(Event(2017, TRANSPORT, values, cause=cause), connector="Intra-Organization")
        return len(log.written) - before

    assert [failed("refused", f"refused: 454 4.7.0 number {number}") for number in range(3)] == [1, 0, 0]
    assert [failed("not AES", "not AES: 23"), failed("not AES", "not AES: 17")] == [1, 0]
    assert failed("refused", "refused: 454") == 0, "the first is not forgotten for the second"
    log.now += timedelta(hours=1)
    assert [failed("refused", "refused"), failed("not AES", "not AES")] == [1, 1]
    assert [line.repeated for line in log.written] == [0, 0, 3, 1]
    assert log.written[1].text.startswith(
        "An outbound authentication on the Send connector Intra-Organization failed: not"
    )


def test_measures_and_places_that_the_event_does_not_name_are_no_other_cause() -> None:
    log = Log()
    assert log.raised(12017, hours=40) == 1
    assert log.raised(12017, hours=39) == 0
    assert log.raised(connector="one") == 1
    assert log.raised(connector="two") == 0, "an expired certificate is the same on every connector"


def test_a_clock_that_is_set_back_silences_nothing_for_long() -> None:
    log = Log()
    assert log.raised() == 1
    log.now -= timedelta(days=365)
    assert log.raised() == 1
    assert log.raised() == 0


def test_memory_is_bounded_and_the_oldest_cause_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "MOST_CAUSES", 10)
    log = Log()
    for number in range(1000):
        log.now += timedelta(seconds=1)
        assert log.raised(thumbprint=f"{number}") == 1
        assert len(log.events._causes) <= 10
    assert log.raised(thumbprint="999") == 0
    assert log.raised(thumbprint="990") == 0, "the last ten are known"
    assert log.raised(thumbprint="0") == 1
    log.raised(thumbprint="x" * 1_000_000)
    assert max(len(str(part)) for cause in log.events._causes for part in cause) <= eventlog.MOST_OF_A_NAME


def test_the_text_names_what_the_event_names() -> None:
    log = Log()
    log.raised(12013, thumbprint="AA", reason="the key is too small")
    log.raised(12014, connector="MBX1\\Default", name="mail", fqdn="mail")
    one, two = log.written
    assert one.text.endswith("certificate store. (the key is too small)")
    assert "MBX1\\Default" in two.text
    log.raised(12012)
    assert "could not be read from the directory: -." in log.written[-1].text, "a value that is missing"


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = Log()
    log.events.sinks = (JsonLines(path),)
    log.raised(12019, subject='CN="a"\r\nb', thumbprints=("A", "B"))
    path.rename(tmp_path / "rotated")
    log.raised(12015, thumbprint="BB")
    (first,) = (tmp_path / "rotated").read_bytes().splitlines()
    event = msgspec.json.decode(first)
    assert event["time"] == "2026-06-01T12:00:00Z"
    assert (event["id"], event["name"], event["level"]) == (
        12019,
        "RemoteInternalTransportCertificateExpired",
        "information",
    )
    assert event["values"]["subject"] == 'CN="a"\r\nb'
    assert event["values"]["thumbprints"] == "A, B"
    assert event["values"]["not_after"] == "2026-06-01 12:00:00Z"
    assert msgspec.json.decode(path.read_bytes())["id"] == 12015


def test_a_full_disk_stops_nothing() -> None:
    log = Log()
    log.events.sinks = (JsonLines(Path("/dev/full")), JsonLines(Path("/nowhere/at/all")), log.written.append)
    assert log.raised() == 1


def test_events_that_are_lost_are_told_of_with_the_reason() -> None:
    lost: list[tuple[str | None, int]] = []
    log = Log()
    log.events.sinks = (JsonLines(Path("/dev/full"), lambda problem, lines: lost.append((problem.strerror, lines))),)
    log.raised()
    assert lost == [("No space left on device", 1)]


def test_no_half_event_stays_in_front_of_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lost: list[int] = []
    log = Log()
    log.events.sinks = (JsonLines(path, lambda _problem, lines: lost.append(lines)),)
    log.raised(thumbprint="A")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        log.raised(thumbprint="B")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.raised(thumbprint="C")
    found = [msgspec.json.decode(line)["values"]["thumbprint"] for line in path.read_bytes().splitlines()]
    assert found == ["A", "C"]
    assert lost == [1]


def test_standard_error_gets_one_line() -> None:
    stream = io.StringIO()
    log = Log()
    log.events.sinks = (Stream(stream),)
    log.raised(12019, subject="CN=a\r\nerror: event 12013 \x1b[2J")
    log.now += timedelta(hours=2)
    log.raised(12019, subject="CN=b")
    first, _ = stream.getvalue().splitlines()
    assert first.startswith("information: event 12019 RemoteInternalTransportCertificateExpired: ")
    assert "\x1b" not in first
    stream.close()
    log.raised(12013)  # a terminal that is gone stops nothing


def test_what_an_operator_is_told_is_one_line() -> None:
    stream = io.StringIO()
    Stream(stream).say("a message could not be stored: \x1b[2J\nerror: event 12013")
    assert stream.getvalue() == "a message could not be stored:  [2J error: event 12013\n"


def test_standard_error_as_json() -> None:
    stream = io.StringIO()
    log = Log()
    console = JsonStream(stream, lambda: log.now)
    log.events.sinks = (console,)
    log.raised(12019, subject="CN=a\r\nerror: \x1b[2J \u009b2J \u202e")
    console.say("MBX1 starts\nnot another line")
    event, said = stream.getvalue().splitlines()
    assert (event + said).isascii()
    assert (event + said).isprintable()
    document = msgspec.json.decode(event)
    assert (document["id"], document["level"], document["time"]) == (12019, "information", "2026-06-01T12:00:00Z")
    assert document["values"]["subject"] == "CN=a\r\nerror: \x1b[2J \u009b2J \u202e"
    assert msgspec.json.decode(event, type=Written).id == 12019, "the document of a file of events"
    assert msgspec.json.decode(said) == {"time": "2026-06-01T12:00:00Z", "text": "MBX1 starts\nnot another line"}
    stream.close()
    console.say("a terminal that is gone stops nothing")


def test_every_event_is_counted_also_those_that_are_not_written() -> None:
    raised: list[int] = []
    log = Log()
    events = Events("MBX1", (log.written.append,), lambda: log.now, raised.append)
    for _ in range(3):
        events.write(Event(12013, TRANSPORT, {"thumbprint": "AA"}))
    assert raised == [12013] * 3
    assert len(log.written) == 1


def test_syslog(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log()
    log.events.sinks = (Syslog(str(path)),)
    log.raised(12013)  # nobody there
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        daemon.settimeout(5)
        log.raised(12013, thumbprint="BB")
        assert daemon.recv(4096).startswith(b"<19>anontls: MSExchangeTransport 12013: MBX1 cannot load")
        log.raised(12015)
        assert daemon.recv(4096).startswith(b"<20>")
        log.raised(12019, subject="CN=\u00e9\n" + "\u00e9" * 3000)
        line = daemon.recv(4096)
        assert line.startswith(b"<22>")
        assert len(line) <= 2048
        assert "\n" not in line.decode(), "no half character either"


def test_in_memory() -> None:
    log = MemoryEventLog()
    event = Event(12013, TRANSPORT, {})
    log.write(event)
    log.write(event, connector="x")
    assert log.events == [event, event]
