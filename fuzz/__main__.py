"""``python -m fuzz SECONDS [NAME ...]``: mutates the seeds of every script, or of those named, for so long each.

The first input that raises, or takes longer than five seconds, is printed in hexadecimal, and the exit status is 1.
``SEED=n`` in the environment repeats a run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import random  # noqa: TID251 - mutations are chance, and repeatable by their seed
import sys
import time
import traceback
from types import ModuleType

import fuzz

MAX_SECONDS = 5.0  # of one input
MAX_BYTES = 1 << 16


def scripts() -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(fuzz.__path__) if module.name.startswith("fuzz_"))
    return [importlib.import_module(f"fuzz.{name}") for name in names]


def mutate(chance: random.Random, seeds: list[bytes], tokens: list[bytes]) -> bytes:
    """A seed with a few changes: bytes set, pieces removed, repeated, put in, or taken from another seed."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        at = chance.randint(0, len(data))
        length = chance.choice((1, 1, 2, 4, 16, chance.randint(0, len(data) + 1)))
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.randint(1, 8)
            case 3:
                data[at:at] = chance.choice(tokens) * chance.choice((1, 1, 1, 2, 200))
            case 4:
                other = chance.choice(seeds)
                data[at : at + length] = other[at : at + chance.randint(0, 64)]
            case _:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(data[:MAX_BYTES])


def run(script: ModuleType, seconds: float, chance: random.Random) -> str | None:
    """What went wrong, or ``None``."""
    ends, count = time.monotonic() + seconds, 0
    while (started := time.monotonic()) < ends:
        data = mutate(chance, script.SEEDS, script.TOKENS) if count >= len(script.SEEDS) else script.SEEDS[count]
        count += 1
        try:
            script.one_input(data)
        except Exception:  # noqa: BLE001 - any exception is what is looked for
            return f"{data.hex()}\n{traceback.format_exc()}"
        if (took := time.monotonic() - started) > MAX_SECONDS:
            return f"{data.hex()}\ntook {took:.1f} s"
    print(f"{script.__name__}: {count:,} inputs")  # noqa: T201
    return None


def main(seconds: str = "10", *names: str) -> int:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    for script in scripts():
        name = script.__name__.removeprefix("fuzz.")
        if names and name not in names and name.removeprefix("fuzz_") not in names:
            continue
        if fault := run(script, float(seconds), random.Random(seed)):  # noqa: S311
            print(f"{name}, SEED={seed}:\n{fault}")  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
