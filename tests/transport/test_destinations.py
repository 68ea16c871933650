"""Where a recipient goes, and the hosts where that is: that a hop inside the organisation stays one above all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from anontls import config
from anontls.delivery import route
from anontls.errors import UsageError
from anontls.facts import (
    AcceptedDomain,
    DeliveryType,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Unknown,
    is_unknown,
)
from anontls.transport import destinations
from anontls.transport.destinations import Destination, Destinations, HostsFailed
from anontls.transport.lab import EDGE, INBOUND, MAILBOX, TO_INTERNET
from anontls.transport.node import Node
from anontls.transport.send import NextHop, OutboundSession
from tests.delivery.test_properties import DOMAINS, NAMES, organizations
from tests.delivery.world import SERVERS, connector, server, way, world
from tests.transport.world import World, run

NOTHING_KNOWN = Unknown("not looked at")


class Records:
    """DNS as a test says it."""

    def __init__(self, **hosts: Sequence[tuple[int, str]]) -> None:
        self.hosts = {name.replace("_", "."): list(found) for name, found in hosts.items()}
        self.asked: list[str] = []
        self.forgot = 0

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        self.asked.append(domain)
        if domain not in self.hosts:
            raise HostsFailed(550, "5.4.310 no such domain")
        return self.hosts[domain]

    def forget(self) -> None:
        self.forgot += 1


def node(organization: Organization, name: str) -> Node:
    found = organization.server(name)
    assert found is not None
    return Node(organization, found, cast("Any", None), cast("Any", None), lambda: datetime(2026, 1, 1, tzinfo=UTC))


def known(
    organization: Organization,
    name: str,
    records: Records | None = None,
    *,
    hosts: Mapping[str, str] | None = None,
    postmaster: str | None = None,
    **delivery: Any,
) -> Destinations:
    """What counts the same is turned round instead of shuffled."""
    return Destinations(
        node(organization, name),
        config.Delivery(hosts=dict(hosts or {}), **delivery),
        config.Queue(postmaster=postmaster),
        records or Records(),
        list.reverse,
    )


def hops(found: Destinations, address: str) -> list[NextHop]:
    return run(found.hosts(found.of(address)))


def places(found: Destinations, address: str) -> list[tuple[str, int, str | None]]:
    return [(hop.host, hop.port, hop.server) for hop in hops(found, address)]


def shown(found: Destination) -> tuple[str, str, str | None, str]:
    return found.delivery_type, found.next_hop_domain, found.next_hop_connector, found.category


def failure(found: Destinations, address: str) -> str:
    with pytest.raises(HostsFailed) as caught:
        hops(found, address)
    return str(caught.value.reply)


def smart_hosts(*names: str, spaces: str = "*", source: str = "MBX1") -> SendConnector:
    return replace(connector(f"Out:{spaces}@{source}"), smart_hosts=names, dns_routing_enabled=False)


TO_EDGE = world(f"{TO_INTERNET}:*;100@EDGE1")
INWARD = SendConnector(
    identity=INBOUND,
    enabled=True,
    address_spaces=("SMTP:--;1",),
    smart_hosts=("--",),
    smart_host_auth_mechanism="ExchangeServer",
    source_transport_servers=("EDGE1",),
    dns_routing_enabled=False,
)

# --- inside the organisation ------------------------------------------------------------------------------------------


def test_from_a_mailbox_server_to_the_edge_server_of_its_site() -> None:
    found = known(TO_EDGE, "MBX1")
    there = found.of("ben@fabrikam.com")
    assert shown(there) == ("SmtpRelayWithinAdSiteToEdge", TO_INTERNET, TO_INTERNET, "Internal")
    (hop,) = hops(found, "ben@fabrikam.com")
    assert (hop.host, hop.port, hop.server) == ("edge1.contoso.com", 25, "EDGE1")
    assert hop.send_connector is None, "the connector is that of the Edge server"
    assert hop.queue == Queue(delivery_type="SmtpRelayWithinAdSiteToEdge", next_hop_domain=TO_INTERNET)


def test_from_an_edge_server_to_all_mailbox_servers_of_its_site() -> None:
    found = known(world(INWARD), "EDGE1")
    there = found.of("anna@contoso.com")
    assert shown(there) == ("SmartHostConnectorDelivery", "--", INBOUND, "External")
    assert places(found, "anna@contoso.com") == [
        ("mbx2.contoso.com", 25, "MBX2"),
        ("mbx1.contoso.com", 25, "MBX1"),
    ]
    assert [hop.send_connector for hop in there.hops] == [INWARD, INWARD]
    assert there.balanced and not there.local and not there.unreachable


def test_to_an_edge_server_of_another_site_by_a_mailbox_server_there() -> None:
    found = known(world("Out:*@EDGE2", "Other:fabrikam.com@EDGE2"), "MBX1")
    there = found.of("ben@fabrikam.com")
    assert shown(there) == ("SmtpRelayToRemoteActiveDirectorySite", "Site2", None, "Internal")
    assert found.of("ben@wingtip.example").key == there.key, "one queue, whatever the connector"
    assert places(found, "ben@fabrikam.com") == [("mbx3.contoso.com", 25, "MBX3")]


def test_to_the_source_servers_of_a_connector() -> None:
    found = known(world("Out:*@MBX2+MBX3"), "MBX1")
    assert shown(found.of("ben@fabrikam.com")) == ("SmtpRelayToConnectorSourceServers", "Out", "Out", "Internal")
    assert places(found, "ben@fabrikam.com") == [("mbx2.contoso.com", 25, "MBX2")]


@pytest.mark.parametrize("host", ["EDGE1", "edge1.CONTOSO.com", "[192.0.2.7]"])
def test_a_smart_host_that_is_a_server_is_inside(host: str) -> None:
    servers = tuple(replace(s, addresses=("192.0.2.7",)) if s.name == "EDGE1" else s for s in SERVERS)
    one = smart_hosts(host)
    found = known(world(one, "Edge:*@EDGE1", servers=servers), "MBX1")
    (hop,) = hops(found, "ben@fabrikam.com")
    assert hop.server == "EDGE1"
    assert hop.send_connector == one


def test_a_server_among_other_smart_hosts_is_inside_still() -> None:
    found = known(world(smart_hosts("relay.example", "EDGE1", "MBX1")), "MBX1")
    assert places(found, "ben@fabrikam.com") == [("edge1.contoso.com", 25, "EDGE1"), ("relay.example", 25, None)]


def test_a_server_of_which_nothing_is_known_is_inside_all_the_same() -> None:
    found = known(world("Out:*@EDGE1", servers=SERVERS[:2]), "MBX1")
    assert places(found, "ben@fabrikam.com") == [("edge1", 25, "EDGE1")]


@given(organizations(), st.sampled_from(NAMES), st.sampled_from([*DOMAINS, "[192.0.2.1]", "x" * 70]))
def test_a_hop_inside_never_becomes_one_outside(organization: Organization, source: str, domain: str) -> None:
    found = known(organization, source)
    there = found.of(f"anna@{domain}")
    assert there.category in ("Internal", "External")
    assert (there.delivery_type == "Unreachable") == bool(there.unreachable)
    if domain in DOMAINS:
        first = way(organization, source, f"anna@{domain}").hops[0]
        assert there.unreachable or there.delivery_type == cast("DeliveryType", first.delivery_type).value
        if first.receivers and there.hops:
            assert all(hop.server in [s.name for s in first.receivers] for hop in there.hops)
    assert all(hop.server != source for hop in there.hops)
    if there.category == "Internal":
        assert all(hop.server for hop in there.hops)


# --- outside ----------------------------------------------------------------------------------------------------------


def test_by_dns_the_best_hosts_first() -> None:
    found = known(world("Out:*@EDGE1"), "EDGE1", Records(fabrikam_com=[(5, "a"), (5, "b.example"), (9, "c.example")]))
    there = found.of("Ben@FABRIKAM.com")
    assert shown(there) == ("DnsConnectorDelivery", "fabrikam.com", "Out", "External")
    assert not there.balanced
    assert places(found, "ben@fabrikam.com") == [("b.example", 25, None), ("a", 25, None), ("c.example", 25, None)]
    assert {hop.send_connector for hop in hops(found, "ben@fabrikam.com")} == {connector("Out:*@EDGE1")}


def test_dns_says_why_there_is_no_host() -> None:
    assert failure(known(world("Out:*@EDGE1"), "EDGE1"), "ben@fabrikam.com") == "550 5.4.310 no such domain"


def test_mail_that_dns_sends_to_this_server_goes_in_circles() -> None:
    found = known(world("Out:*@EDGE1"), "EDGE1", Records(fabrikam_com=[(5, "edge1.contoso.com"), (9, "c.example")]))
    assert failure(found, "ben@fabrikam.com").startswith("554 5.4.6 ")


def test_each_domain_is_a_queue_of_its_own() -> None:
    found = known(world("Out:*@EDGE1"), "EDGE1")
    addresses = ["ben@fabrikam.com", "other@FABRIKAM.com", "ben@wingtip.example", "ben@xn--bcher-kva.example"]
    keys = [found.of(address).key for address in (*addresses, "ben@bücher.example")]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == keys[4]


def test_smart_hosts() -> None:
    found = known(world(smart_hosts("Relay.example", "[192.0.2.1]", "[IPv6:2001:DB8::1]", " two.example. ")), "MBX1")
    there = found.of("ben@fabrikam.com")
    assert shown(there)[::3] == ("SmartHostConnectorDelivery", "External")
    assert found.of("ben@wingtip.example") is there
    assert places(found, "ben@fabrikam.com") == [
        ("two.example", 25, None),
        ("2001:db8::1", 25, None),
        ("192.0.2.1", 25, None),
        ("relay.example", 25, None),
    ]


def test_smart_hosts_that_are_no_hosts_are_passed_over() -> None:
    found = known(world(smart_hosts("two words", "x" * 64, "relay.example")), "MBX1")
    assert places(found, "ben@fabrikam.com") == [("relay.example", 25, None)]
    found = known(world(smart_hosts("two words")), "MBX1")
    assert found.of("ben@fabrikam.com").unreachable == "none of two words can be connected to"


@pytest.mark.parametrize(
    ("literal", "host"),
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[IPv6:2001:db8::1]", "2001:db8::1"),
        ("[ipv6:::ffff:192.0.2.1]", "192.0.2.1"),
    ],
)
def test_an_address_literal_is_the_host(literal: str, host: str) -> None:
    found = known(world("Out:*@EDGE1"), "EDGE1")
    assert found.of(f"ben@{literal}").delivery_type == "DnsConnectorDelivery"
    assert places(found, f"ben@{literal}") == [(host, 25, None)]


def test_an_address_literal_goes_by_the_connector_of_all_domains() -> None:
    found = known(world(smart_hosts("relay.example")), "MBX1")
    assert places(found, "ben@[192.0.2.1]") == [("relay.example", 25, None)]
    assert places(known(TO_EDGE, "MBX1"), "ben@[192.0.2.1]") == [("edge1.contoso.com", 25, "EDGE1")]
    assert known(world("Out:*.com@EDGE1"), "EDGE1").of("ben@[192.0.2.1]").unreachable


@pytest.mark.parametrize(
    "literal", ["[127.0.0.1]", "[0.0.0.0]", "[IPv6:::1]", "[IPv6:::ffff:127.9.9.9]", "[192.0.2.7]"]
)
def test_an_address_literal_of_this_server_goes_in_circles(literal: str) -> None:
    servers = tuple(replace(s, addresses=("192.0.2.7", "rubbish")) for s in SERVERS)
    assert failure(known(world("Out:*@EDGE1", servers=servers), "EDGE1"), f"ben@{literal}").startswith("554 5.4.6 ")


@pytest.mark.parametrize("domain", ["[300.0.2.1]", "x" * 64, "a." * 400 + "b"])
def test_what_can_be_no_domain_fails_for_good(domain: str) -> None:
    found = Destinations(node(world("Out:*@EDGE1"), "EDGE1"), config.Delivery(), config.Queue())
    assert failure(found, f"ben@{domain}").startswith("550 5.1.2 ")


# --- nowhere ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("organization", "source", "address", "why"),
    [
        (world(), "EDGE1", "ben@fabrikam.com", "no Send connector holds fabrikam.com"),
        (
            world(smart_hosts("EDGE1"), smart_hosts("MBX1", source="EDGE1")),
            "MBX1",
            "ben@fabrikam.com",
            "mail for fabrikam.com would come back to MBX1",
        ),
        (
            world(smart_hosts("MBX1")),
            "MBX1",
            "ben@fabrikam.com",
            "mail for fabrikam.com would come back to MBX1",
        ),
        (
            world(send_connectors=NOTHING_KNOWN),
            "EDGE1",
            "ben@fabrikam.com",
            "where mail for fabrikam.com goes is not known: SendConnectors is not known: not looked at",
        ),
        (
            world(replace(connector("Out:*@EDGE1"), address_spaces=NOTHING_KNOWN)),
            "EDGE1",
            "ben@fabrikam.com",
            "where mail for fabrikam.com goes is not known: AddressSpaces of Out is not known: not looked at",
        ),
        (
            world("Out:*@EDGE1"),
            "MBX1",
            "anna@inner.example",
            "where mail for inner.example goes is not known: no export tells on which server the mailbox of a recipient is",
        ),
        (
            world(servers=SERVERS[:1]),
            "MBX1",
            "anna@contoso.com",
            "the mailboxes of contoso.com are on this server, and delivery.maildir is not set",
        ),
    ],
)
def test_what_goes_nowhere_waits_and_says_why(organization: Organization, source: str, address: str, why: str) -> None:
    records = Records()
    found = known(organization, source, records)
    there = found.of(address)
    assert there.unreachable == why
    assert shown(there) == ("Unreachable", "Unreachable Domain", None, "Internal")
    assert failure(found, address) == f"451 4.4.0 {why}"
    assert records.asked == []


def test_all_that_goes_nowhere_waits_in_one_queue() -> None:
    found = known(world(), "EDGE1")
    one, other = found.of("ben@fabrikam.com"), found.of("ben@wingtip.example")
    assert one.key == other.key
    assert one.unreachable != other.unreachable


# --- the configuration ------------------------------------------------------------------------------------------------


def test_a_mailbox_here_comes_before_everything() -> None:
    for next_hop in (None, "127.0.0.1:25"):
        found = known(TO_EDGE, "MBX1", maildir="mail", next_hop=next_hop)
        for address in ("Anna@CONTOSO.com", "a@b.wild.example", "postmaster"):
            assert shown(found.of(address)) == ("SmtpDeliveryToMailbox", "Maildir", None, "Internal")
            assert found.of(address).local
        assert not found.of("ben@fabrikam.com").local


def test_a_next_hop_takes_all_else() -> None:
    found = known(TO_EDGE, "MBX1", next_hop="Relay.example:2525", protocol="lmtp", timeout=7)
    for address in ("anna@contoso.com", "ben@fabrikam.com", "postmaster", "ben@[192.0.2.1]"):
        assert shown(found.of(address)) == ("SmartHostConnectorDelivery", "Relay.example", None, "External")
        (hop,) = hops(found, address)
        assert (hop.host, hop.port, hop.server, hop.lmtp, hop.timeout) == ("Relay.example", 2525, None, True, 7)


def test_a_next_hop_that_is_a_server() -> None:
    found = known(
        world(INWARD),
        "EDGE1",
        next_hop="127.0.0.1:2525",
        next_hop_server="mbx1",
        send_connector=INBOUND.upper(),
        delivery_type="smtprelaywithinadsitetoedge",
    )
    assert shown(found.of("a@b.example")) == ("SmtpRelayWithinAdSiteToEdge", "127.0.0.1", INBOUND, "Internal")
    (hop,) = hops(found, "a@b.example")
    assert (hop.host, hop.port, hop.server, hop.send_connector) == ("127.0.0.1", 2525, "mbx1", INWARD)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"send_connector": INBOUND}, "SmartHostAuthMechanism of EdgeSync - Inbound .* is ExchangeServer"),
        ({"delivery_type": "SmtpRelayToDag"}, "SmtpRelayToDag leads to a server of the organisation"),
        ({"next_hop": "MBX1:2525"}, "MBX1 is the server MBX1"),
    ],
)
def test_a_next_hop_that_must_be_an_exchange_server_is_named(given: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        known(world(INWARD), "EDGE1", **{"next_hop": "127.0.0.1:25", **given})


def test_a_connector_that_requires_tls() -> None:
    required = msgspec.structs.replace(smart_hosts("relay.example"), require_tls=True)
    found = known(world(required), "MBX1")
    assert [hop.require_tls for hop in hops(found, "a@b.example")] == [True]
    (hop,) = hops(known(world(smart_hosts("relay.example")), "MBX1"), "a@b.example")
    assert not hop.require_tls, "unknown"


@pytest.mark.parametrize("wrong", [{"next_hop_server": "MBX9"}, {"send_connector": "Other"}])
def test_a_next_hop_of_another_organisation(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong.values()))):
        known(world(INWARD), "EDGE1", next_hop="127.0.0.1:25", **wrong)


@pytest.mark.parametrize("name", ["edge1", "EDGE1.contoso.com"])
def test_the_configuration_says_where_a_server_is(name: str) -> None:
    found = known(TO_EDGE, "MBX1", hosts={name: "127.0.0.1:2601"})
    assert places(found, "ben@fabrikam.com") == [("127.0.0.1", 2601, "EDGE1")]


def test_the_configuration_says_where_others_are() -> None:
    hosts = {
        "Relay.example": "[::1]:2602",
        "[192.0.2.1]": "127.0.0.1:2603",
        "FABRIKAM.com": "127.0.0.1:2604",
        "bücher.example": "127.0.0.1:2605",
        "mail.wingtip.example": "127.0.0.1:2606",
    }
    found = known(world(smart_hosts("[192.0.2.1]", "relay.EXAMPLE")), "MBX1", hosts=hosts)
    assert places(found, "x@y.example") == [("::1", 2602, None), ("127.0.0.1", 2603, None)]
    records = Records(wingtip_example=[(1, "mail.wingtip.example")])
    found = known(world("Out:*@EDGE1"), "EDGE1", records, hosts=hosts)
    assert places(found, "ben@fabrikam.com") == [("127.0.0.1", 2604, None)]
    assert places(found, "ben@BÜCHER.example") == [("127.0.0.1", 2605, None)]
    assert places(found, "ben@[192.0.2.1]") == [("127.0.0.1", 2603, None)]
    assert records.asked == []
    assert places(found, "ben@wingtip.example") == [("127.0.0.1", 2606, None)]


@pytest.mark.parametrize(
    ("postmaster", "goes_to"), [(None, "SmartHostConnectorDelivery"), ("pm@fabrikam.com", "DnsConnectorDelivery")]
)
def test_postmaster_alone_is_the_one_of_the_organisation(postmaster: str | None, goes_to: str) -> None:
    found = known(world(INWARD, "Out:*@EDGE1"), "EDGE1", postmaster=postmaster)
    assert found.of("Postmaster").delivery_type == goes_to


# --- ports ------------------------------------------------------------------------------------------------------------


def listening(bindings: tuple[str, ...] | Unknown, **changed: Any) -> ReceiveConnector:
    facts: dict[str, Any] = {
        "identity": "X\\Y",
        "enabled": True,
        "transport_role": "HubTransport",
        "auth_mechanism": "Tls, ExchangeServer",
        "bindings": bindings,
    }
    return ReceiveConnector(**{**facts, **changed})


HUB, FRONT = ("0.0.0.0:2525", "[::]:2525"), ("0.0.0.0:25",)
OUT = "Out:*@MBX2"
FROM_HUB = ("MBX1", "MBX2", world(OUT), "ben@fabrikam.com")
FROM_EDGE = ("EDGE1", "MBX1", world(INWARD, servers=(SERVERS[0], SERVERS[4])), "anna@contoso.com")
INTO_EDGE = ("MBX1", "EDGE1", TO_EDGE, "ben@fabrikam.com")


@pytest.mark.parametrize(
    ("session", "connectors", "port"),
    [
        (FROM_HUB, (listening(FRONT, transport_role="FrontendTransport"), listening(HUB)), 2525),
        (FROM_EDGE, (listening(FRONT, transport_role="FrontendTransport"), listening(HUB)), 25),
        (FROM_EDGE, (listening(HUB),), 2525),
        (FROM_EDGE, (listening(FRONT, auth_mechanism="Tls"), listening(HUB)), 2525),
        (FROM_EDGE, (listening(FRONT, enabled=False), listening(HUB)), 2525),
        (FROM_EDGE, (listening(FRONT, auth_mechanism=NOTHING_KNOWN), listening(HUB)), 2525),
        (INTO_EDGE, (listening(FRONT),), 25),
        (INTO_EDGE, (listening(("0.0.0.0:10025",)),), 10025),
        (INTO_EDGE, (listening(("0.0.0.0:717",), transport_role="FrontendTransport"),), 25),
        (INTO_EDGE, (listening(NOTHING_KNOWN),), 25),
        (INTO_EDGE, (listening(("rubbish",)),), 25),
        (INTO_EDGE, NOTHING_KNOWN, 25),
    ],
)
def test_the_port_is_that_of_the_connector_that_takes_exchange_servers(
    session: tuple[str, str, Organization, str], connectors: tuple[ReceiveConnector, ...] | Unknown, port: int
) -> None:
    source, target, organization, address = session
    servers = tuple(replace(s, receive_connectors=connectors) if s.name == target else s for s in organization.servers)
    found = known(replace(organization, servers=servers), source)
    assert [hop.port for hop in hops(found, address) if hop.server == target] == [port]


def test_a_server_without_an_fqdn_is_reached_by_its_name() -> None:
    servers = (SERVERS[0], server("EDGE1", None, fqdn=NOTHING_KNOWN))
    assert places(known(world("Out:*@EDGE1", servers=servers), "MBX1"), "ben@fabrikam.com") == [("edge1", 25, "EDGE1")]


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_domains_are_remembered_and_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(destinations, "MOST_DOMAINS", 3)
    asked: list[str] = []

    def counting(organization: Organization, source: Server, recipient: str) -> Any:
        asked.append(recipient.partition("@")[2])
        return route(organization, source, recipient)

    monkeypatch.setattr("anontls.transport.destinations.route", counting)
    found = known(world("Out:*@EDGE1"), "EDGE1")
    for domain in ("a.example", "A.example", "b.example", "c.example", "d.example", "d.example", "a.example"):
        found.of(f"ben@{domain}")
    assert asked == ["a.example", "b.example", "c.example", "d.example", "a.example"]


def test_a_new_organisation_counts_once_the_old_is_forgotten() -> None:
    records = Records(fabrikam_com=[(1, "mail.fabrikam.com")])
    found = known(world(), "EDGE1", records)
    assert found.of("ben@fabrikam.com").unreachable
    before = records.forgot
    later = world("Out:*@EDGE1")
    edge = later.server("EDGE1")
    assert edge is not None
    found.node.take(later, edge)
    assert found.of("ben@fabrikam.com").unreachable
    found.forget()
    assert records.forgot == before + 1
    assert places(found, "ben@fabrikam.com") == [("mail.fabrikam.com", 25, None)]


def test_servers_that_came_are_used_once_the_old_organisation_is_forgotten() -> None:
    found = known(world(INWARD, servers=(SERVERS[0], SERVERS[4])), "EDGE1")
    assert len(hops(found, "anna@contoso.com")) == 1
    later = world(INWARD)
    found.node.take(later, SERVERS[4])
    found.forget()
    assert len(hops(found, "anna@contoso.com")) == 2


def test_where_the_next_hop_is_gone_nothing_is_forgotten() -> None:
    found = known(world(INWARD), "EDGE1", next_hop="127.0.0.1:25", next_hop_server="MBX1")
    later = world(INWARD, servers=SERVERS[4:])
    edge = later.server("EDGE1")
    assert edge is not None
    found.node.take(later, edge)
    with pytest.raises(UsageError):
        found.forget()
    assert [hop.server for hop in hops(found, "anna@contoso.com")] == ["MBX1"]


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "address"), [(EDGE, MAILBOX, "a@contoso.com"), (MAILBOX, EDGE, "a@b.net")]
)
def test_servers_take_each_other_for_what_they_are(world: World, source: str, target: str, address: str) -> None:
    """Edge -> Mailbox by ``--``, Mailbox -> Edge by the Edge server's connector: decided, secured, proven."""
    outward = SendConnector(
        identity=TO_INTERNET,
        enabled=True,
        address_spaces=("SMTP:*;100",),
        source_transport_servers=(EDGE,),
        dns_routing_enabled=True,
    )
    connectors = world.organization.send_connectors
    assert not is_unknown(connectors)
    world.change(
        send_connectors=(*connectors, outward),
        accepted_domains=(AcceptedDomain(domain_name="contoso.com", domain_type="Authoritative"),),
    )

    async def session() -> None:
        async with world.node(source) as sender, world.node(target) as receiver:
            delivery = config.Delivery(hosts={target: f"127.0.0.1:{receiver.port}"})
            found = Destinations(sender.service.node, delivery, config.Queue())
            (hop,) = await found.hosts(found.of(address))
            outbound = OutboundSession(sender.service.node, hop)
            await outbound.open()
            assert outbound.trust is not None
            assert outbound.trust.trusted
            await outbound.close()

    run(session())
