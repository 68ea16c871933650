"""Postfix' own load generator: many sessions at a time, and every message arrives once."""

from __future__ import annotations

import re

from tests.peers.conftest import Peer
from tests.peers.node import Node
from tests.peers.program import run

SESSIONS, MESSAGES, SIZE = 50, 5000, 4096
RECIPIENT = "load@contoso.com"
ID = re.compile(rb"^Message-Id: (<[^>]+>)\r$", re.MULTILINE)


def test_smtp_source(peer: Peer, node: Node) -> None:
    options = f"-s {SESSIONS} -m {MESSAGES} -l {SIZE} -d -M source.test -f ben@fabrikam.com -t {RECIPIENT}"
    status, printed = run(peer("smtp-source"), *options.split(), node.address, timeout=120)
    assert (status, printed) == (0, "")
    messages = node.messages(RECIPIENT)
    assert len(messages) == MESSAGES
    assert len({ID.findall(message)[0] for message in messages}) == MESSAGES, "none twice"
    bodies = {message.partition(b"\r\n\r\n")[2] for message in messages}
    assert len(bodies) == 1 and SIZE <= len(bodies.pop()) <= SIZE + 2, "whole, and all alike"
