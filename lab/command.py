"""The command: sets the network up, shows a message that arrives, and then what to break."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from lab.needs import Missing, programs
from lab.network import Network, can_be_configured, socket_fits
from lab.node import NotAsExpected
from lab.shell import CommandFailed
from lab.tour import Tour

FAILED, MISSING = 1, 3

PICTURE = """\
   Samba: Active Directory, KDC                      slapd: AD LDS of EDGE1
      | LDAPS, Kerberos      |    <-- edge sync -->         | LDAPS
      |                      |                              |
     MBX2 <= X-ANONYMOUSTLS = MBX1 <===== X-ANONYMOUSTLS = EDGE1 <-- SMTP, from anybody
      |      Kerberos               direct trust
   Maildir"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep everything here; without it, a temporary folder that is removed at the end.",
)
@click.option("--tour", is_flag=True, help="All of the tour without questions, as where there is no terminal.")
def main(folder: Path | None, tour: bool) -> None:
    """A domain controller, two Mailbox servers and an Edge server on loopback; and what to break.

    Exit status: 0 all was as it should be; 1 something was not; 2 the folder cannot be used; 3 a program is missing.
    """
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise click.UsageError(f"{folder} is not empty: name a new folder")
        if not can_be_configured(folder.resolve()):
            raise click.UsageError(
                f"{folder.resolve()}: letters, digits and ._+- only, as slapd and Samba read its name"
            )
        if not socket_fits(folder.resolve()):
            raise click.UsageError(
                f"{folder.resolve()}: too long for the domain controller's sockets; name a shorter one"
            )
    try:
        found = programs()
    except Missing as e:
        click.echo(f"make lab needs more than there is here.\n\n{e}", err=True)
        sys.exit(MISSING)
    asks = not tour and sys.stdin.isatty() and sys.stdout.isatty()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anontls-lab-")))
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise click.UsageError(f"{folder}: {e.strerror}") from None
            stack.callback(click.echo, f"kept in {folder}")
        sys.exit(_run(folder.resolve(), found, asks=asks))


def _run(folder: Path, found: dict[str, str], *, asks: bool) -> int:
    began = time.monotonic()
    network = Network(folder, found)
    network.shell.say(
        f"{PICTURE}\n\nEverything is in {folder}, and listens on loopback only.  Commands are typed there"
    )
    network.shell.say("(cd there, . ./environment); $LAB is that folder, $DC and $ADLDS are the two directories.")
    try:
        with network:
            tour = Tour(network)
            tour.begin()
            network.shell.say(f"\nUp after {time.monotonic() - began:.0f} s.")
            if asks:
                tour.ask()
            else:
                tour.all()
    except (NotAsExpected, CommandFailed, AssertionError, OSError) as e:
        network.shell.bad(str(e))
        return FAILED
    network.shell.say("\nEverything is stopped.")
    return 0
