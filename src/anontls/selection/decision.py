"""A decision: which certificate, which verb, and every question that was asked on the way."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime

import msgspec

from anontls.events import Event
from anontls.facts import Certificate, SessionFacts
from anontls.selection.rules import Rules


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


class Decision(msgspec.Struct, frozen=True):
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
    differs_under: tuple[Difference, ...] = ()

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
