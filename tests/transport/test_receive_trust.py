"""What a receiving node offers, whom it trusts, and the event of each way it can go wrong."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from anontls.certstore import MemoryStore
from anontls.eventlog import MemoryEventLog
from anontls.facts import InternalTlsCert, Organization, Phase, Scenario, Server, Unknown
from anontls.facts.own_certificate import OwnCertificate
from anontls.selection import Result
from anontls.transport.lab import EDGE, MAILBOX
from anontls.transport.node import Node
from tests.certstore.make import make, make_weak
from tests.transport.world import ANNA, World, connected, exchange_server, greeted, run

NOT_RELAYED = "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"
NOT_AUTHENTICATED = "530 5.7.57 Client not authenticated to send mail"
LATER = datetime.now(UTC) + timedelta(days=3650)


def offered(world: World, name: str = EDGE, *, sessions: int = 1, later: bool = False) -> set[str]:
    """The TLS verbs that a session of the node is offered."""

    async def look() -> set[str]:
        seen: list[set[str]] = []
        async with world.node(name, (lambda: LATER) if later else lambda: datetime.now(UTC)) as node:
            for _ in range(sessions):
                async with connected(node.port) as client:
                    words = (await client.ask("EHLO mail.fabrikam.com")).split()
                    keywords = {word.partition("-")[2] for word in words}
                    seen.append({verb for verb in ("STARTTLS", "X-ANONYMOUSTLS") if verb in keywords})
                    for verb in {"STARTTLS", "X-ANONYMOUSTLS"} - seen[-1]:
                        assert await client.ask(verb) == "500 5.3.3 Unrecognized command"
                    assert (await client.ask("NOOP")).startswith("250")
        assert all(one == seen[0] for one in seen)
        return seen[0]

    return run(look())


# --- selection --------------------------------------------------------------------------------------------------------


def test_everything_in_order(world: World) -> None:
    assert offered(world) == {"STARTTLS", "X-ANONYMOUSTLS"}
    assert world.events(EDGE) == []


@pytest.mark.parametrize("attribute", [InternalTlsCert(value=None), InternalTlsCert(error="access denied")])
def test_attribute_null_or_unreadable_is_12012_at_the_start_and_never_in_a_session(
    world: World, attribute: InternalTlsCert
) -> None:
    world.change_server(EDGE, internal_tls_cert=attribute, internal_tls_cert_adlds=attribute)
    assert offered(world, sessions=3) == {"STARTTLS"}
    (event,) = world.events(EDGE)
    assert (event["id"], event["level"], event["server"]) == (12012, "error", EDGE)


def test_thumbprint_not_in_the_store_is_12013(world: World) -> None:
    world.publish(EDGE, make(name="elsewhere"))
    assert offered(world, sessions=3) == {"STARTTLS"}
    assert world.event_ids(EDGE) == [12013]


def test_key_missing_is_12013(world: World) -> None:
    for path in world.store(EDGE).iterdir():
        if b"PRIVATE KEY" in path.read_bytes():
            text = path.read_bytes()
            path.write_bytes(text[: text.index(b"-----BEGIN PRIVATE")]) if b"CERTIFICATE" in text else path.unlink()
    assert offered(world) == set()
    assert sorted(world.event_ids(EDGE)) == [12013, 12014]


def test_certificate_that_the_library_refuses_is_12013_and_no_crash(world: World) -> None:
    small = make("rsa-1024", name="edge1", start=datetime.now(UTC) - timedelta(days=400), days=4000)
    world.add_certificate(EDGE, small, ("IMAP",))
    world.publish(EDGE, small)
    assert offered(world, sessions=2) == {"STARTTLS"}
    (event,) = world.events(EDGE)
    assert event["id"] == 12013
    assert event["source"] == "MSExchangeTransport"
    assert event["values"]["thumbprint"] == small.thumbprint
    assert "refuses" in event["text"]
    assert "rsa" in event["values"]["reason"].lower()


def test_the_front_end_service_is_the_source_of_its_events(world: World) -> None:
    small = make("rsa-1024", name="edge1", start=LATER - timedelta(days=1), days=4000)
    world.add_certificate(EDGE, small)
    world.publish(EDGE, small)
    world.change_connector(EDGE, transport_role="FrontendTransport")
    assert offered(world, later=True) == set()
    sources = {(one["id"], one["source"]) for one in world.events(EDGE)}
    front_end = "MSExchangeFrontEndTransport"
    assert sources == {(12013, "MSExchangeTransport"), (12013, front_end), (12014, front_end)}, "one is of the start"


def test_a_matching_certificate_that_has_expired_is_told_by_the_service_of_the_connector(world: World) -> None:
    log = MemoryEventLog()
    node = Node(world.organization, world.server(MAILBOX), MemoryStore(), log, lambda: LATER)
    connector = msgspec.structs.replace(world.connector(MAILBOX), transport_role="FrontendTransport")
    for received_by in (None, connector):
        assert node.trust(world.certificates[EDGE].certificate, EDGE, received_by).trusted
    assert [(one.id, one.source) for one in log.events] == [
        (12019, "MSExchangeTransport"),
        (12019, "MSExchangeFrontEndTransport"),
    ]


def test_a_certificate_that_the_library_refuses_is_tried_once_and_again_in_another_store() -> None:
    small = make("rsa-1024")
    server = Server(name=MAILBOX, internal_tls_cert=InternalTlsCert(thumbprint=small.thumbprint))
    tried: list[str] = []

    class Counting(MemoryStore):
        def find(self, thumbprint: str) -> OwnCertificate | None:
            tried.append(thumbprint)
            return super().find(thumbprint)

    def keyed() -> Counting:
        certificate = msgspec.structs.replace(small.certificate, has_private_key=True)
        return Counting([OwnCertificate(certificate, small.key)])

    node = Node(
        Organization(schema="anontls/org/1", servers=(server,)), server, keyed(), MemoryEventLog(), lambda: LATER
    )
    for _ in range(3):
        decision = node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)
        assert (decision.result, decision.last.step, decision.last.because) == (Result.NONE, "3", "3.refused")
        assert node.presented(decision) is None
    assert len(tried) == 1
    node.store = keyed()
    node.select(Scenario.INBOUND_ANONYMOUS, phase=Phase.STARTUP)
    assert len(tried) == 2


def test_starttls_certificate_that_the_library_refuses_is_12014(world: World) -> None:
    small = make("rsa-1024", name="edge1", start=LATER - timedelta(days=1), days=4000)
    world.add_certificate(EDGE, small)
    assert offered(world, sessions=2, later=True) == {"X-ANONYMOUSTLS"}
    (event,) = (one for one in world.events(EDGE) if one["id"] == 12014)
    assert event["values"]["fqdn"] == "edge1.contoso.com"
    assert "refuses" in event["text"]


def test_an_old_sha1_certificate_is_still_used(world: World) -> None:
    old = make_weak()
    world.add_certificate(EDGE, old, ())
    world.publish(EDGE, old)
    assert "X-ANONYMOUSTLS" in offered(world)


def test_expired_is_still_used_with_12015_and_12016(world: World) -> None:
    assert offered(world, sessions=3, later=True) == {"STARTTLS", "X-ANONYMOUSTLS"}
    assert sorted(world.event_ids(EDGE)) == [12015, 12016], "each once an hour, whatever the number of sessions"


def test_connector_without_exchange_server(world: World) -> None:
    world.change_connector(EDGE, auth_mechanism="Tls")
    assert offered(world) == {"STARTTLS"}
    assert world.events(EDGE) == []


def test_suppressed(world: World) -> None:
    world.change_connector(EDGE, suppress_x_anonymous_tls=True)
    assert offered(world) == {"STARTTLS"}
    assert world.events(EDGE) == []


def test_no_certificate_for_the_name_of_the_connector_is_12014(world: World) -> None:
    world.change_connector(EDGE, fqdn="mail.contoso.com")
    assert offered(world, sessions=3) == {"X-ANONYMOUSTLS"}
    (event,) = world.events(EDGE)
    assert (event["id"], event["values"]["connector"]) == (12014, world.connector(EDGE).identity)


def test_store_miss_with_the_rule_for_a_temporary_certificate(world: World) -> None:
    gone = make(name="elsewhere")
    world.publish(EDGE, gone)
    world.configure(EDGE, "[log]", '[rules]\nstore-miss = "ephemeral"\n\n[log]')

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            await client.secure()

    run(session())
    assert world.event_ids(EDGE) == [12024]


# --- direct trust -----------------------------------------------------------------------------------------------------


def trusted(
    world: World, name: str, own: OwnCertificate | None, *, now: datetime | None = None, server: str = EDGE
) -> bool:
    """Whether a session that shows ``own`` and says ``name`` may relay; mail for us it may always send."""

    async def session() -> bool:
        async with (
            world.node(server, lambda: now or datetime.now(UTC)) as node,
            exchange_server(node.port, name, own) as client,
        ):
            assert (await client.ask("MAIL FROM:<x@contoso.com>")).startswith("250")
            answer = await client.ask("RCPT TO:<far@fabrikam.com>")
            assert answer in (NOT_RELAYED, "250 2.1.5 Recipient OK")
            assert (await client.ask(f"RCPT TO:<{ANNA}>")).startswith("250")
            return answer.startswith("250")

    return run(session())


@pytest.mark.parametrize("name", ["mbx1.contoso.com", "MBX1", "Mbx1.Contoso.COM"])
def test_the_certificate_of_the_directory_is_trusted(world: World, name: str) -> None:
    assert trusted(world, name, world.certificates[MAILBOX])
    assert world.events(EDGE) == []


def test_no_certificate(world: World) -> None:
    assert not trusted(world, "mbx1.contoso.com", None)


def test_another_certificate_of_the_same_name(world: World) -> None:
    assert not trusted(world, "mbx1.contoso.com", make("rsa", name="mbx1"))


def test_the_right_certificate_under_the_name_of_another_server(world: World) -> None:
    assert not trusted(world, "edge1.contoso.com", world.certificates[MAILBOX])


def test_a_server_that_the_directory_does_not_know(world: World) -> None:
    assert not trusted(world, "mbx9.contoso.com", world.certificates[MAILBOX])


def test_expired_but_matching_is_trusted_with_12019(world: World) -> None:
    assert trusted(world, "mbx1.contoso.com", world.certificates[MAILBOX], now=LATER)
    assert 12019 in world.event_ids(EDGE)


def test_expired_and_not_matching_is_neither(world: World) -> None:
    assert not trusted(world, "mbx1.contoso.com", make("rsa", name="mbx1"), now=LATER)
    assert 12019 not in world.event_ids(EDGE)


def test_a_thumbprint_without_the_certificate_proves_nothing(world: World) -> None:
    own = world.certificates[MAILBOX]
    world.change_server(MAILBOX, internal_tls_cert=InternalTlsCert(thumbprint=own.thumbprint))
    assert not trusted(world, "mbx1.contoso.com", own)


def test_a_connector_without_exchange_servers_grants_nothing(world: World) -> None:
    world.change_connector(EDGE, permission_groups="AnonymousUsers")
    assert not trusted(world, "mbx1.contoso.com", world.certificates[MAILBOX])


def test_starttls_with_the_right_certificate_grants_nothing(world: World) -> None:
    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port, "mbx1.contoso.com") as client:
            await client.secure("STARTTLS", world.certificates[MAILBOX])
            assert (await client.ask("MAIL FROM:<x@contoso.com>")) == "503 5.5.2 Send hello first"
            await client.ask("EHLO mbx1.contoso.com")
            await client.ask("MAIL FROM:<x@contoso.com>")
            assert await client.ask("RCPT TO:<far@fabrikam.com>") == NOT_RELAYED

    run(session())


def test_a_server_with_mailboxes_alone_relays_for_nobody(world: World) -> None:
    """There is no way on from it, so what it took for others would be lost in a folder."""
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')
    assert not trusted(world, "mbx1.contoso.com", world.certificates[MAILBOX])
    assert not (world.folder / "mail" / "far@fabrikam.com").exists()


def test_in_clear_nobody_relays(world: World) -> None:
    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port, "mbx1.contoso.com") as client:
            await client.ask("MAIL FROM:<x@contoso.com>")
            assert await client.ask("RCPT TO:<far@fabrikam.com>") == NOT_RELAYED

    run(session())


def test_rights_are_gone_after_another_name(world: World) -> None:
    async def session() -> None:
        async with (
            world.node(EDGE) as node,
            exchange_server(node.port, "mbx1.contoso.com", world.certificates[MAILBOX]) as client,
        ):
            for hello, allowed in (
                ("EHLO edge1.contoso.com", False),
                ("EHLO mbx1.contoso.com", True),
                ("HELO evil.example", False),
            ):
                await client.ask(hello)
                assert (await client.ask("MAIL FROM:<x@contoso.com>")).startswith("250")
                answer = await client.ask("RCPT TO:<far@fabrikam.com>")
                assert answer.startswith("250") is allowed, hello

    run(session())


def test_rights_do_not_outrun_the_greeting(world: World) -> None:
    """A group of commands behind an EHLO is judged without the rights of the name before it."""

    async def session() -> None:
        async with (
            world.node(EDGE) as node,
            exchange_server(node.port, "mbx1.contoso.com", world.certificates[MAILBOX]) as client,
        ):
            await client.send(b"EHLO evil.example\r\nMAIL FROM:<x@contoso.com>\r\nRCPT TO:<far@fabrikam.com>\r\n")
            assert (await client.reply()).startswith("250-")
            assert (await client.reply()).startswith("250 ")
            assert await client.reply() == NOT_RELAYED

    run(session())


def test_an_internal_connector_takes_mail_from_exchange_servers_only(world: World) -> None:
    async def session() -> None:
        async with world.node(MAILBOX) as node:
            async with greeted(node.port) as client:
                assert await client.ask("MAIL FROM:<x@contoso.com>") == NOT_AUTHENTICATED
            async with exchange_server(node.port, "edge1.contoso.com", make(name="edge1")) as client:
                assert await client.ask("MAIL FROM:<x@contoso.com>") == NOT_AUTHENTICATED
            async with exchange_server(node.port, "edge1.contoso.com", world.certificates[EDGE]) as client:
                assert (await client.message())[-1].startswith("250 2.6.0 <")

    run(session())
    assert len(world.messages()) == 1


def test_permission_groups_that_are_not_known_let_nobody_in(world: World) -> None:
    world.change_connector(EDGE, permission_groups=Unknown("not exported"))

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert await client.ask("MAIL FROM:<x@contoso.com>") == NOT_AUTHENTICATED

    run(session())


def test_remote_ip_ranges(world: World) -> None:
    world.change_connector(EDGE, remote_ip_ranges=("192.0.2.0/24",))

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with connected(node.port, banner=False) as client:
                assert await client.reply() == "421 4.3.2 Service not available"
                assert await client.rest() == b""
            world.change_connector(EDGE, remote_ip_ranges=("192.0.2.0/24", "127.0.0.1"))
            await node.service.reload()
            async with connected(node.port):
                pass

    run(session())


def test_the_protocol_log_of_a_trusted_session(world: World) -> None:
    async def session() -> None:
        async with (
            world.node(EDGE) as node,
            exchange_server(node.port, "mbx1.contoso.com", world.certificates[MAILBOX]) as client,
        ):
            await client.ask("QUIT")
            await client.rest()
        await asyncio.sleep(0)

    run(session())
    rows = [line.split(",", 6)[6] for line in world.log(EDGE, "Receive").splitlines() if not line.startswith("#")]
    anonymous = "SMTPSubmit SMTPAcceptAnySender SMTPAcceptAuthoritativeDomainSender AcceptRoutingHeaders"
    assert rows[:2] == ["+,,", f"*,{anonymous},Set Session Permissions"]
    rows = rows[1:]
    assert rows[1].startswith('>,"220 edge1.contoso.com Microsoft ESMTP MAIL Service ready at ')
    assert rows[2] == "<,EHLO mbx1.contoso.com,"
    assert rows[3].startswith(">,250  edge1.contoso.com Hello [127.0.0.1] SIZE 37748736 PIPELINING DSN ")
    assert rows[4:6] == ["<,X-ANONYMOUSTLS,", ">,220 2.0.0 SMTP server ready,"]
    assert rows[6].startswith("*, CN=EDGE1 CN=EDGE1 ")
    assert rows[6].endswith(
        ",Sending certificate Subject Issuer name Serial number Thumbprint Not before Not after Subject alternate names"
    )
    assert "SP_PROT_TLS1_3_SERVER negotiation succeeded" in rows[7]
    assert world.certificates[MAILBOX].thumbprint in rows[8]
    assert rows[-3:] == ["<,QUIT,", ">,221 2.0.0 Service closing transmission channel,", "-,,Local"]
    assert "*,mbx1.contoso.com,Direct trust: match" in rows


async def said_of_the_client(world: World, own: OwnCertificate | None, verb: str = "STARTTLS") -> list[str]:
    """The rows between EHLO inside TLS and the end."""
    async with world.node(EDGE) as node, greeted(node.port) as client:
        await client.secure(verb, own)
        await client.ask("EHLO a")
        await client.ask("EHLO a")
        await client.ask("QUIT")
        await client.rest()
    rows = [line.split(",", 6)[6] for line in world.log(EDGE, "Receive").splitlines() if not line.startswith("#")]
    return rows[rows.index("<,EHLO a,") :]


def test_the_protocol_log_of_a_client_without_certificate(world: World) -> None:
    rows = run(said_of_the_client(world, None))
    assert rows[:3] == [
        "<,EHLO a,",
        "*,,Client certificate chain validation status: 'EmptyCertificate'",
        "*,,TlsDomainCapabilities='None'; Status='NoRemoteCertificate'",
    ]
    assert rows[3].startswith(">,250  edge1.contoso.com Hello ")
    assert rows[4] == "<,EHLO a,"
    assert rows[5].startswith(">,250 "), "it is said once"


@pytest.mark.parametrize("verb", ["STARTTLS", "X-ANONYMOUSTLS"])
def test_nothing_is_logged_of_a_certificate_that_is_there_or_where_it_is_not_observed(world: World, verb: str) -> None:
    own = world.certificates[MAILBOX] if verb == "STARTTLS" else None
    rows = run(said_of_the_client(world, own, verb))
    assert rows[1].startswith(">,250  edge1.contoso.com Hello ")


def test_a_connector_that_lets_nobody_in_logs_no_permissions(world: World) -> None:
    async def session() -> None:
        async with world.node(MAILBOX) as node, exchange_server(node.port, "edge1.contoso.com", None):
            pass

    run(session())
    assert "Direct trust: no certificate" in world.log(MAILBOX, "Receive")
    assert "Set Session Permissions" not in world.log(MAILBOX, "Receive")
