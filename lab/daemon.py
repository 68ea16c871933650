"""A daemon of somebody else: started on loopback, waited for, stopped by its own pid."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Protocol

PATIENCE = 30.0  # seconds; all of them are up in two at most, but machines can be busy


class Daemon:
    """It stays in the foreground and writes what it has to say to ``log``."""

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        ports: Sequence[tuple[str, int]],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self.ports = ports
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its number, while it has one."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert not self.running, f"{self.command[0]} runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C at the terminal is for the tests; they stop it
            )
        for address in self.ports:
            self._wait(partial(listens, address), f"listens on {address[0]}:{address[1]}")

    def _wait(self, met: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not met():
            assert self.running, f"{self.command[0]} ended:\n{self.log.read_text(errors='replace')[-4000:]}"
            assert time.monotonic() < end, f"{self.command[0]}: not after {PATIENCE:g} s: {what}"
            time.sleep(0.02)

    def signal(self, number: Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it, and wait until it is gone; nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(SIGKILL)
            process.wait(10)
        end = time.monotonic() + 2
        with suppress(ProcessLookupError):  # its own may outlive it for a moment, and write where others remove
            while time.monotonic() < end:
                os.killpg(process.pid, SIGKILL)
                time.sleep(0.02)


def listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as taken:
        taken.bind((host, 0))
        return int(taken.getsockname()[1])


class Run(Protocol):
    """Runs a program that ends by itself, such as :func:`command`; what it printed."""

    def __call__(self, *words: object, environment: Mapping[str, str] | None = None, stdin: str = "") -> str: ...


def command(*words: object, environment: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """Run a program that ends by itself; what it printed.  A failure is the test's."""
    ran = subprocess.run(
        [str(word) for word in words],
        input=stdin.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        timeout=2 * PATIENCE,
        check=False,
    )
    printed = ran.stdout.decode("utf-8", "replace")
    assert ran.returncode == 0, f"{words[0]} {words[1:2]} ended with {ran.returncode}:\n{printed}"
    return printed
