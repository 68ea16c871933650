"""``/metrics`` for Prometheus, ``/health`` and ``/decisions`` over HTTP, in threads beside the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast

import msgspec

from anontls.report.json import decision_json, encode
from anontls.selection import Decision
from anontls.transport.metrics import Metrics, Observed, families

if TYPE_CHECKING:
    from prometheus_client import Metric

PATIENCE = 2.0  # seconds that the event loop has to answer
DEADLINE = 5.0  # seconds that a request may take, from its connection to its end
MOST_REQUESTS = 8  # at a time
TICK = 0.25  # seconds between two looks at the clock of requests


class MetricsServer:
    """``/metrics``, ``/health`` and ``/decisions`` in a thread of their own; made in the event loop.

    ``observe`` is called in the loop.  There is no authentication: the address should be one of this machine.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(self, metrics: Metrics, observe: Callable[[], Observed], host: str, port: int) -> None:
        from prometheus_client import ProcessCollector  # costs 100 ms, so only where it is wanted

        self._metrics = metrics
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._process = ProcessCollector(registry=None)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._server = _Server(self, family, address)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(TICK,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    async def close(self) -> None:
        """Answer no more, and end the threads."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.cut(math.inf)
        self._server.server_close()
        self._thread.join()

    def metrics(self) -> tuple[int, str, bytes]:
        """The page for Prometheus: status, type, content.  In a request's thread."""
        from prometheus_client.core import GaugeMetricFamily
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        began = time.monotonic()
        found: list[Metric] = self._in_loop(lambda: list(families(self._metrics, self._observe())))
        waited = GaugeMetricFamily(
            "anontls_event_loop_answer_seconds",
            "How long the event loop took to answer this scrape.",
            value=time.monotonic() - began,
        )
        found += (waited, *self._process.collect())
        return 200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(_Collected(found))

    def health(self) -> tuple[int, str, bytes]:
        """200 while mail is taken, else 503 with the reasons.  In a request's thread."""
        seen = self._in_loop(self._observe)
        document = {
            "status": "unavailable" if seen.reasons else "ok",
            "reasons": seen.reasons,
            "warnings": seen.warnings,
        }
        return 503 if seen.reasons else 200, "application/json", msgspec.json.encode(document)

    def decisions(self) -> tuple[int, str, bytes]:
        """A line for each way in which selections have ended: the last of them, the newest first.

        In a request's thread.
        """
        last: list[Decision] = self._in_loop(lambda: list(self._metrics.last_decisions.values()))
        last.sort(key=lambda decision: decision.as_of, reverse=True)
        lines = "".join(f"{encode(decision_json(decision))}\n" for decision in last)
        return 200, "application/x-ndjson", lines.encode()

    def _in_loop(self, look: Callable[[], Any]) -> Any:
        """What ``look`` sees.

        It runs in the loop, between two steps of the transport, so nothing is read while it changes and the counters
        need no locks; this thread waits.
        """
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(look())
                except Exception as e:  # noqa: BLE001 whoever asked is told
                    answer.set_exception(e)

        self._loop.call_soon_threadsafe(run)
        try:
            return answer.result(PATIENCE)
        finally:
            answer.cancel()  # nobody waits any more


class _Collected:
    """What ``generate_latest`` takes for a registry."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self.found = found

    def collect(self) -> Iterable[Metric]:
        return self.found


class _Server(socketserver.ThreadingTCPServer):
    """A thread for each request, few at a time, each with an end."""

    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, owner: MetricsServer, family: int, address: Any) -> None:
        self.owner = owner
        self.address_family = family
        self.ends: dict[socket.socket, float] = {}
        super().__init__(address, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self.ends) >= MOST_REQUESTS:
            self.shutdown_request(request)
            return
        self.ends[request] = time.monotonic() + DEADLINE
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.ends.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:  # each TICK
        self.cut(time.monotonic())

    def cut(self, now: float) -> None:
        """Cut off the requests that are late; a peer that sends an octet at a time has no end of its own."""
        for request, end in self.ends.copy().items():
            if end <= now:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that went away is nothing to tell."""


class _Request(BaseHTTPRequestHandler):
    server_version = "anontls"
    sys_version = ""
    timeout = DEADLINE

    def do_GET(self) -> None:
        owner = cast("_Server", self.server).owner
        pages = {"/metrics": owner.metrics, "/health": owner.health, "/decisions": owner.decisions}
        page = pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(404)
            return
        try:
            status, kind, content = page()
        except Exception as e:  # noqa: BLE001 a loop that does not answer, or one that is gone
            why = "the event loop does not answer" if isinstance(e, TimeoutError) else f"{type(e).__name__}: {e}"
            status, kind = 503, "application/json"
            content = msgspec.json.encode({"status": "unavailable", "reasons": [why], "warnings": []})
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Standard error is for the operator."""
