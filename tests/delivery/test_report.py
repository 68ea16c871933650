"""The whole way in words, as JSON and as a picture: with the decisions of both ends."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from anontls.certstore.new import new_internal_certificate
from anontls.delivery import Outcome, route
from anontls.directory.demo_export import write_demo_export
from anontls.directory.exchange_export import read_export
from anontls.facts import DeliveryType, Organization, ReceiveConnector, Scenario, Server, Unknown, is_unknown
from anontls.report import json
from anontls.report.language import LANGUAGES, Language, texts
from anontls.report.route import CHECKS, Way, because, check, receive_connector, route_json, route_svg, text
from anontls.report.route import way as with_decisions
from anontls.selection import DEFAULT, Result, Rules
from anontls.transport.lab import ALL, EDGE, MAILBOX, lab_organization
from tests.delivery.test_properties import Asked, asked
from tests.delivery.test_tables import read
from tests.delivery.world import LINKS, SERVERS, connector, way, world

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


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


def whole(organization: Organization, source: str, recipient: str, rules: Rules = DEFAULT, **more: Any) -> Way:
    return with_decisions(way(organization, source, recipient, **more), NOW, rules)


# --- decisions


def test_both_ends_out_by_the_edge_server(demo: Organization) -> None:
    found = whole(demo, "MBX1", "u@example.net")
    first, second = found.passages
    assert [(d.facts.scenario, d.verb, d.facts.server.name) for d in first.sends] == [
        (Scenario.OUTBOUND_ANONYMOUS, "X-ANONYMOUSTLS", "MBX1")
    ]
    assert first.sends[0].facts.queue is not None and first.sends[0].facts.queue.identity == "MBX1\\3"
    (arrival,) = first.arrivals
    assert (arrival.server.name, arrival.port) == ("EDGE1", 25)
    assert [(d.verb, d.result) for d in arrival.decisions] == [
        ("X-ANONYMOUSTLS", Result.CERTIFICATE),
        ("STARTTLS", Result.CERTIFICATE),
    ]
    assert [d.verb for d in second.sends] == [None] and second.arrivals == ()
    assert not found.unknown


def test_every_mailbox_server_of_the_site_may_receive(demo: Organization) -> None:
    first = whole(demo, "EDGE1", "u@contoso.com").passages[0]
    assert [d.last.because for d in first.sends] == ["4.valid"]
    assert [(a.server.name, a.port) for a in first.arrivals] == [("MBX1", 25), ("MBX2", 25)]
    assert [[e.id for e in a.decisions[0].events] for a in first.arrivals] == [[], [12015]]


def test_into_the_mailbox_by_the_implicit_connector(demo: Organization) -> None:
    found = whole(demo, "MBX2", "u@contoso.com", mailbox_server=demo.server("MBX2"))
    (passage,) = found.passages
    (arrival,) = passage.arrivals
    assert arrival.port == 475 and not is_unknown(arrival.connector) and arrival.connector.implicit
    assert [d.verb for d in arrival.decisions] == ["X-ANONYMOUSTLS", None]
    assert not found.unknown


def test_kinds_that_are_possible_are_each_decided(demo: Organization) -> None:
    found = whole(demo, "MBX1", "u@contoso.com", Rules(mailbox_to_mailbox="verb-without-certificate"))
    (passage,) = found.passages
    assert {d.facts.queue.delivery_type for d in passage.sends if d.facts.queue} == {
        "SmtpDeliveryToMailbox",
        "SmtpRelayToDag",
        "SmtpRelayToMailboxDeliveryGroup",
    }
    assert {d.result for d in passage.sends} == {Result.VERB_ONLY} and found.unknown


def test_lab(lab: Organization) -> None:
    first, second = whole(lab, EDGE, "u@contoso.com").passages
    assert [a.port for a in first.arrivals] == [2525], "nothing of the lab's Mailbox server is bound to 25"
    assert [d.verb for d in first.arrivals[0].decisions] == ["X-ANONYMOUSTLS", "STARTTLS"]
    (arrival,) = second.arrivals
    assert is_unknown(arrival.connector) and "475" in arrival.connector.because


def test_unreachable_opens_no_session(lab: Organization) -> None:
    (passage,) = whole(lab, MAILBOX, "u@example.net").passages
    assert passage.sends == () and passage.arrivals == ()


# --- which Receive connector


def receiving(*connectors: ReceiveConnector) -> Server:
    return Server(name="R", server_role="Mailbox", receive_connectors=connectors)


def listening(name: str, port: int = 25, ranges: tuple[str, ...] = ALL, **changed: Any) -> ReceiveConnector:
    facts: dict[str, Any] = {
        "identity": name,
        "enabled": True,
        "bindings": (f"0.0.0.0:{port}", f"[::]:{port}"),
        "remote_ip_ranges": ranges,
    }
    return ReceiveConnector(**{**facts, **changed})


RELAY = listening("Relay", ranges=("192.0.2.0/24",))
SENDER = Server(name="S")


@pytest.mark.parametrize(
    ("sender", "receiver", "expected"),
    [
        (SENDER, receiving(listening("A")), (25, "A")),
        (SENDER, receiving(listening("A", 2525), listening("B", 587)), (2525, "A")),
        (SENDER, receiving(listening("A"), RELAY), (25, "the address of S is not known")),
        (SENDER, receiving(RELAY), (25, "the address of S is not known")),
        (replace(SENDER, addresses=("192.0.2.9",)), receiving(listening("A"), RELAY), (25, "Relay")),
        (replace(SENDER, addresses=("198.51.100.9",)), receiving(listening("A"), RELAY), (25, "A")),
        (
            replace(SENDER, addresses=("192.0.2.9", "198.51.100.9")),
            receiving(listening("A"), RELAY),
            (25, "it depends"),
        ),
        (replace(SENDER, addresses=("nowhere",)), receiving(listening("A")), (25, "A")),
        (SENDER, receiving(listening("A", 587)), (None, "no enabled Receive connector of R")),
        (SENDER, receiving(listening("A", enabled=False)), (None, "no enabled Receive connector of R")),
        (SENDER, receiving(listening("A", bindings=Unknown("?"))), (None, "Bindings of A is not known")),
        (SENDER, receiving(listening("A", bindings=("nonsense",))), (None, "not a binding")),
        (SENDER, receiving(listening("A", ranges=("nonsense",))), (25, "the address of S is not known")),
        (SENDER, Server(name="R", server_role="Mailbox"), (None, "no source holds the Receive connectors")),
    ],
)
def test_receive_connector(sender: Server, receiver: Server, expected: tuple[int | None, str]) -> None:
    port, found = receive_connector(sender, receiver, (25, 2525))
    said = found.because if is_unknown(found) else found.identity
    assert port == expected[0] and expected[1] in said


# --- words


def routes() -> list[Way]:
    """The table's ways, and those that it has no line for."""
    found = [
        whole(
            world(*([] if line["connectors"] == "-" else line["connectors"].split("|"))),
            line["from"],
            f"u@{line['domain']}",
            site_links=LINKS[line["links"]],
        )
        for line in read("routes")
    ]
    dags = {"MBX1": "DAG1", "MBX2": "DAG1", "MBX4": "DAG2"}
    servers = tuple(replace(s, database_availability_group=dags.get(s.name)) for s in SERVERS)
    same_site = tuple(replace(s, site="Site1") if s.role == "Mailbox" else s for s in servers)
    for organization in (world(servers=servers), world(servers=same_site), world()):
        for source in ("MBX1", "MBX3"):
            for holder in ("MBX1", "MBX2", "MBX3", "MBX4"):
                to = organization.server(holder)
                found.append(whole(organization, source, "u@contoso.com", mailbox_server=to))
    loop = replace(connector("A:*;1@MBX1"), dns_routing_enabled=False, smart_hosts=("MBX1",))
    front = replace(connector("A:*;1@MBX1"), frontend_proxy_enabled=True)
    dashes = replace(connector("In:--;1@EDGE1"), dns_routing_enabled=False, smart_hosts=("--",))
    absent = replace(connector("A:*.contoso.net;1@MBX1"), enabled=Unknown("no source holds it"))
    nowhere = tuple(replace(s, database_availability_group=Unknown("x")) for s in SERVERS)
    old = (*SERVERS, Server(name="OLD", server_role="Mailbox, ClientAccess"))
    others = (world(loop), world(front), world(absent), world(accepted_domains=Unknown("x")))
    found += [
        *(whole(organization, "MBX1", "u@contoso.net") for organization in others),
        whole(world(dashes), "EDGE1", "u@contoso.com"),
        whole(world(dashes, edge_subscriptions=Unknown("x")), "EDGE1", "u@contoso.com"),
        whole(world(dashes, servers=SERVERS[:1] + SERVERS[4:]), "EDGE1", "u@contoso.com"),
        whole(world(servers=old), "MBX1", "u@contoso.com"),
        whole(world(servers=nowhere), "MBX1", "u@contoso.com"),
        whole(world(send_connectors=Unknown("x")), "MBX1", "u@contoso.net"),
    ]
    return found


def test_every_reason_has_its_words_and_no_words_are_left_over() -> None:
    produced = set()
    for each in routes():
        produced.add(f"route.end.{each.route.end.value}")
        for hop in each.route.hops:
            produced |= {f"route.where.{kind.where}" for kind in hop.kinds}
            for step in hop.steps:
                notes = step.values.get("notes", ())
                assert isinstance(notes, tuple)
                produced |= {f"route.because.{step.because}", f"route.question.{step.step}"}
                produced |= {f"route.note.{note}" for note in notes}
    kinds = ("route.end.", "route.where.", "route.because.", "route.question.", "route.note.")
    assert sorted(produced ^ {key for key in texts("en") if key.startswith(kinds)}) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_way_can_be_told(language: Language) -> None:
    for each in routes():
        for hop in each.route.hops:
            for step in hop.steps:
                sentence = because(step, language)
                assert sentence and not re.search(r"\{\w+\}|Unknown\(|=None\b|<\w+\.\w+: ", sentence), sentence
                line = check(step, each.route)
                assert (line is not None) == (step.outcome is Outcome.UNKNOWN)
                assert line is None or "{" not in line
        told = click.unstyle(text(each, language))
        assert each.route.source.name in told.splitlines()[0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_we_read_into_the_documents_is_said(language: Language) -> None:
    words = "our reading" if language == "en" else "unsere Lesart"
    ours = ("mailbox.external-relay", "mailbox.only", "mailbox.this-dag", "mailbox.this-site", "mailbox.other-group")
    for key in ours:
        assert words in texts(language)[f"route.because.{key}"]
    assert words in texts(language)["route.note.parent"]


def test_facts_of_routing_have_a_cmdlet() -> None:
    facts = {
        str(step.values["fact"])
        for each in routes()
        for hop in each.route.hops
        for step in hop.steps
        if step.because.startswith("unknown")
    }
    assert facts <= set(CHECKS)


def test_names_cannot_command_a_terminal() -> None:
    evil = replace(connector("A:*;1@EDGE1"), identity="A\x1b[2J")
    assert "\x1b[2J" not in text(whole(world(evil), "MBX1", "u@contoso.net"), "en")


def test_text_of_the_demo(demo: Organization) -> None:
    told = click.unstyle(text(whole(demo, "EDGE1", "u@contoso.com"), "en"))
    assert "hop 1: EDGE1 to MBX1, MBX2" in told
    assert "MBX1 receives on MBX1\\Default Frontend MBX1, port 25:" in told
    assert "also: MBX2 advertises X-ANONYMOUSTLS" in told and "expired" in told
    assert (
        "remedy"
        in click.unstyle(text(whole(demo, "EDGE1", "u@contoso.com"), "en", details=True)).partition("MBX2 receives")[2]
    )


# --- JSON


def test_json_of_the_demo(demo: Organization) -> None:
    document = msgspec.json.decode(json.encode(route_json(whole(demo, "MBX1", "u@example.net"))))
    assert (document["schema"], document["end"], document["from"]) == ("anontls/route/1", "outside", "MBX1")
    first, second = document["hops"]
    assert first["delivery_type"] == "SmtpRelayWithinAdSiteToEdge" and first["next_hops"] == ["EDGE1"]
    assert first["sends"][0]["schema"] == "anontls/decision/1"
    assert first["receives"][0]["connector"] == "EDGE1\\Default internal receive connector EDGE1"
    assert [step["step"] for step in second["steps"]] == ["1", "2", "4", "5", "6"]
    assert second["ends"] == "outside" and second["candidates"] == [
        {"connector": "EdgeSync - Default-First-Site-Name to Internet", "address_space": "*", "cost": 100}
    ]


def test_json_says_what_is_not_known(demo: Organization) -> None:
    (hop,) = route_json(whole(demo, "MBX1", "u@contoso.com"))["hops"]
    assert hop["delivery_type"]["unknown"] and hop["receives"] == []
    assert {kind["delivery_type"] for kind in hop["can_be"]} >= {DeliveryType.SMTP_RELAY_TO_DAG.value}
    assert next(step for step in hop["steps"] if step["step"] == "3")["check"].startswith(
        "Get-Recipient 'u@contoso.com' |"
    )


# --- SVG


@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures(demo: Organization, language: Language) -> None:
    for each in (*routes(), whole(demo, "EDGE1", "u@contoso.com"), whole(demo, "MBX1", "u@example.net")):
        drawn = route_svg(each, language)
        root = ElementTree.fromstring(drawn)
        assert root.get("data-end") == each.route.end.value
        assert len(root.findall("{*}g[@class='hop']")) == len(each.route.hops)
        assert not re.search(r"href|url\(|@import|<script|<image", drawn)
        assert "prefers-color-scheme: dark" in drawn and not re.search(r":(INK|PAPER|WAY|BOX|MUTED)\b", drawn)


def test_a_picture_names_the_certificates(demo: Organization) -> None:
    found = whole(demo, "EDGE1", "u@contoso.com")
    shown = "".join(ElementTree.fromstring(route_svg(found)).itertext())
    for decision in found.passages[0].sends:
        assert decision.certificate is not None and str(decision.certificate.thumbprint) in shown
    assert "MBX2: X-ANONYMOUSTLS" in shown and "expired" in shown


def test_hostile_names_stay_text() -> None:
    evil = replace(connector("A:*;1@EDGE1"), identity='</text><script>"&\0')
    drawn = route_svg(whole(world(evil), "MBX1", "u@contoso.net"))
    ElementTree.fromstring(drawn)
    assert "<script" not in drawn


# --- whatever the organisation


@given(asked())
def test_every_way_is_shown(case: Asked) -> None:
    organization, source, recipient, more = case
    server = organization.server(source)
    assert server is not None
    found = with_decisions(route(organization, server, recipient, **more), NOW, DEFAULT)
    assert text(found, "de", details=True) and msgspec.json.encode(route_json(found))
    ElementTree.fromstring(route_svg(found))
    assert found.unknown or all(not is_unknown(hop.delivery_type) for hop in found.route.hops)


def test_deciding_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole(world("A:*;1@MBX1"), "MBX1", "u@contoso.net")
    assert list(tmp_path.iterdir()) == []
