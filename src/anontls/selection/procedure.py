"""What the three procedures have in common: a procedure is a table of questions, asked in order.

The same table drives the decision, the picture and the tests; a question that the table does not hold cannot be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from anontls.events import Event, source
from anontls.facts import Certificate, Scenario, SessionFacts, Unknown, is_unknown
from anontls.selection.decision import Decision, Outcome, Result, Step
from anontls.selection.rules import Rules

X_ANONYMOUSTLS = "X-ANONYMOUSTLS"
STARTTLS = "STARTTLS"

NO_VALUES: Mapping[str, object] = {}


class Search:
    """What the questions of one run have found so far, and the four ways to answer one."""

    __slots__ = ("candidates", "certificate", "doubtful", "ephemeral", "facts", "name", "rules", "step", "thumbprint")

    def __init__(self, facts: SessionFacts, rules: Rules) -> None:
        self.facts = facts
        self.rules = rules
        self.step = ""  # the question that is being asked
        self.thumbprint = ""  # the internal transport certificate that the directory names
        self.name: object = None  # STARTTLS: the name to look for
        self.candidates: Sequence[Certificate] = ()  # STARTTLS: what is left of the store
        self.doubtful: Sequence[tuple[Certificate, Unknown]] = ()  # may be candidates: what is missing to tell
        self.certificate: Certificate | None = None
        self.ephemeral = False

    def passed(self, because: str, values: Mapping[str, object] = NO_VALUES, *, rule: str | None = None) -> Step:
        """Yes: go on."""
        return Step(self.step, Outcome.PASSED, because, values, None, rule)

    def noted(
        self,
        because: str,
        values: Mapping[str, object] = NO_VALUES,
        *,
        event: int | None = None,
        rule: str | None = None,
        ends: Result | None = None,
    ) -> Step:
        """Go on, with a remark; or end with another result than nothing."""
        return Step(self.step, Outcome.NOTED, because, values, self._raise(event, values), rule, ends)

    def stopped(
        self,
        because: str,
        values: Mapping[str, object] = NO_VALUES,
        *,
        event: int | None = None,
        rule: str | None = None,
    ) -> Step:
        """No: no verb, no certificate."""
        return Step(self.step, Outcome.STOPPED, because, values, self._raise(event, values), rule, Result.NONE)

    def not_known(self, fact: str, why: Unknown, *, rule: str | None = None) -> Step:
        """The answer needs ``fact``, which is not known."""
        values = {"fact": fact, "why": why}
        return Step(self.step, Outcome.UNKNOWN, "unknown", values, None, rule, Result.UNKNOWN)

    def unless_expired(self, because: str) -> Step | None:
        """Whether Valid to of the certificate that was found is not yet past; ``None`` when it is.

        NotAfter itself is still valid [RFC5280 4.1.2.5].
        """
        assert self.certificate is not None
        not_after, now = self.certificate.not_after, self.facts.as_of
        if is_unknown(not_after):
            return self.not_known("NotAfter", not_after)
        if not_after is None:
            return self.not_known("NotAfter", Unknown("NotAfter is not set"))
        if now > not_after:
            return None
        return self.passed(because, {"not_after": not_after, "days": (not_after - now).days})

    def expired(self, **more: object) -> dict[str, object]:
        """What is to be said of a certificate that has expired."""
        assert self.certificate is not None
        not_after = self.certificate.not_after
        assert isinstance(not_after, datetime)
        days = (self.facts.as_of - not_after).days
        return {"thumbprint": self.certificate.thumbprint, "not_after": not_after, "days": days, **more}

    def _raise(self, event: int | None, values: Mapping[str, object]) -> Event | None:
        if event is None:
            return None
        facts = self.facts
        connector = None if facts.scenario is Scenario.OUTBOUND_ANONYMOUS else facts.receive_connector
        return Event(event, source(connector and connector.transport_service), values)


class Question(msgspec.Struct, frozen=True):
    """One row of a procedure's table.

    ``check`` is the cmdlet that shows the value, with named fields; ``otherwise`` says what the answer "no" does,
    ``event`` which event it raises (12012 at the start of the service only).
    """

    step: str
    key: str  # of the question's text in report/language
    ask: Callable[[Search], Step]
    check: str
    otherwise: Literal["stop", "note", "action"] = "stop"
    event: int | None = None


Questions = tuple[Question, ...]


def decide(
    questions: Questions,
    verb: str,
    facts: SessionFacts,
    rules: Rules,
    again: Callable[[SessionFacts, Rules], Decision],
) -> Decision:
    """Ask ``questions`` in order until one ends the procedure.

    ``again`` is the procedure itself: it says what other rules would decide, when somebody asks.
    """
    search = Search(facts, rules)
    steps = []
    result = Result.CERTIFICATE
    for question in questions:
        search.step = question.step
        step = question.ask(search)
        steps.append(step)
        if step.ends is not None:
            result = step.ends
            break
    loaded = result is Result.CERTIFICATE
    return Decision(
        facts,
        rules,
        result,
        verb if loaded or result is Result.VERB_ONLY else None,
        search.certificate if loaded else None,
        loaded and search.ephemeral,
        tuple(steps),
        again,
    )
