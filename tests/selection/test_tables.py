"""The decision tables: every line holds, and each combination of inputs stands on exactly one line."""

import itertools
from collections import Counter
from collections.abc import Mapping

import pytest

from anontls.selection import select
from tests.selection.tables import TABLES, Line, answer, read

LINES = [line for name in TABLES for line in read(name)]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_line(line: Line) -> None:
    table = TABLES[line.table]
    wrong = {}
    for cells in table.combinations(line):
        decided = answer(select(table.facts(cells)))
        if decided != line.expected:
            wrong[" ".join(cells.values())] = decided
    first: Mapping[str, object] = dict(itertools.islice(wrong.items(), 3))
    assert not wrong, f"{line}: {len(wrong)} not {line.expected}, such as {first}"


@pytest.mark.parametrize("name", TABLES)
def test_every_combination_stands_on_exactly_one_line(name: str) -> None:
    table = TABLES[name]
    lines = Counter(tuple(cells.values()) for line in read(name) for cells in table.combinations(line))
    everything = set(itertools.product(*table.inputs.values()))
    assert sorted(everything - set(lines))[:5] == []
    assert [combination for combination, count in lines.items() if count > 1][:5] == []
