"""The files of the three servers: what cmdlets tell of them, and the configuration of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from anontls.directory import snapshot
from anontls.facts import ABSENT, ATTRIBUTE_ABSENT, Certificate, Queue, ReceiveConnector, Server
from anontls.facts.own_certificate import OwnCertificate
from anontls.transport.lab import DOMAIN, EDGE, INBOUND, lab_organization

MBX1, MBX2 = "MBX1", "MBX2"
NAMES = (MBX1, MBX2, EDGE)
MAILBOX_SERVERS = (MBX1, MBX2)
CONNECTORS = {MBX1: "Default MBX1", MBX2: "Default MBX2", EDGE: "Default internal receive connector EDGE1"}
DELIVERY_TYPE = "SmtpRelayToDag"
QUEUE = r"MBX1\3"
INTERVAL, GRACE, RETRY = 0.5, 5, 1  # seconds: as short as a tour is

CONFIG = """\
# {purpose}
[node]
organization = "org.json"  # connectors and accepted domains; certificates are named by the directory alone
server = "{name}"

[store]
folder = "{file}-certificates"

[directory]
urls = ["{url}"]
bind = "{bind}"
password-file = "{password_file}"
ca = "ca.pem"
interval = {interval}  # short for the tour, as grace and the retries below; the defaults are 60 and 3600
grace = {grace}

[[listen]]
connector = "{connector}"
address = "127.0.0.1:{port}"

[delivery]
{delivery}
timeout = 10

[queue]
database = "{file}-queue.db"
glitch-retry-interval = {retry}
glitch-retry-count = 10000
idle-timeout = 0.5  # so that each message has a session of its own

[metrics]
listen = "127.0.0.1:{metrics_port}"

[log]
events = "{file}-events.jsonl"
protocol = "{file}-log"
"""
OF_A_MAILBOX_SERVER = """
[kerberos]
keytab = "{file}.keytab"
credential-cache = "FILE:{folder}/{file}.ccache"

[rules]
# As written, the procedure denies anonymous TLS between Mailbox servers, so none could talk to another:
# docs/interoperability.md says why it has to be read otherwise.
mailbox-to-mailbox = "verb-without-certificate"
"""


def fqdn(name: str) -> str:
    return f"{name.lower()}.{DOMAIN}"


class Account(NamedTuple):
    """Who reads which directory."""

    url: str
    bind: str
    password_file: str


def organization(certificates: Mapping[str, OwnCertificate]) -> bytes:
    """A snapshot of what Get-ReceiveConnector, Get-ExchangeCertificate and their like tell; of a directory, nothing."""
    made = lab_organization(certificates)
    mailbox, edge = map(_without_directory, made.servers)
    assert isinstance(mailbox.receive_connectors, tuple)
    connector: ReceiveConnector = mailbox.receive_connectors[0]
    certificate = Certificate(
        der=certificates[MBX2].der, services="IMAP, POP, SMTP", status="Valid", has_private_key=True
    )
    second = msgspec.structs.replace(
        mailbox,
        name=MBX2,
        fqdn=fqdn(MBX2),
        certificates=(certificate,),
        receive_connectors=(
            msgspec.structs.replace(connector, identity=rf"{MBX2}\{CONNECTORS[MBX2]}", fqdn=fqdn(MBX2)),
        ),
        queues=(),
    )
    queue = Queue(identity=QUEUE, delivery_type=DELIVERY_TYPE, next_hop_domain="DAG1")
    mailbox = msgspec.structs.replace(mailbox, queues=(queue,))
    return snapshot.dump(msgspec.structs.replace(made, servers=(mailbox, second, edge)))


def _without_directory(server: Server) -> Server:
    return msgspec.structs.replace(
        server,
        internal_tls_cert=ATTRIBUTE_ABSENT,
        internal_tls_cert_adlds=ATTRIBUTE_ABSENT,
        internal_transport_certificate_thumbprint=ABSENT,
    )


def configuration(name: str, folder: Path, account: Account, ports: Mapping[str, int], metrics_port: int) -> str:
    """The file of a node: EDGE1 hands all mail to MBX1, that to MBX2, and that puts it into a Maildir."""
    purpose, delivery = {
        EDGE: (
            "EDGE1 takes mail for contoso.com from anybody, and hands it to MBX1: direct trust.",
            f'next-hop = "127.0.0.1:{ports[MBX1]}"\nnext-hop-server = "MBX1"\nsend-connector = "{INBOUND}"',
        ),
        MBX1: (
            "MBX1 takes mail from Exchange servers, and hands it to MBX2: Kerberos.",
            f'next-hop = "127.0.0.1:{ports[MBX2]}"\nnext-hop-server = "MBX2"\ndelivery-type = "{DELIVERY_TYPE}"',
        ),
        MBX2: (
            "MBX2 takes mail from Exchange servers, and has the mailboxes.",
            'maildir = "mail"\ncreate-mailboxes = true',
        ),
    }[name]
    return CONFIG.format(
        purpose=purpose,
        name=name,
        file=name.lower(),
        url=account.url,
        bind=account.bind,
        password_file=account.password_file,
        interval=INTERVAL,
        grace=GRACE,
        retry=RETRY,
        connector=CONNECTORS[name],
        port=ports[name],
        metrics_port=metrics_port,
        delivery=delivery,
    ) + (OF_A_MAILBOX_SERVER.format(file=name.lower(), folder=folder) if name in MAILBOX_SERVERS else "")
