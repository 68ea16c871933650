"""Postfix sends to us, and we send to Postfix; what arrives at the far end is what was handed in."""

from __future__ import annotations

import hashlib
import smtplib
import socket
from pathlib import Path

from tests.peers.conftest import Peer
from tests.peers.node import RECIPIENT, SENDER, edge
from tests.peers.postfix import postfix
from tests.peers.program import run
from tests.peers.sink import Received, sink

HEAD = "From: Ben <ben@fabrikam.com>\r\nTo: Anna <anna@contoso.com>\r\nDate: Tue, 3 Mar 2026 10:00:00 +0100\r\n"
DOTS = "Subject: dots\r\nMessage-ID: <dots@fabrikam.com>\r\n\r\n.\r\n..\r\n.dot\r\n\r\nFrom here\r\n \t \r\n.\r\n"
EIGHT_BIT = (
    "Subject: Umlaute\r\nMessage-ID: <eight@fabrikam.com>\r\nMIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße, Ünïcödé, 😀\r\n"
)
LONG = "Subject: long\r\nMessage-ID: <long@fabrikam.com>\r\n\r\n" + ("0123456789" * 99 + "\r\n") * 300
MESSAGES = [(HEAD + text).encode() for text in (DOTS, EIGHT_BIT, LONG)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def unchanged(got: Received, sent: bytes) -> str:
    """The header fields that the hops put in front; everything behind them must be the message as it was."""
    assert got.content.endswith(sent), got.content[:2000]
    return got.content.removesuffix(sent).decode()


def test_postfix_sends_to_us(peer: Peer, tmp_path: Path) -> None:
    """Postfix, STARTTLS with our certificate and no other, to us; and on to a server that writes everything down."""
    program, sendmail = peer("postfix", root=True), peer("sendmail")
    with sink() as end, edge(tmp_path / "lab", next_hop=end.port) as node:
        fingerprint = hashlib.sha256(node.certificates["STARTTLS"].der).hexdigest().upper()
        fingerprint = ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2))
        with postfix(program, free_port(), node.port, fingerprint=fingerprint) as sender:
            options = [
                "-i",
                "-C",
                sender.configuration,
                "-f",
                SENDER,
                "-N",
                "success,delay",
                "-R",
                "hdrs",
                "-V",
                "QQ+2B7",
            ]
            for message in MESSAGES:
                status, printed = run(
                    sendmail, *options, RECIPIENT, "eva@contoso.com", stdin=message.replace(b"\r", b"")
                )
                assert status == 0, printed
            got = end.wait(len(MESSAGES))
            established = sender.wait_for("TLS connection established to 127.0.0.1")
            assert "Verified" in established and "TLSv1.3" in established
            assert "status=sent (250 2.0.0 Ok: kept" in sender.wait_for("to=<anna@contoso.com>")
    for message in MESSAGES:
        subject = message.split(b"\r\nSubject: ")[1].split(b"\r\n")[0]
        (arrived,) = (each for each in got if b"\r\nSubject: " + subject + b"\r\n" in each.content)
        trace = unchanged(arrived, message)
        assert trace.startswith("Received: from postfix.test ([127.0.0.1]) by edge1.contoso.com\r\n with ESMTPS (")
        assert trace.count("Received: ") == 2
        assert arrived.sender.startswith("<ben@fabrikam.com>")
        assert {word.partition(">")[0] for word in arrived.recipients} == {"<anna@contoso.com", "<eva@contoso.com"}
        assert arrived.parameters == {
            "RET=HDRS",
            "ENVID=QQ+2B2B7",  # xtext of what sendmail was given
            "NOTIFY=SUCCESS,DELAY",
            "ORCPT=rfc822;anna@contoso.com",
            "ORCPT=rfc822;eva@contoso.com",
        }


def test_we_send_to_postfix(peer: Peer, tmp_path: Path) -> None:
    """A client to us; we to Postfix over STARTTLS; and Postfix to a server that writes everything down."""
    program, port = peer("postfix", root=True), free_port()
    with (
        sink() as end,
        postfix(program, port, end.port) as receiver,
        edge(tmp_path / "lab", next_hop=port) as node,
        smtplib.SMTP("127.0.0.1", node.port, local_hostname="client.test", timeout=30) as client,
    ):
        for message in MESSAGES:
            client.sendmail(
                SENDER,
                [RECIPIENT],
                message,
                mail_options=["BODY=8BITMIME", "RET=FULL", "ENVID=id+3D42"],
                rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;Anna+2BX@contoso.com"],
            )
        client.sendmail("jürgen@fabrikam.com", ["ännä@contoso.com"], MESSAGES[0], mail_options=["SMTPUTF8"])
        got = end.wait(len(MESSAGES) + 1)
        established = receiver.wait_for("TLS connection established from")
        assert "Anonymous" in established and "TLSv1.3" in established
    for message, arrived in zip([*MESSAGES, MESSAGES[0]], sorted(got, key=order), strict=True):
        trace = unchanged(arrived, message)
        assert "by postfix.test (Postfix) with " in trace and "(using TLSv1.3 with cipher" in trace
        assert "Received: from client.test ([127.0.0.1]) by edge1.contoso.com\r\n with ESMTP id " in trace
    *plain, international = sorted(got, key=order)
    for arrived in plain:
        assert arrived.parameters == {
            "RET=FULL",
            "ENVID=id+3D42",
            "NOTIFY=SUCCESS,FAILURE",
            "ORCPT=rfc822;Anna+2BX@contoso.com",
        }
    assert international.sender.startswith("<jürgen@fabrikam.com>") and "SMTPUTF8" in international.parameters
    assert international.recipients[0].startswith("<ännä@contoso.com>")


def order(message: Received) -> tuple[bool, int]:
    """As they were sent: a server with a queue may change the order."""
    return "SMTPUTF8" in message.sender, next(i for i, text in enumerate(MESSAGES) if message.content.endswith(text))


def test_a_certificate_that_postfix_does_not_know_gets_no_mail(peer: Peer, tmp_path: Path) -> None:
    """The level "fingerprint" means something: the first test could fail."""
    program, sendmail = peer("postfix", root=True), peer("sendmail")
    with (
        edge(tmp_path / "lab") as node,
        postfix(program, free_port(), node.port, fingerprint="00:" * 31 + "00") as sender,
    ):
        status, printed = run(sendmail, "-C", sender.configuration, "-f", SENDER, RECIPIENT, stdin=MESSAGES[0])
        assert status == 0, printed
        assert "Server certificate not verified" in sender.wait_for("status=deferred")
        assert node.messages() == []
