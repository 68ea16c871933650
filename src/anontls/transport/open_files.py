"""How many files may be open: a node with many sessions needs more than most systems allow at first."""

from __future__ import annotations

from contextlib import suppress

SPARE_FILES = 256  # open files beside those of sessions


def allow_sessions(sessions: int) -> str:
    """Raise the number of open files to what so many sessions may need: a socket in, a socket out, a file.

    What an operator should know when fewer may be open; empty when there is nothing.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ""
    wanted = 3 * sessions + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ""
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft >= sessions + SPARE_FILES:
        return ""
    return f"only {soft} files may be open (ulimit -n), fewer than the sessions of limits.sessions"
