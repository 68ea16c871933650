"""The decision as JSON: the contract ``anontls/decision/1``."""

import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from anontls.facts import InternalTlsCert, Store
from anontls.report.json import decision_json, encode
from anontls.selection import Rules, select
from tests.selection.tables import decisions
from tests.support.make import (
    AS_OF,
    DIRECTORY,
    ITC,
    UNKNOWN,
    make_certificate,
    make_facts,
    make_queue,
    make_receive_connector,
    make_server,
    year,
)

KEYS = [
    "schema",
    "scenario",
    "server",
    "connector",
    "queue",
    "as_of",
    "phase",
    "result",
    "verb",
    "certificate",
    "steps",
    "events",
    "rules",
    "differs_under",
]


def test_the_sample_of_the_contract() -> None:
    document = decision_json(select(make_facts()))
    assert [key for key in document if key != "headline"] == KEYS
    steps = document.pop("steps")
    assert document.pop("headline")
    assert document == {
        "schema": "anontls/decision/1",
        "scenario": "outbound-anonymous",
        "server": "MBX1",
        "connector": None,
        "queue": "EdgeSync - Site1 to Internet",
        "as_of": "2026-11-24T12:00:00Z",
        "phase": "session",
        "result": "certificate",
        "verb": "X-ANONYMOUSTLS",
        "certificate": {
            "thumbprint": ITC,
            "subject": "CN=MBX1",
            "issuer": "CN=MBX1",
            "not_before": "2024-01-01T00:00:00Z",
            "not_after": "2029-01-01T00:00:00Z",
            "self_signed": True,
        },
        "events": [],
        "rules": {
            "mailbox-to-mailbox": "as-written",
            "expired-starttls": "advertised",
            "smtp-service": "required",
            "store-miss": "none",
        },
        "differs_under": [],
    }
    assert [step["step"] for step in steps] == ["1.a", "1.b", "2", "3", "4"]
    assert list(steps[0]) == ["step", "outcome", "question", "because", "event", "check", "remedy"]
    assert steps[0]["outcome"] == "passed"
    assert steps[0]["check"] == "Get-TransportService MBX1 | Format-List Name,InternalTransportCertificateThumbprint"
    assert (steps[0]["event"], steps[0]["remedy"]) == (None, None)


def test_order_of_keys_in_certificate_and_rules() -> None:
    document = decision_json(select(make_facts()))
    assert list(document["certificate"]) == [
        "thumbprint",
        "subject",
        "issuer",
        "not_before",
        "not_after",
        "self_signed",
    ]
    assert list(document["rules"]) == ["mailbox-to-mailbox", "expired-starttls", "smtp-service", "store-miss"]


def test_an_event() -> None:
    facts = make_facts(store=Store([make_certificate(NotAfter=year(2025))]))
    document = decision_json(select(facts))
    (event,) = document["events"]
    assert list(event)[:5] == ["id", "source", "name", "level", "text"]
    assert (event["id"], event["source"], event["level"]) == (12015, "MSExchangeTransport", "warning")
    assert event["name"] == "InternalTransportCertificateExpired"
    assert "level_note" in event  # documentation and field disagree
    assert document["steps"][-1]["event"] == 12015
    assert document["steps"][-1]["remedy"]


def test_an_event_of_the_front_end_service() -> None:
    connector = make_receive_connector(TransportRole="FrontendTransport")
    document = decision_json(select(make_facts("inbound-anonymous", receive_connector=connector, store=Store([]))))
    assert [(e["id"], e["source"]) for e in document["events"]] == [(12013, "MSExchangeFrontEndTransport")]


def test_none_verb_only_and_ephemeral() -> None:
    queue = make_queue(DeliveryType="SmtpRelayToDag", NextHopDomain="DAG1")
    none = decision_json(select(make_facts(queue=queue)))
    assert (none["result"], none["verb"], none["certificate"], none["queue"]) == ("none", None, None, "DAG1")
    (difference,) = none["differs_under"]
    assert difference["rule"] == "mailbox-to-mailbox"
    assert difference["value"] == "verb-without-certificate"
    verb_only = decision_json(select(make_facts(queue=queue), Rules(mailbox_to_mailbox="verb-without-certificate")))
    assert (verb_only["result"], verb_only["verb"], verb_only["certificate"]) == ("verb-only", "X-ANONYMOUSTLS", None)
    assert verb_only["rules"]["mailbox-to-mailbox"] == "verb-without-certificate"
    ephemeral = decision_json(select(make_facts(store=Store([])), Rules(store_miss="ephemeral")))
    assert (ephemeral["result"], ephemeral["certificate"]) == ("certificate", {"ephemeral": True})


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (AS_OF, "2026-11-24T12:00:00Z"),
        (datetime(2026, 11, 24, 13, tzinfo=timezone(timedelta(hours=1))), "2026-11-24T12:00:00Z"),
        (datetime(2026, 11, 24, 0, 0, 1, tzinfo=timezone(-timedelta(hours=5))), "2026-11-24T05:00:01Z"),
        (datetime(2026, 1, 1, 0, 0, 0, 500000, tzinfo=UTC), "2026-01-01T00:00:00.500000Z"),
    ],
)
def test_times_end_in_z(moment: datetime, text: str) -> None:
    assert decision_json(select(make_facts(as_of=moment)))["as_of"] == text


def test_unknown_properties_of_the_certificate() -> None:
    one = make_certificate(Subject=UNKNOWN, Issuer=None, NotBefore=UNKNOWN, IsSelfSigned=UNKNOWN)
    certificate = decision_json(select(make_facts(store=Store([one]))))["certificate"]
    unknown = {"unknown": UNKNOWN.because}
    assert (certificate["subject"], certificate["not_before"], certificate["self_signed"]) == (unknown,) * 3
    assert certificate["issuer"] is None


def test_which_connector_or_queue() -> None:
    def named(**changed: object) -> tuple[object, object]:
        document = decision_json(select(make_facts(**changed)))  # type: ignore[arg-type]  # any property
        return document["connector"], document["queue"]

    assert named() == (None, "EdgeSync - Site1 to Internet")
    assert named(server=make_server(ServerRole="Edge")) == ("EdgeSync - Inbound to Site1", None)
    assert named(scenario="inbound-anonymous") == ("MBX1\\Default MBX1", None)
    assert named(scenario="inbound-starttls") == ("MBX1\\Default MBX1", None)
    assert named(phase="startup") == (None, None)
    assert named(scenario="inbound-anonymous", phase="startup") == (None, None)


def test_hypothetical() -> None:
    queue = make_queue(hypothetical=True)
    assert decision_json(select(make_facts(queue=queue)))["hypothetical"] is True
    assert "hypothetical" not in decision_json(select(make_facts()))
    assert "hypothetical" not in decision_json(select(make_facts("inbound-anonymous", queue=queue)))


@pytest.mark.parametrize("scenario", ["outbound-anonymous", "inbound-anonymous", "inbound-starttls"])
def test_the_age_of_the_word_of_a_directory_that_is_followed(scenario: str) -> None:
    document = decision_json(select(make_facts(scenario, directory=DIRECTORY)))
    assert document["directory"] == {"url": DIRECTORY.url, "as_of": "2026-11-24T11:59:48Z", "age": 12.346}
    assert "directory" not in decision_json(select(make_facts(scenario)))


@pytest.mark.parametrize(
    "attribute",
    [
        InternalTlsCert(thumbprint=ITC),
        InternalTlsCert(value=None),
        InternalTlsCert(error="the directory has not answered for more than 3600 s"),
        InternalTlsCert(unknown="the account may not read it"),
    ],
)
@pytest.mark.parametrize("phase", ["session", "startup"])
def test_step_2_says_how_old_the_answer_was(attribute: InternalTlsCert, phase: str) -> None:
    facts = make_facts(phase=phase, attribute=attribute)
    followed = msgspec.structs.replace(facts, directory=DIRECTORY)
    before, after = decision_json(select(facts)), decision_json(select(followed))
    said = "; the directory (ldaps://dc1.contoso.com) last answered 12 s before this decision, at 2026-11-24 11:59:48Z"
    for step in before["steps"]:
        step["because"] += said if step["step"] == "2" else ""
    assert after.pop("directory")
    assert after == before, "and nothing else changes, the event neither"


def test_unknown_names_the_cmdlet() -> None:
    facts = make_facts(
        attribute=InternalTlsCert(unknown="x"), server=make_server(InternalTransportCertificateThumbprint=UNKNOWN)
    )
    document = decision_json(select(facts))
    assert document["result"] == "unknown"
    assert "Get-TransportService MBX1" in document["steps"][-1]["remedy"]


def test_every_decision_is_one_line_of_json() -> None:
    for decision in decisions():
        for language in ("en", "de"):
            document = decision_json(decision, language)
            line = encode(document)
            assert "\n" not in line
            assert json.loads(line) == document
            assert [key for key in document if key != "headline"] == KEYS
