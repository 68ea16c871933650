"""``anontls serve``: run a node."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anontls.cli import Exit
from anontls.errors import UsageError

if TYPE_CHECKING:
    from anontls.config import Config


@click.command("serve")
@click.argument("configuration", metavar="CONFIG", type=click.Path(path_type=Path, dir_okay=False))
def command(configuration: Path) -> int:
    """Run a Mailbox or Edge node as CONFIG says: SIGHUP reloads, SIGTERM drains and stops.

    What the server is comes from the organisation; CONFIG holds what only this machine knows.
    A second SIGTERM or SIGINT ends the drain.
    """
    # It would end the process; blocked, it waits until Service.run can reload.  Before the imports, which take longest.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from anontls import config

    settings = config.load(configuration)
    if not settings.listen:
        raise UsageError(
            f"{configuration}: nothing to listen on",
            hint="a [[listen]] table names a Receive connector and an address; without one the file is good for `send` only",
        )
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(settings, configuration))
    return Exit.DONE


async def _serve(settings: Config, file: Path) -> None:
    from anontls.transport.service import Service, system_now

    await Service(settings, file.parent, now=system_now, file=file).run(ready)


def ready() -> None:
    """Tell systemd, where it wants to know: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)


def event_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where there is one: system calls are the cost, and it makes fewer."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
