"""Sessions and messages received, ours beside Postfix and aiosmtpd: the same load, the runs of both interleaved.

Each row runs :data:`RUNS` times, ours and the peer's in turn, and reports medians.  The processes share the cores with
the load, so the time that the server itself used (user and system, of all its processes) stands beside each rate.
``python -m bench.sessions [ROW ...]`` runs these rows alone and prints them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from OpenSSL import SSL

from anontls.transport.lab import EDGE, MAILBOX
from bench import peers
from bench.peers import Lab, Missing, Running

Row = dict[str, Any]
RUNS = int(os.environ.get("ANONTLS_BENCH_RUNS", "5"))
SCALE = float(os.environ.get("ANONTLS_BENCH_SCALE", "1"))
QUIET = 0.15  # processors that other programs may use without being mentioned
CLIENTS = int(os.environ.get("ANONTLS_BENCH_CLIENTS", "1"))  # processes of the load
CONNECTIONS = 48  # Postfix stalls with 16
SIZE = 4096
RECIPIENT = "anna@contoso.com"
# Both servers take the group that the client offers; what is compared is the servers, so it offers one that both have.
GROUPS = "openssl_conf = o\n[o]\nssl_conf = s\n[s]\nsystem_default = d\n[d]\nGroups = X25519\n"


class Run(NamedTuple):
    """One run of a load against one server."""

    rate: float
    cpu: float  # µs of the server for each thing done
    busy: float  # processors that the server kept busy
    load: float  # processors that the load kept busy; near 1 for each of its processes, it is the limit
    others: float  # processors that neither of them kept busy, and that were not idle; the machine was not ours alone
    tls: str


Measure = Callable[[], Run]


class Bench:
    """The running servers and the loads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.details: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        self.only: tuple[str, ...] = ()
        (folder / "openssl.cnf").write_text(GROUPS)

    # --- loads --------------------------------------------------------------------------------------------------------

    def tls(self, server: Running, lab: Lab, verb: str, what: str, number: int, port: str = "smtp") -> Run:
        """``bench.client`` over TLS; ``what`` is ``sessions`` or ``messages``."""
        number = max(int(number * SCALE), CONNECTIONS)
        command = [sys.executable, "-m", "bench.client", "--port", str(server.ports[port]), "--verb", verb]
        if verb != "none":
            command += ["--store", str(lab.stores[MAILBOX]), "--thumbprint", lab.certificates[MAILBOX].thumbprint]
        command += ["--connections", str(CONNECTIONS), "--size", str(SIZE), "--recipient", RECIPIENT]
        warm = [*command, f"--{what}", str(CONNECTIONS)]
        command += [f"--{what}", str(number)]
        environment = {**os.environ, "OPENSSL_CONF": str(self.folder / "openssl.cnf")}
        _quietly(warm, environment)
        before, everything = server.cpu(), peers.busy_of_machine()
        clients = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(CLIENTS)
        ]
        said = [json.loads(client.communicate(timeout=300)[0].splitlines()[-1]) for client in clients]
        spent, everything = server.cpu() - before, peers.busy_of_machine() - everything
        for each in said:
            if each["failed"] or not each["done"]:
                raise RuntimeError(f"{each['failed']} of the load failed: {each['first_failure']}")
        done, seconds = sum(each["done"] for each in said), max(each["seconds"] for each in said)
        load, whole = (sum(each[what] for each in said) for what in ("cpu", "whole_cpu"))
        others = max(0.0, everything - spent - whole)
        return Run(
            done / seconds, spent / done * 1e6, spent / seconds, load / seconds, others / seconds, said[0]["tls"]
        )

    def source(self, server: Running, messages: int, port: str = "smtp") -> Run:
        """Postfix's ``smtp-source``: no TLS, lock-step, reused connections."""
        messages = max(int(messages * SCALE), CONNECTIONS)
        command = [peers.tool("smtp-source"), "-4", "-d", "-s", str(CONNECTIONS), "-l", str(SIZE)]
        command += ["-f", "a@fabrikam.com", "-t", RECIPIENT, "-M", "load.fabrikam.com"]
        target = f"127.0.0.1:{server.ports[port]}"
        _quietly([*command, "-m", str(CONNECTIONS), target])
        before, everything = server.cpu(), peers.busy_of_machine()
        children, start = os.times(), time.perf_counter()
        _quietly([*command, "-m", str(messages), target])
        seconds, spent, after = time.perf_counter() - start, server.cpu() - before, os.times()
        load = after.children_user + after.children_system - children.children_user - children.children_system
        others = max(0.0, peers.busy_of_machine() - everything - spent - load)
        return Run(messages / seconds, spent / messages * 1e6, spent / seconds, load / seconds, others / seconds, "")

    # --- rows ---------------------------------------------------------------------------------------------------------

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
    ) -> None:
        """Run both in turn, and add the row of the rate and the row of the processor time."""
        if self.only and not any(part in name for part in self.only):
            return
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
        rates, cpus = {}, {}
        for who, found in runs.items():
            rates[who] = statistics.median(run.rate for run in found) if found else None
            cpus[who] = statistics.median(run.cpu for run in found) if found else None
        self._row(f"{name}/s", rates["ours"], rates["peer"], f"{each}s/s", floor, goal)
        self._row(f"{name}: CPU of the server for each {each}", cpus["ours"], cpus["peer"], "µs", None, None, less=True)
        self.details.append(
            {
                "name": name,
                "peer": peer_name,
                # Each run with the one of the peer beside it: where these differ, the machine's own speed changed.
                "ratio_of_each_pair": [
                    round(a.rate / b.rate, 3) for a, b in zip(runs["ours"], runs["peer"], strict=False)
                ],
                "runs": {who: [run._asdict() for run in found] for who, found in runs.items()},
            }
        )
        if note:
            self.notes.append(f"{name}: {note}")
        others = statistics.median(run.others for found in runs.values() for run in found)
        if others > QUIET:
            self.notes.append(f"{name}: measured while other programs used {others:.2f} processors")
        if peer is None:
            self.notes.append(f"{name}: no peer was measured: {peer_name}")

    def _row(
        self,
        name: str,
        ours: float | None,
        peer: float | None,
        unit: str,
        floor: float | None,
        goal: float | None,
        *,
        less: bool = False,
    ) -> None:
        ratio = None
        if ours and peer:
            ratio = round(peer / ours if less else ours / peer, 3)
        self.rows.append(
            {
                "name": name,
                "ours": None if ours is None else round(ours, 1),
                "peer": None if peer is None else round(peer, 1),
                "ratio": ratio,
                "unit": unit,
                "floor": floor,
                "goal": goal,
            }
        )

    def all(self) -> None:
        """Start everything, measure everything, stop everything."""
        with contextlib.ExitStack() as stack:
            labs = {kind: peers.write_lab(self.folder / kind, kind) for kind in ("ec", "rsa")}
            certificates = {kind: lab.certificates[EDGE] for kind, lab in labs.items()}
            why = {"postfix": f"Postfix {peers.postfix_version()}", "aiosmtpd": "aiosmtpd 1.4.6 on uvloop"}
            postfix = aiosmtpd = None
            try:
                postfix = stack.enter_context(peers.postfix(self.folder / "postfix", certificates))
            except Missing as e:
                why["postfix"] = str(e)
            try:
                aiosmtpd = stack.enter_context(peers.aiosmtpd(self.folder))
            except Missing as e:
                why["aiosmtpd"] = str(e)
            nodes = {kind: stack.enter_context(peers.anontls(lab)) for kind, lab in labs.items()}
            logging = stack.enter_context(peers.anontls(labs["ec"], name="logging", protocol_log=True))
            forgetful = stack.enter_context(peers.anontls(labs["ec"], name="forgetful", stores_mail=False))

            def of_postfix(lab: str, what: str, number: int) -> Measure | None:
                if postfix is None:
                    return None
                return lambda: self.tls(postfix, labs[lab], "STARTTLS", what, number, lab)

            def of_node(node: Running, lab: str, what: str, number: int) -> Measure:
                return lambda: self.tls(node, labs[lab], "X-ANONYMOUSTLS", what, number)

            def plain(server: Running | None, messages: int, port: str = "smtp") -> Measure | None:
                return None if server is None else lambda: self.source(server, messages, port=port)

            self.compare(
                "complete TLS sessions, P-256 certificates on both sides",
                "session",
                of_node(nodes["ec"], "ec", "sessions", 6000),
                of_postfix("ec", "sessions", 3000),
                why["postfix"],
                1.3,
                1.5,
                "EHLO, verb, mutual TLS 1.3 handshake (X25519), EHLO, QUIT; 48 at a time; ours X-ANONYMOUSTLS with two"
                " selections and direct trust, without protocol log; Postfix STARTTLS, smtpd_tls_ask_ccert=yes, no"
                " tickets, no log daemon.",
            )
            self.compare(
                "the same with the protocol log",
                "session",
                of_node(logging, "ec", "sessions", 6000),
                of_postfix("ec", "sessions", 3000),
                why["postfix"],
            )
            self.compare(
                "complete TLS sessions, RSA-2048 certificates on both sides",
                "session",
                of_node(nodes["rsa"], "rsa", "sessions", 2500),
                of_postfix("rsa", "sessions", 2000),
                why["postfix"],
                note="each side signs with RSA once a session, which is most of its time.",
            )
            self.compare(
                "4 KiB messages received over reused TLS sessions, durable",
                "message",
                of_node(nodes["ec"], "ec", "messages", 8000),
                of_postfix("ec", "messages", 3000),
                why["postfix"],
                note="ours: into a Maildir, file and folder fsynced before 250; Postfix: queue file fsynced before 250,"
                " then its queue manager hands it to discard, which is part of its time.",
            )
            if postfix is None:
                self.notes.append("plain rows are not measured: they need Postfix's smtp-source")
                return
            self.compare(
                "4 KiB messages received in clear, durable",
                "message",
                plain(nodes["ec"], 8000) or _never,
                plain(postfix, 3000, "ec"),
                why["postfix"],
                note="smtp-source, 48 reused connections; durable as above on both sides.",
            )
            self.compare(
                "4 KiB messages received in clear, not stored",
                "message",
                plain(forgetful, 20000) or _never,
                plain(aiosmtpd, 8000),
                why["aiosmtpd"],
                note="smtp-source, 48 reused connections; nothing is stored or synced on either side: ours with a"
                " delivery that drops, aiosmtpd's controller on uvloop with a handler that does nothing.",
            )


def _quietly(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run it; what it said is told when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-500:]}{done.stderr[-500:]}")


def _never() -> Run:
    raise AssertionError("there is always a node of ours")


def versions() -> dict[str, str]:
    """What took part, for the results."""
    return {
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "postfix": peers.postfix_version(),
        "TLS library of ours and of the load": str(SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()),
        "TLS library of the system": ssl.OPENSSL_VERSION,
    }


def measure(only: tuple[str, ...] = ()) -> Bench:
    """Every row; of these the ones whose names hold a part that is in ``only``, when something is."""
    with tempfile.TemporaryDirectory(prefix="anontls-bench-") as temporary:
        bench = Bench(Path(temporary))
        bench.only = only
        bench.all()
        return bench


def main() -> None:
    """These rows alone."""
    bench = measure(tuple(sys.argv[1:]))
    for row in bench.rows:
        print(json.dumps(row, ensure_ascii=False))
    for note in bench.notes:
        print(note)


if __name__ == "__main__":
    main()
