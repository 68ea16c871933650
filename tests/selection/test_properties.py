"""What holds of every decision, whatever the facts."""

from datetime import timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from anontls.facts import Certificate, InternalTlsCert, Scenario, SessionFacts, Store
from anontls.selection import Decision, Outcome, Result, Rules, questions, select
from anontls.selection.rules import VALUES, value, with_value
from tests.support.make import (
    ALL_MECHANISMS,
    AS_OF,
    ITC,
    OTHER,
    UNKNOWN,
    make_certificate,
    make_facts,
    make_queue,
    make_receive_connector,
    make_send_connector,
    make_server,
    year,
)

# Mostly the valid value, so that procedures come far.
of = st.sampled_from
times = of([year(2024), year(2025), year(2026), AS_OF, year(2027), year(2029)])
EVENTS = {
    Scenario.INBOUND_STARTTLS: {"3": {12014}, "4": {12014}, "5": {12014}, "6": {12016}},
    Scenario.OUTBOUND_ANONYMOUS: {"2": {12012}, "3": {12013, 12024}, "4": {12015}},
    Scenario.INBOUND_ANONYMOUS: {"2": {12012}, "3": {12013, 12024}, "4": {12015}},
}


@st.composite
def certificates(draw: st.DrawFn, thumbprint: str | None = None) -> Certificate:
    name = draw(of(["mbx1.contoso.com"] * 4 + ["*.contoso.com", "other.contoso.com"]))
    return make_certificate(
        Thumbprint=thumbprint or draw(of([ITC, OTHER, *("ABCDE"[i] * 40 for i in range(5))])),
        CertificateDomains=draw(of([(name,)] * 5 + [UNKNOWN])),
        NotBefore=draw(times if draw(st.booleans()) else of([year(2025), year(2026), UNKNOWN])),
        NotAfter=draw(of([year(2025), AS_OF, year(2027), year(2029), year(2029), UNKNOWN])),
        Version=draw(of([3, 3, 3, 3, 1, UNKNOWN])),
        HasPrivateKey=draw(of([True, True, True, True, False, UNKNOWN])),
        IsSelfSigned=draw(of([True, True, False, False, UNKNOWN])),
        Services=draw(of(["SMTP", "SMTP", "SMTP", "IIS", UNKNOWN])),
        Status=draw(of(["Valid", "Valid", "DateInvalid", "Untrusted", "PendingRequest", UNKNOWN])),
    )


def stores(minimum: int = 0) -> st.SearchStrategy[list[Certificate]]:
    return st.lists(certificates(), min_size=minimum, max_size=5, unique_by=lambda c: c.thumbprint)


@st.composite
def sessions(draw: st.DrawFn, scenario: Scenario | None = None) -> SessionFacts:
    scenario = scenario or draw(st.sampled_from(Scenario))
    phase = "session" if scenario is Scenario.INBOUND_STARTTLS else draw(of(["session", "session", "startup"]))
    attributes = [
        *[InternalTlsCert(thumbprint=ITC)] * 4,
        InternalTlsCert(value=None),
        InternalTlsCert(error="x"),
        InternalTlsCert(unknown="x"),
    ]
    return make_facts(
        scenario.value,
        phase,
        as_of=draw(of([AS_OF, AS_OF - timedelta(days=500), AS_OF + timedelta(days=500)])),
        attribute=draw(of(attributes)),
        store=draw(
            st.one_of(
                stores().map(Store),
                stores(2).map(Store),
                st.just(UNKNOWN) if draw(st.booleans()) else stores().map(Store),
            )
        ),
        server=make_server(
            ServerRole=draw(of(["Mailbox", "Mailbox", "Edge", "Edge", UNKNOWN])),
            InternalTransportCertificateThumbprint=draw(of([ITC, ITC, OTHER, None, UNKNOWN])),
        ),
        queue=make_queue(
            DeliveryType=draw(
                of(["SmtpRelayWithinAdSiteToEdge"] * 3 + ["SmtpRelayToDag", "DnsConnectorDelivery", UNKNOWN])
            )
        ),
        send_connector=make_send_connector(
            SmartHostAuthMechanism=draw(of(["ExchangeServer", "ExchangeServer", "None", UNKNOWN])),
            SmartHosts=draw(of([("--",), ("--",), (), UNKNOWN])),
            AddressSpaces=draw(of([("SMTP:*;1",), ("SMTP:--;1",), UNKNOWN])),
        ),
        receive_connector=make_receive_connector(
            AuthMechanism=draw(of([ALL_MECHANISMS] * 4 + ["None", 17, UNKNOWN])),
            SuppressXAnonymousTls=draw(of([False, False, False, True, UNKNOWN])),
            Fqdn=draw(of(["mbx1.contoso.com"] * 4 + [None, UNKNOWN])),
            TlsCertificateName=draw(of([None, None, None, None, "<I>CN=MBX1<S>CN=MBX1", "<I>", UNKNOWN])),
        ),
    )


def rule_sets() -> st.SearchStrategy[Rules]:
    return st.builds(
        Rules,
        mailbox_to_mailbox=of(["as-written", "verb-without-certificate"]),
        expired_starttls=of(["advertised", "withdrawn"]),
        smtp_service=of(["required", "chosen-anyway"]),
        store_miss=of(["none", "ephemeral"]),
    )


def answer(decision: Decision) -> object:
    thumbprint = decision.certificate.thumbprint if decision.certificate else None
    return decision.result, decision.verb, thumbprint, decision.ephemeral, tuple(e.id for e in decision.events)


def trace(decision: Decision) -> list[tuple[str, Outcome]]:
    return [(step.step, step.outcome) for step in decision.steps]


@given(sessions(), rule_sets())
def test_same_facts_same_decision(facts: SessionFacts, rules: Rules) -> None:
    assert select(facts, rules) == select(facts, rules)


@given(sessions(), rule_sets(), st.randoms(use_true_random=False))
def test_the_order_of_the_store_changes_nothing(facts: SessionFacts, rules: Rules, chance: object) -> None:
    if not isinstance(facts.store, Store):
        return
    shuffled = list(facts.store)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    other = select(msgspec.structs.replace(facts, store=Store(shuffled)), rules)
    decision = select(facts, rules)
    assert (answer(other), trace(other)) == (answer(decision), trace(decision))
    assert [(d.rule, d.value, d.result, d.verb) for d in other.differs_under] == [
        (d.rule, d.value, d.result, d.verb) for d in decision.differs_under
    ]


@given(sessions(), rule_sets())
def test_a_stop_or_an_unknown_is_the_last_step(facts: SessionFacts, rules: Rules) -> None:
    decision = select(facts, rules)
    assert not {step.outcome for step in decision.steps[:-1]} & {Outcome.STOPPED, Outcome.UNKNOWN}
    assert (decision.last.outcome is Outcome.STOPPED) == (decision.result is Result.NONE)
    assert (decision.last.outcome is Outcome.UNKNOWN) == (decision.result is Result.UNKNOWN)


@given(sessions(), rule_sets())
def test_steps_are_asked_in_order_without_gaps(facts: SessionFacts, rules: Rules) -> None:
    asked = [step.step for step in select(facts, rules).steps]
    assert asked == [question.step for question in questions(facts)][: len(asked)]


@given(sessions(), rule_sets())
def test_verb_and_certificate_follow_the_result(facts: SessionFacts, rules: Rules) -> None:
    decision = select(facts, rules)
    assert (decision.verb is None) == (decision.result in (Result.NONE, Result.UNKNOWN))
    loaded = decision.certificate is not None or decision.ephemeral
    assert loaded == (decision.result is Result.CERTIFICATE)
    assert not (decision.certificate is not None and decision.ephemeral)
    if decision.verb is not None:
        starttls = facts.scenario is Scenario.INBOUND_STARTTLS
        assert decision.verb == ("STARTTLS" if starttls else "X-ANONYMOUSTLS")


@given(sessions(), rule_sets())
def test_events_are_those_of_the_tables(facts: SessionFacts, rules: Rules) -> None:
    for step in select(facts, rules).steps:
        if step.event is None:
            continue
        assert step.outcome in (Outcome.NOTED, Outcome.STOPPED)
        assert step.event.id in EVENTS[facts.scenario][step.step]
        assert step.event.id != 12012 or facts.phase.value == "startup"
        assert step.event.id != 12024 or rules.store_miss == "ephemeral"


@given(sessions(), rule_sets())
def test_differs_under_is_right_and_complete(facts: SessionFacts, rules: Rules) -> None:
    decision = select(facts, rules)
    listed = {(d.rule, d.value): d for d in decision.differs_under}
    assert len(listed) == len(decision.differs_under)
    for name, values in VALUES.items():
        other = next(v for v in values if v != value(rules, name))
        decided = select(facts, with_value(rules, name, other))
        difference = listed.pop((name, other), None)
        if difference is None:
            assert answer(decided) == answer(decision), f"{name}={other} is not listed"
            continue
        thumbprint = difference.certificate.thumbprint if difference.certificate else None
        said = (difference.result, difference.verb, thumbprint, difference.ephemeral, difference.events)
        assert said == answer(decided)
        assert said != answer(decision)
    assert listed == {}


@given(sessions(), rule_sets(), st.integers(0, 2000))
def test_later_only_expires(facts: SessionFacts, rules: Rules, days: int) -> None:
    earlier = select(facts, rules)
    later = select(msgspec.structs.replace(facts, as_of=facts.as_of + timedelta(days=days)), rules)
    assert trace(later)[:-1] == trace(earlier)[:-1]
    before, after = trace(earlier)[-1], trace(later)[-1]
    if before == after:
        assert answer(earlier) == answer(later)
    else:
        assert before[0] == after[0] == ("6" if facts.scenario is Scenario.INBOUND_STARTTLS else "4")
        assert before[1] is Outcome.PASSED
        assert after[1] in (Outcome.NOTED, Outcome.STOPPED)


@given(sessions(), rule_sets(), certificates(thumbprint="F" * 40))
def test_anonymous_tls_minds_no_other_certificate(facts: SessionFacts, rules: Rules, more: Certificate) -> None:
    if facts.scenario is Scenario.INBOUND_STARTTLS or not isinstance(facts.store, Store):
        return
    added = msgspec.structs.replace(facts, store=Store([*facts.store, more]))
    assert answer(select(added, rules)) == answer(select(facts, rules))


@given(sessions(Scenario.INBOUND_STARTTLS), rule_sets(), certificates(thumbprint="F" * 40))
def test_starttls_minds_no_certificate_that_it_would_not_choose(
    facts: SessionFacts, rules: Rules, more: Certificate
) -> None:
    if not isinstance(facts.store, Store):
        return
    decision = select(facts, rules)
    with_more = select(msgspec.structs.replace(facts, store=Store([*facts.store, more])), rules)
    if with_more.certificate is not None and with_more.certificate is not more:
        assert answer(decision) == answer(with_more)


@given(sessions(Scenario.INBOUND_STARTTLS), rule_sets(), certificates(thumbprint="F" * 40))
def test_starttls_minds_no_certificate_of_another_name(facts: SessionFacts, rules: Rules, more: Certificate) -> None:
    if not isinstance(facts.store, Store):
        return
    named = {"subject": "CN=else", "certificate_domains": ("else.fabrikam.com",)}
    added = Store([*facts.store, msgspec.structs.replace(more, **named)])
    assert answer(select(msgspec.structs.replace(facts, store=added), rules)) == answer(select(facts, rules))
