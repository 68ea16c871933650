"""``anontls serve``: run a node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from anontls import config
from anontls.cli import Exit
from anontls.errors import UsageError
from anontls.transport.service import Service, system_now


@click.command("serve")
@click.argument("configuration", metavar="CONFIG", type=click.Path(path_type=Path, dir_okay=False))
def command(configuration: Path) -> int:
    """Run a Mailbox or Edge node as CONFIG says: SIGHUP reloads, SIGTERM drains and stops.

    What the server is comes from the organisation; CONFIG holds what only this machine knows.
    """
    settings = config.load(configuration)
    if not settings.listen:
        raise UsageError(
            f"{configuration}: nothing to listen on",
            hint="a [[listen]] table names a Receive connector and an address; without one the file is good for `send` only",
        )
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(settings, configuration))
    return Exit.DONE


async def _serve(settings: config.Config, file: Path) -> None:
    await Service(settings, file.parent, now=system_now, file=file).run()


def event_loop() -> asyncio.AbstractEventLoop:
    """Uvloop where there is one: system calls are the cost, and it makes fewer."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
