"""Sessions and messages received, ours beside Postfix and aiosmtpd: the same load, the runs of both interleaved.

``python -m bench.sessions [ROW ...]`` runs these rows alone and prints them.
"""

from __future__ import annotations

import contextlib

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
            " selections and direct trust, without protocol log; Postfix STARTTLS, smtpd_tls_ask_ccert=yes, no"
            " tickets, no log daemon.",
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
            note="each side signs with RSA once a session, which is most of its time.",
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


if __name__ == "__main__":
    compare.alone(measure)
