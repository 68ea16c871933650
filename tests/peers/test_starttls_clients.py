"""Clients that know only STARTTLS: directly, and through the relay that makes X-ANONYMOUSTLS of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.conftest import Peer
from tests.peers.node import SENDER, Node
from tests.peers.program import Program, run
from tests.peers.relay import relay

VERBS = ("STARTTLS", "X-ANONYMOUSTLS")
PEM = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> str:
    """What the server hears."""
    return str(request.param)


@pytest.fixture
def port(node: Node, verb: str) -> Iterator[int]:
    """Where the client connects to."""
    if verb == "STARTTLS":
        yield node.port
        return
    with relay(node.address) as between:
        yield between


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
def test_openssl_s_client(peer: Peer, node: Node, verb: str, port: int, version: str) -> None:
    command = (
        f"{peer('openssl')} s_client -starttls smtp -name o.test -connect 127.0.0.1:{port} -{version} -crlf".split()
    )
    command += f"-CAfile {node.file(verb)} -verify_hostname {node.fqdn} -verify_return_error".split()
    with Program(command, newline=b"\n") as client:
        client.expect(r"Verify return code: 0 \(ok\)")
        client.expect(r"^250 SMTPUTF8\r?$")  # the last line of the EHLO in clear
        client.say("EHLO o.test")
        hello = client.expect(r"(?s)^250-edge1\.contoso\.com Hello.*?^250 \S+\r$")[0]
        client.say("quit")  # a line that begins with a capital Q would be an order to the client
        client.expect("^221 ")
        client.ended()
    assert [word for word in VERBS if word in hello] == []
    assert PEM.findall(client.printed) == [node.pem(verb)]


def test_swaks_delivers(peer: Peer, node: Node, verb: str, port: int, tmp_path: Path) -> None:
    recipient, saved = f"swaks-{verb.lower()}@contoso.com", tmp_path / "peer.pem"
    message = f"From: Ben <{SENDER}>\nSubject: swaks\n\n.\n.. dots\nover {verb}"
    command = (
        f"{peer('swaks')} --server 127.0.0.1 --port {port} --helo swaks.test --from {SENDER} --to {recipient}".split()
    )
    status, printed = run(*command, "--tls", "--tls-get-peer-cert", saved, "--data", message)
    assert status == 0, printed
    assert "TLS started" in printed and "<~  250 2.6.0" in printed
    assert saved.read_text() == node.pem(verb)
    (delivered,) = node.messages(recipient)
    head, start, content = delivered.partition(b"From: Ben")
    assert (start + content).replace(b"\r\n", b"\n").rstrip() == message.encode()
    assert head.startswith(b"Return-Path: <ben@fabrikam.com>\r\nReceived: from swaks.test ([127.0.0.1])")


def test_posttls_finger(peer: Peer, node: Node, verb: str, port: int, tmp_path: Path) -> None:
    """At level "fingerprint" Postfix trusts a peer as direct trust does: by the bytes of its certificate."""
    (tmp_path / "main.cf").write_text("compatibility_level = 3.6\ninet_protocols = ipv4\n")
    env = {"MAIL_CONFIG": str(tmp_path)}
    program, to = peer("posttls-finger"), f"[127.0.0.1]:{port}"
    seen = {}
    for each in VERBS:
        digest = hashlib.sha256(node.certificates[each].der).hexdigest().upper()
        digest = ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
        status, seen[each] = run(program, "-C", "-l", "fingerprint", "-d", "sha256", to, digest, env=env)
        assert status == 0, seen[each]
        assert PEM.findall(seen[each]) == [node.pem(verb)]
        assert ("Verified TLS connection established" in seen[each]) == (each == verb)
    assert "> EHLO" in seen[verb] and "> STARTTLS" in seen[verb]
