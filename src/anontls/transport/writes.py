"""What sessions write in one round of the event loop goes out together at its end.

A write wakes the peer.  One that answers many sessions is awake from the first of these writes on and takes the others
without being woken for each, which is a good part of what a short answer costs on both sides.
"""

from __future__ import annotations

import asyncio
from typing import Final

AT_ONCE: Final = 16 * 1024  # octets; so many do not wait: the transport must see soon that its peer is slow


class Writes:
    """The writes of many transports; made and used in a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[asyncio.Transport, bytes] = {}

    def add(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write ``data`` behind what was added for this transport before."""
        waiting = self._waiting
        if len(data) >= AT_ONCE:
            self.flush(transport)
            transport.write(data)
        elif transport in waiting:
            waiting[transport] += data
        else:
            if not waiting:
                self._loop.call_soon(self._write)
            waiting[transport] = data

    def flush(self, transport: asyncio.Transport) -> None:
        """Write what waits for this transport; it belongs before its ``close``."""
        data = self._waiting.pop(transport, None)
        if data is not None and not transport.is_closing():
            transport.write(data)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for transport, data in waiting.items():
            if not transport.is_closing():
                transport.write(data)
