"""aiosmtpd's own controller with a handler that does nothing; runs on the Python of ``bench/peers.py``, not on ours."""

import signal
import sys
from typing import Any

import uvloop
from aiosmtpd.controller import Controller  # type: ignore[import-not-found] # lives in build/peers


class Nothing:
    """Accepts every message and drops it."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 its name there
        """Say yes."""
        return "250 OK"


def main() -> None:
    """Run until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    controller = Controller(Nothing(), hostname="127.0.0.1", port=int(sys.argv[1]), loop=uvloop.new_event_loop())
    controller.start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    controller.stop()


if __name__ == "__main__":
    main()
