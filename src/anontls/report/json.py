"""Decisions as JSON, ``anontls/decision/1``: one object, one line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from anontls.events import Event
from anontls.facts import Certificate, DirectoryWord, Unknown
from anontls.report.explain import Explanation, connector_name, decision_queue, queue_name
from anontls.report.language import Language, event_text
from anontls.selection import Decision, Difference, Step
from anontls.selection.rules import VALUES, value

SCHEMA = "anontls/decision/1"


def decision_json(decision: Decision, language: Language = "en") -> dict[str, Any]:
    """The decision as the contract has it."""
    explanation = Explanation(decision, language)
    queue = decision_queue(decision)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "scenario": decision.facts.scenario.value,
        "server": decision.facts.server.name,
        "connector": connector_name(decision),
        "queue": queue_name(queue) if queue else None,
        "as_of": time(decision.as_of),
        "phase": decision.facts.phase.value,
        "result": decision.result.value,
        "verb": decision.verb,
        "certificate": certificate(decision.certificate, ephemeral=decision.ephemeral),
        "headline": explanation.headline,
        "steps": [_step(step, explanation) for step in decision.steps],
        "events": [_event(event, explanation) for event in decision.events],
        "rules": {name: value(decision.rules, name) for name in VALUES},
        "differs_under": [_difference(difference) for difference in decision.differs_under],
    }
    if queue is not None and queue.hypothetical:
        document["hypothetical"] = True
    if decision.facts.directory is not None:
        document["directory"] = _directory(decision.facts.directory)
    return document


def error(line: int, message: str) -> dict[str, Any]:
    """The answer to a line of a facts file that cannot be decided on."""
    return {"schema": "anontls/error/1", "line": line, "message": message}


def encode(document: object) -> str:
    """One line of JSON; what a terminal would obey is escaped in it."""
    return printable_json(msgspec.json.encode(document).decode())


def printable_json(line: str) -> str:
    """A line of JSON with what a terminal would obey escaped, in JSON's own way: it says the same."""
    return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    pair = character.encode("utf-16-be").hex()  # beyond U+FFFF JSON has two escapes
    return "".join(f"\\u{pair[at : at + 4]}" for at in range(0, len(pair), 4))


def time(moment: datetime) -> str:
    """RFC 3339 in UTC, as the contract prints it."""
    text = moment.astimezone(UTC).isoformat()
    return text.removesuffix("+00:00") + "Z"


def fact(value: object) -> Any:
    """A fact as JSON; what is not known keeps its reason."""
    match value:
        case Unknown():
            return {"unknown": value.because}
        case datetime():
            return time(value)
        case _:
            return value


def certificate(chosen: Certificate | None, *, ephemeral: bool = False) -> dict[str, Any] | None:
    """The certificate of a decision."""
    if ephemeral:
        return {"ephemeral": True}
    if chosen is None:
        return None
    return {
        "thumbprint": fact(chosen.thumbprint),
        "subject": fact(chosen.subject),
        "issuer": fact(chosen.issuer),
        "not_before": fact(chosen.not_before),
        "not_after": fact(chosen.not_after),
        "self_signed": fact(chosen.is_self_signed),
    }


def _directory(word: DirectoryWord) -> dict[str, Any]:
    return {"url": word.url, "as_of": time(word.as_of), "age": round(word.age, 3)}


def _step(step: Step, explanation: Explanation) -> dict[str, Any]:
    return {
        "step": step.step,
        "outcome": step.outcome.value,
        "question": explanation.question(step),
        "because": explanation.because(step),
        "event": None if step.event is None else step.event.id,
        "check": explanation.check(step),
        "remedy": explanation.remedy(step),
    }


def _event(event: Event, explanation: Explanation) -> dict[str, Any]:
    kind = event.type
    document = {
        "id": event.id,
        "source": event.source,
        "name": kind.name,
        "level": kind.level,
        "text": explanation.event(event),
    }
    if kind.level_note:
        document["level_note"] = event_text(explanation.language, event.id, "level_note")
    return document


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "rule": difference.rule,
        "value": difference.value,
        "result": difference.result.value,
        "verb": difference.verb,
        "certificate": certificate(difference.certificate, ephemeral=difference.ephemeral),
        "events": list(difference.events),
    }
