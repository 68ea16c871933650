"""What holds of every way, whatever the organisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from anontls.delivery import End, Outcome, Route
from anontls.facts import ABSENT, EdgeSubscription, Organization, SendConnector, Unknown, is_unknown
from tests.delivery.world import ACCEPTED, LINKS, SERVERS, SUBSCRIPTIONS, way, world


def of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


Asked = tuple[Organization, str, str, dict[str, Any]]
NOT_KNOWN = Unknown("not looked at")
NAMES = [each.name for each in SERVERS]
DOMAINS = ["contoso.com", "a.wild.example", "inner.example", "relay.example", "contoso.net", "a.contoso.net"]


@st.composite
def send_connectors(draw: st.DrawFn) -> SendConnector:
    space = draw(of(["*", "*", "--", "contoso.net", "*.contoso.net", "*.net", "contoso.com"]))
    hosts = draw(of([(), (), ("relay.example",), ("--",), ("EDGE1",), ("mbx2.contoso.com",)]))
    return SendConnector(
        identity=draw(of("ABCDEFGHab")),
        enabled=draw(of([True] * 8 + [False, ABSENT, NOT_KNOWN])),
        address_spaces=draw(of([(f"SMTP:{space};{draw(of([1, 1, 2]))}",)] * 12 + [NOT_KNOWN])),
        smart_hosts=hosts,
        dns_routing_enabled=draw(of([not hosts] * 12 + [NOT_KNOWN, True])),
        source_transport_servers=draw(
            of(
                [
                    *[tuple(draw(st.lists(of(NAMES), min_size=1, max_size=2, unique=True)))] * 10,
                    NOT_KNOWN,
                    (),
                    ("MBX9",),
                ]
            )
        ),
    )


@st.composite
def organizations(draw: st.DrawFn) -> Organization:
    found = draw(st.lists(send_connectors(), max_size=6, unique_by=lambda c: c.identity))
    servers = tuple(
        replace(
            each,
            site=draw(of([each.site] * 8 + [NOT_KNOWN, None])),
            database_availability_group=draw(of([None, None, "DAG1", "DAG2", NOT_KNOWN])),
            server_role=draw(of([each.server_role] * 8 + [NOT_KNOWN])),
        )
        for each in SERVERS
    )
    subscriptions = draw(of([SUBSCRIPTIONS, SUBSCRIPTIONS, (EdgeSubscription(name="EDGE1", site="Site1"),), NOT_KNOWN]))
    return world(*found, servers=servers, edge_subscriptions=subscriptions)


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    organization = draw(organizations())
    holder = organization.server(draw(of(["MBX1", "MBX2", "MBX3"]))) if draw(st.booleans()) else None
    more: dict[str, Any] = {"mailbox_server": holder, "site_links": LINKS[draw(of(sorted(LINKS)))]}
    return organization, draw(of(NAMES)), f"u@{draw(of(DOMAINS))}", more


def answer(found: Route) -> object:
    return found.end, [(hop.server.name, *_seen(hop)) for hop in found.hops]


def _seen(hop: object) -> tuple[object, ...]:
    return tuple(getattr(hop, name) for name in ("delivery_type", "next_hop_domain", "next_hops", "steps", "kinds"))


@given(asked(), st.randoms(use_true_random=False))
def test_the_order_of_things_changes_nothing(case: Asked, chance: object) -> None:
    organization, source, recipient, more = case
    assert isinstance(organization.send_connectors, tuple)
    mixed = {}
    for name in ("send_connectors", "servers", "accepted_domains", "edge_subscriptions"):
        things = getattr(organization, name)
        if isinstance(things, tuple):
            things = list(things)
            chance.shuffle(things)  # type: ignore[attr-defined]
            mixed[name] = tuple(things)
    assert answer(way(replace(organization, **mixed), source, recipient, **more)) == answer(
        way(organization, source, recipient, **more)
    )


@given(asked())
def test_every_way_ends_and_hangs_together(case: Asked) -> None:
    organization, source, recipient, more = case
    found = way(organization, source, recipient, **more)
    assert found.hops and found.hops[0].server.name == source
    assert found.hops[-1].ends is found.end
    for hop, after in zip(found.hops, found.hops[1:], strict=False):
        assert hop.ends is None and hop.receivers[0].name == after.server.name
    assert len({hop.server.name for hop in found.hops}) == len(found.hops)
    for hop in found.hops:
        assert [step.step for step in hop.steps] == sorted(step.step for step in hop.steps)
        assert (hop.ends is End.UNKNOWN) == is_unknown(hop.delivery_type)
        assert is_unknown(hop.delivery_type) == any(step.outcome is Outcome.UNKNOWN for step in hop.steps)
        if hop.ends is End.UNREACHABLE:
            assert hop.steps[-1].outcome is Outcome.STOPPED


@given(asked(), st.integers(3, 100))
def test_a_dearer_connector_changes_no_choice(case: Asked, cost: int) -> None:
    organization, source, recipient, more = case
    before = way(organization, source, recipient, **more)
    if before.end in (End.UNREACHABLE, End.UNKNOWN):
        return
    dear = SendConnector(
        identity="!first",
        enabled=True,
        address_spaces=(f"SMTP:*;{cost}",),
        smart_hosts=(),
        dns_routing_enabled=True,
        source_transport_servers=tuple(NAMES),
    )
    assert isinstance(organization.send_connectors, tuple)
    if any(hop.connector is None for hop in before.hops):
        return  # to a mailbox
    after = way(replace(organization, send_connectors=(dear, *organization.send_connectors)), source, recipient, **more)
    assert [hop.connector for hop in after.hops] == [hop.connector for hop in before.hops]


@given(asked())
def test_a_disabled_connector_is_as_none(case: Asked) -> None:
    organization, source, recipient, more = case
    off = SendConnector(identity="Off", enabled=False, address_spaces=("SMTP:*;1",), source_transport_servers=(source,))
    assert isinstance(organization.send_connectors, tuple)
    with_it = replace(organization, send_connectors=(off, *organization.send_connectors))
    one, other = way(organization, source, recipient, **more), way(with_it, source, recipient, **more)
    assert [(h.delivery_type, h.next_hop_domain) for h in one.hops] == [
        (h.delivery_type, h.next_hop_domain) for h in other.hops
    ]


def test_all_kinds_of_accepted_domains_are_asked_about() -> None:
    assert {str(each.domain_type) for each in ACCEPTED} == {"Authoritative", "InternalRelay", "ExternalRelay"}
