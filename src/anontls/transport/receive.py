"""The receiving side: a listener for each Receive connector, a :class:`Connection` for each session.

The session (``anontls.smtp``) speaks, the pump (``anontls.tls``) encrypts, the node decides; this file moves bytes
between them and the socket: one read, one write for each group of commands, the writes of all sessions together.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from email.utils import format_datetime
from operator import is_
from typing import Protocol, cast

from anontls.config import Limits
from anontls.facts import ReceiveConnector, Scenario
from anontls.facts.trust import Trust
from anontls.protocol_log import Mark, ProtocolLog, SessionLog
from anontls.smtp import RemoteProtocolError, Reply, ServerSession, ServerSettings, exchange
from anontls.smtp.events import (
    Authenticate,
    AuthenticationCancelled,
    AuthenticationResponse,
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
from anontls.tls import TlsFailed, TlsPump, schannel_line
from anontls.transport.authentication import Inbound
from anontls.transport.body import Body
from anontls.transport.connector import server_settings, serves
from anontls.transport.metrics import Outcome
from anontls.transport.node import Node, Presented, new_session_id
from anontls.transport.writes import Writes

# How sessions look in the protocol log [FACT O 4.3]; of a privileged one we grant no more than the relay it stands for.
EXCHANGE_SERVER_PERMISSIONS = (
    "SMTPSubmit SMTPAcceptAnyRecipient SMTPAcceptAnySender SMTPAcceptAuthoritativeDomainSender"
)
ANONYMOUS_PERMISSIONS = "SMTPSubmit SMTPAcceptAnySender SMTPAcceptAuthoritativeDomainSender AcceptRoutingHeaders"
# What it says of a client that shows no certificate behind STARTTLS, between EHLO and its answer [FACT O 4.3] [FACT O 4.4].
NO_CLIENT_CERTIFICATE = (
    "Client certificate chain validation status: 'EmptyCertificate'",
    "TlsDomainCapabilities='None'; Status='NoRemoteCertificate'",
)
TOO_MANY_SESSIONS = Reply(
    421, ("4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",)
)
NOT_FROM_THERE = Reply(421, ("4.3.2 Service not available",))
NOT_DELIVERED = Reply(451, ("4.3.0 The message could not be stored; try again",))

#: Seconds that a peer has to take the last answer before the connection is cut off.
LINGER = 10.0


class Delivery(Protocol):
    """Where accepted mail goes."""

    async def deliver(self, envelope: Envelope, body: Body, received: bytes) -> Reply:
        """Take responsibility, or say why not; ``received`` is the header field to put in front.

        Whatever it raises is a temporary failure.
        """
        ...

    def accepts(self, address: str, *, local: bool) -> Reply | None:
        """Whether a recipient can be delivered to, ``local`` or one that the peer may relay to; ``None`` is yes."""
        ...


class Receiver:
    """One Receive connector, on one address or more: what its sessions share, and how many there are."""

    def __init__(
        self,
        node: Node,
        connector: ReceiveConnector,
        limits: Limits,
        delivery: Delivery,
        log: ProtocolLog | None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.node = node
        self.connector = connector
        self.limits = limits
        self.delivery = delivery
        self.log = log
        self.say = say  # to the operator: what keeps mail from being delivered
        self.sessions: set[Connection] = set()
        self.by_peer: Counter[str] = Counter()
        self.deliveries: set[asyncio.Task[None]] = set()  # they outlive a session whose peer goes away
        self.draining = False
        self.writes = Writes()
        self._loop = asyncio.get_running_loop()
        self._date, self._date_until = "", 0.0
        self._offer: tuple[tuple[object, ...], ServerSettings, dict[str, Presented]] | None = None

    def __call__(self) -> Connection:
        """A new session, as ``loop.create_server`` wants it."""
        return Connection(self)

    def offer(self) -> tuple[ServerSettings, dict[str, Presented]]:
        """What a session that begins now is offered, and the TLS context behind each verb: two selections.

        They depend on facts and time alone, so those of the same second and the same facts hold, unless they log.
        """
        node, connector = self.node, self.connector
        second = int(node.now().timestamp())
        facts = (node.organization, node.server, node.store.store(), node.rules, connector, self.limits)
        if self._offer is not None and self._offer[0][0] == second and all(map(is_, self._offer[0][1:], facts)):
            return self._offer[1:]
        silent = True
        presented: dict[str, Presented] = {}
        for scenario in (Scenario.INBOUND_STARTTLS, Scenario.INBOUND_ANONYMOUS):
            decision = node.select(scenario, receive_connector=connector)
            found = node.presented(decision)
            if found is not None and decision.verb is not None:
                presented[decision.verb] = found
            silent = silent and not decision.events and (found is not None or decision.verb is None)
        settings = server_settings(node, connector, self.limits, frozenset(presented))
        self._offer = ((second, *facts), settings, presented) if silent else None
        return settings, presented

    def date(self) -> str:
        """Now, as header fields have it: the same text for a second."""
        tick = self._loop.time()
        if tick >= self._date_until:
            now = self.node.now()
            self._date_until = tick + 1 - now.microsecond / 1e6
            self._date = format_datetime(now.replace(microsecond=0))
        return self._date

    def refusal(self, address: str) -> Reply | None:
        """Why a session from ``address`` is not taken; ``None``: it is."""
        if self.draining:
            return exchange.SERVICE_NOT_ACTIVE
        if len(self.sessions) >= self.limits.sessions or self.by_peer[address] >= self.limits.sessions_per_peer:
            return TOO_MANY_SESSIONS
        return None if serves(self.connector, address) else NOT_FROM_THERE

    def drain(self) -> None:
        """End each session as soon as its message is settled."""
        self.draining = True
        for session in tuple(self.sessions):
            session.drain()


class Connection(asyncio.Protocol):
    """One session on one socket."""

    __slots__ = (
        "_active",
        "_authentication",
        "_blocked",
        "_body",
        "_closing",
        "_delivering",
        "_handshake_timer",
        "_loop",
        "_outcome",
        "_presented",
        "_pump",
        "_reads",
        "_session",
        "_session_log",
        "_timer",
        "_transport",
        "_trust",
        "_verb",
        "address",
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
        self.address = ""
        self.local = ""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._session: ServerSession | None = None
        self._session_log: SessionLog | None = None
        self._presented: dict[str, Presented] = {}
        self._pump: TlsPump | None = None
        self._verb = ""
        self._trust: Trust | None = None
        self._authentication: Inbound | None = None
        self._body: Body | None = None
        self._blocked = False
        self._reads = True
        self._outcome: Outcome = "no-mail"
        self._closing = ""  # who ends the connection, once that is known
        self._delivering: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._active = self.began = self._loop.time()

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        receiver = self.receiver
        self._transport = cast("asyncio.Transport", transport)
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if not peer or not local:  # it is gone already
            self._transport.abort()
            return
        self.address = address = str(peer[0])
        self.peer, self.local = _endpoint(peer), _endpoint(local)
        if receiver.log is not None:
            self._session_log = receiver.log.session(receiver.connector.identity, self.id, self.local, self.peer)
            self._session_log.add(Mark.CONNECT)
        refusal = receiver.refusal(address)
        if refusal is not None:  # without a session: nothing is decided for a flood
            self._outcome = "refused"
            if self._session_log is not None:
                self._session_log.dialogue(">", refusal.encode()[:-2])
            receiver.writes.add(self._transport, refusal.encode())
            self._close("QUIT")
            return
        settings, self._presented = receiver.offer()
        session = self._session = ServerSession(
            settings,
            peer=address,
            recipient=self._recipient,
            trace=self._session_log.dialogue if self._session_log else None,
        )
        receiver.sessions.add(self)
        receiver.by_peer[address] += 1
        self._inform_of_permissions()
        session.greeting(receiver.node.now())
        self._timer = self._loop.call_later(receiver.limits.command_timeout, self._check_time)
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
                if pump.eof:
                    self._closing = "Remote"
                    if self._delivering is None and not any(isinstance(e, MessageEnds) for e in events):
                        events += session.eof()
        except TlsFailed as e:
            self._tls_failed(e)
            return
        except RemoteProtocolError as e:
            self._ends("protocol-error")
            self._close(str(e))
            return
        self._handle(events)

    def eof_received(self) -> bool:
        """A peer that says no more may still wait for the word on its message."""
        if not self._closing:
            self._closing = "Remote"
        if self._delivering is not None:
            return True
        if self._session is not None:
            self._handle(self._session.eof())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._timer, self._handshake_timer):
            if timer is not None:
                timer.cancel()
        if self._body is not None and self._delivering is None:
            self._body.close()
            self._ends("lost")
        receiver = self.receiver
        receiver.node.metrics.session_ended("receive", self._session.tls if self._session else None, self._outcome)
        if self in receiver.sessions:
            receiver.sessions.discard(self)
            receiver.by_peer[self.address] -= 1
            if not receiver.by_peer[self.address]:
                del receiver.by_peer[self.address]
        if self._session_log is not None:
            self._session_log.add(
                Mark.DISCONNECT, "", self._closing or ("Remote" if exc is None else "Remote(SocketError)")
            )
        # Nothing keeps what the session held: the loop may keep this object for a while.
        self._session = self._pump = self._transport = self._trust = self._authentication = None
        self._presented = {}

    def pause_writing(self) -> None:
        self._blocked = True  # a peer that does not read its answers is not read either
        self._read_or_wait()

    def resume_writing(self) -> None:
        self._blocked = False
        self._read_or_wait()

    def _read_or_wait(self) -> None:
        wanted = not (self._blocked or self._delivering is not None)
        transport = self._transport
        if wanted is not self._reads and transport is not None and not transport.is_closing():
            self._reads = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

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
                    self._body = Body(lines=event.lines)
                case MessageEnds():
                    self._delivering = task = self._loop.create_task(self._deliver(event.envelope))
                    self.receiver.deliveries.add(task)
                    task.add_done_callback(self.receiver.deliveries.discard)
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
                case Authenticate() | AuthenticationResponse() | AuthenticationCancelled():
                    if session is not None:
                        self._authenticate(session, event)
                case ServerClosed():
                    self._flush(last=True)
                    self._close(event.reason)
                    return
        self._flush()

    def _flush(self, *, last: bool = False) -> None:
        session, transport = self._session, self._transport
        if session is None or transport is None or transport.is_closing():
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
            if last:
                pump.close()
            data = pump.output()
        if data:
            self.receiver.writes.add(transport, data)
        self._read_or_wait()

    def _recipient(self, session: ServerSession, recipient: Recipient) -> Reply | None:
        """Exchange server rights are: relay to any recipient.  Nobody else relays."""
        local = self.receiver.node.is_local(recipient.address)
        if not local and not session.exchange_server:
            return exchange.UNABLE_TO_RELAY
        return self.receiver.delivery.accepts(recipient.address, local=local)

    # --- TLS ----------------------------------------------------------------------------------------------------------

    def _start_tls(self) -> None:
        presented = self._presented[self._verb]
        self._pump = TlsPump(presented.context)
        self._handshake_timer = self._loop.call_later(self.receiver.limits.handshake_timeout, self._handshake_timed_out)
        if self._session_log is not None and presented.certificate is not None:
            self._session_log.certificate("Sending", presented.certificate)

    def _secured(self, pump: TlsPump, session: ServerSession) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        if self._session_log is not None:
            self._session_log.information("", schannel_line(pump))
            peer = pump.peer
            if peer is not None:
                self._session_log.certificate("Received", peer)
            if self._verb == exchange.STARTTLS and peer is None:
                session.trace = self._trace_to_hello
        session.tls_established(anonymous=self._verb == exchange.X_ANONYMOUSTLS)  # nothing happens by itself

    def _handshake_timed_out(self) -> None:
        self._tls_failed(TlsFailed("the handshake timed out"))

    def _tls_failed(self, error: TlsFailed) -> None:
        self._ends("tls-failed")
        self._close(f"TLS negotiation failed with error {error.reason}")

    def _greeted(self, name: str) -> None:
        """Direct trust: inside anonymous TLS, the peer's whole certificate against the directory's for that name."""
        session, pump = self._session, self._pump
        if session is None or pump is None or session.tls != exchange.X_ANONYMOUSTLS:
            return
        self._trust = self.receiver.node.trust(pump.peer, name, self.receiver.connector)
        if not self._trust.trusted:
            self._ends("not-trusted")
        session.exchange_server = self._trust.trusted and self.receiver.connector.lets_in("ExchangeServers") is True
        self._inform(name, f"Direct trust: {self._trust.result.value}" + (" (expired)" if self._trust.expired else ""))
        self._inform_of_permissions()

    def _authenticate(
        self, session: ServerSession, event: Authenticate | AuthenticationResponse | AuthenticationCancelled
    ) -> None:
        """X-EXPS: Kerberos in the place of direct trust."""
        match event:
            case Authenticate():
                presented = self._presented.get(self._verb)
                channel = (self._pump, presented.certificate) if self._pump and presented else None
                receiver = self.receiver
                self._authentication = Inbound(receiver.node, receiver.connector, session, channel, self._inform)
                events = self._authentication.begin(event)
            case AuthenticationResponse() if self._authentication is not None:
                events = self._authentication.respond(event.data)
            case _:
                self._authentication, events = None, []
        if session.authenticated_as is not None:
            self._outcome = "no-mail" if self._outcome == "not-trusted" else self._outcome
            self._inform_of_permissions()
        self._handle(events)

    def _inform(self, data: str, context: str) -> None:
        if self._session_log is not None:
            self._session_log.information(data, context)

    def _trace_to_hello(self, mark: str, line: bytes) -> None:
        """Behind STARTTLS without a certificate; of one that there is, no text is observed."""
        log, session = self._session_log, self._session
        if log is not None and session is not None:
            log.dialogue(mark, line)
            if mark == "<" and line[:4].upper() in (b"EHLO", b"HELO"):
                session.trace = log.dialogue
                for context in NO_CLIENT_CERTIFICATE:
                    log.information("", context)

    def _inform_of_permissions(self) -> None:
        if self._session is not None and self._session.exchange_server:
            self._inform(EXCHANGE_SERVER_PERMISSIONS, "Set Session Permissions")
        elif self.receiver.connector.lets_in("AnonymousUsers") is True:
            self._inform(ANONYMOUS_PERMISSIONS, "Set Session Permissions")

    # --- messages -----------------------------------------------------------------------------------------------------

    async def _deliver(self, envelope: Envelope) -> None:
        body, self._body = self._body or Body(), None
        try:
            with body:
                body.complete()
                reply = await self.receiver.delivery.deliver(envelope, body, self._received())
        except Exception as e:  # noqa: BLE001 whatever goes wrong, the sender keeps the message
            reply = NOT_DELIVERED
            # without the file's name, which is another one for each message
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            why = f"a message could not be delivered: {type(e).__name__}: {reason}"
            self.receiver.say(why)
            if self._session_log is not None:
                self._session_log.information("", why)
        self._delivering = None
        if reply.positive:
            self._outcome = "delivered"
            self.receiver.node.metrics.accepted(body.size)
        session = self._session
        if session is None:
            return
        self._active = self._loop.time()
        events = session.settle(reply)
        if self._closing:
            events += session.eof()
        self._handle(events)
        if self.receiver.draining:
            self.drain()

    def _received(self) -> bytes:
        """The Received field of this hop [RFC5321 4.4]; it shows whether the hop used TLS [FACT O 4.5]."""
        session, pump = self._session, self._pump
        if session is None:  # the peer is gone; its message is whole
            return f"Received: by {self.receiver.node.fqdn} id {self.id};\r\n {self.receiver.date()}\r\n".encode()
        tls = f" (version={pump.protocol.replace('v', '').replace('.', '_')}, cipher={pump.cipher})" if pump else ""
        with_ = "ESMTPS" if pump else "ESMTP" if session.esmtp else "SMTP"
        address = f"IPv6:{session.peer}" if ":" in session.peer else session.peer  # [RFC5321 4.1.3]
        return (
            f"Received: from {session.hello} ([{address}]) by {session.settings.fqdn}\r\n"
            f" with {with_}{tls} id {self.id};\r\n {self.receiver.date()}\r\n"
        ).encode("ascii", "replace")

    # --- time and end -------------------------------------------------------------------------------------------------

    def _check_time(self) -> None:
        limits, now, session = self.receiver.limits, self._loop.time(), self._session
        if session is None:
            return
        left = min(limits.command_timeout - (now - self._active), limits.session_timeout - (now - self.began))
        if left <= 0 and self._delivering is None:
            self._ends("timed-out")
            self._handle(session.timed_out())
            return
        self._timer = self._loop.call_later(left if left > 0 else 1.0, self._check_time)

    def _ends(self, outcome: Outcome) -> None:
        """The last that went wrong is what is counted, unless mail was taken."""
        if self._outcome != "delivered":
            self._outcome = outcome

    def drain(self) -> None:
        """Say goodbye, unless a message is being delivered: then afterwards."""
        if self._session is not None and self._delivering is None:
            self._handle(self._session.shut_down())

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self, reason: str) -> None:
        """Send what is left to say, and close; a peer that does not take it is cut off."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._session_log is not None and reason != "QUIT" and self._closing != "Remote":
            self._session_log.information("", reason)
        self._closing = self._closing or "Local"
        if self._pump is not None:
            self._pump.close()
            last = self._pump.output()
            if last:
                self.receiver.writes.add(transport, last)
        self.receiver.writes.flush(transport)
        if self._timer is not None:
            self._timer.cancel()
        transport.close()
        self._timer = self._loop.call_later(LINGER, transport.abort)


def _endpoint(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
