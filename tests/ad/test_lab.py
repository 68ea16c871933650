"""``make lab``: the whole tour as a program, and what keeps it from running."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from lab.needs import Missing, programs
from lab.network import Network, socket_fits
from lab.node import Node, NotAsExpected, mailbox
from lab.shell import Shell
from lab.stops import STOPS, Stop
from lab.tour import DEFERRED, Tour
from tests.peers.conftest import Peer

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ("samba-tool", "slapd", "slapadd", "ldapmodify", "ldbmodify", "kdestroy", "cc")
MAIL = re.compile(r"MAIL FROM")


def run(*words: str, timeout: float = 300, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        **more,
    )


# --- the tour ---------------------------------------------------------------------------------------------------------


class Visited(SimpleNamespace):
    """What a tour left behind: its status, what it printed, its folder."""

    status: int
    printed: str
    folder: Path

    def events(self, server: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{server}-events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def event(self, server: str, number: int, error: str = "") -> dict[str, Any]:
        (found,) = (
            event
            for event in self.events(server)
            if event["id"] == number and event["values"].get("error", "").startswith(error)
        )
        return found

    def log(self, server: str, kind: str) -> list[str]:
        paths = sorted((self.folder / f"{server}-log" / f"Smtp{kind}").iterdir())
        return [line.split(",", 6)[6] for path in paths for line in path.read_text().splitlines() if line[0] != "#"]


def test_the_tour(peer: Peer) -> None:
    """One test, because a tour takes half a minute."""
    peer("samba", root=True)
    for name in NEEDS:
        peer(name)
    with TemporaryDirectory(prefix="anontls-tour-") as folder:  # the names of its sockets must be short
        ran = run("--tour", "--folder", folder)
        visited = Visited(status=ran.returncode, printed=ran.stdout + ran.stderr, folder=Path(folder))
        all_was_as_it_should_be(visited)
        each_message_arrived_once_by_tls_from_server_to_server(visited)
        each_stop_showed_where_its_message_waited(visited)
        the_events_are_those_of_the_faults(visited)
        the_clock_was_wrong_on_one_server_only(visited)
        the_logs_tell_each_fault(visited)
        no_node_was_restarted_and_nothing_is_left(visited)


def all_was_as_it_should_be(visited: Visited) -> None:
    assert visited.status == 0, visited.printed
    assert "not as expected" not in visited.printed
    assert "\033" not in visited.printed, "no colours where there is no terminal"


def each_message_arrived_once_by_tls_from_server_to_server(visited: Visited) -> None:
    messages = mailbox(visited.folder)
    subjects = Counter(re.findall(r"^Subject: (.*)$", "\n".join(messages), re.MULTILINE))
    expected = ["all is well", "within the grace", *(stop.title for stop in STOPS)]
    assert subjects == Counter(expected)
    for message in messages:
        ways = re.findall(r"^Received: from (\S+) .* by (\S+)\n with (\S+)", message, re.MULTILINE)
        assert ways == [
            ("mbx1.contoso.com", "mbx2.contoso.com", "ESMTPS"),
            ("edge1.contoso.com", "mbx1.contoso.com", "ESMTPS"),
            ("mail.fabrikam.com", "edge1.contoso.com", "ESMTP"),
        ]


def each_stop_showed_where_its_message_waited(visited: Visited) -> None:
    parts = re.split(r"^\d  (.*)$", visited.printed, flags=re.MULTILINE)[1:]
    shown = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(shown) == [stop.title for stop in STOPS]
    for stop in STOPS:
        words = " ".join(shown[stop.title].split())
        (queue,) = re.findall(r" (\w+)\\1 \w+ \w+ 1 127\.0\.0\.1 (\[.*?\}\])", words)
        assert queue[0] == stop.waits_at
        assert f"{{LED={DEFERRED}}};{{MSG={stop.why}" in queue[1]


def the_events_are_those_of_the_faults(visited: Visited) -> None:
    assert Counter(event["id"] for event in visited.events("mbx2")) == {12012: 1, 12013: 1, 1035: 1}
    assert visited.event("mbx2", 12012)["values"]["reason"] == "null"
    named = visited.event("mbx2", 12013)["values"]["thumbprint"]
    assert f"after   {named}  CN=MBX2" in visited.printed, "what was published, and is in no store of MBX2"
    assert Counter(event["id"] for event in visited.events("mbx1")) == {2017: 2, 12012: 1}
    assert visited.event("mbx1", 2017, "not AES: ticket and session key are of the encryption types 23 and 23")
    assert "Connection refused" in visited.event("mbx1", 12012)["values"]["reason"]
    assert visited.events("edge1") == []


def the_clock_was_wrong_on_one_server_only(visited: Visited) -> None:
    refused, failed = visited.event("mbx2", 1035), visited.event("mbx1", 2017, "refused")
    assert refused["values"]["error"].startswith("clock skew")
    assert failed["values"]["error"] == "refused: 454 4.7.0 Temporary authentication failure"
    ahead = datetime.fromisoformat(refused["time"]) - datetime.fromisoformat(failed["time"])
    assert abs(ahead - timedelta(minutes=10)) < timedelta(seconds=10)


def the_logs_tell_each_fault(visited: Visited) -> None:
    of_edge, of_mbx1 = visited.log("edge1", "Send"), visited.log("mbx1", "Send")
    assert "*,MBX1,Direct trust: mismatch" in of_edge
    not_offered = f"*,,{DEFERRED}: the peer does not offer X-ANONYMOUSTLS"
    assert not_offered in of_edge
    assert not_offered in of_mbx1
    assert any("failed with not AES: ticket and session key" in line for line in of_mbx1)
    assert "*,,Inbound Gssapi failed because of clock skew: Clock skew too great" in visited.log("mbx2", "Receive")
    # A message for each that arrived, and none for the sessions that failed.
    for log in (of_edge, of_mbx1):
        assert len(list(filter(MAIL.search, log))) == len(mailbox(visited.folder))


def no_node_was_restarted_and_nothing_is_left(visited: Visited) -> None:
    for server in ("mbx1", "mbx2", "edge1"):
        console = (visited.folder / f"{server}-console").read_text()
        assert console.count(" starts; internal transport certificate: ") == 1
        assert console.endswith("stopped\n")
    running = subprocess.run(["ps", "-A", "-o", "args"], text=True, capture_output=True, check=True).stdout
    assert str(visited.folder) not in running


# --- a tour that shows something else fails -----------------------------------------------------------------------------


class NothingBroken(Stop):
    title = "Nothing is broken"
    text = "So the message arrives."
    why = "nothing"
    mended: ClassVar[list[bool]] = []

    def break_it(self) -> None:
        pass

    def look(self) -> None:
        pytest.fail("there is nothing to see")

    def mend(self) -> None:
        self.mended.append(True)


class Quiet(SimpleNamespace):
    """A network in which a message is in the mailbox at once."""

    def hand_over(self, subject: str) -> None:
        new = self.folder / "mail" / "anna@contoso.com" / "new"
        new.mkdir(parents=True)
        (new / "1").write_text(f"Subject: {subject}\n")


@pytest.fixture
def quiet(tmp_path: Path) -> Network:
    node = SimpleNamespace(
        name="MBX1",
        file="mbx1",
        pid=1,
        log=lambda _kind: ["*,,nothing"],
        events=lambda: [{"id": 1035, "time": "2026-11-24T12:00:00Z", "level": "warning", "text": "replay"}],
        metrics=lambda: {'anontls_events_total{id="1035"}': 0.0},
        metric=lambda _series: 1.0,
        waiting=lambda: 0.0,
    )
    network = Quiet(folder=tmp_path, shell=Shell(tmp_path), nodes={"MBX1": node}, quiet=lambda: True)
    return cast("Network", network)


def test_a_message_that_arrives_all_the_same(
    quiet: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tour = Tour(quiet, [NothingBroken])
    answers = iter([b"9", b"\xff", b"1", b"q"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(answers).decode())
    tour.ask()
    printed = capsys.readouterr().out
    assert "'9' is none of these" in printed
    assert "'?' is none of these" in printed
    assert "not as expected  the message arrived all the same" in printed
    assert NothingBroken.mended == [True]
    assert tour.seen == []


def test_the_message_that_one_may_send_has_line_ends_that_are_taken(
    quiet: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    node = SimpleNamespace(port=2525, metrics_port=9464, config="a.toml")
    quiet.nodes = dict.fromkeys(("MBX1", "MBX2", "EDGE1"), cast("Node", node))
    vars(quiet).update(edge=node, mbx1=node)
    quiet.dc = quiet.adlds = cast(
        "Any", SimpleNamespace(ldaps_url="ldaps://dc", administrator="x", bind_dn="x", password="x")
    )
    Tour(quiet).leave()
    (line,) = re.findall(r"^  (printf .*) \| curl ", capsys.readouterr().out, re.MULTILINE)
    said = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert said == b"Subject: hello\r\n\r\nhello\r\n"


def test_another_event(quiet: Network) -> None:
    stop = NothingBroken(quiet)
    stop._events["MBX1"] = (stop._events["MBX1"][0], 0)
    node = quiet.nodes["MBX1"]
    stop.event(node, 1035, "replay")
    with pytest.raises(NotAsExpected, match="event 1035 of MBX1"):
        stop.event(node, 1035, "clock skew")


# --- what keeps it from running ---------------------------------------------------------------------------------------


def test_without_its_programs(tmp_path: Path) -> None:
    ran = run("--tour", env={**os.environ, "PATH": str(tmp_path)})
    assert ran.returncode == 3
    assert "samba-tool, ldapmodify, ldbmodify, kdestroy, cc: not installed\n  tests/peers/install.sh" in ran.stderr
    assert ran.stdout == "", "nothing was begun"


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('ldap', 'gssapi'):\n    sys.modules[name] = None\n"
    )
    ran = run("--tour", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 3
    assert "python-ldap and gssapi: not installed" in ran.stderr
    assert "make clean" in ran.stderr


def test_as_somebody_else_than_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Missing, match=r"ports 389 and 636(.|\n)*sudo make lab"):
        programs()


@pytest.mark.parametrize("module", ["lab.command", "msgspec", "lab.tour"])
def test_interrupted_while_it_is_imported(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\nclass Interrupt:\n    def find_spec(name, *_):\n"
        f"        if name == '{module}': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt)\n"
    )
    ran = run("--tour", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "\nInterrupted\n")


def test_interrupted_while_it_is_set_up(peer: Peer, tmp_path: Path) -> None:
    peer("samba", root=True)
    for name in NEEDS:
        peer(name)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    tool = tmp_path / "samba-tool"
    tool.write_text("#!/bin/sh\nkill -INT $PPID\nexec sleep 60\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ran = run("--tour", env={**os.environ, "PATH": path, "TMPDIR": str(temporary)}, timeout=30)
    assert (ran.returncode, ran.stderr) == (130, "\nInterrupted\n")
    assert "samba-tool domain provision" in ran.stdout
    assert list(temporary.iterdir()) == []


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    ran = run("--folder", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "is not empty" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_whose_name_needs_quotes(tmp_path: Path) -> None:
    ran = run("--folder", str(tmp_path / "my lab"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "letters, digits" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made() -> None:
    ran = run("--folder", "/proc/lab")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "/proc/lab: No such file or directory" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_folder_too_deep_for_sockets(tmp_path: Path) -> None:
    assert socket_fits(Path("/tmp/anontls-lab-12345678"))
    assert run("--folder", str(tmp_path / ("x" * 90))).returncode == 2
