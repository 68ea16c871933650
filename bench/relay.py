"""Messages relayed, ours beside Postfix: load -> server -> sink, from the start of the load until the sink has the last.

Both keep each message durably before 250 and send it on from their queue.  Ours has every feature on: queue, routing,
protocol log, events, metrics.  Postfix has the settings with which it relays most (``bench.postfix``) and no log daemon,
which favours it.  In clear the load is smtp-source and the sink smtp-sink, Postfix's own.  Over TLS the load is
``bench.client`` and the sink ``bench.node``, for both: X-ANONYMOUSTLS for ours, STARTTLS for Postfix.  A run in which
a message is lost or arrives twice is an error, not a figure.

``python -m bench.relay [ROW ...]`` runs these rows alone and prints them.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from anontls.transport.lab import EDGE, INBOUND, MAILBOX
from bench import compare, peers
from bench.compare import SIZE, Bench, Load, Measure, Run, Sink, measured
from bench.peers import Lab, Missing, Running
from bench.postfix import postfix, tool, version

SOURCES = 50  # connections of smtp-source
LARGE = 65_536
REUSED = "4 KiB messages relayed, durable, 50 reused connections"
NEW = "4 KiB messages relayed, durable, a new connection for each"
BIG = "64 KiB messages relayed, durable, 50 reused connections"
SLOW = "4 KiB messages relayed, every sync 5 ms slower, 50 reused connections"
TLS_NEW = "4 KiB messages relayed, durable, mutual TLS in and out, a new session in for each"
TLS_REUSED = "4 KiB messages relayed, durable, mutual TLS in and out, reused sessions in"
# What Postfix lets through to its processes by default; LD_PRELOAD comes to it.
ENVIRONMENT = "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME"


def measure(bench: Bench) -> None:
    """All rows that are wanted; what each needs is started for it, and stopped behind it."""
    lab = peers.write_lab(bench.folder / "relay", "ec")
    if bench.wants(REUSED, NEW, BIG):
        _in_clear(bench, lab)
    if bench.wants(TLS_NEW, TLS_REUSED):
        _over_tls(bench, lab)
    if bench.wants(SLOW):
        _slow_disk(bench, lab)


def _in_clear(bench: Bench, lab: Lab) -> None:
    with ExitStack() as stack:
        try:
            sink = stack.enter_context(smtp_sink(bench.folder))
        except Missing as e:
            bench.notes.append(f"messages relayed in clear are not measured: {e}")
            return
        ours = stack.enter_context(relay(lab, "relay", sink))
        peer, why = _postfix(stack, bench.folder / "postfix-relay", lab, {"relayhost": _to(sink)})

        def both(numbers: tuple[int, int], size: int = SIZE, reuse: bool = True) -> tuple[Measure, Measure | None]:
            return _both(sink, ours, peer, numbers, lambda server: source(server, size, reuse=reuse))

        cpu = bench.compare(
            REUSED,
            "message",
            *both((8000, 2000)),
            why,
            5,
            10,
            "smtp-source, the relay, smtp-sink; ours with queue, routing, protocol log, events and metrics; Postfix"
            " with connection caching for all destinations, 50 deliveries at a time, no log daemon.",
        )
        if cpu is not None:
            bench.row("server CPU for a relayed 4 KiB message", cpu, None, "µs", 350, 200)
        bench.compare(NEW, "message", *both((6000, 2000), reuse=False), why, 4, 8)
        bench.compare(BIG, "message", *both((3000, 1200), LARGE), why, 3, 4)


def _over_tls(bench: Bench, lab: Lab) -> None:
    with ExitStack() as stack:
        sink = stack.enter_context(tls_sink(lab))
        ours = stack.enter_context(
            relay(lab, "tls-relay", sink, f'next-hop-server = "{MAILBOX}"\nsend-connector = "{INBOUND}"\n')
        )
        certificate = lab.certificates[MAILBOX].certificate.x509
        assert certificate is not None
        peer, why = _postfix(
            stack,
            bench.folder / "postfix-tls",
            lab,
            {
                "relayhost": _to(sink),
                "smtp_tls_security_level": "fingerprint",
                "smtp_tls_fingerprint_digest": "sha256",
                "smtp_tls_fingerprint_cert_match": certificate.fingerprint(hashes.SHA256()).hex(":"),
                "smtp_tls_chain_files": bench.folder / "postfix-tls" / "smtp.pem",
                "smtp_tls_connection_reuse": "yes",
            },
        )

        def both(numbers: tuple[int, int], *options: str) -> tuple[Measure, Measure | None]:
            return _both(
                sink,
                ours,
                peer,
                numbers,
                lambda server: bench.client(
                    server.ports["smtp"],
                    lab,
                    "X-ANONYMOUSTLS" if server is ours else "STARTTLS",
                    "messages",
                    *options,
                ),
            )

        bench.compare(
            TLS_NEW,
            "message",
            *both((2000, 800), "--reconnect"),
            why,
            2.5,
            3.5,
            "48 clients; ours X-ANONYMOUSTLS in and out, direct trust on both sides, session out reused; Postfix STARTTLS"
            " in (smtpd_tls_ask_ccert) and out at level fingerprint with a certificate of its own,"
            " smtp_tls_connection_reuse; P-256 everywhere.  The sink is ours for both, without protocol log.",
        )
        bench.compare(TLS_REUSED, "message", *both((5000, 1200)), why, 2.5, 3.5)


def _slow_disk(bench: Bench, lab: Lab) -> None:
    with ExitStack() as stack:
        try:
            sink = stack.enter_context(smtp_sink(bench.folder))
            library, counter = slow_sync(bench.folder)
        except Missing as e:
            bench.notes.append(f"{SLOW}: not measured: {e}")
            return
        environment = {"LD_PRELOAD": str(library)}
        ours = stack.enter_context(relay(lab, "slow-relay", sink, environment=environment))
        settings = {"relayhost": _to(sink), "import_environment": f"{ENVIRONMENT} LD_PRELOAD={library}"}
        peer, why = _postfix(stack, bench.folder / "postfix-slow", lab, settings)
        syncs: dict[bool, int] = {}  # of the last run: of ours, of Postfix

        def counted(run: Measure, is_ours: bool) -> Measure:
            def measure() -> Run:
                before = _count(counter)
                found = run()
                syncs[is_ours] = _count(counter) - before
                if not syncs[is_ours]:
                    raise RuntimeError(f"{library} is not in {'ours' if is_ours else 'Postfix'}: no sync was slower")
                return found

            return measure

        mine, its = _both(sink, ours, peer, (6000, 2000), source)
        bench.compare(
            SLOW,
            "message",
            counted(mine, True),
            counted(its, False) if its is not None else None,
            why,
            note="an LD_PRELOAD library (bench/slow_sync.c) sleeps after fsync and fdatasync, in all processes of both.",
        )
        said = [f"{syncs[who]:,} of {name}" for who, name in ((True, "ours"), (False, "Postfix")) if who in syncs]
        bench.notes.append(f"{SLOW}: syncs in the last run, with those of its warm-up: {', '.join(said)}.")


# --- what takes part --------------------------------------------------------------------------------------------------


@contextmanager
def relay(
    lab: Lab, name: str, sink: Sink, delivery: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Our server with every feature on; ``delivery`` are more lines about the next hop, which is the sink."""
    with peers.anontls(
        lab,
        name,
        delivery=f'next-hop = "127.0.0.1:{sink.running.ports["smtp"]}"\n{delivery}',
        tables=f'\n[queue]\ndatabase = "{name}.sqlite"\n\n[metrics]\nlisten = "127.0.0.1:{peers.free_ports(1)[0]}"\n',
        protocol_log=True,
        environment=environment,
    ) as running:
        yield running


def _postfix(stack: ExitStack, folder: Path, lab: Lab, settings: Mapping[str, object]) -> tuple[Running | None, str]:
    """Postfix, or why it is not there."""
    try:
        peer = stack.enter_context(postfix(folder, {"smtp": lab.certificates[EDGE]}, settings))
    except Missing as e:
        return None, str(e)
    return peer, f"Postfix {version()}"


def _both(
    sink: Sink, ours: Running, peer: Running | None, numbers: tuple[int, int], load: Callable[[Running], Load]
) -> tuple[Measure, Measure | None]:
    """The measurements of both through the same sink; ``numbers`` are their messages."""

    def of(server: Running, number: int) -> Measure:
        given = load(server)
        return lambda: measured(server, given, number, sink)

    return of(ours, numbers[0]), of(peer, numbers[1]) if peer is not None else None


def source(server: Running, size: int = SIZE, *, reuse: bool = True) -> Load:
    """smtp-source with 50 connections at a time."""
    return compare.source(server.ports["smtp"], connections=SOURCES, size=size, reuse=reuse)


@contextmanager
def smtp_sink(folder: Path) -> Iterator[Sink]:
    """Postfix's own, which shows its counters."""
    port = peers.free_ports(1)[0]
    log = folder / f"smtp-sink-{port}.log"
    user = ["-u", "postfix"] if os.geteuid() == 0 else []
    with peers.process([tool("smtp-sink"), "-4", "-c", *user, f"127.0.0.1:{port}", "1024"], port, log) as running:
        yield Sink(running, log)


@contextmanager
def tls_sink(lab: Lab) -> Iterator[Sink]:
    """A node of ours as MBX1, which counts messages and forgets them."""
    with peers.anontls(lab, "sink", server=MAILBOX, program=[*peers.FORGETFUL, "--count"]) as running:
        yield Sink(running, lab.folder / "sink.log")


def _to(sink: Sink) -> str:
    return f"[127.0.0.1]:{sink.running.ports['smtp']}"


def slow_sync(folder: Path) -> tuple[Path, Path]:
    """The library that makes each sync 5 ms slower, compiled here, and the file in which it counts them."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("there is no C compiler for what adds the latency")
    library, counter = folder / "slow_sync.so", folder / "syncs"
    counter.write_bytes(bytes(8))
    counter.chmod(0o666)  # Postfix's processes run as another user
    options = ["-shared", "-fPIC", "-O2", f'-DCOUNTER="{counter}"', "-o", str(library)]
    command = [compiler, *options, str(peers.HERE / "slow_sync.c"), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"the C compiler fails: {done.stderr.strip()[-300:]}")
    return library, counter


def _count(counter: Path) -> int:
    return int(struct.unpack("=Q", counter.read_bytes())[0])


if __name__ == "__main__":
    compare.alone(measure)
