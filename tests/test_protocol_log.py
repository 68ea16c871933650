"""Protocol logs as Exchange writes them."""

from __future__ import annotations

import csv
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.facts import Certificate
from anontls.protocol_log import FIELDS, FLUSH_AT, Direction, Mark, ProtocolLog
from tests.certstore.make import make

START = datetime(2026, 6, 1, 12, 30, 15, 123456, tzinfo=UTC)
NAMES = FIELDS.split(",")


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


def make_log(
    folder: Path, clock: Clock | None = None, direction: Direction = Direction.RECEIVE, **more: Any
) -> ProtocolLog:
    return ProtocolLog(folder, direction, clock or Clock(), **more)


def rows(path: Path) -> list[dict[str, str]]:
    """A file as a program reads it."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if not line.startswith("#")]
    return [dict(zip(NAMES, row, strict=True)) for row in csv.reader(lines)]


def write(log: ProtocolLog, count: int = 1, size: int = 1) -> None:
    session = log.session("MBX1\\Default MBX1", "08D760DF231F00BC", "10.0.0.1:25", "10.0.0.2:40000")
    for _ in range(count):
        session.add(Mark.RECEIVED, "x" * size)
    log.flush()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("direction", "name", "kind"),
    [
        (Direction.RECEIVE, "RECV2026060112-1.LOG", "SMTP Receive Protocol Log"),
        (Direction.SEND, "SEND2026060112-1.LOG", "SMTP Send Protocol Log"),
    ],
)
def test_header_and_fields(tmp_path: Path, direction: Direction, name: str, kind: str) -> None:
    log = make_log(tmp_path / "deep" / "folder", direction=direction)
    session = log.session("MBX1\\Default MBX1", "08D760DF231F00BC", "10.0.0.1:25", "10.0.0.2:40000")
    session.add(Mark.CONNECT)
    session.dialogue(Mark.RECEIVED, b"EHLO a")
    session.information("all", "Set Permissions")
    log.flush()
    (path,) = (tmp_path / "deep" / "folder").iterdir()
    assert path.name == name
    assert path.read_bytes().split(b"\r\n") == [
        b"#Software: Microsoft Exchange Server",
        b"#Version: 15.0.0.0",
        f"#Log-type: {kind}".encode(),
        b"#Date: 2026-06-01T12:30:15.123Z",
        b"#Fields: date-time,connector-id,session-id,sequence-number,local-endpoint,remote-endpoint,event,data,context",
        b"2026-06-01T12:30:15.123Z,MBX1\\Default MBX1,08D760DF231F00BC,0,10.0.0.1:25,10.0.0.2:40000,+,,",
        b"2026-06-01T12:30:15.123Z,MBX1\\Default MBX1,08D760DF231F00BC,1,10.0.0.1:25,10.0.0.2:40000,<,EHLO a,",
        b"2026-06-01T12:30:15.123Z,MBX1\\Default MBX1,08D760DF231F00BC,2,10.0.0.1:25,10.0.0.2:40000,*,all,Set Permissions",
        b"",
    ]


def test_times_are_utc_with_milliseconds(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = datetime(2026, 1, 1, 1, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    write(make_log(tmp_path, clock))
    assert names(tmp_path) == ["RECV2025123123-1.LOG"]
    assert rows(tmp_path / "RECV2025123123-1.LOG")[0]["date-time"] == "2025-12-31T23:00:00.999Z"


EHLO = b"250-MBX1 Hello [10.0.0.2]\r\n250-SIZE 37748736\r\n250 XRDST"


def test_a_reply_of_several_lines_in_one_row(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.session("a", "b", "", "c").dialogue(Mark.SENT, EHLO)
    log.flush()
    (row,) = rows(next(tmp_path.iterdir()))
    assert row["data"] == "250  MBX1 Hello [10.0.0.2] SIZE 37748736 XRDST"


def test_a_reply_of_several_lines_in_a_row_each(tmp_path: Path) -> None:
    log = make_log(tmp_path, layout="rows")
    log.session("a", "b", "", "c").dialogue(Mark.RECEIVED, EHLO)
    log.flush()
    assert [row["data"] for row in rows(next(tmp_path.iterdir()))] == [
        "250-MBX1 Hello [10.0.0.2]",
        "250-SIZE 37748736",
        "250 XRDST",
    ]


def test_a_certificate_in_one_row(tmp_path: Path) -> None:
    own = make(name="mbx1")
    log = make_log(tmp_path)
    log.session("a", "b", "", "c").certificate("Sending", own.certificate)
    log.flush()
    (row,) = rows(next(tmp_path.iterdir()))
    serial = f"{own.certificate.x509.serial_number:X}" if own.certificate.x509 else ""
    assert row["event"] == "*"
    assert row["data"] == (
        f" CN=mbx1 CN=mbx1 {serial} {own.thumbprint} 2026-05-02T12:00:00.000Z 2027-05-02T12:00:00.000Z mbx1;mbx1.contoso.com"
    )
    assert row["context"] == (
        "Sending certificate Subject Issuer name Serial number Thumbprint Not before Not after Subject alternate names"
    )


def test_what_a_peer_makes_large_is_not_kept(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    session = log.session("a", "b", "", "c")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(300):
        large = f"{number}".encode() * 10_000
        session.certificate("Received", Certificate(der=large, subject=large.decode()))
        session.dialogue(">", b"250-" + large + b"\r\n250 " + large)
        log.flush()
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now - before < 1_000_000


def test_a_certificate_in_a_row_each(tmp_path: Path) -> None:
    own = make(name="mbx1")
    log = make_log(tmp_path, layout="rows")
    log.session("a", "b", "", "c").certificate("Sending", own.certificate)
    log.flush()
    found = [(row["data"], row["context"]) for row in rows(next(tmp_path.iterdir()))]
    assert found[0] == ("", "Sending certificate")
    assert [context for _, context in found[1:]] == [
        "Certificate subject",
        "Certificate issuer name",
        "Certificate serial number",
        "Certificate thumbprint",
        "Certificate alternate names",
    ]
    assert found[4][0] == own.thumbprint


def test_of_a_peers_certificate_the_older_layout_has_the_thumbprint_alone(tmp_path: Path) -> None:
    own = make(name="mbx1")
    log = make_log(tmp_path, layout="rows")
    log.session("a", "b", "", "c").certificate("Received", own.certificate)
    log.flush()
    assert [(row["data"], row["context"]) for row in rows(next(tmp_path.iterdir()))] == [
        ("", "Received certificate"),
        (own.thumbprint, "Certificate thumbprint"),
    ]


@pytest.mark.parametrize("layout", ["row", "rows"])
def test_a_certificate_that_nobody_can_read(tmp_path: Path, layout: str) -> None:
    log = make_log(tmp_path, layout=layout)
    log.session("a", "b", "", "c").certificate("Received", Certificate(der=b"\x30\x03rubbish"))
    log.flush()
    assert rows(next(tmp_path.iterdir()))


def test_localized_names_and_quotes(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    connector = 'MBX1\\Соединитель "по умолчанию", 组织内 SMTP 发送连接器'
    session = log.session(connector, "b", "[::1]:25", "[::1]:4")
    session.add(Mark.RECEIVED, 'MAIL FROM:<"a, b"@c.example>', "no, yes")
    log.flush()
    (row,) = rows(next(tmp_path.iterdir()))
    assert (row["connector-id"], row["data"], row["context"]) == (connector, 'MAIL FROM:<"a, b"@c.example>', "no, yes")


@given(st.text(), st.text(), st.text())
def test_whatever_a_peer_says_is_one_row(
    tmp_path_factory: pytest.TempPathFactory, one: str, two: str, three: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = make_log(folder)
    session = log.session(one, "id", "", "peer")
    session.add(Mark.RECEIVED, two, three)
    session.dialogue(Mark.RECEIVED, two.encode("utf-8", "replace").replace(b"\r\n", b""))
    log.flush()
    (path,) = folder.iterdir()
    text = path.read_bytes().decode()
    assert len(text.splitlines()) == 5 + 2, "by whatever a reader takes for the end of a line"
    first, second = rows(path)
    assert (first["sequence-number"], second["sequence-number"]) == ("0", "1")
    if two.isprintable():
        assert first["data"] == two


def test_octets_that_are_no_text(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.session("a", "b", "", "c").dialogue(Mark.RECEIVED, b"NOOP \xff\x00\x1b[2J\r\n1,forged".replace(b"\r\n", b"\n"))
    log.flush()
    (row,) = rows(next(tmp_path.iterdir()))
    assert row["data"] == "NOOP \ufffd  [2J 1,forged"


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_a_new_file_each_hour(tmp_path: Path) -> None:
    clock = Clock()
    log = make_log(tmp_path, clock)
    for _ in range(3):
        write(log)
        clock.now += timedelta(hours=1)
    assert names(tmp_path) == ["RECV2026060112-1.LOG", "RECV2026060113-1.LOG", "RECV2026060114-1.LOG"]
    assert all(len(rows(path)) == 1 for path in tmp_path.iterdir())


def test_a_new_file_when_one_is_full(tmp_path: Path) -> None:
    log = make_log(tmp_path, max_file_size=2000)
    for _ in range(12):
        write(log, size=1000)
    assert len(names(tmp_path)) == 6
    assert (tmp_path / "RECV2026060112-6.LOG").read_text().startswith("#Software")
    assert all(len(rows(path)) == 2 for path in tmp_path.iterdir())


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    for _ in range(11):
        write(make_log(tmp_path))
    assert "RECV2026060112-11.LOG" in names(tmp_path)
    assert len(names(tmp_path)) == 11


def test_files_go_by_age(tmp_path: Path) -> None:
    clock = Clock()
    log = make_log(tmp_path, clock, max_age=timedelta(days=2))
    for _ in range(60):
        write(log)
        clock.now += timedelta(hours=1)
    assert len(names(tmp_path)) == 48
    assert names(tmp_path)[0] == "RECV2026060200-1.LOG"


def test_files_go_by_total_size_the_oldest_first(tmp_path: Path) -> None:
    log = make_log(tmp_path, max_file_size=1000, max_directory_size=12_000)
    for number in range(30):
        write(log, size=800)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 12_000 + 400, number
    assert {int(name.partition("-")[2].partition(".")[0]) for name in names(tmp_path)} == set(
        range(31 - len(names(tmp_path)), 31)
    ), "2 is older than 10"


def test_files_of_others_stay(tmp_path: Path) -> None:
    others = ["SEND2020010100-1.LOG", "RECV2020-1.LOG", "notes.txt", "RECV2020999999-1.LOG", "RECV2020010100-x.LOG"]
    for name in others:
        (tmp_path / name).write_text("x" * 5000)
    (tmp_path / "RECV2020010100-1.LOG").write_text("old")
    write(make_log(tmp_path, max_directory_size=1000))
    assert set(names(tmp_path)) == {*others, "RECV2026060112-1.LOG"}


def test_lines_are_gathered(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    session = log.session("a", "b", "", "c")
    session.add(Mark.CONNECT)
    assert names(tmp_path) == []
    for _ in range(FLUSH_AT):
        session.add(Mark.RECEIVED, "x")
    sleep(0.002)  # once in a millisecond it looks at the clock, and how many there are
    session.dialogue(Mark.RECEIVED, b"x")
    assert names(tmp_path) == ["RECV2026060112-1.LOG"]
    log.flush()
    log.flush()
    assert len(rows(next(tmp_path.iterdir()))) == FLUSH_AT + 2


def test_a_folder_that_goes_away_is_made_again(tmp_path: Path) -> None:
    clock = Clock()
    folder = tmp_path / "log"
    log = make_log(folder, clock)
    write(log)
    next(folder.iterdir()).unlink()
    folder.rmdir()
    write(log)  # lost
    clock.now += timedelta(hours=1)
    write(log)
    (path,) = folder.iterdir()
    assert path.read_text().startswith("#Software")


def test_a_file_that_cannot_be_begun_gets_its_header_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_a, **_k: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        write(log)
    write(log)
    assert next(tmp_path.iterdir()).read_text().startswith("#Software")


# --- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def room(octets: int) -> Iterator[None]:
    """No file grows beyond this; what fits of a write is written, as on a disk that fills."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_begins_no_other_file(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    with room(0):
        for _ in range(10):
            write(log)
    assert names(tmp_path) == ["RECV2026060112-1.LOG"]
    write(log)
    assert names(tmp_path) == ["RECV2026060112-1.LOG"]
    assert (tmp_path / "RECV2026060112-1.LOG").read_text().startswith("#Software")


def test_lines_that_are_lost_are_told_of_with_the_reason(tmp_path: Path) -> None:
    lost: list[tuple[str, int]] = []
    log = make_log(tmp_path, lost=lambda problem, lines: lost.append((problem.strerror or str(problem), lines)))
    write(log)
    assert lost == []
    with room((tmp_path / "RECV2026060112-1.LOG").stat().st_size):
        write(log, count=3)
    assert lost == [("File too large", 3)]


def test_no_half_line_stays_in_front_of_the_next_one(tmp_path: Path) -> None:
    lost: list[tuple[str, int]] = []
    log = make_log(tmp_path, lost=lambda problem, lines: lost.append((str(problem), lines)))
    with room(300):  # all of the header and some of the line
        write(log)
    write(log)
    with room((tmp_path / "RECV2026060112-1.LOG").stat().st_size + 10):
        write(log, count=2)
    write(log)
    assert (tmp_path / "RECV2026060112-1.LOG").read_text().count("#Software") == 1
    assert [row["data"] for row in rows(tmp_path / "RECV2026060112-1.LOG")] == ["x", "x"]
    assert [lines for _, lines in lost] == [1, 2]
    assert lost[1][0].startswith("10 of ")
