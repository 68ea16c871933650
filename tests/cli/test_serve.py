"""``anontls serve`` and ``anontls lab``: what is refused at the start, and the life of a real process."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anontls.cli import Exit
from tests.cli.conftest import Anontls
from tests.cli.test_probe import without
from tests.cli.test_program import PROGRAM

LISTENS = re.compile(r"listens on 127\.0\.0\.1:(\d+)")


class Process:
    """A node as its own process; ``lines`` are what it has said."""

    def __init__(self, configuration: Path) -> None:
        self.process = subprocess.Popen(
            [str(PROGRAM), "serve", str(configuration)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []

    def until(self, word: str) -> str:
        """Read on until a line with ``word``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if word in line:
                return line
        raise AssertionError(f"ended without {word!r}: {self.lines}")

    def tell(self, what: signal.Signals) -> None:
        self.process.send_signal(what)


@contextmanager
def serving(configuration: Path) -> Iterator[Process]:
    node = Process(configuration)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.communicate(timeout=20)


def change(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


# --- a real process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_starts_serves_and_stops(lab: Path, how: signal.Signals) -> None:
    with serving(lab / "mbx1.toml") as node:
        node.until("MBX1 starts; internal transport certificate: ")
        match = LISTENS.search(node.until("listens on"))
        assert match is not None
        with smtplib.SMTP("127.0.0.1", int(match[1]), timeout=10) as client:
            assert client.ehlo()[0] == 250 and client.has_extn("x-anonymoustls")
        node.tell(how)
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE
        assert "draining: sessions 0, deliveries 0; 30 seconds at most, a second signal ends it" in node.lines
    assert re.fullmatch(r"MBX1 starts; internal transport certificate: [0-9A-F]{40}", node.lines[0])
    assert node.lines[1].startswith("MBX1\\Default MBX1 listens on 127.0.0.1:")


def test_drains(lab: Path) -> None:
    """A message that is on its way is settled; then the session is told to go."""
    with serving(lab / "edge1.toml") as node:
        match = LISTENS.search(node.until("listens on"))
        assert match is not None
        port = int(match[1])
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            assert client.recv(1000).startswith(b"220")
            node.tell(signal.SIGTERM)
            node.until("draining")
            answer = b""
            while data := client.recv(1000):
                answer += data
        assert answer.startswith(b"421 ")
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 10)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_drain(lab: Path, how: signal.Signals) -> None:
    with serving(lab / "edge1.toml") as node:
        match = LISTENS.search(node.until("listens on"))
        assert match is not None
        with smtplib.SMTP("127.0.0.1", int(match[1]), timeout=10) as client:
            client.ehlo()
            client.mail("ben@fabrikam.com")
            client.rcpt("anna@contoso.com")
            assert client.docmd("DATA")[0] == 354
            node.tell(signal.SIGTERM)
            assert node.until("draining").startswith("draining: sessions 1, deliveries 0; 30 seconds at most, ")
            node.tell(how)
            node.until("stopped")
            assert node.process.wait(10) == Exit.DONE
            client.close()
    assert node.lines[-2:] == ["cut off: sessions 1, deliveries 0", "stopped"]


def test_a_reload_that_comes_before_the_start_waits_for_it(lab: Path) -> None:
    """The configuration is a pipe, so that the node waits in the midst of its first moments."""
    whole = (lab / "mbx1.toml").read_text()
    (lab / "mbx1.toml").unlink()
    os.mkfifo(lab / "mbx1.toml")
    with serving(lab / "mbx1.toml") as node:
        with (lab / "mbx1.toml").open("w") as pipe:  # opened when the node has, too
            (lab / "again.toml").write_text(whole)
            (lab / "again.toml").replace(lab / "mbx1.toml")  # for the reload
            node.tell(signal.SIGHUP)
            pipe.write(whole)
        node.until("listens on")
        node.until("reloaded")
        node.tell(signal.SIGTERM)
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE


@pytest.mark.parametrize("form", ["{}", "@{}"])
def test_systemd_is_told_when_it_has_started(lab: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    address = form.format(lab.parent / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.settimeout(20)
        with serving(lab / "mbx1.toml") as node:
            assert systemd.recv(100) == b"READY=1"
            node.tell(signal.SIGHUP)
            node.until("reloaded")
            node.tell(signal.SIGTERM)
            assert node.process.wait(20) == Exit.DONE


def test_reloads(lab: Path) -> None:
    whole = (lab / "org.json").read_bytes()
    with serving(lab / "mbx1.toml") as node:
        node.until("listens on")
        (lab / "org.json").write_text("{")
        node.tell(signal.SIGHUP)
        node.until("reload failed, nothing has changed: ")
        (lab / "org.json").write_bytes(whole)
        without(lab, "MBX1").replace(lab / "org.json")
        node.tell(signal.SIGHUP)
        node.until("reloaded")
        (lab / "org.json").write_bytes(whole)
        node.tell(signal.SIGHUP)
        node.until("reloaded")
        node.tell(signal.SIGTERM)
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE


def test_the_start_says_what_it_lacks(lab: Path) -> None:
    for file in (lab / "mbx1-certificates").glob("*"):
        if file.suffix != ".toml":
            file.unlink()
    with serving(lab / "mbx1.toml") as node:
        node.until("event 12013")
        node.until("internal transport certificate: none")
        node.until("listens on")
        node.tell(signal.SIGTERM)
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE


# --- refused at the start ---------------------------------------------------------------------------------------------


def test_all_faults_at_once(anontls: Anontls, lab: Path) -> None:
    path = change(lab / "mbx1.toml", "[delivery]", "[limits]\nsession = 5\nrecipients = 0\n\n[delivery]\nspeed = 1")
    change(path, 'server = "MBX1"', "server = 1")
    change(path, 'address = "127.0.0.1:0"', "")
    ran = anontls("serve", path)
    assert ran.status == Exit.USAGE and not ran.out
    for fault in (
        "limits.session: unknown key; did you mean limits.sessions?",
        "limits.recipients: ",
        "delivery.speed: unknown key",
        "node.server: ",
        "listen[0].address: is missing",
    ):
        assert fault in ran.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('server = "MBX1"', 'server = "MBX9"', "known: MBX1, EDGE1"),
        ('connector = "Default MBX1"', 'connector = "Default MBX9"', "known: Default MBX1"),
        ('folder = "mbx1-certificates"', 'folder = "nowhere"', "nowhere"),
        ('organization = "org.json"', 'organization = "none.json"', "none.json"),
        ('maildir = "mail"', 'maildir = "mail"\nnext-hop = "127.0.0.1:25"', "either maildir or next-hop"),
        ('address = "127.0.0.1:0"', 'address = "::1"', "is not HOST:PORT"),
        ('address = "127.0.0.1:0"', 'address = "192.0.2.1:0"', "cannot listen"),
        ("[log]", "[rules]\nstore-miss = 'never'\n[log]", "rules.store-miss"),
        ("[log]", "[log", "not TOML"),
    ],
)
def test_what_a_node_cannot_start_with(anontls: Anontls, lab: Path, old: str, new: str, said: str) -> None:
    ran = anontls("serve", change(lab / "mbx1.toml", old, new))
    assert ran.status == Exit.USAGE and said in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("", "is a folder"),
        ("mail", "is a folder"),
        ("mbx1.toml/queue.db", "mbx1.toml/queue.db.lock: "),
        ("/proc/none/queue.db", "/proc/none/queue.db.lock: No such file or directory"),
    ],
)
def test_a_queue_where_none_can_be(anontls: Anontls, lab: Path, database: str, said: str) -> None:
    (lab / "mail").mkdir(exist_ok=True)
    path = change(lab / "mbx1.toml", "[log]", f'[queue]\ndatabase = "{database}"\n\n[log]')
    ran = anontls("serve", path)
    assert ran.status == Exit.USAGE and "error: queue.database: " in ran.err and said in ran.err
    assert "hint: " in ran.err
    assert not list(lab.parent.glob("*.lock"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_queue_where_this_user_may_not_write(anontls: Anontls, lab: Path) -> None:
    (lab / "closed").mkdir(mode=0o500)
    ran = anontls("serve", change(lab / "mbx1.toml", "[log]", '[queue]\ndatabase = "closed/queue.db"\n\n[log]'))
    assert ran.status == Exit.USAGE and "error: queue.database: " in ran.err and "Permission denied" in ran.err


def test_a_queue_that_another_process_has(anontls: Anontls, lab: Path) -> None:
    path = change(lab / "mbx1.toml", "[log]", '[queue]\ndatabase = "queue.db"\n\n[log]')
    with serving(path) as node:
        node.until("listens on")
        ran = anontls("serve", path)
    assert ran.status == Exit.UNKNOWN and f"process {node.process.pid} has it" in ran.err


def test_nothing_to_listen_on(anontls: Anontls, lab: Path) -> None:
    path = change(lab / "mbx1.toml", '[[listen]]\nconnector = "Default MBX1"\naddress = "127.0.0.1:0"\n', "")
    ran = anontls("serve", path)
    assert ran.status == Exit.USAGE and "nothing to listen on" in ran.err


def test_a_port_that_is_taken(anontls: Anontls, lab: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = anontls("serve", change(lab / "mbx1.toml", "127.0.0.1:0", f"127.0.0.1:{port}"))
    assert ran.status == Exit.USAGE and f"127.0.0.1:{port}: cannot listen" in ran.err


def test_no_such_file(anontls: Anontls, tmp_path: Path) -> None:
    ran = anontls("serve", tmp_path / "none.toml")
    assert ran.status == Exit.USAGE and "cannot be read" in ran.err


# --- lab --------------------------------------------------------------------------------------------------------------


def test_lab_writes_two_servers_that_start(anontls: Anontls, tmp_path: Path) -> None:
    folder = tmp_path / "my lab"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ran = anontls("lab", folder, "--mailbox-port", port)
    assert ran.status == Exit.DONE
    assert ran.out.splitlines() == [f"anontls serve '{folder}/{name}.toml'" for name in ("mbx1", "edge1")]
    with serving(folder / "mbx1.toml") as node:
        assert f":{port}" in node.until("listens on")
        node.tell(signal.SIGTERM)
        node.until("stopped")
        assert node.process.wait(20) == Exit.DONE
    again = anontls("lab", folder)
    assert again.status == Exit.USAGE and "is not empty" in again.err


@pytest.mark.parametrize("more", [["--edge-port", "0"], ["--edge-port", "2526"], ["--mailbox-port", "x"]])
def test_lab_ports(anontls: Anontls, tmp_path: Path, more: list[str]) -> None:
    ran = anontls("lab", tmp_path / "lab", *more)
    assert ran.status == Exit.USAGE and not (tmp_path / "lab").exists()


def test_lab_on_a_file(anontls: Anontls, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert anontls("lab", tmp_path / "file").status == Exit.USAGE
    assert anontls("lab", tmp_path / "file" / "below").status == Exit.USAGE
