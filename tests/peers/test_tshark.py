"""What somebody who listens on the wire sees of a delivery over X-ANONYMOUSTLS."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.peers.conftest import Peer, absent
from tests.peers.node import ANONTLS, RECIPIENT, SENDER, mailbox
from tests.peers.program import Program, run

SECRET = "the-quick-brown-fox-jumps-over-the-lazy-dog"
MESSAGE = f"From: Ben <{SENDER}>\nTo: Anna <{RECIPIENT}>\nSubject: {SECRET}\n\n{SECRET}\n"


def test_a_delivery_seen_from_outside(peer: Peer, tmp_path: Path) -> None:
    tshark, dumpcap, capture = peer("tshark"), peer("dumpcap", root=True), tmp_path / "session.pcapng"
    with mailbox(tmp_path / "lab") as node:
        command = [dumpcap, "-q", "-i", "lo", "-f", f"tcp port {node.port}", "-w", capture]
        with Program(command) as recorder:
            started = recorder.expect(r"^File: |permission|[Nn]ot permitted|no interfaces|no such device")[0]
            if started != "File: ":
                absent(f"dumpcap may not capture on lo: {recorder.printed}")
            (tmp_path / "message.eml").write_text(MESSAGE)
            command = [ANONTLS, "send", "--config", node.lab.configs["EDGE1"], "--to", node.address, "--server", "MBX1"]
            command += ["--sender", SENDER, "--recipient", RECIPIENT, tmp_path / "message.eml"]
            status, printed = run(*command)
            assert status == 0, printed
            time.sleep(1)  # the last packets are on their way to the file
            assert recorder.stop(signal.SIGINT) == 0
    (delivered,) = node.messages()
    assert delivered.replace(b"\r\n", b"\n").endswith(MESSAGE.encode())

    def decode(protocol: str, *fields: str) -> list[list[str]]:
        command = f"{tshark} -n -r {capture} -d tcp.port=={node.port},{protocol} -Y {protocol} -T fields -E separator=|"
        status, printed = run(
            *command.split(), *(word for field in ("frame.number", *fields) for word in ("-e", field))
        )
        assert status == 0, printed
        return [line.split("|") for line in printed.splitlines() if "|" in line]

    # The first pass takes the port for SMTP.  Wireshark does not know the verb and goes on reading TLS as SMTP.
    clear = decode("smtp", "smtp.req.command", "smtp.response.code", "tcp.payload")
    texts = [bytes.fromhex(row[3]) for row in clear]
    verb = texts.index(b"X-ANONYMOUSTLS\r\n")
    assert [row[1] or row[2] for row in clear[:verb]] == ["220", "EHLO", "250"]
    assert clear[verb + 1][2] == "220" and texts[verb + 1] == b"220 2.0.0 SMTP server ready\r\n"
    assert b"250-X-ANONYMOUSTLS\r\n" in texts[verb - 1]

    # The second pass takes it for TLS, which begins with the next packet, and nothing else follows.
    tls = decode("tls", "tls.handshake.type", "tls.record.content_type", "tls.handshake.extensions.supported_version")
    assert int(tls[0][0]) == int(clear[verb + 1][0]) + 1
    client_hello, server_hello = tls[:2]
    assert client_hello[1] == "1" and server_hello[1].split(",")[0] == "2"
    assert server_hello[3] == "0x0304"  # TLS 1.3: what follows is application data, or says that keys change
    assert {kind for row in tls[1:] for kind in row[2].split(",") if kind} <= {"22", "20", "23"}
    assert len(tls) > 4

    recorded = capture.read_bytes()
    assert b"X-ANONYMOUSTLS" in recorded and b"EHLO edge1.contoso.com" in recorded  # what is in clear would be found
    assert [text for text in (SECRET, SENDER, RECIPIENT, "MAIL FROM", "BDAT") if text.encode() in recorded] == []
