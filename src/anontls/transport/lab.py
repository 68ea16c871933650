"""A lab: two servers of one organisation, with certificates that name each other, ready to be run on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from anontls.certstore import write
from anontls.certstore.bindings import Binding
from anontls.certstore.new import new_internal_certificate
from anontls.directory import snapshot
from anontls.facts import (
    ATTRIBUTE_ABSENT,
    AcceptedDomain,
    Certificate,
    EdgeSubscription,
    InternalTlsCert,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
)
from anontls.facts.own_certificate import OwnCertificate

SITE = "Default-First-Site-Name"
DOMAIN = "contoso.com"
MAILBOX, EDGE = "MBX1", "EDGE1"
ALL = ("0.0.0.0-255.255.255.255", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
INBOUND = f"EdgeSync - Inbound to {SITE}"
TO_INTERNET = f"EdgeSync - {SITE} to Internet"


class Lab(msgspec.Struct, frozen=True):
    """The files of a lab: ``org.json``, a folder of certificates and a configuration for each server."""

    folder: Path
    organization: Path
    configs: Mapping[str, Path]
    stores: Mapping[str, Path]
    certificates: Mapping[str, OwnCertificate]


def write_lab(folder: Path, now: datetime, ports: Mapping[str, int]) -> Lab:
    """Write a lab into ``folder``: the Edge server takes mail from anybody for contoso.com and sends it to the Mailbox
    server, which puts it into a Maildir.  ``ports`` are those that each server listens on, on 127.0.0.1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    certificates: dict[str, OwnCertificate] = {}
    stores: dict[str, Path] = {}
    for name in (MAILBOX, EDGE):
        own = certificates[name] = new_internal_certificate(name, f"{name.lower()}.{DOMAIN}", now=now)
        store = stores[name] = folder / f"{name.lower()}-certificates"
        write.prepare(store)
        write.add(store, own.certificate, own.key)
        write.bind(
            store, own.thumbprint, Binding(services=("IMAP", "POP", "IIS", "SMTP"), friendly_name="Microsoft Exchange")
        )
    organization = folder / "org.json"
    organization.write_bytes(snapshot.dump(lab_organization(certificates)))
    configs = {
        MAILBOX: _config(
            folder, MAILBOX, f"Default {MAILBOX}", ports[MAILBOX], 'maildir = "mail"\ncreate-mailboxes = true'
        ),
        EDGE: _config(
            folder,
            EDGE,
            f"Default internal receive connector {EDGE}",
            ports[EDGE],
            f'next-hop = "127.0.0.1:{ports[MAILBOX]}"\nnext-hop-server = "{MAILBOX}"\nsend-connector = "{INBOUND}"',
        ),
    }
    return Lab(folder, organization, configs, stores, certificates)


def lab_organization(certificates: Mapping[str, OwnCertificate]) -> Organization:
    """What the directory says of the two servers."""
    return Organization(
        schema="anontls/org/1",
        name="Contoso",
        accepted_domains=(AcceptedDomain(domain_name=DOMAIN, domain_type="Authoritative"),),
        servers=(
            _server(
                MAILBOX,
                "Mailbox",
                certificates[MAILBOX],
                ReceiveConnector(
                    identity=f"{MAILBOX}\\Default {MAILBOX}",
                    transport_role="HubTransport",
                    enabled=True,
                    bindings=("0.0.0.0:2525", "[::]:2525"),
                    remote_ip_ranges=ALL,
                    auth_mechanism="Tls, Integrated, BasicAuth, BasicAuthRequireTLS, ExchangeServer",
                    permission_groups="ExchangeUsers, ExchangeServers, ExchangeLegacyServers",
                    fqdn=f"{MAILBOX.lower()}.{DOMAIN}",
                    tls_certificate_name=None,
                    suppress_x_anonymous_tls=False,
                ),
                (
                    Queue(
                        identity=f"{MAILBOX}\\3",
                        delivery_type="SmtpRelayWithinAdSiteToEdge",
                        next_hop_domain=TO_INTERNET,
                    ),
                ),
            ),
            _server(
                EDGE,
                "Edge",
                certificates[EDGE],
                ReceiveConnector(
                    identity=f"{EDGE}\\Default internal receive connector {EDGE}",
                    transport_role="HubTransport",
                    enabled=True,
                    bindings=("0.0.0.0:25", "[::]:25"),
                    remote_ip_ranges=ALL,
                    auth_mechanism="Tls, ExchangeServer",
                    permission_groups="AnonymousUsers, ExchangeServers, Partners",
                    fqdn=f"{EDGE.lower()}.{DOMAIN}",
                    tls_certificate_name=None,
                    suppress_x_anonymous_tls=False,
                ),
                (),
            ),
        ),
        send_connectors=(
            SendConnector(
                identity=INBOUND,
                enabled=True,
                address_spaces=("SMTP:--;1",),
                smart_hosts=("--",),
                smart_host_auth_mechanism="ExchangeServer",
                source_transport_servers=(EDGE,),
                dns_routing_enabled=False,
            ),
        ),
        edge_subscriptions=(EdgeSubscription(name=EDGE, site=SITE),),
    )


def _server(
    name: str, role: str, own: OwnCertificate, connector: ReceiveConnector, queues: tuple[Queue, ...]
) -> Server:
    attribute = InternalTlsCert(der=own.der)
    listed = Certificate(der=own.der, services="IMAP, POP, IIS, SMTP", status="Valid", has_private_key=True)
    return Server(
        name=name,
        fqdn=f"{name.lower()}.{DOMAIN}",
        server_role=role,
        admin_display_version="Version 15.2 (Build 1544.4)",
        site=SITE,
        internal_transport_certificate_thumbprint=own.thumbprint,
        internal_tls_cert=attribute,
        certificates=(listed,),
        receive_connectors=(connector,),
        queues=queues,
        internal_tls_cert_adlds=attribute if role == "Edge" else ATTRIBUTE_ABSENT,
    )


def _config(folder: Path, server: str, connector: str, port: int, delivery: str) -> Path:
    name = server.lower()
    path = folder / f"{name}.toml"
    path.write_text(
        f"""# A node of the lab; `docs/configuration.md` lists everything that can stand here.
[node]
organization = "org.json"
server = "{server}"

[store]
folder = "{name}-certificates"

[[listen]]
connector = "{connector}"
address = "127.0.0.1:{port}"

[delivery]
{delivery}

[log]
events = "{name}-events.jsonl"
protocol = "{name}-log"
""",
        encoding="utf-8",
    )
    return path
