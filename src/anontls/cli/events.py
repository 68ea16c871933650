"""``anontls events``: the event catalogue."""

from __future__ import annotations

from typing import Any

import click

from anontls.cli import options
from anontls.errors import UsageError
from anontls.events import CATALOGUE, EventType
from anontls.report.json import encode
from anontls.report.language import Language, event_text, texts


@click.group("events")
def command() -> None:
    """The certificate and authentication events of the transport services."""


@command.command("list")
@options.language
@options.as_json
def list_events(language: Language, as_json: bool) -> None:
    """All events, a line each."""
    for kind in CATALOGUE.values():
        if as_json:
            click.echo(encode(document(kind, language)))
        else:
            click.echo(
                f"{kind.id:<6} {texts(language)[f'level.{kind.level}']:<12} {event_text(language, kind.id, 'when')}"
            )


@command.command("show")
@click.argument("event_id", metavar="ID", type=int)
@options.language
@options.as_json
def show_event(event_id: int, language: Language, as_json: bool) -> None:
    """One event: what it says, when it is raised, what to do."""
    kind = CATALOGUE.get(event_id)
    if kind is None:
        raise UsageError(f"event {event_id} is not in the catalogue", hint="known: " + ", ".join(map(str, CATALOGUE)))
    if as_json:
        click.echo(encode(document(kind, language)))
        return
    words = texts(language)
    lines = [
        click.style(f"{kind.id} {kind.name or '(' + (kind.name_note or '') + ')'}", bold=True),
        f"{words['event.level']}: {words[f'level.{kind.level}']}"
        + (f" ({event_text(language, kind.id, 'level_note')})" if kind.level_note else ""),
        f"{words['event.source']}: {', '.join(kind.sources)}    {words['event.category']}: {kind.category}",
        f"{words['event.text']}: {event_text(language, kind.id, 'text')}",
        f"{words['event.when']}: {event_text(language, kind.id, 'when')}",
        f"{words['word.remedy']}: {event_text(language, kind.id, 'remedy')}",
    ]
    click.echo("\n".join(lines))


def document(kind: EventType, language: Language) -> dict[str, Any]:
    """An event of the catalogue as JSON, ``anontls/event/1``."""
    return {
        "schema": "anontls/event/1",
        "id": kind.id,
        "name": kind.name,
        "level": kind.level,
        "level_note": event_text(language, kind.id, "level_note") if kind.level_note else None,
        "category": kind.category,
        "sources": list(kind.sources),
        "text": event_text(language, kind.id, "text"),
        "when": event_text(language, kind.id, "when"),
        "remedy": event_text(language, kind.id, "remedy"),
        "fields": sorted(kind.fields),
    }
