"""Decisions in words.

Golden files stand in ``golden/``.  After a deliberate change of wording run the tests once with
``ANONTLS_UPDATE_GOLDEN=1`` in the environment, and read the difference.
"""

import os
import re
import string
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest

from anontls.events import CATALOGUE
from anontls.facts import InternalTlsCert, SessionFacts, Store
from anontls.report.explain import Explanation
from anontls.report.language import LANGUAGES, Language, texts
from anontls.report.text import explained
from anontls.selection import DEFAULT, Decision, Outcome, Rules, questions, select
from tests.selection.tables import OTHER_RULES, decisions, read
from tests.selection.test_cases import facts_of, only_its_own
from tests.support.make import (
    DIRECTORY,
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

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("ANONTLS_UPDATE_GOLDEN") == "1"  # read at import: each test gets a clean environment
SOURCES = Path(__file__).resolve().parents[2] / "src" / "anontls"

EDGE = make_server(Name="EDGE1", Fqdn="edge1.contoso.com", ServerRole="Edge")
EXPIRED = Store([make_certificate(NotAfter=year(2025))])
PKI = {
    "IsSelfSigned": False,
    "Subject": "CN=mail.contoso.com",
    "Issuer": "CN=CA",
    "CertificateDomains": ("mail.contoso.com",),
}
MAIL = make_receive_connector(Fqdn="mail.contoso.com")

GIVEN: Mapping[str, tuple[SessionFacts, Rules]] = {
    "outbound-mailbox-valid": (make_facts(), DEFAULT),
    "outbound-mailbox-expired": (make_facts(store=EXPIRED), DEFAULT),
    "outbound-mailbox-replication": (
        make_facts(server=make_server(InternalTransportCertificateThumbprint=OTHER), store=Store([])),
        DEFAULT,
    ),
    "outbound-mailbox-to-mailbox": (
        make_facts(queue=make_queue(DeliveryType="SmtpRelayToDag", NextHopDomain="DAG1")),
        DEFAULT,
    ),
    "outbound-mailbox-to-mailbox-verb": (
        make_facts(queue=make_queue(DeliveryType="SmtpRelayToDag", NextHopDomain="DAG1")),
        Rules(mailbox_to_mailbox="verb-without-certificate"),
    ),
    "outbound-mailbox-unknown": (
        make_facts(
            server=make_server(InternalTransportCertificateThumbprint=UNKNOWN), attribute=InternalTlsCert(unknown="x")
        ),
        DEFAULT,
    ),
    "outbound-edge-no-dashes": (
        make_facts(server=EDGE, send_connector=make_send_connector(SmartHosts=(), AddressSpaces=("SMTP:*;1",))),
        DEFAULT,
    ),
    "outbound-edge-error": (
        make_facts(server=EDGE, attribute=InternalTlsCert(error="AD LDS does not answer")),
        DEFAULT,
    ),
    "inbound-anonymous-followed": (make_facts("inbound-anonymous", directory=DIRECTORY), DEFAULT),
    "startup-null": (make_facts("inbound-anonymous", "startup", attribute=InternalTlsCert(value=None)), DEFAULT),
    "startup-valid": (make_facts("outbound-anonymous", "startup"), DEFAULT),
    "inbound-anonymous-suppressed": (
        make_facts("inbound-anonymous", receive_connector=make_receive_connector(SuppressXAnonymousTls=True)),
        DEFAULT,
    ),
    "inbound-anonymous-ephemeral": (make_facts("inbound-anonymous", store=Store([])), Rules(store_miss="ephemeral")),
    "inbound-starttls-valid": (
        make_facts("inbound-starttls", receive_connector=MAIL, store=Store([make_certificate(**PKI)])),
        DEFAULT,
    ),
    "inbound-starttls-expired": (make_facts("inbound-starttls", store=EXPIRED), DEFAULT),
    "inbound-starttls-no-match": (make_facts("inbound-starttls", receive_connector=MAIL), DEFAULT),
    "inbound-starttls-no-smtp": (
        make_facts("inbound-starttls", store=Store([make_certificate(Services="IIS")])),
        DEFAULT,
    ),
    "inbound-starttls-bad-chain": (
        make_facts(
            "inbound-starttls", receive_connector=MAIL, store=Store([make_certificate(**PKI, Status="Untrusted")])
        ),
        DEFAULT,
    ),
}


CASES = {name: (only_its_own(facts), rules) for name, (facts, rules) in GIVEN.items()}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, language: Language) -> None:
    text = click.unstyle(explained(select(*CASES[case]), language, details=True)) + "\n"
    path = GOLDEN / f"{case}.{language}.txt"
    if UPDATE:
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_no_golden_file_is_left_over() -> None:
    wanted = {f"{case}.{language}.txt" for case in CASES for language in LANGUAGES}
    assert {path.name for path in GOLDEN.iterdir()} == wanted


# --- the catalogues ---------------------------------------------------------------------------------------------------


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def english(key: str) -> str | None:
    """The English text of a key; the event catalogue is English itself."""
    event = re.fullmatch(r"event\.(\d+)\.(\w+)", key)
    if event:
        text = getattr(CATALOGUE[int(event[1])], event[2])
        return None if text is None else str(text)
    return texts("en").get(key)


def test_both_catalogues_have_the_same_keys() -> None:
    events = {
        f"event.{event.id}.{part}"
        for event in CATALOGUE.values()
        for part in ("text", "when", "remedy", "level_note")
        if getattr(event, part) is not None
    }
    assert sorted(set(texts("de")) ^ (set(texts("en")) | events)) == []


def test_both_catalogues_have_the_same_fields() -> None:
    different = {key for key, german in texts("de").items() if fields(german) != fields(english(key) or "")}
    assert different == set()


def test_sentences_are_translated() -> None:
    # A remedy may be a cmdlet alone, a label the same word in both languages.
    same = [
        key
        for key, german in texts("de").items()
        if german == english(key)
        and not key.startswith(("remedy.", "event."))
        and len(re.sub(r"\{\w+\}", "", german).split()) > 2
    ]
    assert same == []


def all_decisions() -> list[Decision]:
    """Every table case, and the golden ones."""
    found = [*decisions(), *(select(*case) for case in CASES.values())]
    for table in ("rules", "unknown", "values"):
        for line in read(table):
            facts = facts_of(line)
            found += [select(facts), select(facts, OTHER_RULES)]
    malformed = make_receive_connector(TlsCertificateName="<I>CN=CA")
    found.append(select(make_facts("inbound-starttls", receive_connector=malformed)))
    refused = Store([make_certificate()], {ITC: "the TLS library refuses it"})
    for scenario in ("inbound-anonymous", "inbound-starttls"):
        facts = make_facts(scenario, store=refused, receive_connector=make_receive_connector(Fqdn=None))
        found += [select(facts), select(facts, OTHER_RULES)]
    return found


def test_every_reason_has_its_words_and_no_words_are_left_over() -> None:
    produced = set()
    for decision in all_decisions():
        produced |= {f"question.{question.key}" for question in questions(decision.facts)}
        for step in decision.steps:
            produced.add(f"because.{step.because}")
            if step.outcome is not Outcome.PASSED:
                produced.add(f"remedy.{step.because}")
    catalogue = {key for key in texts("en") if key.startswith(("question.", "because.", "remedy."))}
    assert sorted(produced - catalogue) == []
    assert sorted(catalogue - produced) == []


def test_no_other_words_are_left_over() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py") if path.name not in ("en.py", "de.py")
    )

    def used(key: str) -> bool:
        """Written out, or composed as in f"column.{name}" and "headline." + key."""
        parts = key.split(".")
        prefixes = [".".join(parts[:n]) + "." for n in range(1, len(parts))]
        forms = [f'"{key}"', f"'{key}'", f'"{key.partition(".")[2]}"']
        forms += [form for prefix in prefixes for form in (f'"{prefix}{{', f"'{prefix}{{", f'"{prefix}" +')]
        return any(form in code for form in forms)

    left = [key for key in texts("en") if not key.startswith(("question.", "because.", "remedy.")) and not used(key)]
    assert left == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_decision_can_be_explained(language: Language) -> None:
    for decision in all_decisions():
        explanation = Explanation(decision, language)
        sentences = [
            explanation.headline,
            *map(explanation.because, decision.steps),
            *map(explanation.check, decision.steps),
        ]
        sentences += [remedy for step in decision.steps if (remedy := explanation.remedy(step))]
        sentences += map(explanation.event, decision.events)
        for sentence in sentences:
            assert sentence
            assert not re.search(r"\{\w+\}|Unknown\(|UnsetType|datetime\(|=None\b|<\w+\.\w+: ", sentence), sentence
        for step in decision.steps:
            assert (explanation.remedy(step) is None) == (step.outcome is Outcome.PASSED)


def test_the_verdict_at_a_start_reads_available_to_sessions() -> None:
    for scenario in ("outbound-anonymous", "inbound-anonymous"):
        decision = select(make_facts(scenario, "startup"))
        assert "available to sessions" in Explanation(decision, "en").headline
        assert "verfügbar für Sitzungen" in Explanation(decision, "de").headline


CHECKS: Mapping[str, Callable[[], SessionFacts]] = {
    "Get-ReceiveConnector 'MBX1\\Default MBX1' |": lambda: make_facts("inbound-anonymous"),
    "Get-SendConnector 'EdgeSync - Inbound to Site1' |": lambda: make_facts(server=EDGE),
    "Get-Queue -Server MBX1 |": make_facts,
}


@pytest.mark.parametrize("cmdlet", CHECKS)
def test_checks_are_typed_as_an_administrator_would(cmdlet: str) -> None:
    decision = select(CHECKS[cmdlet]())
    explanation = Explanation(decision)
    assert any(explanation.check(step).startswith(cmdlet) for step in decision.steps)


# --- where the articles are silent, the step's reason says that it is our reading -------------------------------------

FOLLOWS = make_server(InternalTransportCertificateThumbprint=UNKNOWN)
DIFFERS = make_server(InternalTransportCertificateThumbprint=OTHER)
TIE = Store([make_certificate(Thumbprint=letter * 40) for letter in "AB"])
WILDCARD = Store([make_certificate(Subject="CN=x", CertificateDomains=("*.contoso.com",))])


def starttls(**changed: object) -> SessionFacts:
    store = Store([make_certificate(**{**PKI, **changed})])
    return make_facts("inbound-starttls", receive_connector=MAIL, store=store)


SILENCES: Mapping[str, tuple[str, SessionFacts]] = {
    "no private key": ("3", make_facts(store=Store([make_certificate(HasPrivateKey=False)]))),
    "no choice": ("5", starttls(Status="Untrusted")),
    "revocation not checked": ("5", starttls(Status="RevocationCheckFailure")),
    "expired certificate of a PKI": ("5", starttls(Status="DateInvalid", NotAfter=year(2025))),
    "tie": ("5", make_facts("inbound-starttls", store=TIE)),
    "wildcard": ("3", make_facts("inbound-starttls", store=WILDCARD)),
    "1.a follows from 2": ("1.a", make_facts(server=FOLLOWS)),
    "2 follows from 1.a": ("2", make_facts(attribute=InternalTlsCert(unknown="x"))),
    "1.a and 2 differ": ("1.a", make_facts(server=DIFFERS)),
    "neither has dashes": ("1.c", GIVEN["outbound-edge-no-dashes"][0]),
    "dashes in an address space": ("1.c", make_facts(server=EDGE, send_connector=make_send_connector(SmartHosts=()))),
}


@pytest.mark.parametrize("silence", SILENCES)
def test_the_reason_says_that_it_is_our_reading(silence: str) -> None:
    number, facts = SILENCES[silence]
    decision = select(facts)
    step = next(step for step in decision.steps if step.step == number)
    assert "our reading" in Explanation(decision, "en").because(step)
    assert "unsere Lesart" in Explanation(decision, "de").because(step)
