"""What a peer said, fit to be shown: nothing in it reaches a terminal as a command."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""``text`` with everything that is no printable character escaped, as in ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
