"""Cases of one change each: rules, what is not known, and values as exports and people write them."""

from collections.abc import Callable, Mapping

import msgspec
import pytest

from anontls.facts import DeliveryType, Scenario, SessionFacts, Store
from anontls.report.explain import Explanation
from anontls.report.json import decision_json
from anontls.selection import Rules, select
from anontls.selection.assumption import assume, parse, without
from tests.selection.tables import Line, answer, read, rules_of
from tests.support.make import ITC, make_facts, make_queue, make_receive_connector, make_send_connector, make_server

SESSIONS: Mapping[str, Callable[[], SessionFacts]] = {
    "outbound-mailbox": make_facts,
    "outbound-edge": lambda: make_facts(server=make_server(ServerRole="Edge")),
    "inbound-anonymous": lambda: make_facts("inbound-anonymous"),
    "inbound-starttls": lambda: make_facts("inbound-starttls"),
    "outbound-startup": lambda: make_facts("outbound-anonymous", "startup"),
    "inbound-startup": lambda: make_facts("inbound-anonymous", "startup"),
}


def facts_of(line: Line) -> SessionFacts:
    facts = SESSIONS[line.cells["session"]]()
    for change in line.cells["change"].replace("[itc]", f"[{ITC}]").split("&"):
        facts = assume(facts, without(ITC) if change == "without" else parse(change))
    return facts


@pytest.mark.parametrize("line", read("rules"), ids=str)
def test_rules(line: Line) -> None:
    decision = select(facts_of(line), rules_of(line.cells["rules"]))
    assert answer(decision) == line.expected
    differs = ",".join(sorted(d.rule for d in decision.differs_under)) or "-"
    assert differs == line.cells["differs"]


@pytest.mark.parametrize("line", read("unknown"), ids=str)
def test_unknown(line: Line) -> None:
    decision = select(facts_of(line))
    assert answer(decision) == line.expected
    fact = line.cells["fact"]
    assert fact == "-" or fact in str(decision.last.values["fact"])


@pytest.mark.parametrize("line", read("values"), ids=str)
def test_values(line: Line) -> None:
    assert answer(select(facts_of(line))) == line.expected


def test_different_thumbprints_are_noted() -> None:
    decision = select(make_facts(server=make_server(InternalTransportCertificateThumbprint="AA" * 20)))
    assert (decision.steps[0].step, decision.steps[0].outcome.value) == ("1.a", "noted")


def test_a_match_that_lacks_only_smtp_is_noted_in_4() -> None:
    facts = assume(make_facts("inbound-starttls"), parse(f"store[{ITC}].Services=IIS"))
    steps = select(facts, Rules(smtp_service="chosen-anyway")).steps
    assert [(step.step, step.outcome.value) for step in steps if step.outcome.value != "passed"] == [("4", "noted")]


# --- 1.b: every delivery type -----------------------------------------------------------------------------------------

DELIVERY_TYPES = read("delivery_types")


def test_every_documented_delivery_type_stands_in_the_table() -> None:
    missing = {value.value for value in DeliveryType} - {line.cells["DeliveryType"] for line in DELIVERY_TYPES}
    assert missing == set()


@pytest.mark.parametrize(
    "spelling", [str, str.lower, str.upper, lambda text: f" {text} "], ids=["as-is", "lower", "upper", "blanks"]
)
@pytest.mark.parametrize("line", DELIVERY_TYPES, ids=lambda line: line.cells["DeliveryType"])
def test_delivery_type(line: Line, spelling: Callable[[str], str]) -> None:
    facts = make_facts(queue=make_queue(DeliveryType=spelling(line.cells["DeliveryType"])))
    written = answer(select(facts))
    practised = answer(select(facts, Rules(mailbox_to_mailbox="verb-without-certificate")))
    certificate = ("certificate", "X-ANONYMOUSTLS", "itc", "4", "passed", "-")
    nothing = ("none", "-", "-", "1.b", "stopped", "-")
    verb_only = ("verb-only", "X-ANONYMOUSTLS", "-", "1.b", "noted", "-")
    match line.cells["to"]:
        case "edge":
            assert (written, practised) == (certificate, certificate)
        case "mailbox":
            assert (written, practised) == (nothing, verb_only)
        case _:
            assert (written, practised) == (nothing, nothing)


@pytest.mark.parametrize(
    "line",
    [line for line in DELIVERY_TYPES if line.cells["to"] == "mailbox"],
    ids=lambda line: line.cells["DeliveryType"],
)
def test_headline_of_a_mailbox_queue_says_both(line: Line) -> None:
    decision = select(make_facts(queue=make_queue(DeliveryType=line.cells["DeliveryType"])))
    english = Explanation(decision, "en").headline
    assert "as written: none loaded; in practice: X-ANONYMOUSTLS with the receiver's certificate" in english
    german = Explanation(decision, "de").headline
    assert "wie geschrieben: keines geladen" in german
    assert "in der Praxis: X-ANONYMOUSTLS mit dem Zertifikat des Empfängers" in german


@pytest.mark.parametrize("value", ["DnsConnectorDelivery", "SmtpRelayWithinAdSiteToEdge"])
def test_headline_of_another_queue_says_one_thing(value: str) -> None:
    assert "in practice" not in Explanation(select(make_facts(queue=make_queue(DeliveryType=value)))).headline


# --- 1.c: the two dashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", read("dashes"), ids=str)
def test_dashes(line: Line) -> None:
    facts = make_facts(server=make_server(ServerRole="Edge"), send_connector=make_send_connector())
    for name in ("SmartHosts", "AddressSpaces"):
        facts = assume(facts, parse(f"send_connector.{name}={line.cells[name]}"))
    step = next(step for step in select(facts).steps if step.step == "1.c")
    assert step.outcome.value == line.cells["outcome"]


def test_a_missing_object_is_not_known() -> None:
    edge = make_server(ServerRole="Edge")
    for facts, last in (
        (make_facts(queue=None), "1.b"),
        (make_facts(server=edge, send_connector=None), "1.b"),
        (make_facts("inbound-anonymous", receive_connector=None), "1"),
        (make_facts("inbound-starttls", receive_connector=None), "1"),
    ):
        assert answer(select(facts)) == ("unknown", "-", "-", last, "unknown", "-")


def only_its_own(facts: SessionFacts) -> SessionFacts:
    """The same facts without the objects that its scenario does not need."""
    outbound = facts.scenario is Scenario.OUTBOUND_ANONYMOUS
    edge = facts.server.role == "Edge"
    return msgspec.structs.replace(
        facts,
        queue=facts.queue if outbound and not edge else None,
        send_connector=facts.send_connector if outbound and edge else None,
        receive_connector=None if outbound else facts.receive_connector,
    )


@pytest.mark.parametrize("session", ["outbound-mailbox", "outbound-edge", "inbound-anonymous", "inbound-starttls"])
def test_other_objects_are_ignored(session: str) -> None:
    facts = SESSIONS[session]()
    alone = select(only_its_own(facts))
    assert decision_json(select(facts)) == decision_json(alone)


def test_a_receive_connector_does_not_change_the_source_of_an_outbound_event() -> None:
    front_end = make_receive_connector(TransportRole="FrontendTransport")
    (event,) = select(make_facts(receive_connector=front_end, store=Store([]))).events
    assert event.source == "MSExchangeTransport"


def test_deciding_leaves_the_facts_alone() -> None:
    facts = make_facts("inbound-starttls")
    before = msgspec.structs.asdict(facts)
    select(facts)
    assert msgspec.structs.asdict(facts) == before
