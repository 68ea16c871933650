"""The command line: parses, calls one function, renders, returns an exit status.

Exit status: 0 done, decided (whatever the answer); 1 ``--expect`` not met, or findings; 2 usage or a malformed file;
3 something needed is unknown or unreachable; 4 we failed.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from contextlib import suppress
from enum import IntEnum
from typing import ClassVar

import click

from anontls import __version__
from anontls.errors import AnontlsError, Unreachable
from anontls.report.printable import printable


class Exit(IntEnum):
    """The documented exit statuses."""

    DONE = 0
    NOT_MET = 1
    USAGE = 2
    UNKNOWN = 3
    FAILED = 4


class Commands(click.Group):
    """Loads a command's module when the command is used, so that the others cost nothing at start."""

    modules: ClassVar = {
        "select": "anontls.cli.select:command",
        "route": "anontls.cli.route:command",
        "org": "anontls.cli.org:command",
        "events": "anontls.cli.events:command",
        "serve": "anontls.cli.serve:command",
        "config": "anontls.cli.config:command",
        "queue": "anontls.cli.queue:command",
        "send": "anontls.cli.send:command",
        "probe": "anontls.cli.probe:command",
        "cert": "anontls.cli.cert:command",
        "edge": "anontls.cli.edge:command",
        "lab": "anontls.cli.lab:command",
        "demo": "anontls.cli.demo:command",
        "completion": "anontls.cli.completion:command",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of their use."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self.modules:
            return None
        module, _, name = self.modules[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="anontls")
def anontls() -> None:
    """Which certificate does an SMTP session between Exchange servers use, and why?

    Decides, explains step by step, and shows what a renewal breaks.  ORG is a snapshot file, a folder or .zip of
    PowerShell exports, any single export file, or an LDAP URL.
    """


def _lines(message: str) -> str:
    """What names in it may hold must not reach the terminal as commands; the lines of a list of faults stay lines."""
    return "\n  ".join(printable(line) for line in message.split("\n  "))


#: A device that is full or broken, a quota, a file that may not grow.  EPIPE is a reader that has seen enough.
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def main() -> None:
    """Entry point of the ``anontls`` program."""
    try:
        status = run(sys.argv[1:])
    except OSError as e:  # an error message could not be written
        status = _unwritable(e)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as e:  # what is left would fail once more as Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status if e.errno == errno.EPIPE else _unwritable(e)
    sys.exit(status)


def _unwritable(error: OSError) -> int:
    with suppress(OSError):  # standard error may be on the same device
        click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
    return Exit.UNKNOWN


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status; nothing but the exit status leaves as an exception."""
    try:
        result = anontls.main(args=arguments, prog_name="anontls", standalone_mode=False)
        return int(result) if isinstance(result, int) else Exit.DONE
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return Exit.USAGE
    except click.Abort:
        click.echo("interrupted", err=True)
        return Exit.FAILED
    except AnontlsError as e:
        click.echo(click.style("error: ", fg="red", bold=True) + _lines(str(e)), err=True)
        if e.hint:
            click.echo(f"\nhint: {printable(e.hint)}", err=True)
        return Exit.UNKNOWN if isinstance(e, Unreachable) else Exit.USAGE
    except SystemExit as e:
        # click leaves so when a shell asks for completion (0), and with 1 when the reader of a pipe has seen enough,
        # which is no failure.
        return Exit.DONE if e.code in (None, 0, 1) else int(e.code or 0)
    except Exception as e:  # noqa: BLE001 the last resort: our own fault
        if isinstance(e, OSError) and e.errno in UNWRITABLE and e.filename is None:
            return _unwritable(e)
        import traceback

        traceback.print_exc()
        click.echo("error: this is a fault of anontls; please report it with the lines above", err=True)
        return Exit.FAILED
