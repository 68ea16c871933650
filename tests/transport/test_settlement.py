"""What becomes of each recipient, and what the sender is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from anontls.smtp.syntax import Recipient
from anontls.transport.queue import Work
from tests.transport.queue_world import CHUNKS, DORA, EVA, PLAIN, Peer, QueueNode, relaying, reported
from tests.transport.world import ANNA, BEN, Hop, World, eventually, run

WITHOUT_DSN = tuple(keyword for keyword in PLAIN if keyword != "DSN")


def refusing(answers: Mapping[str, str], times: int = 1_000_000) -> Peer:
    """A peer that gives these answers to RCPT, so many times each."""
    left = dict.fromkeys(answers, times)

    def said(line: str, _content: bytes) -> str | None:
        for address, answer in answers.items():
            if line.startswith(f"RCPT TO:<{address}>") and left[address]:
                left[address] -= 1
                return answer
        return None

    return Peer(*PLAIN, said=said)


# --- each recipient for itself ----------------------------------------------------------------------------------------


def test_a_recipient_with_4yz_is_tried_again_alone(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "450 4.2.1 busy"}, times=2)
        async with relaying(world, {"wingtip.example": peer}, message_retry_interval=0.1) as node:
            await node.send(DORA, EVA)
            await eventually(lambda: len(peer.letters) == 1, "the other has it")
            assert peer.letters[0].recipients == (f"RCPT TO:<{EVA}>",)
            await eventually(lambda: node.message().status == "Retry", "the first verdict")
            message = node.message()
            (recipient,) = message.recipients
            assert (recipient.address, recipient.status, message.retry_count) == (DORA, "Retry", 1)
            assert "{LED=450 4.2.1 busy}" in recipient.last_error and "{FQDN=127.0.0.1}" in recipient.last_error
            assert node.queue("wingtip.example").status_of_queue("MBX1").deferred_message_count == 1
            await node.empty()
        assert [letter.recipients for letter in peer.letters] == [(f"RCPT TO:<{EVA}>",), (f"RCPT TO:<{DORA}>",)]
        assert node.metrics.recipients == {"delivered": 2, "deferred": 2, "failed": 0, "expired": 0}

    run(session())


def test_a_deferred_recipient_waits_for_its_time(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "450 4.2.1 busy"}, times=1)
        async with relaying(world, {"wingtip.example": peer}, message_retry_interval=0.3) as node:
            await node.send(DORA)
            await eventually(lambda: "RCPT TO:<dora@wingtip.example>" in peer.lines, "the first attempt")
            began = asyncio.get_running_loop().time()
            await node.empty()
            assert 0.25 < asyncio.get_running_loop().time() - began < 1

    run(session())


@pytest.mark.parametrize("answer", ["452 4.5.3 too many", "552 5.5.3 too many"])
def test_more_recipients_than_a_peer_takes_at_a_time_follow_at_once(world: World, answer: str) -> None:
    async def session() -> None:
        taken = 0

        def said(line: str, _content: bytes) -> str | None:
            nonlocal taken
            taken = 0 if line.startswith("MAIL") else taken + line.startswith("RCPT")
            return answer if line.startswith("RCPT") and taken > 10 else None

        peer = Peer(said=said)
        async with relaying(world, {"wingtip.example": peer}, message_retry_interval=60.0) as node:
            await node.send(*(f"user{number}@wingtip.example" for number in range(35)))
            await node.empty()
        assert [len(letter.recipients) for letter in peer.letters] == [10, 10, 10, 5]

    run(session())


def test_a_peer_that_is_full_for_all_is_not_tried_again_at_once(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "452 4.3.1 full", EVA: "452 4.3.1 full"})
        async with relaying(world, {"wingtip.example": peer}, message_retry_interval=60.0) as node:
            await node.send(DORA, EVA)
            await eventually(lambda: node.message().status == "Retry", "deferred")
            await asyncio.sleep(0.05)
            assert node.message().retry_count == 1

    run(session())


def test_recipients_that_lmtp_answers_for_one_by_one(world: World) -> None:
    """[RFC2033 4.2]"""

    async def session() -> None:
        hop = Hop(ehlo=b"250-store\r\n250 PIPELINING\r\n", end=b"250 2.1.5 kept\r\n452 4.2.2 full\r\n550 5.2.1 no\r\n")
        async with (
            hop.listening(),
            relaying(
                world,
                delivery=f'next-hop = "127.0.0.1:{hop.port}"\nprotocol = "lmtp"',
                sessions_per_destination=1,
                message_retry_interval=60.0,
            ) as node,
        ):
            await node.send(ANNA, DORA, EVA, sender="")
            await eventually(lambda: node.metrics.recipients["delivered"] == 1, "one has it")
            assert [recipient.address for recipient in node.message().recipients] == [DORA]
            assert node.metrics.recipients["failed"] == 1

    run(session())


def test_the_sender_is_told_of_each_refused_recipient_in_one_notification(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "550 5.1.1 no such user", EVA: "552 5.2.2 mailbox full"})
        async with relaying(world, {"wingtip.example": peer}) as node:
            await node.send(DORA, EVA, "fay@wingtip.example", sender=ANNA)
            await node.empty()
        (notification,) = world.messages(ANNA)
        groups = reported(notification)
        assert {address: (group["Action"], group["Status"]) for address, group in groups.items()} == {
            DORA: ("failed", "5.1.1"),
            EVA: ("failed", "5.2.2"),
        }
        assert groups[DORA]["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
        assert groups[DORA]["Remote-MTA"] == "dns; 127.0.0.1"
        assert b"From: Postmaster <postmaster@contoso.com>" in notification and b"Subject: test" in notification
        assert node.metrics.recipients == {"delivered": 2, "deferred": 0, "failed": 2, "expired": 0}
        assert node.metrics.notifications["failed"] == 1

    run(session())


def test_what_we_refuse_to_send_is_not_told_as_the_peers_answer(world: World) -> None:
    async def session() -> None:
        peer = Peer("PIPELINING", "8BITMIME", "DSN")
        async with relaying(world, {"wingtip.example": peer}) as node:
            await node.send(DORA, sender=ANNA, smtputf8=True, content="Subject: \u00f6\r\n\r\nx\r\n".encode())
            await node.empty()
        assert peer.letters == []
        (notification,) = world.messages(ANNA)
        group = reported(notification)[DORA]
        assert group["Diagnostic-Code"].startswith("smtp; 550 5.6.7 Message needs SMTPUTF8")
        assert "Remote-MTA" not in group
        assert b" answered: " not in notification

    run(session())


def test_a_notification_goes_to_the_queue_of_the_sender_with_a_null_sender(world: World) -> None:
    async def session() -> None:
        home = Peer()
        async with relaying(
            world, {"wingtip.example": refusing({DORA: "550 5.1.1 who?"}), "fabrikam.com": home}
        ) as node:
            await node.send(DORA)
            await node.empty()
        (letter,) = home.letters
        assert letter.mail.startswith("MAIL FROM:<> ")
        assert letter.recipients == (f"RCPT TO:<{BEN}> NOTIFY=NEVER",)
        assert reported(letter.content)[DORA]["Status"] == "5.1.1"

    run(session())


@pytest.mark.parametrize(
    ("sender", "recipient"),
    [("", Recipient(DORA)), (ANNA, Recipient(DORA, notify="NEVER")), (ANNA, Recipient(DORA, notify="SUCCESS,DELAY"))],
    ids=["null sender", "NEVER", "not FAILURE"],
)
def test_nobody_is_told_of_a_failure_who_must_not_be(world: World, sender: str, recipient: Recipient) -> None:
    async def session() -> None:
        async with relaying(world, {"wingtip.example": refusing({DORA: "550 5.1.1 who?"})}) as node:
            await node.send(recipient, sender=sender)
            await node.empty()
            assert node.metrics.recipients["failed"] == 1
        assert not world.messages(ANNA) and not any(node.metrics.notifications.values())

    run(session())


def test_a_notification_that_cannot_be_delivered_makes_no_other(world: World) -> None:
    async def session() -> None:
        home = refusing({BEN: "550 5.1.1 gone"})
        async with relaying(
            world, {"wingtip.example": refusing({DORA: "550 5.1.1 who?"}), "fabrikam.com": home}
        ) as node:
            await node.send(DORA)
            await node.empty()
            assert node.metrics.recipients["failed"] == 2 and node.metrics.notifications["failed"] == 1

    run(session())


# --- success ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False])
def test_success_is_told_by_the_peer_or_else_by_us(world: World, *, tells: bool) -> None:
    """[RFC3461 5.2.1]"""

    async def session() -> None:
        peer = Peer(*(PLAIN if tells else WITHOUT_DSN))
        async with relaying(world, {"wingtip.example": peer}) as node:
            await node.send(Recipient(DORA, notify="SUCCESS"), Recipient(EVA), sender=ANNA)
            await node.empty()
        assert peer.letters[0].recipients[0] == f"RCPT TO:<{DORA}>" + (" NOTIFY=SUCCESS" if tells else "")
        told = [reported(message) for message in world.messages(ANNA)]
        assert told == ([] if tells else [{DORA: told[0][DORA]}])
        assert tells or told[0][DORA]["Action"] == "relayed"

    run(session())


def test_delivery_into_a_mailbox_here_is_told(world: World) -> None:
    async def session() -> None:
        home = Peer()
        async with relaying(world, {"fabrikam.com": home}) as node:
            await node.send(Recipient(ANNA, notify="SUCCESS"))
            await node.empty()
        (letter,) = home.letters
        assert reported(letter.content)[ANNA]["Action"] == "delivered"
        assert len(world.messages(ANNA)) == 1

    run(session())


def test_one_change_tells_of_success_and_failure_apart(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "550 5.1.1 who?"})
        peer.keywords = WITHOUT_DSN
        async with relaying(world, {"wingtip.example": peer}) as node:
            await node.send(Recipient(DORA, notify="SUCCESS,FAILURE"), Recipient(EVA, notify="SUCCESS"), sender=ANNA)
            await node.empty()
        told = sorted(
            (address, group["Action"]) for one in map(reported, world.messages(ANNA)) for address, group in one.items()
        )
        assert told == [(DORA, "failed"), (EVA, "relayed")]

    run(session())


# --- delay and expiry -------------------------------------------------------------------------------------------------


def test_a_delay_is_told_once(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "450 4.2.1 busy"}, times=6)
        async with relaying(
            world, {"wingtip.example": peer}, message_retry_interval=0.03, delay_notification_timeout=0.05
        ) as node:
            await node.send(DORA, sender=ANNA)
            await node.empty()
        (notification,) = world.messages(ANNA)
        group = reported(notification)[DORA]
        assert group["Action"] == "delayed" and group["Status"].startswith("4.") and "Will-Retry-Until" in group
        assert b"450 4.2.1 busy" in notification
        assert node.metrics.notifications["delayed"] == 1

    run(session())


def test_a_delay_in_a_queue_that_cannot_be_tried_is_told_once(world: World) -> None:
    async def session() -> None:
        async with relaying(world, {"wingtip.example": 1}, delay_notification_timeout=0.01) as node:
            await node.send(DORA, sender=ANNA)
            await eventually(lambda: node.queue("wingtip.example").status.value == "Retry", "the host is down")
            for _ in range(3):
                await node.dispatcher.sweep.once()
            await eventually(lambda: len(world.messages(ANNA)) == 1, "the notification")
            await eventually(lambda: node.store.count == 1, "the message stays")
        group = reported(world.messages(ANNA)[0])[DORA]
        assert group["Action"] == "delayed"
        assert b"Connection refused" in world.messages(ANNA)[0] or b"4.4.397" in world.messages(ANNA)[0]
        assert len(world.messages(ANNA)) == 1

    run(session())


def test_a_message_that_is_too_old_is_returned_after_the_last_attempt(world: World) -> None:
    async def session() -> None:
        peer = refusing({DORA: "450 4.2.1 busy"})
        async with relaying(
            world, {"wingtip.example": peer}, message_retry_interval=0.05, message_expiration_timeout=0.2
        ) as node:
            await node.send(DORA, EVA, sender=ANNA)
            await node.empty()
        attempts = [line for line in peer.lines if line.startswith(f"RCPT TO:<{DORA}>")]
        assert len(attempts) > 2
        (notification,) = world.messages(ANNA)
        groups = reported(notification)
        assert list(groups) == [DORA], "the other has it"
        assert groups[DORA]["Status"] == "4.4.7" and "QUEUE.Expired" in groups[DORA]["Diagnostic-Code"]
        assert b"450 4.2.1 busy" in notification, "and why it was not delivered"
        assert node.metrics.recipients["expired"] == 1 and node.metrics.recipients["failed"] == 0

    run(session())


def test_messages_for_a_host_that_stays_down_are_returned(world: World) -> None:
    async def session() -> None:
        async with relaying(world, {"wingtip.example": 1}, message_expiration_timeout=0.05) as node:
            await node.send(DORA, sender=ANNA)
            await node.send(EVA, sender=ANNA)
            queue = node.queue("wingtip.example")
            await eventually(lambda: queue.status.value == "Retry", "the host is down")
            await asyncio.sleep(0.05)
            await node.dispatcher.sweep.once()
            await node.empty()
            assert len(queue) == 0, "nothing is shown that is not there"
        told = [reported(message) for message in world.messages(ANNA)]
        assert sorted(address for one in told for address in one) == [DORA, EVA]
        assert node.metrics.recipients["expired"] == 2

    run(session())


def test_what_nobody_has_tried_to_send_does_not_expire(world: World) -> None:
    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"wingtip.example": peer}, message_expiration_timeout=0.05) as node:
            await node.send(EVA)
            await node.empty()
            await node.operations.suspend("MBX1\\1")
            await node.send(DORA, sender=ANNA)
            await asyncio.sleep(0.1)
            await node.dispatcher.sweep.once()
            assert node.store.count == 1
            await node.operations.resume("MBX1\\1")
            await node.empty()
        assert len(peer.letters) == 2 and not world.messages(ANNA)

    run(session())


def test_what_could_not_be_tried_when_it_expired_is_returned_once_it_was(world: World) -> None:
    """A queue that was suspended for days, and whose host does not answer when it goes on."""

    async def session() -> None:
        peer = Peer()
        async with relaying(world, {"wingtip.example": peer}, message_expiration_timeout=0.05) as node:
            await node.send(EVA)
            await node.empty()
            await node.operations.suspend("MBX1\\1")
            await node.send(DORA, sender=ANNA)
            await asyncio.sleep(0.1)
            await node.dispatcher.sweep.once()
            peer.greeting = "554 5.3.2 closed"
            peer.cut()
            await eventually(lambda: not peer.open, "the session ends")
            await node.operations.resume("MBX1\\1")
            await eventually(lambda: bool(node.queue("wingtip.example").last_error), "it was tried")
            await node.dispatcher.sweep.once()
            await node.empty()
        assert reported(world.messages(ANNA)[0])[DORA]["Status"] == "4.4.7"

    run(session())


# --- the store --------------------------------------------------------------------------------------------------------


def record_changes(node: QueueNode, changes: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    commit = node.store.commit

    def recorded(work: Work) -> asyncio.Future[list[int]]:
        changes.append(work)
        return commit(work)

    monkeypatch.setattr(node.store, "commit", recorded)


def test_a_notification_and_the_end_of_its_recipient_are_one_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[Work] = []

    async def session() -> None:
        async with relaying(world, {"wingtip.example": refusing({DORA: "550 5.1.1 who?"})}) as node:
            record_changes(node, changes, monkeypatch)
            await node.send(DORA, sender=ANNA)
            await node.empty()

    run(session())
    (both,) = [work for work in changes if work.accepted and work.settled]
    assert both.accepted[0].envelope.recipients[0].address == ANNA
    assert sum(len(work.settled) for work in changes) == 2, "the message, and its notification"


def test_verdicts_that_come_together_are_one_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[Work] = []

    async def session() -> None:
        peer = Peer(*CHUNKS)
        async with relaying(world, {"wingtip.example": peer}) as node:
            peer.gate.clear()
            record_changes(node, changes, monkeypatch)
            for _ in range(16):
                await node.send(DORA)
            peer.gate.set()
            await node.empty()

    run(session())
    settling = [work for work in changes if work.settled]
    assert sum(len(work.settled) for work in settling) == 16
    assert len(settling) < 16
