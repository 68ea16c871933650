"""A decision: which certificate, which verb, and every question that was asked on the way."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property

import msgspec

from anontls.events import Event
from anontls.facts import Certificate, SessionFacts
from anontls.selection.rules import Rules, other_value, with_value


class Outcome(enum.Enum):
    """How a question was answered."""

    PASSED = "passed"
    NOTED = "noted"  # goes on, with a remark
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Result(enum.Enum):
    """What a session gets."""

    CERTIFICATE = "certificate"
    VERB_ONLY = "verb-only"  # the verb, no certificate of its own
    NONE = "none"
    UNKNOWN = "unknown"


class Step(msgspec.Struct, frozen=True, gc=False):
    """One question and its answer.

    ``because`` is the key of a sentence in ``report/language`` and ``values`` are what the sentence names: a
    decision is data, its wording comes later and in the reader's language.  ``rule`` names the rule that the answer
    hung on; ``ends`` is the result with which it ended the procedure early.
    """

    step: str
    outcome: Outcome
    because: str
    values: Mapping[str, object]
    event: Event | None = None
    rule: str | None = None
    ends: Result | None = None


class Difference(msgspec.Struct, frozen=True):
    """Another value of a rule, and what it would decide."""

    rule: str
    value: str
    result: Result
    verb: str | None
    certificate: Certificate | None
    ephemeral: bool
    events: tuple[int, ...]


class Decision(msgspec.Struct, frozen=True, dict=True):
    """The outcome of one procedure.

    ``certificate`` is the server's own certificate that it loads; ``ephemeral`` says that a temporary one, known to
    nobody, is used in its place.  ``verb`` is the verb used (sender) or advertised (receiver).
    """

    facts: SessionFacts
    rules: Rules
    result: Result
    verb: str | None
    certificate: Certificate | None
    ephemeral: bool
    steps: tuple[Step, ...]
    again: Callable[[SessionFacts, Rules], Decision]  # the procedure that decided

    @cached_property
    def differs_under(self) -> tuple[Difference, ...]:
        """Where another value of a rule that an answer hung on would decide otherwise; found when it is asked for."""
        found = []
        for step in self.steps:
            if step.rule is not None:
                value = other_value(self.rules, step.rule)
                other = self.again(self.facts, with_value(self.rules, step.rule, value))
                if other.answer != self.answer:
                    events = tuple(event.id for event in other.events)
                    found.append(
                        Difference(
                            step.rule, value, other.result, other.verb, other.certificate, other.ephemeral, events
                        )
                    )
        return tuple(found)

    @property
    def answer(self) -> object:
        """All that an observer of the session could tell from another decision."""
        thumbprint = None if self.certificate is None else self.certificate.thumbprint
        return self.result, self.verb, thumbprint, self.ephemeral, [event.id for event in self.events]

    @property
    def events(self) -> tuple[Event, ...]:
        """The events that the steps raise, in order."""
        return tuple(step.event for step in self.steps if step.event is not None)

    @property
    def last(self) -> Step:
        """The step at which the procedure ended."""
        return self.steps[-1]

    @property
    def as_of(self) -> datetime:
        """The time for which it was decided."""
        return self.facts.as_of
