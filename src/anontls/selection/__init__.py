"""The three procedures: which certificate of its own a server loads for a session, and whether the verb is used."""

from collections.abc import Callable, Mapping

from anontls.facts import Scenario, SessionFacts
from anontls.selection import inbound_anonymous as _inbound_anonymous
from anontls.selection import inbound_starttls as _inbound_starttls
from anontls.selection import outbound_anonymous as _outbound_anonymous
from anontls.selection.decision import Decision, Difference, Outcome, Result, Step
from anontls.selection.inbound_anonymous import inbound_anonymous
from anontls.selection.inbound_starttls import inbound_starttls
from anontls.selection.outbound_anonymous import outbound_anonymous
from anontls.selection.procedure import Question, Questions
from anontls.selection.rules import DEFAULT, Rules

_PROCEDURES: Mapping[Scenario, Callable[[SessionFacts, Rules], Decision]] = {
    Scenario.OUTBOUND_ANONYMOUS: outbound_anonymous,
    Scenario.INBOUND_ANONYMOUS: inbound_anonymous,
    Scenario.INBOUND_STARTTLS: inbound_starttls,
}
_QUESTIONS: Mapping[Scenario, Callable[[SessionFacts], Questions]] = {
    Scenario.OUTBOUND_ANONYMOUS: _outbound_anonymous.questions,
    Scenario.INBOUND_ANONYMOUS: _inbound_anonymous.questions,
    Scenario.INBOUND_STARTTLS: _inbound_starttls.questions,
}


def select(facts: SessionFacts, rules: Rules = DEFAULT) -> Decision:
    """Decide with the procedure that ``facts.scenario`` names."""
    return _PROCEDURES[facts.scenario](facts, rules)


def questions(facts: SessionFacts) -> Questions:
    """The whole table of the procedure that ``facts.scenario`` names, in the order in which it is asked."""
    return _QUESTIONS[facts.scenario](facts)


__all__ = [
    "DEFAULT",
    "Decision",
    "Difference",
    "Outcome",
    "Question",
    "Questions",
    "Result",
    "Rules",
    "Step",
    "inbound_anonymous",
    "inbound_starttls",
    "outbound_anonymous",
    "questions",
    "select",
]
