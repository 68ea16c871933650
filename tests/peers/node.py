"""A server of ours as a process: ``anontls serve`` on a free port, with a certificate of its own for each verb."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.certstore.new import new_internal_certificate
from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import EDGE, MAILBOX, Lab, write_lab
from tests.peers.program import Program

ANONTLS = Path(sys.executable).with_name("anontls")
RECIPIENT = "anna@contoso.com"
SENDER = "ben@fabrikam.com"


class Node(NamedTuple):
    """A running node, and what a peer should see of it."""

    port: int
    lab: Lab
    name: str
    certificates: dict[str, OwnCertificate]  #: the one behind each verb
    program: Program

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def fqdn(self) -> str:
        return f"{self.name.lower()}.contoso.com"

    def pem(self, verb: str) -> str:
        """The certificate that the store holds for ``verb``."""
        return ssl.DER_cert_to_PEM_cert(self.certificates[verb].der)

    def file(self, verb: str) -> Path:
        """The same as a file, for a peer that is to trust it."""
        path = self.lab.folder / f"trusted-{verb.lower()}.pem"
        path.write_text(self.pem(verb))
        return path

    def messages(self, recipient: str = RECIPIENT) -> list[bytes]:
        """What lies in a mailbox."""
        return [path.read_bytes() for path in sorted((self.lab.folder / "mail" / recipient / "new").glob("*"))]

    def protocol_log(self, kind: str = "Receive") -> str:
        """All of it; complete only when the node has stopped."""
        return "".join(
            path.read_text() for path in sorted(self.lab.folder.glob(f"{self.name.lower()}-log/Smtp{kind}/*"))
        )


@contextmanager
def edge(folder: Path, *, next_hop: int | None = None) -> Iterator[Node]:
    """The Edge server of the lab: takes mail for contoso.com, to a Maildir or on to a mail server on ``next_hop``.

    STARTTLS and X-ANONYMOUSTLS show different certificates, so what a peer reports tells which of the two it got.
    """
    hop = 'maildir = "mail"\ncreate-mailboxes = true' if next_hop is None else f'next-hop = "127.0.0.1:{next_hop}"'
    with _node(folder, EDGE, hop) as node:
        yield node


@contextmanager
def mailbox(folder: Path) -> Iterator[Node]:
    """The Mailbox server of the lab; takes mail from the Edge server only."""
    with _node(folder, MAILBOX, 'maildir = "mail"\ncreate-mailboxes = true') as node:
        yield node


@contextmanager
def _node(folder: Path, name: str, delivery: str) -> Iterator[Node]:
    now = datetime.now(UTC)
    lab = write_lab(folder, now - timedelta(days=1), {MAILBOX: 0, EDGE: 0})
    config = lab.configs[name]
    before, _, after = config.read_text().partition("[delivery]\n")
    config.write_text(f"{before}[delivery]\n{delivery}\n\n[log]\n{after.partition('[log]')[2].lstrip()}")
    # Of the certificates with the connector's name STARTTLS takes the newest; X-ANONYMOUSTLS the directory's.
    newer = new_internal_certificate("mail", f"{name.lower()}.contoso.com", now=now - timedelta(hours=1))
    write.add(lab.stores[name], newer.certificate, newer.key)
    write.bind(lab.stores[name], newer.thumbprint, Binding(services=("SMTP",)))
    certificates = {"STARTTLS": newer, "X-ANONYMOUSTLS": lab.certificates[name]}
    with Program([ANONTLS, "serve", config]) as program:
        port = int(program.expect(r"listens on 127\.0\.0\.1:(\d+)$")[1])
        yield Node(port, lab, name, certificates, program)
        status = program.stop()
        assert (status, "Traceback" in program.printed) == (0, False), program.printed


def expiry(own: OwnCertificate) -> datetime:
    """The end of its validity."""
    return x509.load_der_x509_certificate(own.der).not_valid_after_utc
