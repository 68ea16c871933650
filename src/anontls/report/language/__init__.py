"""The wording of explanations: one catalogue a language, all with the same keys and fields."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Literal

from anontls.events import CATALOGUE
from anontls.facts import ABSENT, Unknown
from anontls.report.language.reasons_de import reason
from anontls.report.printable import printable

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")


@cache
def texts(language: Language) -> Mapping[str, str]:
    """The catalogue of a language."""
    if language == "de":
        from anontls.report.language import completeness_de, de

        return de.TEXTS | completeness_de.TEXTS
    from anontls.report.language import completeness_en, en

    return en.TEXTS | completeness_en.TEXTS


def event_text(language: Language, event: int, part: Literal["text", "when", "remedy", "level_note"]) -> str:
    """A part of the event catalogue; English is the catalogue's own language."""
    return str(getattr(CATALOGUE[event], part)) if language == "en" else texts(language)[f"event.{event}.{part}"]


def say(language: Language, key: str, values: Mapping[str, object] | None = None) -> str:
    """The sentence ``key`` with its fields filled in."""
    catalogue = texts(language)
    return catalogue[key].format_map({name: show(language, value) for name, value in (values or {}).items()})


def show(language: Language, value: object) -> str:
    """A value as a reader sees it: times in UTC, lists with commas, what is not set or not known in words.

    Escape sequences and line breaks in it are shown, not sent: names come from files that anybody may have made.
    """
    match value:
        case None | "":
            return texts(language)["word.not-set"]
        case Unknown():
            if value == ABSENT:
                return texts(language)["word.no-source"]
            return printable(reason(value.because) if language == "de" else value.because)
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case tuple() | list():
            return ", ".join(show(language, each) for each in value) if value else texts(language)["word.not-set"]
        case bool():
            return f"${str(value).lower()}"
        case _:
            return printable(str(value))
