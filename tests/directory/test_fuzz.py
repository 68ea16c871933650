import random
from types import ModuleType

import pytest

from fuzz.__main__ import mutate, run, scripts


@pytest.mark.filterwarnings("ignore")  # cryptography warns of what is odd in a certificate
@pytest.mark.parametrize("script", scripts(), ids=lambda script: str(script.__name__))
def test_mutated_seeds_are_read_or_refused(script: ModuleType) -> None:
    chance = random.Random(20240101)
    for data in script.SEEDS:
        script.one_input(data)
    for _ in range(300):
        script.one_input(mutate(chance, script.SEEDS, script.TOKENS))


def test_the_runner_shows_the_input_that_raises() -> None:
    broken = ModuleType("broken")
    broken.SEEDS, broken.TOKENS, broken.one_input = [b"ab"], [b"c"], lambda data: 1 / 0  # type: ignore[attr-defined]
    fault = run(broken, 5, random.Random(1))
    assert fault is not None
    assert fault.startswith("6162\n")
    assert "ZeroDivisionError" in fault
