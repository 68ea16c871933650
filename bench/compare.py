"""What all rows beside a peer share: the loads, the accounts of processor time, both servers run in turn.

Each row runs :data:`RUNS` times, ours and the peer's in turn, and reports medians.  The processes share the cores with
the load, so the time that the server itself used (user and system, of all its processes) stands beside each rate.
"""

from __future__ import annotations

import json
import os
import platform
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from OpenSSL import SSL

from anontls.transport.lab import MAILBOX
from bench.peers import TICK, Lab, Running, busy_of_machine
from bench.postfix import tool, version

Row = dict[str, Any]
RUNS = int(os.environ.get("ANONTLS_BENCH_RUNS", "5"))
SCALE = float(os.environ.get("ANONTLS_BENCH_SCALE", "1"))
CLIENTS = int(os.environ.get("ANONTLS_BENCH_CLIENTS", "1"))  # processes of a load over TLS
CONNECTIONS = 48  # Postfix stalls with 16
SIZE = 4096
RECIPIENT = "anna@contoso.com"
QUIET = 0.15  # processors that other programs may use without being mentioned
PATIENCE = 60.0  # seconds without a message at the sink after which the rest is lost
AT_REST = 0.2  # seconds in which a server that has nothing to do uses less than a tick of the clock
_ARRIVED = re.compile(rb"mesg=(\d+)\r")
# Both servers take the group that the client offers; what is compared is the servers, so it offers one that both have.
GROUPS = "openssl_conf = o\n[o]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\nGroups = X25519\n"


class Did(NamedTuple):
    """What a load got done, between two moments of the monotonic clock."""

    number: int
    start: float
    end: float
    start_up: float = 0.0  # seconds of processor time before the load began
    tls: str = ""


class Run(NamedTuple):
    """One run of a load against one server."""

    rate: float
    cpu: float  # µs of the server for each thing done
    busy: float  # processors that the server kept busy
    load: float  # processors that the load kept busy; near 1 for each of its processes, it is the limit
    others: float  # processors that neither of them kept busy, and that were not idle; the machine was not ours alone
    tls: str


Load = Callable[[int], Did]
Measure = Callable[[], Run]


class Sink(NamedTuple):
    """A server at the end of a relay, which says how many messages it has: ``mesg=N`` in ``log``, as smtp-sink does."""

    running: Running
    log: Path

    def arrived(self) -> int:
        """Messages that have arrived."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 200))
            found = _ARRIVED.findall(file.read())
        return int(found[-1]) if found else 0

    def wait(self, number: int) -> float:
        """Until it has ``number`` messages; that moment."""
        count, progress = self.arrived(), time.monotonic()
        while count < number:
            time.sleep(0.002)
            before, count = count, self.arrived()
            if count > before:
                progress = time.monotonic()
            elif time.monotonic() - progress > PATIENCE:
                raise RuntimeError(f"{number - count} messages did not arrive")
        return progress


def measured(server: Running, load: Load, number: int, sink: Sink | None = None) -> Run:
    """One run, after a short one to warm up.

    Through a relay it ends when the sink has the last message.  The time that the server used is taken when it has
    come to rest, so what it does after its last reply is in it.
    """
    _run(server, load, CONNECTIONS, sink)
    return _run(server, load, max(int(number * SCALE), CONNECTIONS), sink)


def _run(server: Running, load: Load, number: int, sink: Sink | None) -> Run:
    def accounts() -> tuple[float, float, float]:
        times = os.times()
        ours = times.children_user + times.children_system + (sink.running.cpu() if sink else 0)
        return server.cpu(), ours, busy_of_machine()

    before, arrived = accounts(), sink.arrived() if sink else 0
    did = load(number)
    if sink is not None:
        did = did._replace(end=sink.wait(arrived + did.number))
    spent, own, everything = (now - then for now, then in zip(accounts(), before, strict=True))
    whole = _at_rest(server) - before[0]
    if sink is not None and sink.arrived() != arrived + did.number:
        raise RuntimeError(f"{did.number} messages were sent and {sink.arrived() - arrived} arrived")
    seconds = did.end - did.start
    return Run(
        rate=did.number / seconds,
        cpu=whole / did.number * 1e6,
        busy=spent / seconds,
        load=(own - did.start_up) / seconds,
        others=max(0.0, everything - spent - own) / seconds,
        tls=did.tls,
    )


def _at_rest(server: Running, patience: float = 10.0) -> float:
    """The time that the server has used, once it has nothing to do."""
    used, end = server.cpu(), time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(AT_REST)
        before, used = used, server.cpu()
        if used - before <= TICK:
            break
    return used


def quietly(command: list[str]) -> None:
    """Run it; what it said is told when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def source(port: int, *, connections: int = CONNECTIONS, size: int = SIZE, reuse: bool = True) -> Load:
    """Postfix's ``smtp-source``: no TLS, lock-step."""
    command = [tool("smtp-source"), "-4", "-s", str(connections), "-l", str(size), *(["-d"] if reuse else [])]
    command += ["-f", "a@fabrikam.com", "-t", RECIPIENT, "-M", "load.fabrikam.com"]

    def run(number: int) -> Did:
        start = time.monotonic()
        quietly([*command, "-m", str(number), f"127.0.0.1:{port}"])
        return Did(number, start, time.monotonic())

    return run


class Bench:
    """The rows so far, and what was noted while they were measured; ``only`` names parts of the rows that are wanted."""

    def __init__(self, folder: Path, only: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.only = only
        self.notes: list[str] = []
        self.details: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        folder.chmod(0o755)  # Postfix's processes run as another user
        (folder / "openssl.cnf").write_text(GROUPS)

    def client(self, port: int, lab: Lab, verb: str, what: str, *options: str) -> Load:
        """``bench.client`` over TLS; ``what`` is ``sessions`` or ``messages``."""
        command = [sys.executable, "-m", "bench.client", "--port", str(port), "--verb", verb, *options]
        command += ["--store", str(lab.stores[MAILBOX]), "--thumbprint", lab.certificates[MAILBOX].thumbprint]
        command += ["--connections", str(CONNECTIONS), "--size", str(SIZE), "--recipient", RECIPIENT]
        environment = {**os.environ, "OPENSSL_CONF": str(self.folder / "openssl.cnf")}

        def run(number: int) -> Did:
            clients = [
                subprocess.Popen([*command, f"--{what}", str(number)], stdout=subprocess.PIPE, env=environment)
                for _ in range(CLIENTS)
            ]
            said = [json.loads(client.communicate(timeout=300)[0].splitlines()[-1]) for client in clients]
            for each in said:
                if each["failed"] or not each["done"]:
                    raise RuntimeError(f"{each['failed']} of the load failed: {each['first_failure']}")
            return Did(
                sum(each["done"] for each in said),
                min(each["start"] for each in said),
                max(each["end"] for each in said),
                sum(each["start_up"] for each in said),
                said[0]["tls"],
            )

        return run

    def wants(self, *names: str) -> bool:
        """Whether one of these rows is wanted."""
        return not self.only or any(part in name for name in names for part in self.only)

    def compare(
        self,
        name: str,
        each: str,
        ours: Measure,
        peer: Measure | None,
        peer_name: str,
        floor: float | None = None,
        goal: float | None = None,
        note: str = "",
    ) -> float | None:
        """Run both in turn, and add the row of the rate and the row of the processor time; our µs for each.

        ``None`` where the row is not wanted.
        """
        if not self.wants(name):
            return None
        print(name, flush=True)
        runs: dict[str, list[Run]] = {"ours": [], "peer": []}
        for number in range(RUNS):
            order: list[tuple[str, Measure | None]] = [("ours", ours), ("peer", peer)]
            for who, measure in order if number % 2 == 0 else reversed(order):
                if measure is not None:
                    run = measure()
                    runs[who].append(run)
                    print(
                        f"  {who}: {run.rate:.0f}/s, {run.cpu:.0f} µs each, server {run.busy:.2f} and load"
                        f" {run.load:.2f} processors, others {run.others:.2f}; {run.tls}",
                        flush=True,
                    )
        return self.add(name, each, runs, peer_name, floor, goal, note)

    def add(
        self,
        name: str,
        each: str,
        runs: dict[str, list[Run]],
        peer_name: str,
        floor: float | None = None,
        goal: float | None = None,
        note: str = "",
    ) -> float | None:
        """The rows of runs that were made in turn.

        The machine's own speed changes by a third within minutes, so the ratio is the median of the ratios of runs beside
        each other, not that of the medians.
        """
        rates, cpus = {}, {}
        for who, found in runs.items():
            rates[who] = statistics.median(run.rate for run in found) if found else None
            cpus[who] = statistics.median(run.cpu for run in found) if found else None
        pairs = list(zip(runs["ours"], runs["peer"], strict=False))
        faster = statistics.median(ours.rate / peer.rate for ours, peer in pairs) if pairs else None
        cheaper = statistics.median(peer.cpu / ours.cpu for ours, peer in pairs) if pairs else None
        self.row(f"{name}/s", rates["ours"], rates["peer"], f"{each}s/s", floor, goal, ratio=faster)
        self.row(f"{name}: CPU of the server for each {each}", cpus["ours"], cpus["peer"], "µs", ratio=cheaper)
        self.details.append(
            {
                "name": name,
                "peer": peer_name,
                "ratio_of_each_pair": [round(ours.rate / peer.rate, 3) for ours, peer in pairs],
                "runs": {who: [run._asdict() for run in found] for who, found in runs.items()},
            }
        )
        if note:
            self.notes.append(f"{name}: {note}")
        others = statistics.median(run.others for found in runs.values() for run in found)
        if others > QUIET:
            self.notes.append(f"{name}: measured while other programs used {others:.2f} processors")
        if not pairs:
            self.notes.append(f"{name}: no peer was measured: {peer_name}")
        return cpus["ours"]

    def row(
        self,
        name: str,
        ours: float | None,
        peer: float | None,
        unit: str,
        floor: float | None = None,
        goal: float | None = None,
        *,
        ratio: float | None = None,
    ) -> None:
        """Add a result; ``ratio`` says how many times better ours is."""
        self.rows.append(
            {
                "name": name,
                "ours": None if ours is None else round(ours, 1),
                "peer": None if peer is None else round(peer, 1),
                "ratio": None if ratio is None else round(ratio, 3),
                "unit": unit,
                "floor": floor,
                "goal": goal,
            }
        )


@contextmanager
def bench(only: tuple[str, ...] = ()) -> Iterator[Bench]:
    """A bench with a folder of its own, for as long as it is measured."""
    with tempfile.TemporaryDirectory(prefix="anontls-bench-") as temporary:
        yield Bench(Path(temporary), only)


def alone(measure: Callable[[Bench], None]) -> None:
    """The rows of one module; those alone whose names hold a part that the command line names."""
    with bench(tuple(sys.argv[1:])) as found:
        measure(found)
    for row in found.rows:
        print(json.dumps(row, ensure_ascii=False))
    for note in found.notes:
        print(note)


def versions() -> dict[str, str]:
    """What took part, for the results."""
    return {
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "postfix": version(),
        "TLS library of ours and of the load": str(SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()),
        "TLS library of the system": ssl.OPENSSL_VERSION,
    }
