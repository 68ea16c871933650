"""What goes wrong with peers, DNS, clock and disk: nothing is lost, nothing goes in clear, and all mends itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from anontls.transport import dispatch, session_queue
from anontls.transport.destination_queue import DestinationQueue
from anontls.transport.lab import EDGE
from anontls.transport.mx import HostsFailed
from anontls.transport.queue import Queued
from tests.certstore.make import make
from tests.transport.queue_world import (
    BREAK,
    CARL,
    CHUNKS,
    HANG,
    PLAIN,
    TO_INTERNET,
    Peer,
    free_port,
    relaying,
    reported,
    smart_host,
)
from tests.transport.world import ANNA, BEN, MESSAGE, Hop, World, eventually, run

FABRIKAM = "fabrikam.com"
TAILSPIN = "tailspin.example"


class Records:
    """DNS as a test says it."""

    def __init__(self, found: Sequence[tuple[int, str]] | HostsFailed) -> None:
        self.found = found
        self.asked = 0

    async def mx(self, domain: str) -> list[tuple[int, str]]:
        self.asked += 1
        if isinstance(self.found, HostsFailed):
            raise self.found
        return list(self.found)

    def forget(self) -> None: ...


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_a_host_that_is_down_is_tried_by_the_schedule_and_recovers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def session() -> None:
        peer = Peer(port=free_port())
        async with relaying(
            world,
            {FABRIKAM: peer.port},
            glitch_retry_count=2,
            glitch_retry_interval=0.02,
            transient_failure_retry_count=2,
            transient_failure_retry_interval=0.04,
            outbound_connection_failure_retry_interval=0.06,
        ) as node:

            def cool(queue: DestinationQueue) -> None:
                assert queue.next_retry is not None and queue.last_retry is not None
                pauses.append(round(queue.next_retry - queue.last_retry, 3))

            monkeypatch.setattr(node.dispatcher, "cool", cool)
            await node.send(BEN)
            await eventually(lambda: len(pauses) >= 6, "six attempts")
            (status,) = node.operations.queues()
            assert status.status == "Retry" and status.message_count == 1
            assert status.retry_count >= 6 and status.first_retry_time is not None
            assert "451 4.4.397" in status.last_error and "{FQDN=127.0.0.1}" in status.last_error
            assert "{MSG=Connection refused}" in status.last_error
            assert not node.metrics.recipients["deferred"], "nothing was tried of the message itself"
            async with peer.listening():
                await node.empty()
                (status,) = node.operations.queues()
                assert (status.status, status.retry_count, status.next_retry_time) == ("Ready", 0, None)
        assert len(peer.letters) == 1

    run(session())
    assert pauses[:6] == [0.02, 0.02, 0.04, 0.04, 0.06, 0.06]


def test_failed_connections_use_up_no_sessions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_SESSIONS", 2)

    async def session() -> None:
        peer = Peer(port=free_port())
        async with relaying(world, {FABRIKAM: peer.port}, glitch_retry_interval=0.01) as node:
            await node.send(BEN)
            await eventually(lambda: node.queue(FABRIKAM).retry_count >= 4, "more than there may be")
            async with peer.listening():
                await node.empty()

    run(session())


def test_the_next_host_is_tried_at_once(world: World) -> None:
    async def session() -> None:
        second = Peer()
        async with relaying(world, {"mx1.tailspin.example": 1, "mx2.tailspin.example": second}) as node:
            node.dispatcher.destinations.resolver = Records(
                [(10, "mx1.tailspin.example"), (20, "mx2.tailspin.example")]
            )
            await node.send(CARL)
            await node.empty()
            assert node.queue(TAILSPIN).retry_count == 0
        assert len(second.letters) == 1

    run(session())


@pytest.mark.parametrize("answer", ["421 4.3.2 not now", "554 5.3.2 no", "450 4.7.1 wait", BREAK])
def test_a_host_that_takes_nobody_is_like_one_that_is_down(world: World, answer: str) -> None:
    async def session() -> None:
        first, second = Peer(greeting=answer), Peer()
        async with relaying(world, {"mx1.tailspin.example": first, "mx2.tailspin.example": second}) as node:
            node.dispatcher.destinations.resolver = Records(
                [(10, "mx1.tailspin.example"), (20, "mx2.tailspin.example")]
            )
            await node.send(CARL)
            await node.empty()
        assert first.sessions == 1 and len(second.letters) == 1

    run(session())


def test_a_domain_that_cannot_be_resolved_is_retried(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"mx.tailspin.example": peer}) as node:
            records = Records(HostsFailed(451, "4.4.0 DNS query for tailspin.example failed: SERVFAIL"))
            node.dispatcher.destinations.resolver = records
            await node.send(CARL)
            await eventually(lambda: node.queue(TAILSPIN).retry_count >= 2, "retried")
            (status,) = node.operations.queues()
            assert status.status == "Retry" and "SERVFAIL" in status.last_error
            records.found = [(10, "mx.tailspin.example")]
            await node.empty()
        assert len(peer.letters) == 1

    run(session())


@pytest.mark.parametrize(
    "failure",
    [HostsFailed(550, "5.4.310 DNS domain does not exist"), HostsFailed(556, "5.1.10 null MX")],
    ids=["no domain", "null MX"],
)
def test_mail_for_a_domain_that_does_not_exist_is_returned(
    world: World, failure: HostsFailed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_queue, "RETURNED_AT_ONCE", 2)

    async def session() -> None:
        async with relaying(world) as node:
            node.dispatcher.destinations.resolver = Records(failure)
            for _ in range(5):
                await node.send(CARL, ANNA, sender=ANNA)
            await node.empty()
            assert node.metrics.recipients["failed"] == 5
        told = [message for message in world.messages(ANNA) if b"Undeliverable" in message]
        assert len(told) == 5 and len(world.messages(ANNA)) == 10
        enhanced = str(failure.reply).split()[1]
        assert {reported(message)[CARL]["Status"] for message in told} == {enhanced}

    run(session())


# --- peers that do not behave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "EHLO", "MAIL", "RCPT", "DATA", "HEADER", "."])
def test_a_peer_that_hangs_is_left_after_the_time_out(world: World, where: str) -> None:
    async def session() -> None:
        hangs = True

        def said(line: str, _content: bytes) -> str | None:
            here = line.startswith(where) if where else not line
            return HANG if hangs and here else None

        peer = Peer(said=said)
        async with relaying(
            world, {FABRIKAM: peer}, delivery='maildir = "mail"\ntimeout = 0.1', sessions_per_destination=1
        ) as node:
            await node.send(BEN)
            await eventually(lambda: "451 4.4.397" in node.queue(FABRIKAM).last_error, "given up")
            hangs = False
            await node.empty()
        assert len(peer.letters) == 1 and peer.sessions >= 2

    run(session())


@pytest.mark.parametrize(
    ("keywords", "where"),
    [(PLAIN, "HEADER"), (PLAIN, "."), (CHUNKS, "BDAT"), (CHUNKS, ".")],
    ids=["in DATA", "at the end of DATA", "in BDAT", "at the end of BDAT"],
)
def test_a_message_that_breaks_every_session_holds_up_no_other(
    world: World, keywords: tuple[str, ...], where: str
) -> None:
    poison = b"Subject: poison\r\n\r\n" + b"poison\r\n" * 100_000

    async def session() -> None:
        def said(line: str, content: bytes) -> str | None:
            return BREAK if line.startswith(where) and b"poison" in content else None

        peer = Peer(*keywords, said=said)
        async with relaying(world, {FABRIKAM: peer}, glitch_retry_interval=0.02) as node:
            await node.send(BEN, content=poison)
            for number in range(10):
                await node.send(BEN, content=b"Subject: %d\r\n\r\n" % number)
            await eventually(lambda: node.store.count == 1, "the others have arrived")
            await eventually(lambda: node.message().retry_count >= 3, "it is tried again")
            assert "451 4.4.397" in node.message().last_error
        subjects = {letter.content.split(b"\r\n")[1] for letter in peer.letters}
        assert subjects == {b"Subject: %d" % number for number in range(10)}

    run(session())


def test_a_peer_that_closes_each_session_with_421_keeps_the_mail_waiting(world: World) -> None:
    async def session() -> None:
        full = True
        peer = Peer(said=lambda line, _: "421 4.3.2 shutting down" if full and line.startswith("MAIL") else None)
        async with relaying(world, {FABRIKAM: peer}) as node:
            await node.send(BEN, sender=ANNA)
            await node.send(BEN, sender=ANNA)
            await eventually(lambda: node.queue(FABRIKAM).retry_count >= 2, "retried")
            assert "421 4.3.2 shutting down" in node.queue(FABRIKAM).last_error
            full = False
            await node.empty()
        assert len(peer.letters) == 2 and not world.messages(ANNA)

    run(session())


def test_rubbish_for_an_answer_is_no_verdict(world: World) -> None:
    async def session() -> None:
        rubbish = True
        peer = Peer(said=lambda line, _: "what?" if rubbish and line == "." else None)
        async with relaying(world, {FABRIKAM: peer}) as node:
            await node.send(BEN)
            await eventually(lambda: node.queue(FABRIKAM).retry_count >= 1, "retried")
            rubbish = False
            await node.empty()

    run(session())


def test_mail_in_circles_ends(world: World) -> None:
    async def session() -> None:
        async with relaying(world) as node:
            hop = b"Received: from here by there\r\n"
            reply = await node.accept(ANNA, content=hop * 60 + MESSAGE)
            assert str(reply) == "554 5.4.6 Hop count exceeded - possible mail loop"
            await node.send(ANNA, content=hop * 59 + MESSAGE)
            await node.empty()

    run(session())


# --- between Exchange servers -----------------------------------------------------------------------------------------

THROUGH_EDGE = msgspec.structs.replace(TO_INTERNET, source_transport_servers=(EDGE,))
REFUSED = "451 5.7.3 Cannot achieve Exchange Server authentication"
HOPS: dict[str, Callable[[World], Hop]] = {
    "the peer does not offer X-ANONYMOUSTLS": lambda _: Hop(
        ehlo=b"250-edge1 Hello\r\n250-STARTTLS\r\n250 8BITMIME\r\n"
    ),
    "X-ANONYMOUSTLS was refused: 454 4.7.0 not now": lambda _: Hop({"X-ANONYMOUSTLS": b"454 4.7.0 not now\r\n"}),
    "the connection was closed in the TLS handshake": lambda _: Hop(instead_of_tls=b""),
    "the certificate of EDGE1 does not prove it: mismatch": lambda _: Hop(own=make("rsa", name="edge1")),
    "MAIL was refused: 530 5.7.57 Client not authenticated": lambda world: Hop(
        {"MAIL": b"530 5.7.57 Client not authenticated\r\n"}, own=world.certificates[EDGE]
    ),
}


@pytest.mark.parametrize("why", HOPS)
def test_mail_between_exchange_servers_waits_for_anonymous_tls(world: World, why: str) -> None:
    hop = HOPS[why](world)

    async def session() -> None:
        async with (
            hop.listening(),
            relaying(world, {"edge1.contoso.com": hop.port}, connectors=(THROUGH_EDGE,)) as node,
        ):
            await node.send(BEN, sender=ANNA)
            await eventually(lambda: any(q.retry_count >= 2 for q in node.dispatcher.queues.values()), "retried")
            (status,) = node.operations.queues()
            assert status.delivery_type == "SmtpRelayWithinAdSiteToEdge"
            assert f"{{LED={REFUSED}}};{{MSG={why}}};{{FQDN=EDGE1}}" in status.last_error
            if why.startswith("MAIL"):  # the session broke when it had a message, which shows why too
                assert f"{{MSG={why}}}" in node.message().last_error
            assert status.status in ("Retry", "Connecting", "Active", "Ready") and node.store.count == 1
        assert not b"".join(hop.contents) and not world.messages(ANNA)  # who says 354 for nobody is given nothing
        assert {line.partition(" ")[0] for line in hop.clear} <= {"EHLO", "X-ANONYMOUSTLS", "QUIT"}

    run(session())


def test_a_decision_without_a_verb_waits_until_a_certificate_is_there(world: World) -> None:
    """What `anontls select` says is what the queue says; after a reload it goes on by itself."""
    elsewhere = make(name="mbx1")
    own = world.certificates["MBX1"]
    world.publish("MBX1", elsewhere)

    async def session() -> None:
        hop = Hop(own=world.certificates[EDGE])
        async with (
            hop.listening(),
            relaying(
                world, {"edge1.contoso.com": hop.port}, connectors=(THROUGH_EDGE,), glitch_retry_interval=60.0
            ) as node,
        ):
            await node.send(BEN)
            await eventually(lambda: any(q.retry_count for q in node.dispatcher.queues.values()), "retried")
            (status,) = node.operations.queues()
            why = "the decision is not to use X-ANONYMOUSTLS: it ended at step 3"
            assert f"{{LED={REFUSED}}};{{MSG={why}}}" in status.last_error and hop.sessions == 0
            world.publish("MBX1", own)
            await node.service.reload()
            await node.empty()
        assert len(hop.contents) == 1

    run(session())


# --- routing ----------------------------------------------------------------------------------------------------------


def test_mail_without_a_route_waits_with_its_reason_until_there_is_one(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {FABRIKAM: peer}, connectors=(), glitch_retry_interval=60.0) as node:
            await node.send(BEN, sender=ANNA)
            await eventually(lambda: any(q.retry_count for q in node.dispatcher.queues.values()), "tried")
            (status,) = node.operations.queues()
            assert (status.delivery_type, status.next_hop_domain) == ("Unreachable", "Unreachable Domain")
            assert "no Send connector holds fabrikam.com" in status.last_error
            world.change(send_connectors=(TO_INTERNET,))
            await node.service.reload()
            await node.empty()
        assert len(peer.letters) == 1 and not world.messages(ANNA)

    run(session())


def test_each_recipient_without_a_route_is_returned_with_its_own_reason(world: World) -> None:
    async def session() -> None:
        async with relaying(world, connectors=(), message_expiration_timeout=0.05) as node:
            await node.send(BEN, sender=ANNA)
            await node.send(CARL, sender=ANNA)
            await eventually(lambda: any(q.retry_count for q in node.dispatcher.queues.values()), "tried")
            await asyncio.sleep(0.05)
            await node.dispatcher.sweep.once()
            await node.empty()
        told = {address: message for message in world.messages(ANNA) for address in reported(message)}
        assert b"holds fabrikam.com" in told[BEN] and b"holds tailspin.example" in told[CARL]

    run(session())


def test_a_reload_sends_what_waits_another_way_and_what_is_on_its_way_once(world: World) -> None:
    async def session() -> None:
        first, second = Peer(), Peer()
        first.gate.clear()
        async with relaying(
            world, {"one.example": first, "two.example": second}, connectors=(smart_host("one.example"),)
        ) as node:
            for number in range(30):
                await node.send(BEN, content=b"Subject: %d\r\n\r\n" % number)
            await eventually(lambda: first.waiting > 2, "some are on their way")
            world.change(send_connectors=(smart_host("two.example"),))
            await node.service.reload()
            await eventually(lambda: len(second.letters) > 5, "the others go to the new one")
            first.gate.set()
            await node.empty()
            await eventually(lambda: not first.open, "nothing leads to the old one any more")
        subjects = [letter.content for letter in first.letters + second.letters]
        assert len(subjects) == len(set(subjects)) == 30

    run(session())


def test_what_had_no_verdict_before_a_reload_goes_the_new_way_afterwards(world: World) -> None:
    async def session() -> None:
        first = Peer(said=lambda line, _: "450 4.2.1 busy" if line == "." else None)
        second = Peer()
        first.gate.clear()
        async with relaying(
            world, {"one.example": first, "two.example": second}, connectors=(smart_host("one.example"),)
        ) as node:
            await node.send(BEN)
            await eventually(lambda: first.waiting == 1, "on its way")
            world.change(send_connectors=(smart_host("two.example"),))
            await node.service.reload()
            await asyncio.sleep(0.05)
            assert not second.letters
            first.gate.set()
            await node.empty()
        assert len(second.letters) == 1 and not first.letters

    run(session())


def test_mail_that_comes_in_while_all_is_routed_again_is_sent_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads the store may find a message before its session hears that it is durable."""

    async def session() -> None:
        peer = Peer(*CHUNKS)
        peer.gate.clear()
        async with relaying(world, {FABRIKAM: peer}) as node:
            accepted = node.dispatcher.accepted
            late: list[Queued] = []
            monkeypatch.setattr(node.dispatcher, "accepted", late.append)
            await node.send(BEN)
            node.dispatcher.reroute()
            await eventually(lambda: peer.waiting == 1, "it is found in the store")
            accepted(*late)
            peer.gate.set()
            await node.empty()
        assert len(peer.letters) == 1

    run(session())


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [3650, -1])
def test_a_clock_that_jumps_returns_no_mail(world: World, days: int) -> None:
    async def session() -> None:
        away = timedelta(0)
        peer = Peer(port=free_port())
        now: Callable[[], datetime] = lambda: datetime.now(UTC) + away  # noqa: E731
        async with relaying(world, {FABRIKAM: peer.port}, now=now) as node:
            await node.send(BEN, sender=ANNA)
            await eventually(lambda: node.queue(FABRIKAM).retry_count > 0, "the host is down")
            away = timedelta(days=days)
            await node.dispatcher.sweep.once()
            await node.dispatcher.sweep.once()
            await node.send(BEN, sender=ANNA)
            assert node.store.count == 2 and not world.messages(ANNA)
            assert node.console.count("the clock of the system jumped by") == 1
            assert f"{days * 86_400:+d} s" in node.console
            async with peer.listening():
                await node.empty()
        assert len(peer.letters) == 2 and not world.messages(ANNA)

    run(session())
