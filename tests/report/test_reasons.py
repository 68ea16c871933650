"""Reasons for what is not known, in German: each sentence is one that the program writes, and keeps its values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import anontls
from anontls.facts import Unknown
from anontls.report.language import show
from anontls.report.language.reasons_de import REASONS

SOURCES = "\n".join(p.read_text() for p in Path(anontls.__file__).parent.rglob("*.py") if "reasons_de" not in p.name)


@pytest.mark.parametrize("english", REASONS)
def test_each_sentence_is_written_somewhere_and_keeps_its_values(english: str) -> None:
    longest = max(re.split(r"\{\w\}", english), key=len).strip("; `")
    assert longest in SOURCES
    values = {"a": "VALUE-A", "b": "VALUE-B"}
    german = show("de", Unknown(english.format_map(values)))
    assert german == REASONS[english].format_map(values) != english.format_map(values)


def test_what_a_source_says_stays_as_it_stands() -> None:
    assert show("de", Unknown("no access since Tuesday")) == "no access since Tuesday"
