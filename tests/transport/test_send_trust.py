"""What a sending node does when the next hop is an Exchange server, or is not: nothing is ever sent in clear to one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from anontls import config
from anontls.facts import InternalTlsCert, Queue
from anontls.facts.trust import TrustResult
from anontls.smtp import Reply
from anontls.smtp.syntax import Envelope, Recipient
from anontls.transport.lab import EDGE, INBOUND, MAILBOX
from anontls.transport.send import NextHop, OutboundSession, SessionFailed
from anontls.transport.service import Service, system_now
from tests.certstore.make import make
from tests.transport.world import ANNA, BEN, MESSAGE, Hop, World, greeted, run

REFUSED = "451 5.7.3 Cannot achieve Exchange Server authentication"
UNREACHABLE = "451 4.4.397 Error communicating with target host"
LATER = datetime.now(UTC) + timedelta(days=3650)


def through_edge(world: World, hop: Hop, *, timeout: float = 10, now: Callable[[], datetime] = system_now) -> str:
    """What a client is told whose message the Edge server takes on to ``hop``, which should be MBX1."""

    async def session() -> str:
        async with hop.listening():
            world.deliver(
                EDGE,
                f'next-hop = "127.0.0.1:{hop.port}"\nnext-hop-server = "MBX1"\nsend-connector = "{INBOUND}"\n'
                f"timeout = {timeout}",
            )
            async with world.node(EDGE, now) as node, greeted(node.port) as client:
                answer = (await client.message())[-1]
                assert (await client.ask("NOOP")).startswith("250"), "the session with the client goes on"
                return answer

    return run(session())


def nothing_in_clear(hop: Hop) -> None:
    assert hop.contents == []
    assert {line.partition(" ")[0] for line in hop.clear} <= {"EHLO", "X-ANONYMOUSTLS", "QUIT"}


# --- it works ---------------------------------------------------------------------------------------------------------


def test_the_message_arrives(world: World) -> None:
    hop = Hop(own=world.certificates[MAILBOX])
    assert through_edge(world, hop) == "250 2.6.0 taken"
    (content,) = hop.contents
    received, _, rest = content.partition(b"From: ")
    assert received.startswith(
        b"Received: from mail.fabrikam.com ([127.0.0.1]) by edge1.contoso.com\r\n with ESMTP id "
    )
    assert b"From: " + rest == MESSAGE
    assert hop.clear == ["EHLO edge1.contoso.com", "X-ANONYMOUSTLS"]


def test_expired_peer_certificate_that_matches_is_trusted_with_12019(world: World) -> None:
    hop = Hop(own=world.certificates[MAILBOX])
    assert through_edge(world, hop, now=lambda: LATER) == "250 2.6.0 taken"
    assert set(world.event_ids(EDGE)) == {12015, 12016, 12019}


def test_own_certificate_is_shown(world: World) -> None:
    """Seen from a node: the Mailbox server knows the Edge server by its certificate."""

    async def session() -> None:
        async with world.node(MAILBOX) as mailbox:
            world.deliver(
                EDGE,
                f'next-hop = "127.0.0.1:{mailbox.port}"\nnext-hop-server = "MBX1"\nsend-connector = "{INBOUND}"',
            )
            async with world.node(EDGE) as edge, greeted(edge.port) as client:
                assert (await client.message())[-1].startswith("250 2.6.0 <")

    run(session())
    assert "Direct trust: match" in world.log(MAILBOX, "Receive")
    assert "Direct trust: match" in world.log(EDGE, "Send")
    assert len(world.messages()) == 1


# --- the peer is not who it should be ---------------------------------------------------------------------------------


def test_another_certificate(world: World) -> None:
    hop = Hop(own=make("rsa", name="mbx1"))
    assert through_edge(world, hop) == REFUSED
    nothing_in_clear(hop)
    assert not [line for line in hop.commands if line.startswith(("MAIL", "EHLO")) and line not in hop.clear]
    assert "Direct trust: mismatch" in world.log(EDGE, "Send")


def test_a_server_without_a_certificate_in_the_directory(world: World) -> None:
    world.change_server(MAILBOX, internal_tls_cert=InternalTlsCert(value=None))
    hop = Hop(own=world.certificates[MAILBOX])
    assert through_edge(world, hop) == REFUSED
    nothing_in_clear(hop)
    assert "Direct trust: unknown server" in world.log(EDGE, "Send")


# --- the peer does not do it ------------------------------------------------------------------------------------------


FAILURES: dict[str, tuple[Hop, str]] = {
    "verb refused for now": (Hop({"X-ANONYMOUSTLS": b"454 4.7.0 not now\r\n"}), REFUSED),
    "verb unknown": (Hop({"X-ANONYMOUSTLS": b"500 5.3.3 Unrecognized command\r\n"}), REFUSED),
    "verb not offered": (Hop(ehlo=b"250-mbx1 Hello\r\n250-STARTTLS\r\n250 8BITMIME\r\n"), REFUSED),
    "verb masked": (Hop(ehlo=b"250-mbx1 Hello\r\n250-XXXXXXXXXXXXXX\r\n250 8BITMIME\r\n"), REFUSED),
    "reply behind the 220": (Hop({"X-ANONYMOUSTLS": b"220 2.0.0 go\r\n250 more\r\n"}), REFUSED),
    "half a reply behind the 220": (Hop({"X-ANONYMOUSTLS": b"220 2.0.0 go\r\n2"}), REFUSED),
    "drops in the handshake": (Hop(instead_of_tls=b""), REFUSED),
    "plain text instead of TLS": (Hop(instead_of_tls=b"HTTP/1.1 400 Bad Request\r\n\r\n"), REFUSED),
    "alert": (Hop(instead_of_tls=b"\x15\x03\x03\x00\x02\x02\x28"), REFUSED),
    "drops at the verb": (Hop({"X-ANONYMOUSTLS": b""}), UNREACHABLE),
    "EHLO refused": (
        Hop({"EHLO": b"550 5.7.1 not you\r\n"}),
        "451 4.4.395 Target host responded with error. -> 550 5.7.1 not you",
    ),
    "EHLO 421": (
        Hop({"EHLO": b"421 4.3.2 later\r\n"}),
        "451 4.4.397 Error communicating with target host. -> 421 4.3.2 later",
    ),
    "EHLO rubbish": (Hop({"EHLO": b"rubbish\r\n"}), REFUSED),
    "drops at EHLO": (Hop({"EHLO": b""}), UNREACHABLE),
}


@pytest.mark.parametrize("how", FAILURES)
def test_nothing_is_sent(world: World, how: str) -> None:
    hop, reply = FAILURES[how]
    assert through_edge(world, hop) == reply
    nothing_in_clear(hop)


def test_a_peer_that_does_not_take_us_for_an_exchange_server_defers_the_message(world: World) -> None:
    hop = Hop({"MAIL": b"530 5.7.57 Client not authenticated to send mail\r\n"}, own=world.certificates[MAILBOX])
    assert through_edge(world, hop) == REFUSED


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (b"550 5.7.1 no\r\n", "451 4.4.395 Target host responded with error. -> 550 5.7.1 no"),
        (b"450 4.7.1 wait\r\n", "450 4.7.1 wait"),
    ],
)
def test_ehlo_refused_inside_tls(world: World, answer: bytes, reply: str) -> None:
    hop = Hop({"EHLO TLS": answer}, own=world.certificates[MAILBOX])
    assert through_edge(world, hop) == reply
    nothing_in_clear(hop)


@pytest.mark.parametrize("where", ["banner", "handshake"])
def test_a_silent_peer_ends_at_the_time_out(world: World, where: str) -> None:
    async def silence(_line: str) -> bytes:
        await asyncio.sleep(1)
        return b""

    hop = Hop({"EHLO" if where == "banner" else "X-ANONYMOUSTLS": silence})
    assert through_edge(world, hop, timeout=0.3) == UNREACHABLE
    nothing_in_clear(hop)


def test_next_hop_down(world: World) -> None:
    async def session() -> None:
        hop = Hop()
        async with hop.listening():
            pass
        world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.message())[-1] == UNREACHABLE

    run(session())
    assert "refused" in world.log(EDGE, "Send").lower()


@pytest.mark.parametrize(
    ("hop", "sent"),
    [
        (Hop(ehlo=b"250-mx Hello\r\n250 8BITMIME\r\n"), False),
        (Hop({"STARTTLS": b"454 4.7.0 not now\r\n"}, ehlo=b"250-mx Hello\r\n250 STARTTLS\r\n"), False),
        (Hop(ehlo=b"250-mx Hello\r\n250 STARTTLS\r\n"), True),
    ],
    ids=["not offered", "refused", "offered"],
)
def test_a_send_connector_that_requires_tls(world: World, hop: Hop, sent: bool) -> None:
    hop.own = world.certificates[MAILBOX]

    async def session() -> None:
        async with hop.listening(), world.node(EDGE) as node:
            target = NextHop(host="127.0.0.1", port=hop.port, require_tls=True, timeout=5)
            out = OutboundSession(node.service.node, target)
            if sent:
                await out.open()
                await out.close()
            else:
                with pytest.raises(SessionFailed, match=r"451 5\.7\.3 STARTTLS is required to send mail"):
                    await out.open()

    run(session())
    assert not any(command.startswith("MAIL") for command in hop.clear)


class LettingGo:
    """A loop that forgets a connection as soon as it is made, as uvloop does with one that is cancelled just then."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, cancels: bool) -> None:
        self.loop = loop
        self.cancels = cancels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)

    async def create_connection(self, made: Callable[[], OutboundSession], host: str, port: int) -> None:
        transport, _ = await self.loop.create_connection(asyncio.Protocol, host, port)
        made().connection_made(transport)
        transport.abort()
        if self.cancels:
            raise asyncio.CancelledError
        await asyncio.sleep(60)


@pytest.mark.parametrize("cancels", [True, False], ids=["cancelled", "timed out"])
def test_a_session_that_ends_as_it_is_made_has_ended(world: World, *, cancels: bool) -> None:
    hop = Hop()

    async def session() -> None:
        async with hop.listening(), world.node(EDGE) as node:
            out = OutboundSession(node.service.node, NextHop(host="127.0.0.1", port=hop.port, timeout=0.2))
            out._loop = cast("asyncio.AbstractEventLoop", LettingGo(asyncio.get_running_loop(), cancels=cancels))
            with pytest.raises(asyncio.CancelledError if cancels else SessionFailed):
                await out.open()
            assert out.ended.done()

    run(session())


# --- the decision is not to use the verb ------------------------------------------------------------------------------


def decision_without_verb(world: World) -> None:
    hop = Hop(own=world.certificates[MAILBOX])
    assert through_edge(world, hop) == REFUSED
    assert hop.sessions == 0, "not even connected"
    assert "the decision is not to use X-ANONYMOUSTLS" in world.log(EDGE, "Send")


def test_decision_send_connector_without_exchange_server(world: World) -> None:
    connectors = world.organization.send_connectors
    assert isinstance(connectors, tuple)
    world.change(send_connectors=(msgspec.structs.replace(connectors[0], smart_host_auth_mechanism="None"),))
    decision_without_verb(world)


def test_decision_certificate_not_in_the_store(world: World) -> None:
    world.publish(EDGE, make(name="elsewhere"))
    decision_without_verb(world)
    assert 12013 in world.event_ids(EDGE)


def test_decision_attribute_null(world: World) -> None:
    null = InternalTlsCert(value=None)
    world.change_server(
        EDGE, internal_transport_certificate_thumbprint=None, internal_tls_cert=null, internal_tls_cert_adlds=null
    )
    decision_without_verb(world)
    assert world.event_ids(EDGE) == [12012], "of the start"


def test_decision_certificate_that_the_library_refuses(world: World) -> None:
    small = make("rsa-1024", name="edge1")
    world.add_certificate(EDGE, small, ())
    world.publish(EDGE, small)
    decision_without_verb(world)
    assert 12013 in world.event_ids(EDGE)
    assert "it ended at step 3" in world.log(EDGE, "Send")


def direct(world: World, name: str, hop: Hop, **fields: object) -> tuple[OutboundSession, Reply | None]:
    """A session as ``anontls send`` opens it."""

    async def session() -> tuple[OutboundSession, Reply | None]:
        async with hop.listening():
            service = Service(config.load(world.config(name)), world.folder, now=system_now, console=None)
            target = NextHop(host="127.0.0.1", port=hop.port, timeout=5, **fields)  # type: ignore[arg-type] # a test's
            outbound = OutboundSession(service.node, target)
            try:
                await outbound.open()
                (reply,) = await outbound.deliver(Envelope(BEN, [Recipient(ANNA)]), MESSAGE)
            except SessionFailed as e:
                return outbound, e.reply
            await outbound.close()
            return outbound, reply

    return run(session())


@pytest.mark.parametrize("kind", ["SmtpRelayToDag", "SmtpDeliveryToMailbox", "SmartHostConnectorDelivery"])
def test_a_mailbox_server_uses_no_verb_for_other_queues(world: World, kind: str) -> None:
    hop = Hop(own=world.certificates[EDGE])
    _, reply = direct(world, MAILBOX, hop, server=EDGE, queue=Queue(delivery_type=kind))
    assert str(reply) == REFUSED
    assert hop.sessions == 0


def test_mailbox_to_mailbox_with_the_verb_and_without_a_certificate(world: World) -> None:
    world.configure(MAILBOX, "[log]", '[rules]\nmailbox-to-mailbox = "verb-without-certificate"\n\n[log]')
    hop = Hop(own=world.certificates[EDGE])
    outbound, reply = direct(world, MAILBOX, hop, server=EDGE, queue=Queue(delivery_type="SmtpRelayToDag"))
    assert str(reply) == "250 2.6.0 taken"
    assert outbound.trust is not None
    assert outbound.trust.result is TrustResult.MATCH


def test_a_mailbox_server_to_its_edge_server(world: World) -> None:
    hop = Hop(own=world.certificates[EDGE])
    outbound, reply = direct(world, MAILBOX, hop, server=EDGE, queue=Queue(delivery_type="SmtpRelayWithinAdSiteToEdge"))
    assert str(reply) == "250 2.6.0 taken"
    assert outbound.extensions == {"PIPELINING": (), "8BITMIME": (), "SMTPUTF8": ()}, "those of the second EHLO"


# --- any other mail server --------------------------------------------------------------------------------------------

PLAIN = b"250-next Hello\r\n250-STARTTLS\r\n250 8BITMIME\r\n"


@pytest.mark.parametrize("verb", [True, False])
def test_a_mail_server_gets_starttls_when_it_offers_it(world: World, verb: bool) -> None:
    hop = Hop(own=make(name="anybody"), ehlo=PLAIN if verb else b"250-next Hello\r\n250 8BITMIME\r\n")
    _, reply = direct(world, EDGE, hop)
    assert str(reply) == "250 2.6.0 taken"
    assert ("MAIL FROM:<ben@fabrikam.com>" in " ".join(hop.clear)) is not verb


def test_a_mail_server_that_refuses_starttls_gets_it_in_clear(world: World) -> None:
    hop = Hop({"STARTTLS": b"454 4.7.0 not now\r\n"}, ehlo=PLAIN)
    _, reply = direct(world, EDGE, hop)
    assert str(reply) == "250 2.6.0 taken"


def test_a_mail_server_whose_handshake_fails_gets_nothing(world: World) -> None:
    hop = Hop(ehlo=PLAIN, instead_of_tls=b"\x15\x03\x03\x00\x02\x02\x28")
    _, reply = direct(world, EDGE, hop)
    assert str(reply) == UNREACHABLE
    assert hop.contents == []


def test_the_send_log_of_a_failure(world: World, tmp_path: Path) -> None:
    hop = Hop(own=make("rsa", name="mbx1"))
    through_edge(world, hop)
    rows = [line.split(",", 5)[5] for line in world.log(EDGE, "Send").splitlines() if not line.startswith("#")]
    assert [row.split(",", 1)[1] for row in rows[:2]] == ["*,,attempting to connect", "+,,"]
    assert [row.split(",", 1)[1] for row in rows[-2:]] == [
        f"*,,{REFUSED}: the certificate of MBX1 does not prove it: mismatch",
        "-,,Local",
    ]
