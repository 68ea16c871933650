"""An organisation of three sites for tests: valid by default, a test states only what it is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anontls.delivery import Route, SiteLink, route
from anontls.facts import (
    ABSENT,
    AcceptedDomain,
    DeliveryType,
    EdgeSubscription,
    Organization,
    SendConnector,
    Server,
    Unknown,
    is_unknown,
)

LINKS = {
    "-": None,
    "near": (SiteLink("Site1", "Site2", 10), SiteLink("Site1", "Site3", 20)),
    "equal": (SiteLink("Site1", "Site2", 10), SiteLink("Site3", "Site1", 10)),
    "chain": (SiteLink("Site1", "Site2", 10), SiteLink("Site2", "Site3", 10)),
    "longer": (SiteLink("Site1", "Site2", 20), SiteLink("Site2", "Site3", 10), SiteLink("Site1", "Site3", 10)),
}


def server(name: str, site: str | None | Unknown, **changed: Any) -> Server:
    facts: dict[str, Any] = {
        "name": name,
        "fqdn": f"{name.lower()}.contoso.com",
        "server_role": "Edge" if name.startswith("EDGE") else "Mailbox",
        "admin_display_version": "Version 15.2 (Build 1544.4)",
        "site": site,
        "database_availability_group": ABSENT if name.startswith("EDGE") else None,
    }
    return Server(**{**facts, **changed})


SERVERS = (
    server("MBX1", "Site1"),
    server("MBX2", "Site1"),
    server("MBX3", "Site2"),
    server("MBX4", "Site3"),
    server("EDGE1", None),
    server("EDGE2", None),
)
ACCEPTED = tuple(
    AcceptedDomain(domain_name=name, domain_type=kind)
    for name, kind in (
        ("contoso.com", "Authoritative"),
        ("*.wild.example", "Authoritative"),
        ("inner.example", "InternalRelay"),
        ("relay.example", "ExternalRelay"),
    )
)
SUBSCRIPTIONS = (EdgeSubscription(name="EDGE1", site="Site1"), EdgeSubscription(name="EDGE2", site="Site2"))


def connector(text: str) -> SendConnector:
    """Read ``name:space;cost@source+source`` as the tables write it."""
    left, _, sources = text.rpartition("@")
    name, _, spaces = left.partition(":")
    hosts = ("relay.example",) if "#" in name else ()
    return SendConnector(
        identity=name.strip("!#"),
        enabled="!" not in name,
        address_spaces=tuple(spaces.split(",")),
        smart_hosts=hosts,
        dns_routing_enabled=not hosts,
        smart_host_auth_mechanism="None",
        source_transport_servers=tuple(filter(None, sources.split("+"))),
    )


def world(*connectors: SendConnector | str, **changed: Any) -> Organization:
    facts: dict[str, Any] = {
        "schema": "anontls/org/1",
        "servers": SERVERS,
        "accepted_domains": ACCEPTED,
        "edge_subscriptions": SUBSCRIPTIONS,
        "send_connectors": tuple(connector(c) if isinstance(c, str) else c for c in connectors),
    }
    return Organization(**{**facts, **changed})


def way(organization: Organization, source: str, recipient: str, **more: Any) -> Route:
    found = organization.server(source)
    assert found is not None
    return route(organization, found, recipient, **more)


def types(found: Route) -> list[str]:
    return [shown(hop.delivery_type) for hop in found.hops]


def shown(value: DeliveryType | str | Unknown) -> str:
    return "unknown" if is_unknown(value) else value if isinstance(value, str) else value.value


def names(found: Iterable[Server]) -> list[str]:
    return [each.name for each in found]
