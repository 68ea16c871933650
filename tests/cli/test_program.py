"""The program as a whole: exit statuses, help, completion, pipes, the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anontls import __version__, cli
from tests.cli.conftest import Anontls

PROGRAM = Path(sys.executable).with_name("anontls")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_version_of_the_installed_program() -> None:
    ran = process("--version")
    assert ran.returncode == 0 and __version__ in ran.stdout


def test_every_command_has_help(anontls: Anontls) -> None:
    assert anontls("-h").status == 0
    for command in cli.Commands.modules:
        ran = anontls(command, "--help")
        assert ran.status == 0 and "Usage: anontls" in ran.out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["select", "--nonsense"], ["events", "show", "x"], ["events", "show", "1"]]
)
def test_wrong_usage(anontls: Anontls, arguments: list[str]) -> None:
    ran = anontls(*arguments)
    assert ran.status == 2 and ran.err and not ran.out


def test_our_own_fault_is_exit_4(anontls: Anontls, org: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("anontls.cli.select.select", broken)
    ran = anontls("select", "--org", org)
    assert ran.status == 4 and "fault of anontls" in ran.err


def test_a_reader_that_stops_is_no_error(org: Path) -> None:
    command = f"'{PROGRAM}' select --org '{org}' --json; echo status $? >&2"
    ran = subprocess.run(
        ["bash", "-c", f"({command}) | head -c 10"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in ran.stderr and "BrokenPipe" not in ran.stderr and "status 0" in ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["events", "list"], ["select", "--org", "ORG", "--json"], ["probe", "127.0.0.1:1"]]
)
def test_a_device_that_is_full_is_told_in_one_line(org: Path, arguments: list[str]) -> None:
    given = [str(org) if word == "ORG" else word for word in arguments]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [str(PROGRAM), *given], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (ran.returncode, ran.stderr) == (3, "error: the output cannot be written: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_nothing_can_be_said_at_all() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run([str(PROGRAM), "events", "list"], stdout=full, stderr=full, timeout=60, check=False)
        assert ran.returncode == 3
        ran = subprocess.run([str(PROGRAM), "events", "show", "1"], stdout=full, stderr=full, timeout=60, check=False)
        assert ran.returncode == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(anontls: Anontls, shell: str) -> None:
    ran = anontls("completion", shell)
    assert ran.status == 0 and "_ANONTLS_COMPLETE" in ran.out


def test_completion_completes() -> None:
    ran = process(_ANONTLS_COMPLETE="bash_complete", COMP_WORDS="anontls select inb", COMP_CWORD="2")
    assert "inbound-anonymous" in ran.stdout and "inbound-starttls" in ran.stdout


@pytest.mark.parametrize("language", ["en", "de"])
def test_events(anontls: Anontls, language: str) -> None:
    ran = anontls("events", "list", "--lang", language)
    assert [int(line.split()[0]) for line in ran.out.splitlines()] == [1035, 2016, 2017, *range(12012, 12020), 12024]
    assert "InternalTransportCertificateMissingInAD" in anontls("events", "show", "12012", "--lang", language).out
    documents = anontls("events", "list", "--json", "--lang", language).documents()
    assert all(d["schema"] == "anontls/event/1" and d["remedy"] for d in documents)


@pytest.mark.parametrize("language", ["en", "de"])
def test_demo(anontls: Anontls, tmp_path: Path, language: str) -> None:
    folder = tmp_path / "demo"
    ran = anontls("demo", "-o", folder, "--lang", language)
    assert ran.status == 0
    assert "12015" in ran.out and "EDGE1" in ran.out
    assert {p.name for p in folder.iterdir()} == {"export", "org.json", "decision.svg", "lab"}
    assert anontls("demo", "-o", folder).status == 2, "nothing is overwritten"
