"""Sessions and messages received, ours beside Postfix, aiosmtpd and a sink in C: the same load, runs interleaved.

``python -m bench.sessions [ROW ...]`` runs these rows alone and prints them.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import EDGE
from bench import compare, peers
from bench.compare import Bench, Measure, measured
from bench.peers import Missing, Running
from bench.postfix import postfix, version


def measure(bench: Bench) -> None:
    """Start everything, measure everything, stop everything."""
    with contextlib.ExitStack() as stack:
        labs = {kind: peers.write_lab(bench.folder / kind, kind) for kind in ("ec", "rsa")}
        certificates = {kind: lab.certificates[EDGE] for kind, lab in labs.items()}
        why = {"postfix": f"Postfix {version()}", "aiosmtpd": "aiosmtpd 1.4.6 on uvloop"}
        peer = aiosmtpd = None
        try:
            peer = stack.enter_context(
                postfix(bench.folder / "postfix", certificates, {"default_transport": "discard"})
            )
        except Missing as e:
            why["postfix"] = str(e)
        sink = None
        try:
            sink, why["sink"] = stack.enter_context(tls_sink(bench.folder, certificates["ec"]))
        except Missing as e:
            why["sink"] = str(e)
        try:
            aiosmtpd = stack.enter_context(peers.aiosmtpd(bench.folder))
        except Missing as e:
            why["aiosmtpd"] = str(e)
        nodes = {kind: stack.enter_context(peers.anontls(lab, "node")) for kind, lab in labs.items()}
        logging = stack.enter_context(peers.anontls(labs["ec"], "logging", protocol_log=True))
        forgetful = stack.enter_context(peers.anontls(labs["ec"], "forgetful", program=peers.FORGETFUL))

        def of_postfix(kind: str, what: str, number: int) -> Measure | None:
            if peer is None:
                return None
            load = bench.client(peer.ports[kind], labs[kind], "STARTTLS", what)
            return lambda: measured(peer, load, number)

        def of_node(node: Running, kind: str, what: str, number: int) -> Measure:
            load = bench.client(node.ports["smtp"], labs[kind], "X-ANONYMOUSTLS", what)
            return lambda: measured(node, load, number)

        def of_sink(number: int) -> Measure:
            assert sink is not None
            server, load = sink, bench.client(sink.ports["smtp"], labs["ec"], "STARTTLS", "sessions")
            return lambda: measured(server, load, number)

        def plain(server: Running, number: int, port: str = "smtp") -> Measure:
            load = compare.source(server.ports[port])
            return lambda: measured(server, load, number)

        bench.compare(
            "complete TLS sessions, P-256 certificates on both sides",
            "session",
            of_node(nodes["ec"], "ec", "sessions", 6000),
            of_postfix("ec", "sessions", 3000),
            why["postfix"],
            1.3,
            1.5,
            "EHLO, verb, mutual TLS 1.3 handshake (X25519), EHLO, QUIT; 48 at a time; ours X-ANONYMOUSTLS with two"
            " selections and direct trust, without protocol log; Postfix STARTTLS, smtpd_tls_ask_ccert=yes, no log"
            " daemon.  No tickets on either side, here and in all rows.",
        )
        bench.compare(
            "complete TLS sessions beside a C sink on OpenSSL, P-256",
            "session",
            of_node(nodes["ec"], "ec", "sessions", 6000),
            of_sink(6000) if sink is not None else None,
            why["sink"],
            0.85,
            1.0,
            "the same sessions; the sink (bench/tls_sink.c) is one thread that answers STARTTLS, takes any certificate,"
            " sends no tickets, decides and records nothing, on the OpenSSL of the system: a bound, not a mail server.",
        )
        bench.compare(
            "the same with the protocol log",
            "session",
            of_node(logging, "ec", "sessions", 6000),
            of_postfix("ec", "sessions", 3000),
            why["postfix"],
        )
        bench.compare(
            "complete TLS sessions, RSA-2048 certificates on both sides",
            "session",
            of_node(nodes["rsa"], "rsa", "sessions", 2500),
            of_postfix("rsa", "sessions", 2000),
            why["postfix"],
            note="each side signs with RSA once a session.",
        )
        bench.compare(
            "4 KiB messages received over reused TLS sessions, durable",
            "message",
            of_node(nodes["ec"], "ec", "messages", 8000),
            of_postfix("ec", "messages", 3000),
            why["postfix"],
            note="ours: into a Maildir, file and folder fsynced before 250; Postfix: queue file fsynced before 250,"
            " then its queue manager hands it to discard, which is part of its time.",
        )
        if peer is None:
            bench.notes.append("messages received in clear are not measured: they need Postfix's smtp-source")
            return
        bench.compare(
            "4 KiB messages received in clear, durable",
            "message",
            plain(nodes["ec"], 8000),
            plain(peer, 3000, "ec"),
            why["postfix"],
            note="smtp-source, 48 reused connections; durable as above on both sides.",
        )
        bench.compare(
            "4 KiB messages received in clear, not stored",
            "message",
            plain(forgetful, 20000),
            plain(aiosmtpd, 8000) if aiosmtpd is not None else None,
            why["aiosmtpd"],
            note="smtp-source, 48 reused connections; nothing is stored or synced on either side: ours with a"
            " delivery that drops, aiosmtpd's controller on uvloop with a handler that does nothing.",
        )


@contextlib.contextmanager
def tls_sink(folder: Path, own: OwnCertificate) -> Iterator[tuple[Running, str]]:
    """``bench/tls_sink.c``, compiled here, showing ``own``; and what it is, with the OpenSSL that it runs on."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("there is no C compiler for the sink")
    program, pem, log = folder / "tls_sink", folder / "tls_sink.pem", folder / "tls_sink.log"
    command = [compiler, "-O2", "-o", str(program), str(peers.HERE / "tls_sink.c"), "-lssl", "-lcrypto"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"the sink does not compile (it needs OpenSSL's headers): {done.stderr.strip()[:300]}")
    assert own.certificate.x509 is not None
    pem.touch(mode=0o600)
    pem.write_bytes(
        own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + own.certificate.x509.public_bytes(Encoding.PEM)
    )
    port = peers.free_ports(1)[0]
    with peers.process([str(program), str(port), str(pem)], port, log) as running:
        yield running, f"a C sink on {log.read_text().strip()}"


if __name__ == "__main__":
    compare.alone(measure)
