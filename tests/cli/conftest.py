"""The demo organisation as a snapshot, and a way to run the program."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from anontls.cli import run
from anontls.directory import snapshot
from anontls.directory.demo_export import write_demo_export
from anontls.directory.exchange_export import read_export
from anontls.transport.lab import EDGE, MAILBOX, write_lab

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Ran(msgspec.Struct, frozen=True):
    """What one command printed, and its exit status."""

    status: int
    out: str
    err: str

    def documents(self) -> list[dict[str, object]]:
        """Standard output as JSON Lines."""
        return [msgspec.json.decode(line, type=dict[str, object]) for line in self.out.splitlines()]


Anontls = Callable[..., Ran]


@pytest.fixture
def anontls(capfd: pytest.CaptureFixture[str]) -> Anontls:
    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ran(status, out, err)

    return call


@pytest.fixture(scope="session")
def demo_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "export"
    write_demo_export(folder, NOW)
    return folder


@pytest.fixture(scope="session")
def org(demo_export: Path) -> Path:
    path = demo_export.parent / "org.json"
    path.write_bytes(snapshot.dump(read_export([demo_export])))
    return path


@pytest.fixture(scope="session")
def lab_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    write_lab(folder, datetime.now(UTC), {MAILBOX: 0, EDGE: 0})
    return folder


@pytest.fixture
def lab(lab_files: Path, tmp_path: Path) -> Path:
    """A lab of one's own: org.json, mbx1.toml, edge1.toml and the stores; each node listens on a free port."""
    return Path(shutil.copytree(lab_files, tmp_path / "lab"))
