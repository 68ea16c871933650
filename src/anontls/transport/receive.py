"""The receiving side: a listener for each Receive connector, a :class:`Connection` for each session.

The session (``anontls.smtp``) speaks, the pump (``anontls.tls``) encrypts, the node decides; this file moves bytes
between them and the socket: one read, one write for each group of commands.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from email.utils import format_datetime
from typing import Protocol, cast

from anontls.config import Limits
from anontls.facts import ReceiveConnector, Scenario, is_unknown
from anontls.facts.trust import Trust
from anontls.protocol_log import Mark, ProtocolLog, SessionLog
from anontls.smtp import RemoteProtocolError, Reply, ServerSession, ServerSettings, Size, exchange
from anontls.smtp.events import (
    Authenticate,
    Content,
    Hello,
    MessageAborted,
    MessageBegins,
    MessageEnds,
    ServerClosed,
    ServerEvent,
    StartTls,
)
from anontls.smtp.syntax import Envelope, Recipient
from anontls.tls import TlsFailed, TlsPump, cipher, peer_certificate, protocol, schannel_line
from anontls.transport.body import Body
from anontls.transport.node import Node, Presented, new_session_id

# How a privileged session looks in the protocol log [FACT O 4.3]; we grant no more than the relay it stands for.
EXCHANGE_SERVER_PERMISSIONS = (
    "SMTPSubmit SMTPAcceptAnyRecipient SMTPAcceptAnySender SMTPAcceptAuthoritativeDomainSender"
)
ANONYMOUS_PERMISSIONS = "SMTPSubmit SMTPAcceptAnySender SMTPAcceptAuthoritativeDomainSender"
TOO_MANY_SESSIONS = Reply(
    421, ("4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",)
)
NOT_DELIVERED = Reply(451, ("4.3.0 The message could not be stored; try again",))


class Delivery(Protocol):
    """Where accepted mail goes."""

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Take responsibility, or say why not; ``received`` is the header field to put in front.  Must not raise."""
        ...

    def accepts(self, address: str) -> Reply | None:
        """Whether a local recipient can be delivered to; ``None`` is yes."""
        ...


class Receiver:
    """One Receive connector on one address: what its sessions share, and how many there are."""

    def __init__(
        self, node: Node, connector: ReceiveConnector, limits: Limits, delivery: Delivery, log: ProtocolLog | None
    ) -> None:
        self.node = node
        self.connector = connector
        self.limits = limits
        self.delivery = delivery
        self.log = log
        self.sessions: set[Connection] = set()
        self.by_peer: Counter[str] = Counter()
        self.draining = False

    def __call__(self) -> Connection:
        """A new session, as ``loop.create_server`` wants it."""
        return Connection(self)

    def offer(self) -> tuple[ServerSettings, dict[str, Presented]]:
        """What a session that begins now is offered, and the TLS context behind each verb: two selections."""
        node, connector = self.node, self.connector
        presented: dict[str, Presented] = {}
        for scenario in (Scenario.INBOUND_STARTTLS, Scenario.INBOUND_ANONYMOUS):
            decision = node.select(scenario, receive_connector=connector)
            found = node.presented(decision)
            if found is not None and decision.verb is not None:
                presented[decision.verb] = found
        anonymous = connector.lets_in("AnonymousUsers")
        internal = connector.transport_service == "HubTransport" and anonymous is False
        fqdn = connector.fqdn if isinstance(connector.fqdn, str) and connector.fqdn else node.fqdn
        settings = ServerSettings(
            fqdn=fqdn,
            starttls=exchange.STARTTLS in presented,
            anonymous_tls=exchange.X_ANONYMOUSTLS in presented,
            require_authentication=anonymous is False,
            size=Size.WITHOUT_VALUE if internal else Size.ENABLED,  # as internal connectors have it [FACT O 3.1]
            max_size=self.limits.message_size,
            max_recipients=self.limits.recipients,
        )
        return settings, presented

    def is_local(self, address: str) -> bool:
        """Whether the domain of ``address`` is an accepted domain."""
        domains = self.node.organization.accepted_domains
        domain = address.rpartition("@")[2].lower()
        if is_unknown(domains):
            return False
        return any(
            domain == known or (known.startswith("*.") and domain.endswith(known[1:]))
            for known in (accepted.domain_name.lower() for accepted in domains)
        )

    def drain(self) -> None:
        """End each session as soon as its message is settled."""
        self.draining = True
        for session in tuple(self.sessions):
            session.drain()


class Connection(asyncio.Protocol):
    """One session on one socket."""

    __slots__ = (
        "_active",
        "_blocked",
        "_body",
        "_delivering",
        "_loop",
        "_peer_name",
        "_presented",
        "_pump",
        "_session",
        "_session_log",
        "_timer",
        "_transport",
        "_trust",
        "_verb",
        "began",
        "id",
        "local",
        "peer",
        "receiver",
    )  # fmt: skip

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.id = new_session_id()
        self.peer = ""
        self.local = ""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._session: ServerSession | None = None
        self._session_log: SessionLog | None = None
        self._presented: dict[str, Presented] = {}
        self._pump: TlsPump | None = None
        self._verb = ""
        self._trust: Trust | None = None
        self._body: Body | None = None
        self._blocked = False
        self._delivering: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active = self.began = self._loop.time()

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        receiver = self.receiver
        self._transport = cast("asyncio.Transport", transport)
        self.peer, self.local = (
            _endpoint(transport.get_extra_info("peername")),
            _endpoint(transport.get_extra_info("sockname")),
        )
        address = self.peer.rpartition(":")[0].strip("[]")
        settings, self._presented = receiver.offer()
        if receiver.log is not None:
            self._session_log = receiver.log.session(receiver.connector.identity, self.id, self.local, self.peer)
            self._session_log.add(Mark.CONNECT)
        session = self._session = ServerSession(
            settings, peer=address, recipient=self._recipient, trace=self._trace if self._session_log else None
        )
        limits = receiver.limits
        if (
            receiver.draining
            or len(receiver.sessions) >= limits.sessions
            or receiver.by_peer[address] >= limits.sessions_per_peer
        ):
            self._handle(session.refuse(exchange.SERVICE_NOT_ACTIVE if receiver.draining else TOO_MANY_SESSIONS))
            return
        receiver.sessions.add(self)
        receiver.by_peer[address] += 1
        session.greeting(receiver.node.now())
        self._timer = self._loop.call_later(limits.command_timeout, self._check_time)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._active = self._loop.time()
        pump, session = self._pump, self._session
        if session is None:
            return
        try:
            if pump is None:
                events = session.receive(data)
            else:
                secured = pump.handshake_done
                pump.received(data)
                if not secured and pump.handshake_done:
                    self._secured(pump, session)
                plain = pump.read()
                events = session.receive(plain) if plain else []
        except TlsFailed as e:
            self._tls_failed(e)
            return
        except RemoteProtocolError as e:
            self._close(str(e))
            return
        self._handle(events)

    def eof_received(self) -> bool:
        if self._session is not None and self._delivering is None:
            self._handle(self._session.eof())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._body is not None and self._delivering is None:
            self._body.close()
        receiver = self.receiver
        if self in receiver.sessions:
            receiver.sessions.discard(self)
            address = self.peer.rpartition(":")[0].strip("[]")
            receiver.by_peer[address] -= 1
            if not receiver.by_peer[address]:
                del receiver.by_peer[address]
        if self._session_log is not None:
            self._session_log.add(Mark.DISCONNECT, "", "Remote" if exc is None else f"Remote({type(exc).__name__})")
        self._session = None
        self._transport = None

    def pause_writing(self) -> None:
        self._blocked = True  # a peer that does not read its answers is not read either
        self._read_or_wait()

    def resume_writing(self) -> None:
        self._blocked = False
        self._read_or_wait()

    def _read_or_wait(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._blocked or self._delivering is not None:
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    # --- what the session says ----------------------------------------------------------------------------------------

    def _handle(self, events: list[ServerEvent]) -> None:
        """Do what the events say, then send everything in one write."""
        session = self._session
        for event in events:
            match event:
                case Content():
                    if self._body is not None:
                        self._body.add(event.data)
                case MessageBegins():
                    self._body = Body()
                case MessageEnds():
                    self._delivering = self._loop.create_task(self._deliver(event.envelope))
                case MessageAborted():
                    if self._body is not None:
                        self._body.close()
                        self._body = None
                case Hello():
                    self._greeted(event.name)
                case StartTls():
                    self._verb = event.verb
                    self._flush()
                    self._start_tls()
                case Authenticate():
                    if session is not None:  # nothing is offered that gets here
                        self._handle(session.authenticated(None, exchange.UNRECOGNIZED_AUTHENTICATION))
                case ServerClosed():
                    self._flush()
                    self._close(event.reason)
                    return
        self._flush()

    def _flush(self) -> None:
        session, transport = self._session, self._transport
        if session is None or transport is None:
            return
        data = session.output()
        pump = self._pump
        if pump is not None:
            if data and pump.handshake_done:
                try:
                    pump.write(data)
                except TlsFailed as e:
                    self._tls_failed(e)
                    return
            data = pump.output()
        if data:
            transport.write(data)
        self._read_or_wait()

    def _recipient(self, session: ServerSession, recipient: Recipient) -> Reply | None:
        """Exchange server rights are: relay to any recipient.  Nobody else relays."""
        if not self.receiver.is_local(recipient.address):
            return None if session.exchange_server else exchange.UNABLE_TO_RELAY
        return self.receiver.delivery.accepts(recipient.address)

    def _trace(self, mark: str, line: bytes) -> None:
        if self._session_log is not None:
            self._session_log.add(Mark(mark), line.decode("utf-8", "replace"))

    # --- TLS ----------------------------------------------------------------------------------------------------------

    def _start_tls(self) -> None:
        presented = self._presented[self._verb]
        pump = self._pump = TlsPump(presented.context)
        pump.start()
        self._loop.call_later(self.receiver.limits.handshake_timeout, self._check_handshake, pump)
        if self._session_log is not None and presented.certificate is not None:
            self._session_log.certificate("Sending", presented.certificate)

    def _check_handshake(self, pump: TlsPump) -> None:
        if pump is self._pump and not pump.handshake_done:
            self._close("TLS handshake timed out")

    def _secured(self, pump: TlsPump, session: ServerSession) -> None:
        peer = peer_certificate(pump)
        if self._session_log is not None:
            self._session_log.information("", schannel_line(pump))
            if peer is not None:
                self._session_log.certificate("Received", peer)
        self._handle(session.tls_established(anonymous=self._verb == exchange.X_ANONYMOUSTLS))

    def _tls_failed(self, error: TlsFailed) -> None:
        if self._session_log is not None:
            self._session_log.information("", f"TLS negotiation failed with error {error.reason}")
        if self._transport is not None and self._pump is not None:
            self._transport.write(self._pump.output())
        self._close(error.reason)

    def _greeted(self, name: str) -> None:
        """Direct trust: inside anonymous TLS, the peer's whole certificate against the directory's for that name."""
        session, pump = self._session, self._pump
        if session is None or pump is None or session.tls != exchange.X_ANONYMOUSTLS:
            return
        self._trust = self.receiver.node.trust(peer_certificate(pump), name)
        session.exchange_server = self._trust.trusted and self.receiver.connector.lets_in("ExchangeServers") is True
        if self._session_log is not None:
            self._session_log.information(
                name, f"Direct trust: {self._trust.result.value}" + (" (expired)" if self._trust.expired else "")
            )
            permissions = EXCHANGE_SERVER_PERMISSIONS if session.exchange_server else ANONYMOUS_PERMISSIONS
            self._session_log.information(permissions, "Set Session Permissions")

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _deliver(self, envelope: Envelope) -> None:
        body, self._body = self._body or Body(), None
        try:
            with body:
                reply = await self.receiver.delivery.deliver(envelope, body, self._received())
        except Exception as e:  # noqa: BLE001 whatever goes wrong, the sender keeps the message
            reply = NOT_DELIVERED
            self._note(f"{type(e).__name__}: {e}")
        self._delivering = None
        if self._session is not None:
            self._active = self._loop.time()
            self._handle(self._session.settle(reply))
            if self.receiver.draining:
                self.drain()

    def _note(self, text: str) -> None:
        if self._session_log is not None:
            self._session_log.information("", text)

    def _received(self) -> bytes:
        """The Received field of this hop [RFC5321 4.4]; it shows whether the hop used TLS [FACT O 4.5]."""
        session, pump = self._session, self._pump
        assert session is not None
        hello = (session.hello or "unknown").encode("ascii", "replace").decode()
        tls = f" (version={protocol(pump).replace('v', '').replace('.', '_')}, cipher={cipher(pump)})" if pump else ""
        with_ = "ESMTPS" if pump else "ESMTP"
        return (
            f"Received: from {hello} ([{session.peer}]) by {session.settings.fqdn}\r\n"
            f" with {with_}{tls} id {self.id};\r\n {format_datetime(self.receiver.node.now())}\r\n"
        ).encode("ascii", "replace")

    # --- time and end -------------------------------------------------------------------------------------------------

    def _check_time(self) -> None:
        limits, now, session = self.receiver.limits, self._loop.time(), self._session
        if session is None:
            return
        idle, age = now - self._active, now - self.began
        if self._delivering is None and (idle >= limits.command_timeout or age >= limits.session_timeout):
            self._handle(session.timed_out())
            return
        wait = max(0.05, min(limits.command_timeout - idle, limits.session_timeout - age))
        self._timer = self._loop.call_later(wait, self._check_time)

    def drain(self) -> None:
        """Say goodbye, unless a message is being delivered: then afterwards."""
        if self._session is not None and self._delivering is None:
            self._handle(self._session.shut_down())

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self, reason: str) -> None:
        if self._session_log is not None:
            self._session_log.information("", reason)
        if self._pump is not None and self._transport is not None:
            self._pump.close()
            self._transport.write(self._pump.output())
        if self._transport is not None:
            self._transport.close()


def _endpoint(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
