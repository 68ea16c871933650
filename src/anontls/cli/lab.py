"""``anontls lab``: the files of two servers that can be run at once."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from anontls.cli import Exit, options
from anontls.errors import UsageError
from anontls.transport.lab import EDGE, MAILBOX, write_lab

Port = click.IntRange(1, 65535)


@click.command("lab")
@click.argument("folder", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--mailbox-port", type=Port, default=2526, show_default=True, metavar="N", help=f"Where {MAILBOX} listens."
)
@click.option("--edge-port", type=Port, default=2525, show_default=True, metavar="N", help=f"Where {EDGE} listens.")
def command(folder: Path, mailbox_port: int, edge_port: int) -> int:
    """Write a Mailbox and an Edge server into FOLDER, ready to be run on loopback.

    FOLDER gets the organisation that both read (org.json), and for each server a certificate store and a configuration.
    It has to be empty or absent.  Change the files as you like; nothing else knows of them.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", hint="name a new folder; stores and keys are never overwritten")
        if mailbox_port == edge_port:
            raise UsageError(f"both servers cannot listen on port {edge_port}")
        lab = write_lab(folder, options.now(), {MAILBOX: mailbox_port, EDGE: edge_port})
    except OSError as e:
        raise UsageError(f"{e.filename or folder}: {e.strerror}") from None
    for name in (MAILBOX, EDGE):
        click.echo(f"anontls serve {shlex.quote(str(lab.configs[name]))}")
    return Exit.DONE
