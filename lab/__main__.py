"""``make lab``: Ctrl-C ends it at any time, also in the half second in which all that it needs is imported."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def _end(number: int, _frame: object) -> None:
    """Leave by way of all that stops and removes what was begun."""
    signal.signal(number, signal.SIG_IGN)  # whoever is impatient now would leave some of it
    with suppress(OSError):  # the terminal is gone
        os.write(2, b"\nInterrupted\n")  # not print(), which this may have come in the middle of
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _end)
    from lab.command import main

    main(prog_name="make lab")
