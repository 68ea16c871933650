"""``python -m bench.node [--count] CONFIG``: a node that takes mail and forgets it.

It is measured where receiving alone is, and it is the sink of the relay rows over TLS; then, with ``--count``, it says
on standard output how many messages it has, as smtp-sink does.
"""

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

    def __init__(self, counting: bool) -> None:
        self.counting = counting
        self.count = 0

    def accepts(self, address: str, *, local: bool) -> Reply | None:
        """Every recipient is known."""
        return None

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Drop it."""
        if self.counting:
            self.count += 1
            print(f"mesg={self.count}", end="\r", flush=True)
        return exchange.queued("<nowhere>")


class ForgetfulService(Service):
    """A service whose delivery is nowhere."""

    def _delivery(self) -> Delivery:
        return Nowhere("--count" in sys.argv)


async def _run(path: Path) -> None:
    await ForgetfulService(config.load(path), path.parent, now=system_now).run()


def main() -> None:
    """Run it until SIGTERM."""
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_run(Path(sys.argv[-1])))


if __name__ == "__main__":
    main()
