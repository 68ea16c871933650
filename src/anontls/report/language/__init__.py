"""The wording of explanations: one catalogue a language, all with the same keys and fields."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from anontls.facts import ABSENT, Unknown

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")


def texts(language: Language) -> Mapping[str, str]:
    """The catalogue of a language."""
    if language == "de":
        from anontls.report.language import de

        return de.TEXTS
    from anontls.report.language import en

    return en.TEXTS


def say(language: Language, key: str, values: Mapping[str, object] | None = None) -> str:
    """The sentence ``key`` with its fields filled in."""
    catalogue = texts(language)
    return catalogue[key].format_map({name: show(language, value) for name, value in (values or {}).items()})


def show(language: Language, value: object) -> str:
    """A value as a reader sees it: times in UTC, lists with commas, what is not set or not known in words."""
    match value:
        case None | "":
            return texts(language)["word.not-set"]
        case Unknown():
            return texts(language)["word.no-source"] if value is ABSENT or value == ABSENT else value.because
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case tuple() | list():
            return ", ".join(show(language, each) for each in value) if value else texts(language)["word.not-set"]
        case bool():
            return f"${str(value).lower()}"
        case _:
            return str(value)
