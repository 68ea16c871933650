"""``anontls select``: decisions with their steps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import click
import msgspec

from anontls.cli import Exit, options
from anontls.cli.asked import Question, asked, known
from anontls.directory import facts_file, is_ldap_url, open_organization
from anontls.directory.facts_file import FaultyCase
from anontls.errors import UsageError
from anontls.facts import (
    DeliveryType,
    DirectoryWord,
    Phase,
    Scenario,
    SessionFacts,
    is_unknown,
    normal_thumbprint,
)
from anontls.report import json, text
from anontls.report.explain import Explanation
from anontls.report.language import Language, say
from anontls.report.printable import printable
from anontls.selection import Decision, Result, Rules, select
from anontls.selection import assumption as what_if
from anontls.selection.assumption import Assumption
from anontls.selection.rules import VALUES


@click.command("select")
@click.argument("scenario", type=click.Choice([s.value for s in Scenario]), required=False)
@click.option(
    "--org",
    type=click.Path(),
    metavar="ORG",
    envvar="ANONTLS_ORG",
    help="Snapshot, folder or .zip of exports (or set ANONTLS_ORG).",
)
@click.option(
    "--facts",
    type=click.Path(),
    metavar="FILE",
    help="Decide from a facts file (anontls/facts/1, .json or .jsonl; - for standard input).",
)
@click.option("--server", metavar="NAME", help="Only this server (name or FQDN).")
@click.option("--connector", metavar="NAME", help="Only this Receive or Send connector.")
@click.option("--queue", metavar="ID", help="Only this queue.")
@click.option(
    "--delivery-type",
    metavar="TYPE",
    type=click.Choice([d.value for d in DeliveryType], case_sensitive=False),
    help="A queue of this DeliveryType, whether or not the facts hold one.",
)
@click.option("--from", "peer", metavar="IP", help="The Receive connector that a session from this address hits ...")
@click.option("--port", type=click.IntRange(1, 65535), help="... on this port (25 when not given).")
@click.option("--phase", type=click.Choice([p.value for p in Phase]), default="session", show_default=True)
@options.as_of
@click.option(
    "--rules",
    multiple=True,
    metavar="NAME=VALUE",
    help="Decide under another rule: " + ", ".join(f"{n}={v[1]}" for n, v in VALUES.items()),
)
@click.option(
    "--assume",
    multiple=True,
    metavar="PATH=VALUE",
    help="What if: itc=THUMBPRINT, server.Property=, queue.Property=, ... (before and after).",
)
@click.option(
    "--without", multiple=True, metavar="THUMBPRINT", help="What if this certificate were removed (before and after)."
)
@click.option(
    "--expect",
    multiple=True,
    metavar="ANSWER",
    help="Exit 1 unless every decision is so: certificate, verb-only, none, unknown, X-ANONYMOUSTLS, STARTTLS, a thumbprint, event=ID, no-events.",
)
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the one decision as a picture; `-`: to standard output, in place of the text.",
)
@click.option("-v", "--verbose", is_flag=True, help="Explain every decision in full, with the cmdlet of each step.")
@options.language
@options.as_json
def command(
    scenario: str | None,
    org: str | None,
    facts: str | None,
    server: str | None,
    connector: str | None,
    queue: str | None,
    delivery_type: str | None,
    peer: str | None,
    port: int | None,
    phase: str,
    as_of: datetime | None,
    rules: tuple[str, ...],
    assume: tuple[str, ...],
    without: tuple[str, ...],
    expect: tuple[str, ...],
    svg: Path | None,
    verbose: bool,
    language: Language,
    as_json: bool,
) -> int:
    """Which certificate is used, whether the verb is, and why.

    One decision is explained step by step; several (all of a server or organisation) are a table.

    \b
    anontls select --org org.json
    anontls select --org org.json inbound-starttls --server MBX1 --from 10.0.0.9 --port 25
    anontls select --org org.json --server MBX1 --without 0123... --assume itc=4567...
    """
    if (org is None) == (facts is None):
        raise click.UsageError("exactly one of --org and --facts is needed")
    _check_together(click.get_current_context(), facts is not None)
    in_force = options.rules_in_force(rules)
    _check_expected(expect)
    assumptions = [*map(_assumption, assume), *map(what_if.without, without)]
    cases: Iterable[SessionFacts | FaultyCase]
    if facts is not None:
        cases = _from_facts(facts, as_of or options.now(), override=as_of)
    else:
        assert org is not None
        organization = open_organization(org)
        read = options.now()
        question = Question(
            scenario=Scenario(scenario) if scenario else None,
            server=server,
            connector=connector,
            queue=queue,
            delivery_type=delivery_type,
            peer=peer,
            port=port,
            phase=Phase(phase),
            as_of=as_of or read,
        )
        sessions = list(asked(organization, question))
        if is_ldap_url(org):
            word = DirectoryWord(url=organization.sources[0].file, as_of=read, age=0.0)
            sessions = [msgspec.structs.replace(session, directory=word) for session in sessions]
        _check_thumbprints(sessions, without, assumptions)
        cases = sessions
    answers: list[Answered] = []
    faults = 0
    drawn = options.to_standard_output(svg, as_json=as_json)
    for case in cases:
        if isinstance(case, FaultyCase):
            faults += 1
            if as_json:
                click.echo(json.encode(json.error(case.line, str(case.error))))
            else:
                click.echo(click.style("error: ", fg="red", bold=True) + printable(str(case.error)), err=True)
            continue
        answer = _answer(case, assumptions, in_force)
        if as_json:
            click.echo(json.encode(_document(answer, assumptions, language)))
        answers.append(answer)
    if not as_json and not drawn and answers:
        click.echo(_text(answers, assumptions, language, verbose=verbose))
    if svg is not None:
        _draw(svg, answers, language)
    return max(Exit.USAGE if faults else Exit.DONE, _status([answer.after for answer in answers], expect))


#: Each picks the session in its own way; a second one would be ignored.
PICKS: Mapping[str, frozenset[str]] = {
    "--queue": frozenset({"queue"}),
    "--connector": frozenset({"connector"}),
    "--delivery-type": frozenset({"delivery_type"}),
    "--from": frozenset({"peer", "port"}),
    "--phase startup": frozenset({"phase"}),
}


def _check_together(ctx: click.Context, has_facts: bool) -> None:
    """Refuse what would be ignored.

    Raises:
        click.UsageError: two options that exclude each other.
    """
    given = {name for name, value in ctx.params.items() if value not in (None, Phase.SESSION.value)}
    picks = [option for option, names in PICKS.items() if names & given]
    if has_facts and (picks or given & {"scenario", "server"}):
        raise click.UsageError("a facts file says itself what it asks; SCENARIO, --server and the like go with --org")
    if len(picks) > 1:
        raise click.UsageError(f"{' and '.join(picks)} exclude each other")


class Answered(msgspec.Struct, frozen=True):
    """A decision, and the one without the assumptions when there are any."""

    after: Decision
    before: Decision | None


def _answer(facts: SessionFacts, assumptions: Sequence[Assumption], rules: Rules) -> Answered:
    changed = facts
    for assumption in assumptions:
        try:
            changed = what_if.assume(changed, assumption)
        except ValueError as e:
            raise UsageError(f"--assume {assumption.path}: {e}") from None
    return Answered(select(changed, rules), select(facts, rules) if assumptions else None)


def _assumption(given: str) -> Assumption:
    try:
        return what_if.parse(given)
    except ValueError as e:
        raise UsageError(f"--assume {e}") from None


def _from_facts(name: str, moment: datetime, *, override: datetime | None) -> Iterator[SessionFacts | FaultyCase]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as e:
        raise UsageError(f"{name}: {e.strerror}") from None
    for case in facts_file.read_facts(content, name, default_as_of=moment):
        if override is not None and isinstance(case, SessionFacts):
            case = msgspec.structs.replace(case, as_of=override)
        yield case


def _check_thumbprints(
    cases: Sequence[SessionFacts], without: Sequence[str], assumptions: Sequence[Assumption]
) -> None:
    """Refuse to assume something of a certificate that no store holds.

    Raises:
        UsageError: a mistyped thumbprint would read as "nothing changes".
    """
    stores = [case.store for case in cases if not is_unknown(case.store)]
    entries = [entry for each in assumptions if (entry := what_if.STORE_PATH.fullmatch(each.path))]
    mentioned = [(f"--without {each}", each) for each in without]
    mentioned += [(f"--assume {entry.group()}", entry.group(1)) for entry in entries]
    for option, thumbprint in mentioned:
        if stores and not any(store.find(normal_thumbprint(thumbprint)) for store in stores):
            held = {str(c.thumbprint) for store in stores for c in store}
            raise UsageError(f"{option}: no such certificate", hint=known(held))


def _document(answer: Answered, assumptions: Sequence[Assumption], language: Language) -> dict[str, object]:
    document = json.decision_json(answer.after, language)
    if answer.before is not None:
        document["assumed"] = [{"path": a.path, "value": a.value} for a in assumptions]
        document["before"] = json.decision_json(answer.before, language)
    return document


def _text(answers: Sequence[Answered], assumptions: Sequence[Assumption], language: Language, *, verbose: bool) -> str:
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    decisions = [answer.after for answer in answers]
    parts: list[str] = []
    for assumption in assumptions:
        if assumption.path == "without":
            parts.append(say(language, "word.assumed-without", {"thumbprint": assumption.value}))
        else:
            parts.append(say(language, "word.assumed", {"path": assumption.path, "value": assumption.value}))
    pairs = [(answer.before, answer.after) for answer in answers if answer.before is not None]
    if pairs:
        parts.append("\n" + text.compared(pairs, language))
    if len(decisions) == 1 or verbose:
        parts += ["\n" * bool(parts) + text.explained(d, language, width=width, details=verbose) for d in decisions]
    elif not pairs:
        parts.append(text.table(decisions, language))
    return "\n".join(parts)


def _draw(file: Path, answers: Sequence[Answered], language: Language) -> None:
    if len(answers) != 1:
        raise UsageError(
            f"--svg draws one decision, and these are {len(answers)}",
            hint="name the scenario and the --connector, --queue or --delivery-type",
        )
    from anontls.report.svg import decision_svg

    options.draw(file, decision_svg(answers[0].after, language))


def _status(decisions: Sequence[Decision], expect: Sequence[str]) -> Exit:
    for decision in decisions:
        for wanted in expect:
            if not _is_met(decision, wanted):
                click.echo(f"not met: --expect {wanted}: {Explanation(decision).headline}", err=True)
                return Exit.NOT_MET
    unknown = any(decision.result is Result.UNKNOWN for decision in decisions)
    return Exit.UNKNOWN if unknown and "unknown" not in expect else Exit.DONE


def _check_expected(expect: Sequence[str]) -> None:
    """Refuse an answer that no decision can give.

    Raises:
        UsageError: says which answers there are.
    """
    for wanted in expect:
        word = wanted.strip().lower()
        is_event = word.startswith("event=") and word.removeprefix("event=").isdecimal()
        if not is_event and word not in ANSWERS and not what_if.THUMBPRINT.fullmatch(normal_thumbprint(word)):
            raise UsageError(
                f"--expect {wanted}: not an answer",
                hint="certificate, verb-only, none, unknown, X-ANONYMOUSTLS, STARTTLS, a thumbprint, event=ID, no-events",
            )


#: The answers of ``--expect`` that are words.
ANSWERS = frozenset({*(result.value for result in Result), "x-anonymoustls", "starttls", "no-events"})


def _is_met(decision: Decision, wanted: str) -> bool:
    word = wanted.strip().lower()
    if word in {result.value for result in Result}:
        return decision.result.value == word
    if word in ("x-anonymoustls", "starttls"):
        return decision.verb is not None and decision.verb.lower() == word
    if word == "no-events":
        return not decision.events
    if word.startswith("event="):
        return word.removeprefix("event=") in {str(event.id) for event in decision.events}
    return decision.certificate is not None and decision.certificate.thumbprint == normal_thumbprint(word)
