"""A node that is nothing but its queues: made-up ones behind a real control socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from anontls.cli.serve import event_loop
from anontls.errors import Unreachable, UsageError
from anontls.transport.control import ControlServer, Operations, nearest
from anontls.transport.status import MessageStatus, QueueStatus, RecipientStatus

ARRIVED = 1_795_521_600.0  # 2026-11-24T12:00:00Z
TLS_FAILED = "451 5.7.3 Cannot achieve Exchange Server authentication"

EDGE = QueueStatus(
    identity="MBX1\\3",
    delivery_type="SmtpRelayWithinAdSiteToEdge",
    next_hop_domain="EdgeSync - Berlin to Internet",
    next_hop_connector="2f2ff3d3-6a4a-4d9c-8d5a-0e4a4b0d3a11",
    next_hop_category="Internal",
    tls_domain=None,
    status="Retry",
    message_count=2,
    deferred_message_count=1,
    locked_message_count=0,
    last_error=TLS_FAILED,
    first_retry_time=ARRIVED,
    last_retry_time=ARRIVED + 60,
    next_retry_time=ARRIVED + 120.5,
    retry_count=1,
    incoming_rate=0.25,
    outgoing_rate=0.0,
    velocity=-0.25,
)
FABRIKAM = msgspec.structs.replace(
    EDGE,
    identity="MBX1\\4",
    delivery_type="DnsConnectorDelivery",
    next_hop_domain="fabrikam.com",
    next_hop_category="External",
    status="Ready",
    message_count=1,
    deferred_message_count=0,
    last_error="",
    first_retry_time=None,
    last_retry_time=None,
    next_retry_time=None,
    retry_count=0,
)


def message(queue: str, number: int, status: str = "Ready", **other: object) -> MessageStatus:
    error = TLS_FAILED if status == "Retry" else ""
    made = MessageStatus(
        identity=f"{queue}\\{number}",
        queue=queue,
        from_address="anna@contoso.com",
        status=status,
        size=4096,
        date_received=ARRIVED,
        expiration_time=ARRIVED + 172_800,
        retry_count=1 if error else 0,
        last_error=error,
        recipients=(RecipientStatus(address="bert@fabrikam.com", status=status, last_error=error),),
    )
    return msgspec.structs.replace(made, **other)


class Queues:
    """`Operations` on lists; ``done`` is what was asked for."""

    def __init__(self, queues: list[QueueStatus] | None = None, messages: list[MessageStatus] | None = None) -> None:
        self.all = [EDGE, FABRIKAM] if queues is None else queues
        self.all_messages = (
            [message("MBX1\\3", 1, "Retry"), message("MBX1\\3", 2), message("MBX1\\4", 3)]
            if messages is None
            else messages
        )
        self.done: list[tuple[str, ...]] = []
        self.taken = 0  # messages that were looked at

    def queues(self) -> list[QueueStatus]:
        return self.all

    def messages(self, queue: str | None = None) -> Iterator[MessageStatus]:
        if queue is not None:
            self._known(queue, [each.identity for each in self.all])
        for each in self.all_messages:
            self.taken += 1
            if queue in (None, each.queue):
                yield each

    def show(self, identity: str) -> MessageStatus:
        self._known(identity, [each.identity for each in self.all_messages])
        found = next(each for each in self.all_messages if each.identity == identity)
        return msgspec.structs.replace(found, subject="Grüße", internet_message_id="<1@contoso.com>")

    async def retry(self, queue: str) -> None:
        self._known(queue, [each.identity for each in self.all])
        self.done.append(("retry", queue))

    async def suspend(self, identity: str) -> None:
        self._known(identity)
        self.done.append(("suspend", identity))

    async def resume(self, identity: str) -> None:
        self._known(identity)
        self.done.append(("resume", identity))

    async def remove(self, message: str, *, with_ndr: bool) -> None:
        if message == "MBX1\\4\\3":
            raise Unreachable("the disk is full")
        self._known(message, [each.identity for each in self.all_messages])
        self.done.append(("remove", message, "with NDR" if with_ndr else "without NDR"))

    def _known(self, identity: str, names: list[str] | None = None) -> None:
        if names is None:
            names = [each.identity for each in self.all] + [each.identity for each in self.all_messages]
        if identity not in names:
            raise UsageError(f"no {identity}", hint=nearest(identity, names))


@contextmanager
def serving(path: Path, operations: Operations) -> Iterator[None]:
    """A control server in a thread of its own, with the event loop of a node."""
    failed: list[BaseException] = []
    ready = threading.Event()
    loop = event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        server = ControlServer(path, operations)
        await server.start()
        ready.set()
        await done.wait()
        await server.close()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as e:  # noqa: BLE001 told to the test below
            failed.append(e)
        finally:
            loop.close()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait(20)
        if not failed:
            yield
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)
        thread.join(20)
        if failed:
            raise failed[0]
