"""Clients that can send any command before TLS begins do X-ANONYMOUSTLS as it is."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import urllib.request
from pathlib import Path

import pytest

from anontls.certstore import write
from anontls.transport.lab import EDGE
from tests.peers.conftest import Peer
from tests.peers.node import Node, edge, expiry
from tests.peers.program import Program

NOBODY = 9  # a port where nobody listens; nothing is sent there
VERBS = ("STARTTLS", "X-ANONYMOUSTLS")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", ["TLS1.2", "TLS1.3"])
def test_gnutls_cli_starts_tls_on_an_alarm(peer: Peer, node: Node, tmp_path: Path, verb: str, version: str) -> None:
    saved = tmp_path / "saved.pem"
    command = [peer("gnutls-cli"), "--starttls", "--x509cafile", node.file(verb), "--verify-hostname", node.fqdn]
    command += ["--priority", f"NORMAL:-VERS-ALL:+VERS-{version}", "--save-cert", saved, "--port", str(node.port)]
    with Program([*command, "127.0.0.1"]) as client:
        client.expect("^220 .*Microsoft ESMTP MAIL Service ready")
        client.say("EHLO gnutls.test")
        client.expect("^250-X-ANONYMOUSTLS\r$")
        client.expect("^250 ")
        client.say(verb)
        client.expect("^220 2.0.0 SMTP server ready\r$")
        client.signal(signal.SIGALRM)
        client.expect(r"Status: The certificate is trusted\.")
        client.expect(rf"Description: \({re.escape(version)}")
        client.expect("^- Options:")
        client.say("EHLO gnutls.test")
        hello = client.expect(r"(?s)^250-edge1\.contoso\.com Hello \[127\.0\.0\.1\]\r\n.*?^250 \S+\r$")[0]
        assert "8BITMIME" in hello
        assert [word for word in VERBS if word in hello] == [], "neither verb after TLS"
        client.say("QUIT")
        client.expect("^221 2.0.0 ")
        assert client.ended() == 0
    assert saved.read_text() == node.pem(verb)


def test_gnutls_cli_starts_tls_at_the_end_of_its_input(peer: Peer, node: Node, tmp_path: Path) -> None:
    saved = tmp_path / "saved.pem"
    command = [peer("gnutls-cli"), "--starttls", "--insecure", "--save-cert", saved, "--port", str(node.port)]
    with Program([*command, "127.0.0.1"]) as client:
        client.say("EHLO gnutls.test")
        client.expect("^250-X-ANONYMOUSTLS\r$")
        client.say("x-anonymoustls")  # in any case
        client.expect("^220 2.0.0 SMTP server ready\r$")
        client.say_no_more()
        client.expect("^- Options:")
        client.ended()
    assert saved.read_text() == node.pem("X-ANONYMOUSTLS")


def test_gnutls_cli_shows_a_certificate_of_its_own(peer: Peer, tmp_path: Path) -> None:
    """The receiver asks for any certificate; the one that the directory holds for the name in EHLO gives rights."""
    with edge(tmp_path / "lab", next_hop=NOBODY) as node:  # a node with mailboxes alone relays for nobody
        own = node.lab.certificates[EDGE]
        write.prepare(tmp_path / "store")
        write.add(tmp_path / "store", own.certificate, own.key)
        (certificate,) = (p for p in (tmp_path / "store").iterdir() if b"BEGIN CERTIFICATE" in p.read_bytes())
        (key,) = (p for p in (tmp_path / "store").iterdir() if b"PRIVATE KEY" in p.read_bytes())
        command = [peer("gnutls-cli"), "--starttls", "--insecure", "--x509certfile", certificate, "--x509keyfile", key]
        for name, allowed in ((node.fqdn, True), ("mbx1.contoso.com", False)):
            with Program([*command, "--port", str(node.port), "127.0.0.1"]) as client:
                client.say(f"EHLO {name}")
                client.expect("^250 ")
                client.say("X-ANONYMOUSTLS")
                client.expect("^220 2")
                client.signal(signal.SIGALRM)
                client.expect("^- Options:")
                for line, answer in (
                    (f"EHLO {name}", "^250 "),
                    ("MAIL FROM:<ben@fabrikam.com>", "^250 2"),
                    ("RCPT TO:<eva@elsewhere.test>", "^250 2" if allowed else "^550 5.7.54"),  # no relay for others
                    ("QUIT", "^221 "),
                ):
                    client.say(line)
                    client.expect(answer)
                assert client.ended() == 0


MODULE = {
    "prober": "tcp",
    "timeout": "10s",
    "tcp": {
        "preferred_ip_protocol": "ip4",
        "query_response": [
            {"expect": "^220 .*ESMTP"},
            {"send": "EHLO prober.test\r"},
            {"expect": "^250-X-ANONYMOUSTLS\r?$"},
            {"expect": "^250 "},
            {"send": "X-ANONYMOUSTLS\r"},
            {"expect": "^220"},
            {"starttls": True},
            {"send": "EHLO prober.test\r"},
            {"expect": "^250 "},
            {"send": "QUIT\r"},
            {"expect": "^221 "},
        ],
    },
}


@pytest.mark.parametrize("verb", VERBS)
def test_blackbox_exporter(peer: Peer, node: Node, tmp_path: Path, verb: str) -> None:
    """Prometheus' prober watches X-ANONYMOUSTLS and the certificate behind it, trusting that one only."""
    text = json.dumps(MODULE).replace("X-ANONYMOUSTLS", verb)  # JSON is YAML
    module = json.loads(text)
    module["tcp"]["tls_config"] = {"ca_file": str(node.file(verb)), "server_name": node.fqdn}
    config = tmp_path / "blackbox.yml"
    config.write_text(json.dumps({"modules": {"right": module, "wrong": other(module, node, verb)}}))
    command = [peer("prometheus-blackbox-exporter"), f"--config.file={config}", "--web.listen-address=127.0.0.1:0"]
    with Program(command) as exporter:
        port = int(exporter.expect(r"Listening on.*address=127\.0\.0\.1:(\d+)")[1])
        metrics = probe(port, node, "right")
        assert metrics["probe_success"] == "1", metrics
        own = node.certificates[verb]
        fingerprint = hashlib.sha256(own.der).hexdigest()
        info = next(name for name in metrics if name.startswith("probe_ssl_last_chain_info"))
        assert fingerprint in info
        for metric in ("probe_ssl_last_chain_expiry_timestamp_seconds", "probe_ssl_earliest_cert_expiry"):
            assert float(metrics[metric]) == expiry(own).timestamp()
        assert metrics['probe_tls_version_info{version="TLS 1.3"}'] == "1"
        assert probe(port, node, "wrong")["probe_success"] == "0", "it can fail"
        exporter.stop()


def other(module: dict[str, object], node: Node, verb: str) -> dict[str, object]:
    """The same module, trusting the certificate behind the other verb."""
    changed: dict[str, dict[str, object]] = json.loads(json.dumps(module))
    (untrusted,) = set(VERBS) - {verb}
    changed["tcp"]["tls_config"] = {"ca_file": str(node.file(untrusted)), "server_name": node.fqdn}
    return {**changed}


def probe(port: int, node: Node, module: str) -> dict[str, str]:
    url = f"http://127.0.0.1:{port}/probe?target={node.address}&module={module}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if not line.startswith("#")}
