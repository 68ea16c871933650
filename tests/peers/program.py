"""Programs under test and their peers: started, talked to, waited for, ended by their own pid."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from types import TracebackType

PATIENCE = 30.0  # seconds; all of this takes far less, but machines can be busy


def run(
    *command: object, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = PATIENCE
) -> tuple[int, str]:
    """Exit status, and standard output and error together."""
    with tempfile.TemporaryFile() as printed:  # not a pipe, which a daemon that it starts would keep open
        ran = subprocess.run(
            [str(word) for word in command],
            input=stdin,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            timeout=timeout,
            check=False,
        )
        printed.seek(0)
        return ran.returncode, printed.read().decode("utf-8", "replace")


class Program:
    """A running program; what it prints is gathered and can be waited for."""

    def __init__(self, command: Sequence[object], *, newline: bytes = b"\r\n") -> None:
        self.name = Path(str(command[0])).name
        self.printed = ""
        self._seen = 0
        self._newline = newline
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, line: str) -> None:
        """Type a line of a mail dialogue."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + self._newline)

    def say_no_more(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def signal(self, number: Signals) -> None:
        self._process.send_signal(number)

    def expect(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait until something of what comes after the last call's match fits; that is the result."""
        end = time.monotonic() + timeout
        start = self._seen
        while not (found := re.compile(pattern, re.MULTILINE).search(self.printed, start)):
            left = end - time.monotonic()
            assert left > 0, f"{self.name} did not print {pattern!r} in {timeout:g} s:\n{self.printed}"
            assert self._read(left), f"{self.name} ended without printing {pattern!r}:\n{self.printed}"
        self._seen = found.end()
        return found

    def _read(self, timeout: float) -> bool:
        """Gather what there is; ``False`` at its end."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return True
        piece = os.read(self._process.stdout.fileno(), 65536)
        self.printed += piece.decode("utf-8", "replace")
        return bool(piece)

    def ended(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; the exit status."""
        end = time.monotonic() + timeout
        while self._read(max(0.0, end - time.monotonic())):
            assert time.monotonic() < end, f"{self.name} still runs after {timeout:g} s:\n{self.printed}"
        return self._process.wait(max(1.0, end - time.monotonic()))

    def stop(self, number: Signals = SIGTERM) -> int:
        """Ask it to end, and wait."""
        if self._process.poll() is None:
            self.signal(number)
        return self.ended()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue
