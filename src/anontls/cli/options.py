"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from anontls.errors import UsageError
from anontls.report.language import LANGUAGES
from anontls.selection.rules import DEFAULT, Rules, with_value

F = TypeVar("F", bound=Callable[..., Any])


class Moment(click.ParamType[datetime]):
    """A date (its first second, UTC) or a time of ISO 8601; without a zone it is UTC."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):  # in UTC it may lie beyond the years that there are
            self.fail(f"{value!r} is not a date like 2026-11-24 or a time like 2026-11-24T12:00:00Z", param, ctx)


class Seconds(click.FloatRange):
    """A time between two limits; nan, which is neither below nor above anything, would be no limit at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


def as_json(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="JSON on standard output, one document a line.")(
        function
    )


def language(function: F) -> F:
    """``--lang``."""
    return click.option(
        "--lang",
        "language",
        type=click.Choice(LANGUAGES),
        default="en",
        show_default=True,
        envvar="ANONTLS_LANG",
        help="Language of explanations (or set ANONTLS_LANG).",
    )(function)


def as_of(function: F) -> F:
    """``--as-of``."""
    return click.option(
        "--as-of",
        type=Moment(),
        metavar="DATE",
        help="Decide for this date or time instead of now (UTC when no zone is given).",
    )(function)


def rules_in_force(given: Iterable[str]) -> Rules:
    """What ``--rules NAME=VALUE`` asks for; several may stand in one, with commas.

    Raises:
        UsageError: there is no such rule or value; says which there are.
    """
    rules = DEFAULT
    for item in (part for each in given for part in each.split(",")):
        name, _, value = item.strip().partition("=")
        try:
            rules = with_value(rules, name, value)
        except ValueError as e:
            raise UsageError(f"--rules {item}: {e}") from None
    return rules


def now() -> datetime:
    """The present moment: the only place where a command reads the clock."""
    return datetime.now(UTC)


def to_standard_output(svg: Path | None, *, as_json: bool) -> bool:
    """Whether the picture goes there, in place of the text.

    Raises:
        UsageError: JSON is to go there too.
    """
    drawn = svg is not None and str(svg) == "-"
    if drawn and as_json:
        raise UsageError("--json and --svg -: both would go to standard output")
    return drawn


def draw(file: Path, svg: str) -> None:
    """Write a picture; ``-`` is standard output.

    Raises:
        UsageError: the file cannot be written.
    """
    if str(file) == "-":
        click.echo(svg, nl=False)
        return
    try:
        file.write_text(svg, encoding="utf-8")
    except OSError as e:
        raise UsageError(f"{file}: {e.strerror}") from None
