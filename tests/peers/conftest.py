"""Real peers: Debian packages that ``install.sh`` installs, run on loopback.

Where one is missing its tests are skipped; in CI that is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import NoReturn, Protocol

import pytest

from tests.peers.node import Node, edge

SYSTEM_PATHS = ("/usr/sbin", "/sbin")  # not in every user's PATH
HOW = "`sudo tests/peers/install.sh` installs it"


class Peer(Protocol):
    """Finds a program of somebody else."""

    def __call__(self, name: str, *, root: bool = False) -> str: ...


def absent(why: str) -> NoReturn:
    """Skip the test; in CI, where everything must be there, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def peer() -> Peer:
    """The path of the program, when it is there and, with ``root``, may be run as it needs to."""

    def find(name: str, *, root: bool = False) -> str:
        path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATHS]))
        if path is None:
            absent(f"{name} is not installed; {HOW}")
        if root and os.geteuid() != 0:
            absent(f"{name} needs root")
        return path

    return find


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """An Edge server that delivers to a Maildir; shared by the tests of a file."""
    with edge(tmp_path_factory.mktemp("edge")) as running:
        yield running
