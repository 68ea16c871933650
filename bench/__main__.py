"""``make bench``: measures against the numbers of the design and writes ``bench/results.json`` and ``bench/RESULTS.md``.

A row is ``name, ours, peer, ratio, unit, floor, goal``.  Where another program does the same job it runs in the same
call and ``ratio`` is ours to its figure; where none does, ``peer`` is null and ``floor`` and ``goal`` are in ``unit``.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anontls
from anontls.certstore.folder import FolderStore
from anontls.directory.exchange_export import read_export
from anontls.facts import Queue, Scenario
from anontls.selection import select
from anontls.selection.sessions import session_facts, sessions
from bench import compare, path, relay
from bench import sessions as received
from bench.organization import AS_OF, write_export
from bench.peers import Missing
from bench.store import write_store

HERE = Path(__file__).parent
SERVERS = 10_000
CERTIFICATES = 10_000
Row = dict[str, Any]


def row(name: str, ours: float, unit: str, floor: float, goal: float) -> Row:
    """A result that has no peer."""
    return {
        "name": name,
        "ours": round(ours, 3),
        "peer": None,
        "ratio": None,
        "unit": unit,
        "floor": floor,
        "goal": goal,
    }


def median(measure: Callable[[], float], runs: int) -> float:
    """The median of ``runs`` measurements, printed as they come."""
    figures = []
    for _ in range(runs):
        figures.append(measure())
        print(f"  {figures[-1]:.3f}", flush=True)
    return statistics.median(figures)


def decision(folder: Path) -> Row:
    """One outbound decision of five steps, with its trace."""
    organization = read_export([folder])
    facts = session_facts(
        organization.servers[0],
        Scenario.OUTBOUND_ANONYMOUS,
        AS_OF,
        queue=Queue(identity="1", delivery_type="SmtpRelayWithinAdSiteToEdge"),
    )
    assert [step.step for step in select(facts).steps] == ["1.a", "1.b", "2", "3", "4"]

    def measure() -> float:
        count = 200_000
        start = time.perf_counter()
        for _ in range(count):
            select(facts)
        return (time.perf_counter() - start) / count * 1e6

    return row("selection, one decision with its trace", median(measure, 7), "µs", 10, 4)


def organization(folder: Path) -> Row:
    """Import of the whole export, then every decision of every server."""

    def measure() -> float:
        start = time.perf_counter()
        found = read_export([folder])
        decisions = sum(
            1 for server in found.servers for facts in sessions(found, server, AS_OF) if select(facts) is not None
        )
        seconds = time.perf_counter() - start
        assert len(found.servers) == SERVERS and not found.unplaced and decisions == SERVERS * 15, decisions
        return seconds

    return row(f"import and decide an organisation of {SERVERS:,} servers", median(measure, 3), "s", 10, 3)


def version() -> Row:
    """The whole process of ``anontls --version``."""
    program = str(Path(sys.executable).with_name("anontls"))

    def measure() -> float:
        start = time.perf_counter()
        subprocess.run([program, "--version"], check=True, capture_output=True)
        return (time.perf_counter() - start) * 1e3

    measure()
    return row("anontls --version, whole process", median(measure, 15), "ms", 250, 120)


def certificates(folder: Path) -> Row:
    """A node's start: every certificate of its store with the key in the same file, RSA-2048."""
    write_store(folder, CERTIFICATES)

    def measure() -> float:
        start = time.perf_counter()
        store = FolderStore(folder, now=AS_OF)
        seconds = time.perf_counter() - start
        assert len(store.store()) == CERTIFICATES and not store.problems
        return seconds

    return row(f"{CERTIFICATES:,} certificates of a folder store", median(measure, 5), "s", 2, 1)


def machine() -> dict[str, str]:
    """Where it was measured, and with what."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    packages = {name: importlib.metadata.version(name) for name in ("msgspec", "cryptography", "click")}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu,
        "python": platform.python_version() + (" of the system" if sys.base_prefix == "/usr" else ""),
        "anontls": anontls.__version__,
        **packages,
    }


def report(rows: list[Row], where: dict[str, str], notes: list[str]) -> str:
    """``bench/RESULTS.md``."""
    lines = [
        "# Results",
        "",
        "Written by `make bench`; medians, and of ratios the median of those of runs beside each other. "
        + ", ".join(f"{name} {value}" for name, value in where.items())
        + ".",
        "",
        "| what | ours | peer | ratio | unit | floor | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| " + " | ".join("-" if value is None else str(value) for value in result.values()) + " |" for result in rows
    ]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything."""
    with tempfile.TemporaryDirectory(prefix="anontls-bench-") as temporary:
        large, small = Path(temporary) / "large", Path(temporary) / "small"
        print(f"writing an export of {SERVERS:,} servers", flush=True)
        write_export(large, SERVERS)
        write_export(small, 1)
        size = sum(file.stat().st_size for file in large.iterdir())
        print(f"  {size / 1e6:.0f} MB", flush=True)
        rows = []
        for measure in (
            partial(decision, small),
            partial(organization, large),
            partial(certificates, Path(temporary) / "store"),
            version,
        ):
            rows.append(measure())
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    with compare.bench() as beside:
        received.measure(beside)
        relay.measure(beside)
        for new in (False, True):
            how = "a new session" if new else "reused sessions"
            name = f"instructions of our process for a relayed 4 KiB message, {how}, without sockets"
            try:
                beside.row(name, path.instructions(1000, new=new), None, "thousand")
            except Missing as e:
                beside.notes.append(f"{name}: not counted: {e}")
    rows += beside.rows
    where = machine() | compare.versions()
    (HERE / "results.json").write_text(
        json.dumps(
            {"machine": where, "results": rows, "runs": beside.details, "notes": beside.notes},
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    )
    (HERE / "RESULTS.md").write_text(report(rows, where, beside.notes))
    print((HERE / "RESULTS.md").read_text())


if __name__ == "__main__":
    main()
