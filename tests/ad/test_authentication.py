"""Two Mailbox servers prove themselves to each other by Kerberos; every way it can fail ends with nothing delivered."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anontls import cli, config
from anontls.errors import UsageError
from anontls.facts import Certificate, Queue
from anontls.kerberos import Acceptor, Initiator, Kerberos, computer_account
from anontls.kerberos.failure import KerberosFailed, Reason
from anontls.smtp import exchange_auth
from anontls.tls import TlsPump, client_context
from anontls.transport import authentication
from anontls.transport.check import findings
from anontls.transport.receive import EXCHANGE_SERVER_PERMISSIONS
from anontls.transport.send import NextHop, OutboundSession, SessionFailed
from anontls.transport.service import Service, system_now
from lab.kdc import Kdc, Realm
from lab.samba import Samba
from tests.ad.mailbox_servers import (
    FQDN,
    RECEIVER,
    SENDER,
    Between,
    MailboxServers,
    channel,
    computer_accounts,
    in_tls,
    x_exps,
)
from tests.ad.tickets import Tickets, tickets_of
from tests.certstore.make import make
from tests.transport.world import (
    ANNA,
    BEN,
    EHLO_CLEAR,
    EVERYTHING,
    MESSAGE,
    Client,
    Hop,
    Running,
    World,
    greeted,
    make_world,
    run,
)

TEMPORARY = "454 4.7.0 Temporary authentication failure"
UNSUCCESSFUL = "535 5.7.3 Authentication unsuccessful"
DEFERRED = "451 5.7.3 Cannot achieve Exchange Server authentication"
NOT_RELAYED = "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain"


@pytest.fixture
def tickets(kdc: Kdc) -> Tickets:
    return tickets_of(kdc)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("lab") / "world")


@pytest.fixture
def servers(lab: World, tickets: Tickets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MailboxServers:
    for name, value in tickets.kdc.environment.items():
        monkeypatch.setenv(name, value)
    return MailboxServers(lab, tickets, tmp_path / "world")


# --- it works ---------------------------------------------------------------------------------------------------------


def test_a_message_arrives(servers: MailboxServers) -> None:
    assert servers.relayed().startswith("250 2.6.0 <")
    (message,) = servers.messages()
    assert message.endswith(MESSAGE)
    assert b"from mbx1.contoso.com ([127.0.0.1]) by mbx2.contoso.com\r\n with ESMTPS " in message
    assert not {1035, 2016, 2017} & {*servers.event_ids(SENDER), *servers.event_ids(RECEIVER)}
    rows = rows_of(servers, RECEIVER, "Receive")
    begin = rows.index("<,X-EXPS GSSAPI,")
    assert rows[begin : begin + 8] == [
        "<,X-EXPS GSSAPI,",
        ">,334 <authentication response>,",
        "<,<authentication response>,",
        ">,334 <authentication response>,",
        "<,<authentication response>,",
        f"*,{servers.tickets.account},authenticated",
        ">,235 2.7.0 Authentication successful,",
        f"*,{EXCHANGE_SERVER_PERMISSIONS},Set Session Permissions",
    ]
    assert "*,mbx1.contoso.com,Direct trust: no certificate" in rows, "the sender shows none"
    assert "*,MBX2,Direct trust: match" in rows_of(servers, SENDER, "Send"), "but the receiver does"


def rows_of(world: World, name: str, kind: str) -> list[str]:
    return [line.split(",", 6)[6] for line in world.log(name, kind).splitlines() if not line.startswith("#")]


def test_a_message_arrives_with_our_exchangeauth(servers: MailboxServers) -> None:
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth="anontls")
    assert servers.relayed().startswith("250 2.6.0 <")
    assert len(servers.messages()) == 1
    rows = rows_of(servers, RECEIVER, "Receive")
    begin = rows.index("<,X-EXPS EXCHANGEAUTH SHA256,")
    assert rows[begin + 1 : begin + 3] == [
        f"*,{servers.tickets.account},authenticated",
        ">,235 <authentication response>,",
    ]
    assert "<,235 <authentication response>," in rows_of(servers, SENDER, "Send")


@pytest.mark.parametrize("with_it", [SENDER, RECEIVER])
def test_exchangeauth_on_one_side_only_is_gssapi(servers: MailboxServers, with_it: str) -> None:
    servers.kerberos(with_it, exchangeauth="anontls")
    assert servers.relayed().startswith("250 2.6.0 <")
    assert "X-EXPS GSSAPI" in servers.log(SENDER, "Send")


def test_without_tls_1_3_it_is_gssapi(servers: MailboxServers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth="anontls")
    monkeypatch.setattr(TlsPump, "protocol", "TLSv1.2")
    assert servers.relayed().startswith("250 2.6.0 <")
    assert "X-EXPS GSSAPI" in servers.log(SENDER, "Send")

    async def work(client: Client) -> None:
        token = exchange_auth.pack(exchange_auth.INITIATOR, servers.tickets.initiator().step() or b"")
        assert await client.ask("X-EXPS EXCHANGEAUTH SHA256 " + base64.b64encode(token).decode()) == TEMPORARY

    with_receiver(servers, work)
    assert servers.event(RECEIVER, 1035)["error"].startswith("not bound to a channel: tls-exporter: TLS 1.2")


@pytest.mark.parametrize("exchangeauth", ["off", "anontls"])
def test_outcomes_are_counted(servers: MailboxServers, exchangeauth: str) -> None:
    """On both sides, each once."""
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth=exchangeauth)
    mechanism = "GSSAPI" if exchangeauth == "off" else "EXCHANGEAUTH"

    def counted(node: Running) -> dict[tuple[str, str, object], int]:
        return {key: count for key, count in node.service.node.metrics.authentications.items() if count}

    async def session() -> None:
        async with servers.node(RECEIVER) as receiver:
            servers.send_to(receiver.port)
            async with servers.node(SENDER) as sender, greeted(sender.port) as client:
                assert (await client.message(ANNA))[-1].startswith("250 2.6.0 <")
                assert counted(sender) == {("send", mechanism, "authenticated"): 1}
                assert counted(receiver) == {("receive", mechanism, "authenticated"): 1}
            async with in_tls(receiver.port, FQDN[SENDER]) as client:
                assert await x_exps(client, servers.tickets.initiator().step() or b"") == TEMPORARY
            async with in_tls(receiver.port, FQDN[RECEIVER]) as client:
                token = servers.tickets.initiator(binding=channel(client)).step() or b""
                assert await x_exps(client, token) == UNSUCCESSFUL
            assert counted(receiver) == {
                ("receive", mechanism, "authenticated"): 1,
                ("receive", "GSSAPI", Reason.WRONG_BINDING): 1,
                ("receive", "GSSAPI", "not-allowed"): 1,
            }
        servers.kerberos(RECEIVER, keytab=None, realm=None, exchangeauth=None)
        async with servers.node(RECEIVER) as receiver:
            servers.send_to(receiver.port)
            async with servers.node(SENDER) as sender, greeted(sender.port) as client:
                assert (await client.message(ANNA))[-1] == DEFERRED
                assert counted(sender) == {("send", "GSSAPI", Reason.OTHER): 1}, "it is not offered"
                assert counted(receiver) == {}

    run(session())


def test_as_written_the_message_waits(servers: MailboxServers) -> None:
    servers.configure(SENDER, '"verb-without-certificate"', '"as-written"')
    assert servers.relayed() == DEFERRED
    assert servers.messages() == []
    assert "the decision is not to use X-ANONYMOUSTLS: it ended at step 1.b" in servers.log(SENDER, "Send")


def test_a_sender_without_kerberos_is_nobody_there(servers: MailboxServers) -> None:
    servers.kerberos(SENDER, keytab=None, realm=None)
    assert servers.relayed() == DEFERRED
    assert "530 5.7.57" in servers.log(SENDER, "Send")
    assert servers.messages() == []


# --- a client of our own towards the receiver -------------------------------------------------------------------------


async def visited(
    servers: MailboxServers, work: Callable[[Client], Awaitable[None]], *, clear: bool = False, name: str = FQDN[SENDER]
) -> None:
    async with servers.node(RECEIVER) as node, (greeted if clear else in_tls)(node.port, name) as client:
        await work(client)


def with_receiver(
    servers: MailboxServers, work: Callable[[Client], Awaitable[None]], *, clear: bool = False, name: str = FQDN[SENDER]
) -> None:
    run(visited(servers, work, clear=clear, name=name))


def with_relay(servers: MailboxServers, work: Callable[[Client], Awaitable[None]]) -> list[bytes]:
    """In clear, with a receiver that hands on what it takes; that is what is returned."""
    hop = Hop(ehlo=EVERYTHING)

    async def session() -> None:
        async with hop.listening():
            servers.deliver(RECEIVER, f'next-hop = "127.0.0.1:{hop.port}"')
            await visited(servers, work, clear=True)

    run(session())
    return hop.contents


@pytest.mark.parametrize("verb", ["X-ANONYMOUSTLS", "STARTTLS"])
def test_the_rights_are_those_of_an_exchange_server_and_end_with_the_name(servers: MailboxServers, verb: str) -> None:
    async def work(client: Client) -> None:
        await client.secure(verb)
        await client.ask(f"EHLO {FQDN[SENDER]}")
        token = servers.tickets.initiator(binding=channel(client)).step() or b""
        assert await x_exps(client, token) == "235 2.7.0 Authentication successful"
        assert (await client.message(BEN))[-1] == "250 2.6.0 taken"
        assert await client.ask("X-EXPS GSSAPI") == "503 5.5.2 Already authenticated"
        await client.ask("EHLO mbx9.contoso.com")
        assert (await client.message(BEN))[1] == NOT_RELAYED

    assert len(with_relay(servers, work)) == 1


@pytest.mark.parametrize(
    ("groups", "answer"),
    [("ExchangeUsers, ExchangeServers", "235 2.7.0 Authentication successful"), ("ExchangeServers", UNSUCCESSFUL)],
)
def test_in_clear_there_are_no_exchange_rights(servers: MailboxServers, groups: str, answer: str) -> None:
    servers.let_in(RECEIVER, groups)

    async def work(client: Client) -> None:
        token = servers.tickets.initiator().step() or b""
        assert await x_exps(client, token) == answer
        sender, recipient, *_ = await client.message(BEN)
        if answer.startswith("235"):
            assert recipient == NOT_RELAYED
        else:
            assert sender == "530 5.7.57 Client not authenticated to send mail"

    assert with_relay(servers, work) == []


@pytest.mark.parametrize(
    ("mechanism", "clear", "tls"),
    [
        ("Tls, Integrated, ExchangeServer", "GSSAPI", "EXCHANGEAUTH GSSAPI"),
        ("Tls, ExchangeServer", "GSSAPI", "EXCHANGEAUTH GSSAPI"),
        (31, "GSSAPI", "EXCHANGEAUTH GSSAPI"),
        ("Tls, BasicAuth", "", None),
        ("Tls, Integrated", "GSSAPI", None),
    ],
)
def test_what_is_offered(servers: MailboxServers, mechanism: str | int, clear: str, tls: str | None) -> None:
    servers.let_in(RECEIVER, "ExchangeServers", auth_mechanism=mechanism)
    servers.kerberos(RECEIVER, exchangeauth="anontls")

    async def session() -> None:
        async with servers.node(RECEIVER) as node, greeted(node.port) as client:
            assert offered(await client.ask("EHLO c")) == clear
            if tls is not None:
                await client.secure()
                hello = await client.ask("EHLO c")
                assert offered(hello) == tls
                assert "X-EXCHANGEAUTH SHA256" in hello

    run(session())


def offered(hello: str) -> str:
    return next((line[11:] for line in hello.split("\n") if line[4:].startswith("X-EXPS")), "")


def test_without_a_keytab_nothing_is_offered(servers: MailboxServers) -> None:
    servers.kerberos(RECEIVER, keytab=None, credential_cache="MEMORY:elsewhere")

    async def work(client: Client) -> None:
        assert offered(await client.ask("EHLO c")) == ""
        assert await client.ask("X-EXPS GSSAPI") == "500 5.3.3 Unrecognized command"

    with_receiver(servers, work, clear=True)


def test_an_authentication_can_be_cancelled_and_begun_again(servers: MailboxServers) -> None:
    async def work(client: Client) -> None:
        assert await client.ask("X-EXPS GSSAPI") == "334 "
        assert await client.ask("*") == "501 5.7.0 Authentication cancelled"
        assert await client.ask("X-EXPS GSSAPI") == "334 "
        assert await client.ask("A" * 65_536) == "500 5.5.2 Line too long"
        assert await client.ask("X-EXPS GSSAPI =") == TEMPORARY
        token = servers.tickets.initiator(binding=channel(client)).step() or b""
        answer = await client.ask("X-EXPS GSSAPI " + base64.b64encode(token).decode())
        assert answer.startswith("334 ")
        assert await client.ask("") == "235 2.7.0 Authentication successful"

    with_receiver(servers, work)


# --- what the receiver refuses ----------------------------------------------------------------------------------------


def refused(
    servers: MailboxServers,
    token: Callable[[bytes], bytes],
    error: str,
    reply: str = TEMPORARY,
    *,
    name: str = FQDN[SENDER],
) -> None:
    """The reply, the event, and nothing delivered; ``token`` makes one for a channel."""

    async def work(client: Client) -> None:
        assert await x_exps(client, token(channel(client))) == reply
        assert (await client.message(ANNA))[0] == "530 5.7.57 Client not authenticated to send mail"

    with_receiver(servers, work, name=name)
    refused_there(servers, error)


def refused_there(servers: MailboxServers, error: str, mechanism: str = "Gssapi") -> None:
    assert servers.messages() == []
    event = servers.event(RECEIVER, 1035)
    assert event["error"].startswith(error)
    assert (event["connector"], event["mechanism"], event["address"]) == ("MBX2\\Default MBX2", mechanism, "127.0.0.1")
    assert f"Inbound {mechanism} failed because of {error}" in servers.log(RECEIVER, "Receive")


def test_no_binding(servers: MailboxServers) -> None:
    refused(servers, lambda _: servers.tickets.lax().step(), "not bound to a channel")


def test_another_channel(servers: MailboxServers) -> None:
    refused(servers, lambda _: servers.tickets.initiator().step() or b"", "bound to another channel")


def test_replay(servers: MailboxServers) -> None:
    """In the same session, which is all that a binding leaves to it."""

    async def work(client: Client) -> None:
        token = servers.tickets.initiator(binding=channel(client)).step() or b""
        assert (await client.ask("X-EXPS GSSAPI " + base64.b64encode(token).decode())).startswith("334 ")
        assert (await client.ask("*")).startswith("501 ")
        assert await x_exps(client, token) == TEMPORARY
        assert (await client.message(ANNA))[0].startswith("530 ")

    with_receiver(servers, work)
    refused_there(servers, "replay")


def test_an_expired_ticket(servers: MailboxServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Realm(servers.tickets.realm, tmp_path, servers.tickets.kdc.address, more="clockskew = 1")
    monkeypatch.setenv("KRB5_CONFIG", strict.environment["KRB5_CONFIG"])
    service = "SMTP/mbx2"
    cache, keytab = servers.tickets.expired(tmp_path / "ccache", service)
    servers.kerberos(RECEIVER, keytab=str(keytab))
    target = f"{service}@{servers.tickets.realm}"

    def token(binding: bytes) -> bytes:
        return servers.tickets.initiator(binding=binding, cache=cache, target=target).step() or b""

    refused(servers, token, "expired ticket")


def test_clock_skew(servers: MailboxServers, tmp_path: Path) -> None:
    cache = servers.tickets.skewed(tmp_path / "ccache")
    refused(
        servers, lambda binding: servers.tickets.initiator(binding=binding, cache=cache).step() or b"", "clock skew"
    )


def test_a_ticket_for_another_service(servers: MailboxServers) -> None:
    servers.tickets.kdc.add_principal("SMTPSVC/mbx7.contoso.com")
    target = f"SMTPSVC/mbx7.contoso.com@{servers.tickets.realm}"
    refused(
        servers,
        lambda binding: servers.tickets.initiator(binding=binding, target=target).step() or b"",
        "ticket for another service",
    )


def test_an_rc4_key(servers: MailboxServers) -> None:
    keytab = servers.tickets.kdc.add_principal("SMTP/MBX2", enctypes="arcfour-hmac:normal")
    servers.kerberos(RECEIVER, keytab=str(keytab))
    target = f"SMTP/MBX2@{servers.tickets.realm}"
    refused(servers, lambda binding: servers.tickets.lax(binding=binding, target=target).step(), "not AES")


@pytest.mark.parametrize("certificate", [None, Certificate(der=b"rubbish")])
def test_a_certificate_that_has_no_binding(certificate: Certificate | None) -> None:
    with pytest.raises(KerberosFailed, match="not bound to a channel: tls-server-end-point"):
        authentication.channel_binding("GSSAPI", TlsPump(client_context()), certificate)


@pytest.mark.parametrize("token", [b"", b"rubbish", b"\x60" * 40_000])
def test_rubbish(servers: MailboxServers, token: bytes) -> None:
    refused(servers, lambda _: token, "malformed token")


def by(servers: MailboxServers, principal: str) -> Callable[[bytes], bytes]:
    keytab = servers.tickets.kdc.add_principal(principal)
    kerberos = Kerberos(f"{principal}@{servers.tickets.realm}", keytab=keytab)
    return lambda binding: kerberos.initiator(servers.tickets.target, binding).step() or b""


@pytest.mark.parametrize("principal", ["anna", "MBX1", "PC17$", "host/mbx1.contoso.com", "SMTPSVC/mbx1.contoso.com"])
def test_a_principal_that_is_no_computer_account_of_an_exchange_server(servers: MailboxServers, principal: str) -> None:
    error = f"{principal}@{servers.tickets.realm} is not the computer account of mbx1.contoso.com"
    refused(servers, by(servers, principal), error, UNSUCCESSFUL)


def test_the_computer_of_that_name_in_another_realm(servers: MailboxServers) -> None:
    servers.kerberos(RECEIVER, realm=None)  # so it is CONTOSO.COM, by the FQDN
    token = by_sender(servers)
    refused(servers, token, f"{servers.tickets.account} is not the computer account", UNSUCCESSFUL)


def by_sender(servers: MailboxServers) -> Callable[[bytes], bytes]:
    return lambda binding: servers.tickets.initiator(binding=binding).step() or b""


def test_another_server_than_it_greets_as(servers: MailboxServers) -> None:
    error = f"{servers.tickets.account} is not the computer account of {FQDN[RECEIVER]}"
    refused(servers, by_sender(servers), error, UNSUCCESSFUL, name=FQDN[RECEIVER])


def test_a_name_that_is_no_server(servers: MailboxServers) -> None:
    error = "mbx9.contoso.com is not a Mailbox server of the organisation"
    refused(servers, by_sender(servers), error, UNSUCCESSFUL, name="mbx9.contoso.com")


def test_a_computer_with_the_name_of_an_edge_server(servers: MailboxServers) -> None:
    """Which is in no domain: anybody who may add computers to it could make one."""
    error = "edge1.contoso.com is not a Mailbox server of the organisation"
    refused(servers, by(servers, "EDGE1$"), error, UNSUCCESSFUL, name="edge1.contoso.com")


def test_a_connector_that_lets_no_exchange_servers_in(servers: MailboxServers) -> None:
    servers.let_in(RECEIVER, "ExchangeLegacyServers")
    refused(servers, by_sender(servers), "the connector lets no Exchange servers in", UNSUCCESSFUL)


@pytest.mark.parametrize("exchangeauth", ["off", "anontls"])
def test_a_man_in_the_middle_gets_nothing_for_passing_tokens_on(servers: MailboxServers, exchangeauth: str) -> None:
    """Even where the sender's directory was made to name his certificate."""
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth=exchangeauth)
    own = make(name="mbx2")
    servers.name_certificate(own)
    man = Between(own)
    assert servers.relayed(man) == DEFERRED
    assert any(b"X-EXPS" in said for said in man.heard), "he had the token"
    assert not any(b"MAIL FROM" in said for said in man.heard)
    mechanism = "Gssapi" if exchangeauth == "off" else "ExchangeAuth"
    refused_there(servers, "bound to another channel", mechanism)
    event = servers.event(SENDER, 2017)
    assert (event["mechanism"], event["target"], event["address"]) == (
        mechanism,
        f"SMTPSVC/{FQDN[RECEIVER]}",
        "127.0.0.1",
    )
    assert event["error"] == f"refused: {TEMPORARY}"


def test_a_man_in_the_middle_whom_no_directory_names_gets_no_token(servers: MailboxServers) -> None:
    man = Between(make(name="mbx2"))
    assert servers.relayed(man) == DEFERRED
    assert man.heard == []
    assert servers.messages() == []


# --- against a domain controller --------------------------------------------------------------------------------------


@pytest.fixture
def domain(samba: Samba, lab: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MailboxServers]:
    """The two servers with computer accounts of Active Directory, in the realm of their names."""
    for name, value in samba.environment.items():
        monkeypatch.setenv(name, value)
    with computer_accounts(samba) as tickets:
        servers = MailboxServers(lab, tickets, tmp_path / "world")
        for name in (SENDER, RECEIVER):
            servers.kerberos(name, credential_cache=f"FILE:{tmp_path / name}")
        yield servers


def test_computer_accounts_of_active_directory(domain: MailboxServers, samba: Samba, tmp_path: Path) -> None:
    assert domain.relayed().startswith("250 2.6.0 <")
    assert len(domain.messages()) == 1
    assert "*,MBX1$@CONTOSO.COM,authenticated" in rows_of(domain, RECEIVER, "Receive")
    samba.ldbmodify(  # back to RC4, as an account is whose encryption types nobody has set
        f"dn: CN={RECEIVER},CN=Computers,{samba.base}\nchangetype: modify\nreplace: msDS-SupportedEncryptionTypes\n"
        "msDS-SupportedEncryptionTypes: 4\n"
    )
    domain.kerberos(SENDER, credential_cache=f"FILE:{tmp_path / 'another'}")
    assert domain.relayed() == DEFERRED
    assert domain.event(SENDER, 2017)["error"].startswith(
        "not AES: ticket and session key are of the encryption types 23"
    )
    assert len(domain.messages()) == 1


# --- what ends the sender's attempt -----------------------------------------------------------------------------------


class Says(dict[str, Any]):
    """Answers to commands; ``else`` to whatever else comes, which are tokens."""

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else self.get("else", default) if key != "else" else default


EHLO_EXPS = b"250-mbx2.contoso.com Hello\r\n250-X-EXPS GSSAPI NTLM\r\n250 8BITMIME\r\n"


def not_sent(
    servers: MailboxServers, error: str, number: int = 2017, *, ehlo: bytes = EHLO_EXPS, **answers: Any
) -> dict[str, Any]:
    """The event of an attempt that ends before MAIL, towards a server with answers of our own."""
    hop = Hop(own=servers.certificates[RECEIVER], ehlo=EHLO_CLEAR, ehlo_tls=ehlo)
    hop.answers = Says({**hop.answers, **{key.replace("_", "-"): value for key, value in answers.items()}})

    async def session() -> None:
        async with hop.listening():
            service = Service(config.load(servers.config(SENDER)), servers.folder, now=system_now)
            queue = Queue(delivery_type="SmtpRelayToDag")
            outbound = OutboundSession(
                service.node,
                NextHop(host="127.0.0.1", port=hop.port, server=RECEIVER, queue=queue, timeout=10),
                service.send_log,
            )
            with pytest.raises(SessionFailed) as raised:
                await outbound.open()
            await outbound.close()
            assert str(raised.value.reply) == DEFERRED
            assert raised.value.why.startswith(f"Kerberos: {error}")
            assert service.node.metrics.sessions["send", "X-ANONYMOUSTLS", "not-trusted"] == 1
            assert service.send_log is not None
            service.send_log.flush()

    run(session())
    assert not any(command.startswith("MAIL") for command in hop.commands)
    assert f"Outbound Authentication failed with {error}" in servers.log(SENDER, "Send")
    event = servers.event(SENDER, number)
    assert event["error"].startswith(error)
    assert event["connector"] == "Intra-Organization SMTP Send Connector"
    assert event["target"] == f"SMTPSVC/{FQDN[RECEIVER]}"
    assert event["address"] == "127.0.0.1"
    return event


@pytest.mark.parametrize(
    "ehlo", [b"250-mbx2 Hello\r\n250 8BITMIME\r\n", b"250-mbx2 Hello\r\n250-X-EXPS NTLM\r\n250-XXXXXXXX\r\n250 DSN\r\n"]
)
def test_a_peer_that_does_not_offer_it(servers: MailboxServers, ehlo: bytes) -> None:
    not_sent(servers, "refused: the peer does not offer X-EXPS GSSAPI", ehlo=ehlo)


@pytest.mark.parametrize("reply", [TEMPORARY, UNSUCCESSFUL, "500 5.3.3 Unrecognized command"])
@pytest.mark.parametrize("where", ["X_EXPS", "else"])
def test_a_peer_that_refuses(servers: MailboxServers, reply: str, where: str) -> None:
    answers: dict[str, Any] = {"X_EXPS": b"334 \r\n", where: f"{reply}\r\n".encode()}
    not_sent(servers, f"refused: {reply}", **answers)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ({"X_EXPS": b"235 2.7.0 yes\r\n"}, "not mutual"),
        ({"X_EXPS": b"334 \r\n", "else": b"235 2.7.0 yes\r\n"}, "not mutual"),
        ({"X_EXPS": b"334 dG9rZW4=\r\n"}, "malformed token"),
        ({"X_EXPS": b"334 \r\n", "else": b"334 \r\n"}, "malformed token"),
        ({"X_EXPS": b"334 \r\n", "else": b"334 dG9rZW4=\r\n"}, "malformed token"),
    ],
)
def test_a_peer_that_does_not_prove_what_it_is(servers: MailboxServers, answers: dict[str, Any], error: str) -> None:
    not_sent(servers, error, **answers)


def test_each_reason_is_an_event_of_its_own_within_the_hour(servers: MailboxServers) -> None:
    """However often the peer changes its words."""
    hop = Hop(own=servers.certificates[RECEIVER], ehlo=EHLO_CLEAR, ehlo_tls=EHLO_EXPS)

    async def session() -> None:
        async with hop.listening():
            service = Service(config.load(servers.config(SENDER)), servers.folder, now=system_now)
            for answer in (f"{TEMPORARY} 1", f"{TEMPORARY} 2", "235 2.7.0 yes", f"{TEMPORARY} 3", "235 2.7.0 no"):
                hop.answers["X-EXPS"] = f"{answer}\r\n".encode()
                queue = Queue(delivery_type="SmtpRelayToDag")
                there = NextHop(host="127.0.0.1", port=hop.port, server=RECEIVER, queue=queue, timeout=10)
                outbound = OutboundSession(service.node, there)
                with pytest.raises(SessionFailed):
                    await outbound.open()
                await outbound.close()
            assert service.node.metrics.events[2017] == 5

    run(session())
    errors = [event["values"]["error"] for event in servers.events(SENDER) if event["id"] == 2017]
    assert errors == [f"refused: {TEMPORARY} 1", "not mutual: 235 before the server has proved what it is"]


@pytest.mark.parametrize("token", [b"", b"235 2.7.0 yes", b"235 2.7.0 QVhBMQI="])
def test_a_peer_that_does_not_prove_what_it_is_in_exchangeauth(servers: MailboxServers, token: bytes) -> None:
    servers.kerberos(SENDER, exchangeauth="anontls")
    ehlo = EHLO_EXPS.replace(b"GSSAPI", b"EXCHANGEAUTH GSSAPI")
    not_sent(servers, "malformed token", ehlo=ehlo, X_EXPS=(token or b"235 2.7.0 ") + b"\r\n")


def test_exchangeauth_signed_for_another_channel(servers: MailboxServers, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a server that has the keys and does not look at bindings."""
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth="anontls")
    sign = Acceptor.sign
    monkeypatch.setattr(Acceptor, "sign", lambda self, data: sign(self, data[::-1]))
    assert servers.relayed() == DEFERRED
    assert servers.event(SENDER, 2017)["error"].startswith("malformed token")
    assert servers.messages() == []


def test_the_kdc_is_down(servers: MailboxServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("KRB5_CONFIG", Realm(servers.tickets.realm, tmp_path, nobody).environment["KRB5_CONFIG"])
    servers.kerberos(SENDER, credential_cache="MEMORY:down")
    not_sent(servers, "KDC not reachable")


def test_the_kdc_says_nothing(servers: MailboxServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("KRB5_CONFIG", Realm(servers.tickets.realm, tmp_path, address).environment["KRB5_CONFIG"])
        servers.kerberos(SENDER, credential_cache="MEMORY:silent", deadline=0.2)
        not_sent(servers, "KDC not reachable: no answer in 0.2 s")


def test_a_kdc_that_says_nothing_is_not_asked_by_everybody(
    servers: MailboxServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authentication, "MAX_ASKING", 2)
    servers.kerberos(SENDER, credential_cache="MEMORY:crowd", deadline=0.2)

    async def session() -> None:
        asking = service(servers).node.authentication
        assert asking is not None
        tries = [asking.first_token(asking.kerberos.initiator(servers.tickets.target, b"x")) for _ in range(3)]
        failures = await asyncio.gather(*tries, return_exceptions=True)
        assert [str(failure) for failure in failures] == [
            "KDC not reachable: no answer in 0.2 s",
            "KDC not reachable: no answer in 0.2 s",
            "KDC not reachable: 2 sessions wait for it",
        ]

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("KRB5_CONFIG", Realm(servers.tickets.realm, tmp_path, address).environment["KRB5_CONFIG"])
        run(session())


def test_a_ticket_that_is_too_large(servers: MailboxServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "MAX_TOKEN", 100)
    not_sent(servers, "refused: a ticket of ")


def test_the_kdc_comes_back(servers: MailboxServers) -> None:
    """Without a restart of the nodes."""
    servers.kerberos(SENDER, credential_cache="MEMORY:back")
    kdc = servers.tickets.kdc

    async def session() -> None:
        async with servers.node(RECEIVER) as receiver:
            servers.send_to(receiver.port)
            async with servers.node(SENDER) as sender, greeted(sender.port) as client:
                assert (await client.message(ANNA))[-1] == DEFERRED
                await asyncio.to_thread(kdc.start)
                assert (await client.message(ANNA))[-1].startswith("250 2.6.0 <")

    kdc.stop()
    try:
        run(session())
    except BaseException:
        kdc.stop()
        kdc.start()
        raise
    assert len(servers.messages()) == 1


def test_a_service_that_the_kdc_does_not_know(servers: MailboxServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FQDN, RECEIVER, "mbx2.nowhere.example")
    servers.change_server(RECEIVER, fqdn=FQDN[RECEIVER])
    not_sent(servers, "unknown service principal name")


def test_a_keytab_without_the_account_is_2016(servers: MailboxServers) -> None:
    servers.kerberos(SENDER, keytab=str(servers.tickets.service_keytab), credential_cache="MEMORY:none")
    event = not_sent(servers, "no credentials", 2016)
    assert "Gssapi" in event["text"]


# --- configuration ----------------------------------------------------------------------------------------------------


def service(servers: MailboxServers) -> Service:
    return Service(config.load(servers.config(SENDER)), servers.folder, now=system_now)


def test_a_keytab_that_is_not_there(servers: MailboxServers) -> None:
    servers.kerberos(SENDER, keytab="nothing.keytab")
    with pytest.raises(UsageError, match=r"kerberos\.keytab: .*nothing\.keytab: No such file"):
        service(servers)


@pytest.mark.parametrize("content", [b"not a keytab", b"\5\2", b""], ids=["garbage", "no key", "empty"])
def test_a_keytab_without_a_key(servers: MailboxServers, tmp_path: Path, content: bytes) -> None:
    keytab = tmp_path / "wrong.keytab"
    keytab.write_bytes(content)
    keytab.chmod(0o600)
    servers.kerberos(SENDER, keytab=str(keytab))
    with pytest.raises(UsageError, match=r"kerberos\.keytab: .*wrong\.keytab: no keytab with a key in it: "):
        service(servers)


def test_a_keytab_that_others_may_read(servers: MailboxServers, tmp_path: Path) -> None:
    keytab = tmp_path / "open.keytab"
    keytab.write_bytes(servers.tickets.keytab.read_bytes())
    keytab.chmod(0o644)
    servers.kerberos(SENDER, keytab=str(keytab))
    with pytest.raises(UsageError, match="open to others") as raised:
        service(servers)
    assert raised.value.hint == f"chmod 600 {keytab}"


def test_the_realm_is_that_of_the_fqdn(servers: MailboxServers) -> None:
    servers.kerberos(SENDER, realm=None)
    found = service(servers).node.authentication
    assert found is not None
    assert found.kerberos.account == computer_account(SENDER, "CONTOSO.COM")


def test_config_check_finds_what_the_start_would(servers: MailboxServers) -> None:
    servers.kerberos(SENDER, keytab="nothing.keytab")
    path = servers.config(SENDER)
    found = [one for one in findings(config.load(path), path, system_now(), bind=False) if one.place == "kerberos"]
    assert [one.severity for one in found] == ["error"]
    assert "nothing.keytab: No such file" in found[0].text


# --- nothing secret is told -------------------------------------------------------------------------------------------


def leaked(tokens: list[bytes], told: str) -> list[bytes]:
    """The tokens of which a piece stands in a text, in base64 or in hexadecimal."""

    def is_told(token: bytes) -> bool:
        for start in range(3):
            text = base64.b64encode(token[start:]).decode().rstrip("=")
            if any(text[at : at + 24] in told for at in range(0, len(text) - 24, 24)):
                return True
        return any(token[at : at + 16].hex() in told.lower() for at in range(0, len(token), 16))

    return [token for token in tokens if is_told(token)]


def test_a_leak_would_be_found() -> None:
    token = bytes(range(100))
    assert leaked([token], f"what {base64.b64encode(b'x' + token).decode()} was") == [token]
    assert leaked([token], f"what {token[32:60].hex()} was") == [token]
    assert leaked([token], "nothing") == []


@pytest.mark.parametrize("exchangeauth", ["off", "anontls"])
def test_no_token_is_in_a_log(
    servers: MailboxServers, exchangeauth: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tokens: list[bytes] = []
    for side in (Initiator, Acceptor):
        step = side.step

        def watched(self: Any, token: bytes | None = None, step: Any = step) -> bytes | None:
            tokens.append(token or b"")
            tokens.append(step(self, token) or b"")
            return tokens[-1]

        monkeypatch.setattr(side, "step", watched)
    for name in (SENDER, RECEIVER):
        servers.kerberos(name, exchangeauth=exchangeauth)
    assert servers.relayed().startswith("250 ")

    async def shown() -> int:
        async with servers.node(RECEIVER) as receiver:
            to = ("--to", f"127.0.0.1:{receiver.port}", "--server", RECEIVER, "--delivery-type", "SmtpRelayToDag")
            return await asyncio.to_thread(cli.run, ["send", "--config", str(servers.config(SENDER)), *to])

    assert run(shown()) == 0, "and of one whose every step is shown"
    servers.kerberos(RECEIVER, keytab=str(servers.tickets.kdc.add_principal("SMTPSVC/mbx6.contoso.com")))
    assert servers.relayed() == DEFERRED, "and of a session that fails"
    assert len([token for token in tokens if token]) >= 6
    printed = "".join(capfd.readouterr())
    assert "X-EXPS" in printed
    told = "".join(console.getvalue() for console in servers.consoles.values()) + printed
    for path in servers.folder.rglob("*"):
        if path.is_file() and path.suffix.lower() in {".log", ".jsonl"}:
            told += path.read_text()
    assert "X-EXPS" in told
    assert leaked([token for token in tokens if token], told) == []
