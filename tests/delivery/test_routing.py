"""Whole ways, and what is not known on them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from anontls.certstore.new import new_internal_certificate
from anontls.delivery import End, Outcome, Route, SiteLink
from anontls.delivery.sites import best_path
from anontls.directory.demo_export import write_demo_export
from anontls.directory.exchange_export import read_export
from anontls.facts import AcceptedDomain, EdgeSubscription, Organization, Unknown, is_unknown
from anontls.transport.lab import EDGE, MAILBOX, lab_organization
from tests.delivery.world import ACCEPTED, SERVERS, connector, names, server, types, way, world

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TO_INTERNET = "EdgeSync - Default-First-Site-Name to Internet"
NOT_KNOWN = Unknown("not looked at")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Organization:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_export(folder, NOW)
    return read_export([folder])


@pytest.fixture(scope="module")
def lab() -> Organization:
    return lab_organization(
        {n: new_internal_certificate(n, f"{n.lower()}.contoso.com", now=NOW) for n in (MAILBOX, EDGE)}
    )


# --- the organisations that others make


def test_demo_out_by_the_edge_server(demo: Organization) -> None:
    found = way(demo, "MBX2", "somebody@example.net")
    assert types(found) == ["SmtpRelayWithinAdSiteToEdge", "DnsConnectorDelivery"]
    first, second = found.hops
    assert first.next_hop_domain == TO_INTERNET and names(first.receivers) == ["EDGE1"]
    assert second.next_hop_domain == "example.net" and second.ends is End.OUTSIDE and found.end is End.OUTSIDE


def test_demo_in_by_the_edge_server(demo: Organization) -> None:
    found = way(demo, "EDGE1", "user@contoso.com")
    first, second = found.hops
    assert types(found) == ["SmartHostConnectorDelivery", "unknown"]
    assert first.next_hop_domain == "--" and names(first.receivers) == ["MBX1", "MBX2"]
    assert found.end is End.UNKNOWN and "no export tells" in str(second.next_hop_domain)
    assert {(k.delivery_type.value, k.servers) for k in second.kinds} == {
        ("SmtpDeliveryToMailbox", ("MBX1",)),
        ("SmtpDeliveryToMailbox", ("MBX2",)),
        ("SmtpRelayToDag", ("MBX2",)),
        ("SmtpRelayToMailboxDeliveryGroup", ("MBX2",)),
    }


def test_lab_in_to_the_only_mailbox_server(lab: Organization) -> None:
    found = way(lab, EDGE, "user@contoso.com")
    assert types(found) == ["SmartHostConnectorDelivery", "SmtpDeliveryToMailbox"]
    assert found.end is End.MAILBOX and found.hops[-1].steps[-1].because == "mailbox.only"
    assert is_unknown(found.hops[-1].next_hop_domain), "no export tells the database"


def test_lab_has_no_way_out(lab: Organization) -> None:
    found = way(lab, MAILBOX, "somebody@example.net")
    assert found.end is End.UNREACHABLE and types(found) == ["Unreachable"]
    assert found.hops[0].next_hop_domain == "Unreachable Domain"


# --- ways of several hops


def test_an_edge_server_of_another_site_is_reached_by_that_site() -> None:
    found = way(world("Out:*;1@EDGE2"), "MBX1", "u@contoso.net")
    assert types(found) == [
        "SmtpRelayToRemoteActiveDirectorySite",
        "SmtpRelayWithinAdSiteToEdge",
        "DnsConnectorDelivery",
    ]
    assert [hop.server.name for hop in found.hops] == ["MBX1", "MBX3", "EDGE2"]
    assert [hop.next_hop_domain for hop in found.hops] == ["Site2", "Out", "contoso.net"]


def test_another_source_server_sends_it_out() -> None:
    found = way(world("Out:*;1@MBX3"), "MBX1", "u@contoso.net")
    assert types(found) == ["SmtpRelayToConnectorSourceServers", "DnsConnectorDelivery"]


def test_smart_hosts_that_are_our_own_servers_go_on() -> None:
    out = replace(connector("Out:*;1@MBX1"), dns_routing_enabled=False, smart_hosts=("edge1.contoso.com",))
    found = way(world(out, "Net:*;1@EDGE1"), "MBX2", "u@contoso.net")
    # Net ties with Out: both are in this site, and the name decides
    assert found.hops[0].connector is not None and found.hops[0].connector.identity == "Net"
    found = way(world(out, "Net:*;2@EDGE1"), "MBX1", "u@contoso.net")
    assert types(found) == ["SmartHostConnectorDelivery", "DnsConnectorDelivery"]
    assert [hop.server.name for hop in found.hops] == ["MBX1", "EDGE1"]


def test_smart_hosts_by_address_are_found() -> None:
    out = replace(connector("Out:*;1@MBX1"), dns_routing_enabled=False, smart_hosts=("[192.0.2.7]",))
    servers = (*SERVERS[:4], replace(SERVERS[4], addresses=("192.0.2.7",)))
    found = way(world(out, "Net:*;2@EDGE1", servers=servers), "MBX1", "u@contoso.net")
    assert types(found) == ["SmartHostConnectorDelivery", "DnsConnectorDelivery"]


def test_a_circle_is_found() -> None:
    one = replace(connector("A:*;1@MBX1"), dns_routing_enabled=False, smart_hosts=("MBX2",))
    other = replace(connector("B:*;1@MBX2"), dns_routing_enabled=False, smart_hosts=("mbx1.contoso.com",))
    found = way(world(one, other), "MBX1", "u@contoso.net")
    assert found.end is End.LOOP and len(found.hops) == 2
    assert found.hops[-1].steps[-1].outcome is Outcome.STOPPED


# --- where the mailbox is


def known(source: str, holder: str, **servers: dict[str, Any]) -> Route:
    organization = world(servers=tuple(replace(s, **servers.get(s.name, {})) for s in SERVERS))
    return way(organization, source, "u@contoso.com", mailbox_server=organization.server(holder))


DAG1 = {"database_availability_group": "DAG1"}
DAG2 = {"database_availability_group": "DAG2"}


@pytest.mark.parametrize(
    ("source", "holder", "servers", "expected"),
    [
        ("MBX1", "MBX1", {}, ["SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX2", {}, ["SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX2", {"MBX1": DAG1, "MBX2": DAG1}, ["SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX3", {"MBX1": DAG1, "MBX3": DAG1}, ["SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX2", {"MBX2": DAG2}, ["SmtpRelayToDag", "SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX2", {"MBX1": DAG1, "MBX2": DAG2}, ["SmtpRelayToDag", "SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX2", {"MBX1": DAG1}, ["SmtpRelayToMailboxDeliveryGroup", "SmtpDeliveryToMailbox"]),
        ("MBX1", "MBX3", {}, ["unknown"]),
        ("MBX1", "MBX3", {"MBX3": DAG1}, ["unknown"]),
        ("MBX1", "MBX2", {"MBX2": {"database_availability_group": NOT_KNOWN}}, ["unknown"]),
        ("MBX1", "MBX2", {"MBX1": {"site": NOT_KNOWN}}, ["unknown"]),
    ],
)
def test_ways_to_a_mailbox(source: str, holder: str, servers: dict[str, Any], expected: list[str]) -> None:
    found = known(source, holder, **servers)
    assert types(found) == expected
    assert (found.end is End.UNKNOWN) == (expected[-1] == "unknown")


def test_names_of_groups() -> None:
    assert known("MBX1", "MBX2", MBX2=DAG2).hops[0].next_hop_domain == "DAG2"
    assert known("MBX1", "MBX2", MBX1=DAG1).hops[0].next_hop_domain == "Site:Site1;Version:15"


@pytest.mark.parametrize(
    ("own", "other", "wheres"),
    [
        (None, NOT_KNOWN, {"other-dag", "this-site"}),
        ("DAG1", NOT_KNOWN, {"this-dag", "other-dag", "other-group"}),
        (NOT_KNOWN, None, {"this-site", "other-group"}),
        (NOT_KNOWN, "DAG1", {"this-dag", "other-dag"}),
        (NOT_KNOWN, NOT_KNOWN, {"this-dag", "other-dag", "this-site", "other-group"}),
    ],
)
def test_only_what_can_be_is_listed(own: str | None | Unknown, other: str | None | Unknown, wheres: set[str]) -> None:
    dags = {"MBX1": {"database_availability_group": own}, "MBX2": {"database_availability_group": other}}
    assert {kind.where for kind in known("MBX1", "MBX2", **dags).hops[0].kinds} == wheres


def test_a_remote_mailbox_may_be_behind_a_hub_site() -> None:
    assert {k.delivery_type.value for k in known("MBX1", "MBX3").hops[0].kinds} == {
        "SmtpRelayToMailboxDeliveryGroup",
        "SmtpRelayToRemoteActiveDirectorySite",
    }


def test_internal_relay_can_be_here_or_go_on() -> None:
    (hop,) = way(world("A:*;1@MBX1"), "MBX1", "u@inner.example").hops
    assert is_unknown(hop.delivery_type) and hop.ends is End.UNKNOWN
    assert [step.step for step in hop.steps] == ["1", "2", "3", "4", "5", "6"]
    assert hop.kinds[-1].where == "relay" and hop.kinds[-1].delivery_type.value == "DnsConnectorDelivery"
    assert "SmtpDeliveryToMailbox" in {kind.delivery_type.value for kind in hop.kinds}


# --- what is not known is said, not guessed


def unknown_step(found: Route) -> tuple[str, object]:
    assert found.end is End.UNKNOWN
    last = next(step for step in found.hops[-1].steps if step.outcome is Outcome.UNKNOWN)
    return last.step, last.values.get("fact")


PLAIN = connector("A:*;1@MBX1")


@pytest.mark.parametrize(
    ("organization", "source", "expected"),
    [
        (world(PLAIN, servers=(server("MBX1", "Site1", server_role=NOT_KNOWN),)), "MBX1", ("1", "ServerRole")),
        (
            world(PLAIN, servers=(server("MBX1", "Site1", server_role="Mailbox, ClientAccess"),)),
            "MBX1",
            ("1", "ServerRole"),
        ),
        (world(PLAIN, accepted_domains=NOT_KNOWN), "MBX1", ("2", "AcceptedDomains")),
        (world(PLAIN, accepted_domains=(AcceptedDomain(domain_name="contoso.net"),)), "MBX1", ("2", "DomainType")),
        (
            world(PLAIN, accepted_domains=(AcceptedDomain(domain_name="contoso.net", domain_type=1),)),
            "MBX1",
            ("2", "DomainType"),
        ),
        (world(PLAIN, accepted_domains=(AcceptedDomain(domain_name="a b"),)), "MBX1", ("2", "DomainName")),
        (world(send_connectors=NOT_KNOWN), "MBX1", ("4", "SendConnectors")),
        (world(PLAIN, replace(PLAIN, identity="B", address_spaces=NOT_KNOWN)), "MBX1", ("4", "AddressSpaces")),
        (world(PLAIN, replace(PLAIN, identity="B", address_spaces=("SMTP:*;0",))), "MBX1", ("4", "AddressSpaces")),
        (world(replace(PLAIN, enabled=NOT_KNOWN)), "MBX1", ("4", "Enabled")),
        (world(replace(PLAIN, source_transport_servers=NOT_KNOWN)), "EDGE1", ("4", "SourceTransportServers")),
        (world(replace(PLAIN, source_transport_servers=NOT_KNOWN)), "MBX1", ("6", "SourceTransportServers")),
        (world(PLAIN, replace(PLAIN, identity="B", source_transport_servers=NOT_KNOWN)), "MBX2", ("5", "distance")),
        (world("A:*;1@MBX3", "B:*;1@MBX4"), "MBX1", ("5", "site-links")),
        (world("A:*;1@EDGE1", edge_subscriptions=NOT_KNOWN), "MBX1", ("6", "SourceTransportServers")),
        (world("A:*;1@EDGE1", edge_subscriptions=()), "MBX1", ("6", "SourceTransportServers")),
        (
            world("A:*;1@EDGE1", edge_subscriptions=(EdgeSubscription(name="EDGE1", site="Nowhere"),)),
            "MBX1",
            ("6", "Site"),
        ),
        (world(replace(PLAIN, dns_routing_enabled=NOT_KNOWN)), "MBX1", ("6", "DNSRoutingEnabled")),
        (world(replace(PLAIN, dns_routing_enabled=False, smart_hosts=NOT_KNOWN)), "MBX1", ("6", "SmartHosts")),
        (world(replace(PLAIN, dns_routing_enabled=False)), "MBX1", ("6", "SmartHosts")),
        (world(replace(PLAIN, dns_routing_enabled=False, smart_hosts=("--",))), "MBX1", ("6", "SmartHosts")),
    ],
)
def test_what_is_not_known(organization: Organization, source: str, expected: tuple[str, str]) -> None:
    assert unknown_step(way(organization, source, "u@contoso.net")) == expected


def dashes(**changed: Any) -> Organization:
    inbound = replace(connector("In:--;1@EDGE1"), dns_routing_enabled=False, smart_hosts=("--",))
    return world(inbound, **changed)


def test_dashes_need_the_subscription_and_the_servers_of_its_site() -> None:
    assert names(way(dashes(), "EDGE1", "u@contoso.com").hops[0].receivers) == ["MBX1", "MBX2"]
    for changed, fact in (
        ({"edge_subscriptions": NOT_KNOWN}, "EdgeSubscription"),
        ({"edge_subscriptions": ()}, "EdgeSubscription"),
        ({"servers": SERVERS[2:]}, "Site"),
    ):
        assert unknown_step(way(dashes(**changed), "EDGE1", "u@contoso.com")) == ("6", fact)


def test_a_doubt_that_cannot_matter_does_not_stop() -> None:
    doubtful = replace(connector("B:*;1@MBX1"), enabled=NOT_KNOWN)
    assert types(way(world("A:contoso.net;1@MBX1", doubtful), "MBX1", "u@contoso.net")) == ["DnsConnectorDelivery"]


def test_an_edge_server_that_no_source_holds_ends_the_way() -> None:
    found = way(world("A:*;1@EDGE1", servers=SERVERS[:4]), "MBX1", "u@contoso.net")
    assert types(found) == ["SmtpRelayWithinAdSiteToEdge", "unknown"]
    assert unknown_step(found) == ("1", "ServerRole")


# --- remarks


def notes(found: Route, number: str) -> tuple[Outcome, object]:
    step = next(step for step in found.hops[0].steps if step.step == number)
    return step.outcome, step.values.get("notes")


def test_remarks() -> None:
    out = "u@contoso.net"
    assert notes(way(world("A:*.contoso.net;1@MBX1"), "MBX1", out), "4") == (Outcome.NOTED, ("parent",))
    assert notes(way(world("A:*;1@MBX1", "!B:*;1@MBX1"), "MBX1", out), "4") == (Outcome.PASSED, ("disabled",))
    assert notes(way(world("A:*;1@MBX3"), "MBX1", out), "4") == (Outcome.NOTED, ("scoped",))
    assert notes(way(world("A:*;1@MBX3"), "MBX1", out), "6") == (Outcome.NOTED, ("hub",))
    absent = replace(connector("A:*;1@MBX1"), enabled=Unknown("no source holds it"))
    assert notes(way(world(absent), "MBX1", out), "4") == (Outcome.NOTED, ("enabled",))
    front = replace(PLAIN, frontend_proxy_enabled=True)
    assert notes(way(world(front), "MBX1", out), "6")[1] == ("front-end",)
    assert notes(way(world(), "EDGE1", "u@wild.example"), "2") == (Outcome.NOTED, ("parent",))
    assert notes(way(world(PLAIN), "MBX1", "u@relay.example"), "3")[0] is Outcome.NOTED
    assert {each.domain_name for each in ACCEPTED} >= {"relay.example"}


# --- sites


def test_paths_between_sites() -> None:
    links = [SiteLink("A", "B", 10), SiteLink("B", "D", 10), SiteLink("A", "C", 5), SiteLink("c", "d", 15)]
    path = best_path(links, "a", "D")
    assert path is not None and (path.cost, path.hops, path.names) == (20, 2, ("d", "b", "a")), "the lower name"
    direct = best_path([*links, SiteLink("A", "D", 20)], "A", "D")
    assert direct is not None and direct.hops == 1, "fewer hops at equal cost"
    assert best_path(links, "A", "E") is None


def test_a_path_that_does_not_lead_there_is_not_known() -> None:
    found = way(world("A:*;1@MBX3"), "MBX1", "u@contoso.net", site_links=[SiteLink("Site1", "Site3", 1)])
    assert unknown_step(found)[0] == "6"
    assert "no site links lead" in str(found.hops[0].delivery_type)


def test_nothing_of_one_machine(tmp_path: Path) -> None:
    """The same organisation read twice gives the same way."""
    write_demo_export(tmp_path, NOW)
    one, other = (way(read_export([tmp_path]), "MBX1", "u@example.net") for _ in range(2))
    assert one == other
