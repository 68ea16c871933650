"""Decisions for a terminal or a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

import click

from anontls.facts import Phase, is_unknown
from anontls.report.explain import Explanation, connector_name, decision_queue
from anontls.report.language import Language, say, show, texts
from anontls.report.printable import printable
from anontls.selection import Decision, Difference, Outcome, Result, Step

MOST_CHECKS = 30  # a list that is meant to be worked through, not scrolled through
OUTCOME_COLOUR = {Outcome.PASSED: "green", Outcome.NOTED: "yellow", Outcome.STOPPED: "red", Outcome.UNKNOWN: "magenta"}
RESULT_COLOUR = {Result.CERTIFICATE: "green", Result.VERB_ONLY: "green", Result.NONE: "red", Result.UNKNOWN: "magenta"}


def explained(decision: Decision, language: Language, *, width: int = 100, details: bool = False) -> str:
    """The headline, then a block a step: outcome, question, reason; what to do where it did not pass.

    ``details`` adds the cmdlet of every step.
    """
    explanation = Explanation(decision, language)
    colour = RESULT_COLOUR[decision.result]
    if decision.result is Result.CERTIFICATE and any(s.outcome is Outcome.NOTED for s in decision.steps):
        colour = "yellow"
    lines = [
        click.style(explanation.headline, fg=colour, bold=True),
        explanation.as_of,
        "",
    ]
    for step in decision.steps:
        lines += _step(step, explanation, width, details)
    for difference in decision.differs_under:
        lines += ["", click.style(_difference(difference, language), fg="cyan")]
    return "\n".join(lines)


def _step(step: Step, explanation: Explanation, width: int, details: bool) -> Iterator[str]:
    language = explanation.language
    words = texts(language)
    label = words[f"outcome.{step.outcome.value}"]
    margin = " " * 16
    event = f"  [{say(language, 'word.event', {'id': step.event.id})}]" if step.event else ""
    outcome = click.style(f"{label:<9}", fg=OUTCOME_COLOUR[step.outcome])
    yield f"{step.step:<5}{outcome}  {explanation.question(step)}" + click.style(event, bold=True)
    yield from _wrapped(explanation.because(step), margin, width)
    if details:
        yield f"{margin}{words['word.check']}: {explanation.check(step)}"
    remedy = explanation.remedy(step)
    if remedy:
        yield f"{margin}{words['word.remedy']}: {remedy}"  # not wrapped: cmdlets are there to be copied


def _wrapped(text: str, margin: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def _difference(difference: Difference, language: Language) -> str:
    what = _certificate_word(difference, language)
    if difference.verb:
        what = f"{difference.verb}, {what}"
    if difference.events:
        what += " [" + ", ".join(say(language, "word.event", {"id": event}) for event in difference.events) + "]"
    return say(language, "word.differs", {"rule": difference.rule, "value": difference.value, "what": what})


def _certificate_word(answer: Decision | Difference, language: Language) -> str:
    words = texts(language)
    if answer.ephemeral:
        return words["word.temporary"]
    if answer.certificate is not None:
        certificate = answer.certificate
        return f"{str(certificate.thumbprint)[:8]} {show(language, certificate.subject)}"
    return words["word.verb-only"] if answer.result is Result.VERB_ONLY else words["word.none"]


def _row(decision: Decision, language: Language) -> list[str]:
    words = texts(language)
    queue = decision_queue(decision)
    startup = decision.facts.phase is Phase.STARTUP
    scenario = words["scenario.startup" if startup else f"scenario.{decision.facts.scenario.value}"]
    what = printable(connector_name(decision) or "-")
    if queue is not None:
        what = printable(Explanation(decision, language).queue(queue))
        if not queue.hypothetical and not is_unknown(queue.delivery_type):
            what += f" ({show(language, queue.delivery_type)})"
    if decision.result is Result.UNKNOWN:
        return [scenario, what, words["word.unknown"], "", "", decision.last.step, ""]
    if decision.last.because == "1.b.mailbox":
        return [scenario, what, words["word.none"], words["word.in-practice"], "", decision.last.step, ""]
    certificate = decision.certificate
    until = (
        ""
        if certificate is None or is_unknown(certificate.not_after) or certificate.not_after is None
        else f"{certificate.not_after:%Y-%m-%d}"
    )
    events = ", ".join(str(event.id) for event in decision.events)
    return [
        scenario,
        what,
        decision.verb or words["word.none"],
        _certificate_word(decision, language),
        until,
        decision.last.step,
        events,
    ]


def table(decisions: Sequence[Decision], language: Language) -> str:
    """One line a decision, under a heading a server, and a summary."""
    words = texts(language)
    head = [words[f"column.{c}"] for c in ("scenario", "for", "verb", "certificate", "expires", "step", "events")]
    rows = [(decision, _row(decision, language)) for decision in decisions]
    widths = [max(len(head[i]), *(len(row[i]) for _, row in rows)) for i in range(len(head))]
    lines: list[str] = []
    server = None
    for decision, row in rows:
        if decision.facts.server.name != server:
            server = decision.facts.server.name
            lines += [
                "",
                click.style(printable(server), bold=True),
                click.style("  " + _columns(head, widths), dim=True),
            ]
        colour = RESULT_COLOUR[decision.result] if not decision.events else "yellow" if decision.verb else "red"
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[2] = click.style(cells[2], fg=colour)
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join([*lines[1:], "", _summary(decisions, language), *_to_run(decisions, language)])


def _columns(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _to_run(decisions: Sequence[Decision], language: Language) -> Iterator[str]:
    """The cmdlets that would tell what is not known, each once."""
    checks: dict[str, set[str]] = {}
    for decision in decisions:
        if decision.result is Result.UNKNOWN:
            checks.setdefault(Explanation(decision, language).check(decision.last), set()).add(decision.last.step)
    if checks:
        yield "\n" + texts(language)["word.to-run"]
    for check, steps in list(checks.items())[:MOST_CHECKS]:
        yield f"  {', '.join(sorted(steps)):<5} {check}"
    if len(checks) > MOST_CHECKS:
        yield "  " + say(language, "word.and-more", {"count": len(checks) - MOST_CHECKS})


def _summary(decisions: Sequence[Decision], language: Language) -> str:
    counts = {result: sum(d.result is result for d in decisions) for result in Result}
    values: dict[str, object] = {result.value.replace("-", "_"): count for result, count in counts.items()}
    return say(language, "word.summary", {"decisions": len(decisions), **values})


def compared(pairs: Sequence[tuple[Decision, Decision]], language: Language) -> str:
    """Before and after side by side, one line a decision."""
    words = texts(language)
    head = [
        words["column.server"],
        words["column.scenario"],
        words["column.for"],
        words["word.before"],
        words["word.after"],
    ]
    rows: list[tuple[bool, list[str]]] = []
    for before, after in pairs:
        one, other = _row(before, language), _row(after, language)
        changed = one[2:] != other[2:]
        answer = _short(other) if changed else words["word.unchanged"]
        rows.append((changed, [printable(before.facts.server.name), *one[:2], _short(one), answer]))
    widths = [max(len(head[i]), *(len(row[i]) for _, row in rows)) for i in range(len(head))]
    lines = [click.style(_columns(head, widths), dim=True)]
    for changed, row in rows:
        line = _columns(row, widths)
        lines.append(click.style(line, fg="yellow", bold=True) if changed else line)
    lines += [
        "",
        f"{sum(changed for changed, _ in rows)} {words['word.changed']}, {sum(not c for c, _ in rows)} {words['word.unchanged']}",
    ]
    return "\n".join(lines)


def _short(row: Sequence[str]) -> str:
    verb, certificate, until, step, events = row[2:]
    if until == certificate == "" or verb == certificate:
        certificate = ""
    parts = [
        verb,
        *([certificate] if certificate else []),
        *([f"({until})"] if until else []),
        f"@{step}",
        *([f"[{events}]"] if events else []),
    ]
    return " ".join(parts)
