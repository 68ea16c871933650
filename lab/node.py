"""One of the three servers: ``anontls serve`` in a process of its own, and what one sees of it from outside."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGHUP
from typing import Any

from lab.daemon import Daemon
from lab.shell import ANONTLS, Shell

PATIENCE = 30.0  # seconds; what is waited for comes in two or three, but machines can be busy


class NotAsExpected(Exception):
    """What the lab shows is not what it should."""


class Node:
    """A server that runs, or will."""

    def __init__(self, name: str, shell: Shell, port: int, metrics_port: int, environment: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self.metrics_port = metrics_port
        self.shell = shell
        self.config = f"{name.lower()}.toml"
        self.environment = dict(environment)
        self.console = shell.folder / f"{name.lower()}-console"
        self._daemon = Daemon(
            (ANONTLS, "serve", shell.folder / self.config),
            self.console,
            [("127.0.0.1", metrics_port)],  # the last that it listens on
            environment={**shell.environment, **environment},
        )
        self.start = self._daemon.start
        self.stop = self._daemon.stop

    @property
    def file(self) -> str:
        """What the names of its files begin with."""
        return self.name.lower()

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon.running else None

    def show_start(self) -> None:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        self.shell.show(*(["env", *variables] if variables else []), "anontls", "serve", self.config, background=True)

    def reload(self) -> None:
        """Make it read everything again, and decide as it does when it starts."""
        self.shell.show("kill", "-HUP", self.pid)
        said = self._reloads()
        self._daemon.signal(SIGHUP)
        until(lambda: self._reloads() > said, f"{self.name} reloads")

    def _reloads(self) -> int:
        return self.console.read_text(errors="replace").count("reloaded")

    # --- what it says -------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.page("health"))
        return found

    def warnings(self) -> str:
        """What its health warns of; empty: of nothing."""
        return "; ".join(self.health()["warnings"])

    def metrics(self) -> dict[str, float]:
        """Each series, such as ``anontls_events_total{id="1035"}``, with its value."""
        lines = (line.rpartition(" ") for line in self.page("metrics").splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def metric(self, series: str) -> float:
        return self.metrics()[series]

    def waiting(self) -> float:
        """Messages in queues whose destination could not be reached."""
        found = self.metrics().items()
        return sum(v for name, v in found if name.startswith("anontls_queue_messages{") and 'status="Retry"' in name)

    def events(self) -> list[dict[str, Any]]:
        """The events that it has written; about the same thing there is one of a number in an hour."""
        path = self.shell.folder / f"{self.file}-events.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def log(self, kind: str) -> list[str]:
        """The data and context of each line of its protocol log, ``Receive`` or ``Send``."""
        paths = sorted((self.shell.folder / f"{self.file}-log").glob(f"Smtp{kind}/*"))
        lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
        return [line.split(",", 6)[6] for line in lines if not line.startswith("#")]

    def page(self, name: str) -> str:
        """``metrics`` or ``health``."""
        url = f"http://127.0.0.1:{self.metrics_port}/{name}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as e:  # health says 503 in this way
            return e.read().decode()
        except OSError as e:
            raise NotAsExpected(f"{self.name} does not answer at {url}: {e}\n{self.last_words()}") from None

    def last_words(self) -> str:
        return self.console.read_text(errors="replace")[-2000:] if self.console.exists() else ""


def until(met: Callable[[], object], what: str, patience: float = PATIENCE) -> float:
    """Wait for something; the seconds that it took.

    Raises:
        NotAsExpected: it did not come.
    """
    began = time.monotonic()
    while not met():
        if time.monotonic() > began + patience:
            raise NotAsExpected(f"not within {patience:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


def mailbox(folder: Path) -> list[str]:
    """The messages in Anna's Maildir."""
    new = folder / "mail" / "anna@contoso.com" / "new"
    return [path.read_text(encoding="utf-8") for path in sorted(new.glob("*"))]
