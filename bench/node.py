"""``python -m bench.node CONFIG``: a node that takes mail and forgets it, for the rows that measure receiving alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from anontls import config
from anontls.cli.serve import event_loop
from anontls.smtp import Reply, exchange
from anontls.smtp.syntax import Envelope
from anontls.transport.body import Body
from anontls.transport.receive import Delivery
from anontls.transport.service import Service, system_now


class Nowhere:
    """Takes everything, keeps nothing."""

    def accepts(self, address: str) -> Reply | None:
        """Every recipient is known."""
        return None

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Drop it."""
        return exchange.queued("<nowhere>")


class ForgetfulService(Service):
    """A service whose delivery is nowhere."""

    def _delivery(self) -> Delivery:
        return Nowhere()


async def _run(path: Path) -> None:
    await ForgetfulService(config.load(path), path.parent, now=system_now).run()


def main() -> None:
    """Run it until SIGTERM."""
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_run(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
