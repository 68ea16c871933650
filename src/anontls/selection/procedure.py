"""What the three procedures have in common: a procedure is a table of questions, asked in order.

The same table drives the decision, the picture and the tests; a question that the table does not hold cannot be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import msgspec

from anontls.events import FRONT_END_TRANSPORT, TRANSPORT, Event
from anontls.facts import Certificate, SessionFacts, Unknown
from anontls.selection.decision import Decision, Difference, Outcome, Result, Step
from anontls.selection.rules import Rules, other_value, with_value

X_ANONYMOUSTLS = "X-ANONYMOUSTLS"
STARTTLS = "STARTTLS"

NO_VALUES: Mapping[str, object] = {}


class Answer(NamedTuple):
    """What a question was answered with; see :class:`~anontls.selection.decision.Step`.

    ``rule`` names the rule that the answer hung on; ``ends`` ends the procedure early with that result.
    """

    outcome: Outcome
    because: str
    values: Mapping[str, object] = NO_VALUES
    event: int | None = None
    rule: str | None = None
    ends: Result | None = None


class Search:
    """What the questions so far have found; each procedure run has its own."""

    __slots__ = ("candidates", "certificate", "doubtful", "ephemeral", "facts", "name", "rules", "thumbprint")

    def __init__(self, facts: SessionFacts, rules: Rules) -> None:
        self.facts = facts
        self.rules = rules
        self.thumbprint: str = ""  # the internal transport certificate that the directory names
        self.name: object = None  # STARTTLS: the name to look for
        self.candidates: list[Certificate] = []  # STARTTLS: what is left of the store
        self.doubtful: list[tuple[Certificate, Unknown]] = []  # may be candidates: what is missing to tell
        self.certificate: Certificate | None = None
        self.ephemeral = False


class Question(msgspec.Struct, frozen=True):
    """One row of a procedure's table.

    ``check`` is the cmdlet that shows the value, with named fields; ``otherwise`` says what the answer "no" does,
    ``event`` which event it raises (12012 at the start of the service only).
    """

    step: str
    key: str  # of the question's text in report/language
    ask: Callable[[Search], Answer]
    check: str
    otherwise: Literal["stop", "note", "action"] = "stop"
    event: int | None = None


Questions = tuple[Question, ...]


def passed(because: str, values: Mapping[str, object] = NO_VALUES) -> Answer:
    """Yes: go on."""
    return Answer(Outcome.PASSED, because, values)


def noted(
    because: str, values: Mapping[str, object] = NO_VALUES, *, event: int | None = None, rule: str | None = None
) -> Answer:
    """Go on, with a remark."""
    return Answer(Outcome.NOTED, because, values, event, rule)


def stopped(
    because: str, values: Mapping[str, object] = NO_VALUES, *, event: int | None = None, rule: str | None = None
) -> Answer:
    """No: no verb, no certificate."""
    return Answer(Outcome.STOPPED, because, values, event, rule)


def not_known(fact: str, why: Unknown) -> Answer:
    """The answer needs ``fact``, which is not known."""
    return Answer(Outcome.UNKNOWN, "unknown", {"fact": fact, "why": why})


def decide(questions: Questions, verb: str, facts: SessionFacts, rules: Rules) -> Decision:
    """Ask ``questions`` in order until one ends the procedure, then say what other rules would decide."""
    decision, consulted = _run(questions, verb, facts, rules)
    if not consulted:
        return decision
    differences = []
    for name in consulted:
        value = other_value(rules, name)
        other, _ = _run(questions, verb, facts, with_value(rules, name, value))
        if _answer(other) != _answer(decision):
            events = tuple(event.id for event in other.events)
            differences.append(
                Difference(name, value, other.result, other.verb, other.certificate, other.ephemeral, events)
            )
    return msgspec.structs.replace(decision, differs_under=tuple(differences)) if differences else decision


def _run(questions: Questions, verb: str, facts: SessionFacts, rules: Rules) -> tuple[Decision, list[str]]:
    search = Search(facts, rules)
    steps: list[Step] = []
    consulted: list[str] = []
    result = Result.CERTIFICATE
    for question in questions:
        answer = question.ask(search)
        if answer.rule is not None:
            consulted.append(answer.rule)
        event = None if answer.event is None else _raise(answer.event, facts, answer.values)
        steps.append(Step(question.step, answer.outcome, answer.because, answer.values, event))
        if answer.outcome is Outcome.STOPPED:
            result = Result.NONE
            break
        if answer.outcome is Outcome.UNKNOWN:
            result = Result.UNKNOWN
            break
        if answer.ends is not None:
            result = answer.ends
            break
    certain = result is Result.CERTIFICATE
    decision = Decision(
        facts=facts,
        rules=rules,
        result=result,
        verb=verb if certain or result is Result.VERB_ONLY else None,
        certificate=search.certificate if certain else None,
        ephemeral=search.ephemeral and certain,
        steps=tuple(steps),
    )
    return decision, consulted


def _raise(event: int, facts: SessionFacts, values: Mapping[str, object]) -> Event:
    # The same ids come from the front end service for its connectors.  [FACT D 2]
    connector = facts.receive_connector
    front_end = connector is not None and connector.transport_service == "FrontendTransport"
    return Event(event, FRONT_END_TRANSPORT if front_end else TRANSPORT, values)


def _answer(decision: Decision) -> object:
    thumbprint = None if decision.certificate is None else decision.certificate.thumbprint
    return decision.result, decision.verb, thumbprint, decision.ephemeral, [event.id for event in decision.events]
