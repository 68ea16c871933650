"""The sending side: one session to a next hop, as this server would open it.

Between Exchange servers nothing is sent in clear: a decision without a verb, a verb that is not offered or refused, a
handshake that fails, a certificate that is not the directory's, Kerberos that fails, each ends the attempt before any
mail is sent.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TypeAlias, TypeVarTuple, cast

import msgspec

from anontls.errors import AnontlsError
from anontls.facts import Certificate, Queue, Scenario, SendConnector
from anontls.facts.trust import Trust
from anontls.kerberos.failure import KerberosFailed, Reason
from anontls.protocol_log import Mark, ProtocolLog
from anontls.selection import Decision
from anontls.smtp import ClientSession, ClientSettings, LocalProtocolError, RemoteProtocolError, Reply, exchange
from anontls.smtp.content import Needs
from anontls.smtp.events import (
    Authenticated,
    Challenge,
    ClientClosed,
    ClientEvent,
    Delivered,
    Ready,
    RecipientAnswered,
    Refused,
    Rejected,
    StartTlsNow,
    TlsRefused,
)
from anontls.smtp.syntax import Envelope
from anontls.tls import TlsFailed, TlsPump, client_context, schannel_line
from anontls.transport.authentication import Outbound
from anontls.transport.metrics import Outcome
from anontls.transport.node import Node, Presented, new_session_id
from anontls.transport.writes import Writes

# What a sender reports in the place of a reply [FACT O 3.4]
UNREACHABLE = Reply(451, ("4.4.397 Error communicating with target host",))
TLS_REQUIRED = Reply(451, ("5.7.3 STARTTLS is required to send mail",))  # [FACT D 3.4]
NOT_AUTHENTICATED = 530
CLOSING = 421
CANNOT_AUTHENTICATE = exchange.CANNOT_ACHIEVE_EXCHANGE_AUTHENTICATION


GOODBYE = 2.0  #: seconds that a peer has to answer QUIT


class NextHop(msgspec.Struct, frozen=True, kw_only=True):
    """Where a session goes.

    ``server`` is the Exchange server that listens there; then X-ANONYMOUSTLS and direct trust are required, and Kerberos
    where we have it and show no certificate.  Without it the hop is any mail server: STARTTLS is used when offered, with
    whatever certificate.
    """

    host: str
    port: int
    server: str | None = None
    lmtp: bool = False
    queue: Queue | None = None
    send_connector: SendConnector | None = None
    require_tls: bool = False  # of any mail server, too
    timeout: float = 300.0


class SessionFailed(AnontlsError):
    """The session ended before the mail could be sent; ``reply`` is what stands for it, a temporary failure."""

    def __init__(self, hop: NextHop, reply: Reply, why: str, outcome: Outcome) -> None:
        super().__init__(f"{hop.host}:{hop.port}: {reply}: {why}")
        self.hop = hop
        self.reply = reply
        self.why = why
        self.outcome = outcome


Arguments = TypeVarTuple("Arguments")
Trace = Callable[[Mark, str, str], None]
#: The last word on each recipient of a message, or why there is none.
Verdict: TypeAlias = "tuple[Reply, ...] | SessionFailed"


class OutboundSession(asyncio.Protocol):
    """One session: :meth:`open`, any number of :meth:`deliver`, :meth:`close`.

    ``trace`` hears what the protocol log gets: mark, data, context.  ``writes`` are those of sessions beside it.
    """

    def __init__(
        self,
        node: Node,
        hop: NextHop,
        log: ProtocolLog | None = None,
        trace: Trace | None = None,
        writes: Writes | None = None,
    ) -> None:
        self.node = node
        self.hop = hop
        self.id = new_session_id()
        self.decision: Decision | None = None
        self.trust: Trust | None = None
        self.peer: Certificate | None = None
        self.extensions: dict[str, tuple[str, ...]] = {}
        self._trace_to = trace
        remote = f"{hop.host}:{hop.port}"
        self._session_log = None if log is None else log.session(self._connector, self.id, "", remote)
        self._presented: Presented | None = None
        self._pump: TlsPump | None = None
        self._authentication: Outbound | None = None
        self._proving: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._writes = writes or Writes()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._sent: dict[int, Callable[[Verdict], None]] = {}  # who waits for the word on an envelope, by its id
        self._submitted: list[ClientEvent] = []  # refused as they were submitted
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._moved = 0.0  # when the session last got on
        self._writable = True
        self._cut: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._closing = ""  # who ends the connection, once that is known
        self._broken: SessionFailed | None = None
        self._delivered = False
        settings = ClientSettings(hello=node.fqdn, lmtp=hop.lmtp, require_tls=hop.server is not None)
        said = self._session_log.dialogue if trace is None and self._session_log else self._line
        self._session = ClientSession(settings, trace=said)

    # --- what the program calls ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Decide, connect, greet, start TLS, check the peer, greet again.

        Raises:
            SessionFailed: at any of these; nothing was sent.
        """
        hop = self.hop
        try:
            if hop.server is not None:
                self._decide()
            self._tell(Mark.INFORMATION, "", "attempting to connect")
            async with asyncio.timeout(hop.timeout):
                await self._connect()
            self._moved = self._loop.time()
            self._watch()
            await self._ready
        except TimeoutError:  # of the connection: an OSError too
            raise self._told(self._failed(UNREACHABLE, f"no answer in {hop.timeout:g} s", "timed-out")) from None
        except OSError as e:
            # Of a refused connection asyncio says only that a call failed.
            why = os.strerror(e.errno) if isinstance(e, ConnectionError) and e.errno else e.strerror or str(e)
            raise self._told(self._failed(UNREACHABLE, why, "unreachable")) from None
        except SessionFailed as e:
            raise self._told(e) from None
        finally:
            if self._transport is None and not self.ended.done():  # there was no connection, so none will end
                self._end()

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: self, self.hop.host, self.hop.port)
        except BaseException:
            # Cancelled when it was just made: the loop lets go of it, and may never say that it is lost.
            self.abort()
            self._transport = None
            raise

    async def deliver(self, envelope: Envelope, content: bytes | Iterable[bytes]) -> tuple[Reply, ...]:
        """Send one message; the last word on each recipient, in their order.

        Raises:
            SessionFailed: the session broke before there was one.
        """
        verdict: asyncio.Future[tuple[Reply, ...]] = self._loop.create_future()

        def said(word: Verdict) -> None:
            if not verdict.done():
                if isinstance(word, SessionFailed):
                    verdict.set_exception(word)
                else:
                    verdict.set_result(word)

        self.submit(envelope, content, said)
        self.flush()
        return await verdict

    def submit(
        self,
        envelope: Envelope,
        content: bytes | Iterable[bytes],
        said: Callable[[Verdict], None],
        need: Needs | None = None,
    ) -> None:
        """Put a message behind those on their way; :meth:`flush` sends it, and ``said`` hears the verdict once.

        ``need`` is what a whole message asks of a peer, where that is known.
        """
        if self._broken is not None:
            said(self._broken)
            return
        if not self._sent:
            self._moved = self._loop.time()
        self._sent[id(envelope)] = said
        try:
            self._submitted += self._session.send(envelope, content, need)
        except LocalProtocolError as e:
            del self._sent[id(envelope)]
            said(self._failed(UNREACHABLE, str(e), "lost"))

    def flush(self) -> None:
        """Send what was submitted, in one write."""
        events, self._submitted = self._submitted, []
        self._step(self._handle, events)

    @property
    def room(self) -> int:
        """How many messages more are worth submitting now: enough to keep the peer busy."""
        if self._broken is not None or self._transport is None or not self._writable:
            return 0
        return self._session.room

    @property
    def on_the_way(self) -> int:
        """Messages without a verdict."""
        return len(self._sent)

    def _watch(self) -> None:
        """Cut the session off when it does not get on: no answer comes, no octets go."""
        left = self._moved + self.hop.timeout - self._loop.time()
        waiting = bool(self._sent) or not self._ready.done()
        if waiting and left <= 0:
            what = "no verdict" if self._ready.done() else "no answer"
            self._break(self._failed(UNREACHABLE, f"{what} in {self.hop.timeout:g} s", "timed-out"))
            self.abort()
            return
        self._watching = self._loop.call_later(left if waiting and left > 0 else self.hop.timeout, self._watch)

    async def close(self) -> None:
        """QUIT, and wait a little for the answer."""
        transport = self._transport
        if transport is None:
            return
        if not transport.is_closing():
            try:
                self._session.quit()
                self._step(self._flush)
            except LocalProtocolError:
                self.abort()
        await asyncio.wait((self.ended,), timeout=GOODBYE)
        if not self.ended.done():
            self.abort()
            await asyncio.wait((self.ended,), timeout=GOODBYE)  # which takes the loop a round

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _connector(self) -> str:
        if self.hop.send_connector is not None:
            return self.hop.send_connector.identity
        return "-" if self.hop.server is None else "Intra-Organization SMTP Send Connector"

    # --- the decision and the peer ------------------------------------------------------------------------------------

    def _decide(self) -> None:
        hop = self.hop
        decision = self.decision = self.node.select(
            Scenario.OUTBOUND_ANONYMOUS, queue=hop.queue, send_connector=hop.send_connector
        )
        self._presented = self.node.shown(decision)
        if self._presented is None:
            raise self._failed(
                CANNOT_AUTHENTICATE,
                f"the decision is not to use X-ANONYMOUSTLS: it ended at step {decision.last.step}",
                "stopped",
            )

    def _check_peer(self, peer: Certificate | None) -> None:
        self.peer = peer
        if peer is not None and self._session_log is not None:
            self._session_log.certificate("Received", peer)
        if self.hop.server is None:
            return
        trust = self.trust = self.node.trust(peer, self.hop.server)
        self._tell(
            Mark.INFORMATION,
            self.hop.server,
            f"Direct trust: {trust.result.value}" + (" (expired)" if trust.expired else ""),
        )
        if not trust.trusted:
            raise self._failed(
                CANNOT_AUTHENTICATE,
                f"the certificate of {self.hop.server} does not prove it: {trust.result.value}",
                "not-trusted",
            )

    def _prove(self, server: str, pump: TlsPump) -> bool:
        """Begin to prove by Kerberos which server this is, where no certificate of ours has done it."""
        node, presented = self.node, self._presented
        known = node.server_called(server)
        if node.authentication is None or presented is None or presented.certificate is not None or known is None:
            return False
        self._authentication = Outbound(node.authentication, known, self._session, pump, self.peer)
        self._proving = self._loop.create_task(self._say_who(self._authentication))
        return True

    async def _say_who(self, authentication: Outbound) -> None:
        await authentication.prepare()
        self._step(authentication.begin)
        self._step(self._flush)

    def _not_authenticated(self, error: KerberosFailed) -> SessionFailed:
        transport, authentication = self._transport, self._authentication
        if authentication is not None:
            address = transport.get_extra_info("peername")[0] if transport is not None else self.hop.host
            self.node.events.write(authentication.event(error, address), connector=self._connector)
        self._tell(Mark.INFORMATION, "", f"Outbound Authentication failed with {error}")
        return self._failed(CANNOT_AUTHENTICATE, f"Kerberos: {error}", "not-trusted")

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._session_log is not None:
            host, port = transport.get_extra_info("sockname")[:2]
            self._session_log.local(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        self._tell(Mark.CONNECT)

    def data_received(self, data: bytes) -> None:
        self._step(self._received, data)

    def _received(self, data: bytes) -> None:
        pump = self._pump
        if pump is not None:
            secured = pump.handshake_done
            pump.received(data)
            if not secured and pump.handshake_done:
                self._moved = self._loop.time()
                self._secured(pump)
            data = pump.read()
        if data or pump is None:
            self._handle(self._session.receive(data))
        else:
            self._flush()
        if pump is not None and pump.eof and self._transport is not None:
            self._closing = self._closing or "Remote"
            self._writes.flush(self._transport)
            self._transport.close()

    def eof_received(self) -> bool:
        self._closing = self._closing or "Remote"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._step(lambda: self._handle(self._session.eof()))
        lost = bool(self._sent) or not self._ready.done()
        in_handshake = self._pump is not None and not self._pump.handshake_done and self.hop.server is not None
        self._break(
            self._failed(CANNOT_AUTHENTICATE, "the connection was closed in the TLS handshake", "tls-failed")
            if in_handshake
            else self._failed(UNREACHABLE, "the connection was closed", "lost")
        )
        self._tell(Mark.DISCONNECT, "", self._closing or ("Remote" if exc is None else "Remote(SocketError)"))
        self._pump = None
        if self._proving is not None:
            self._proving.cancel()
        for timer in (self._cut, self._watching):
            if timer is not None:
                timer.cancel()
        self._end("lost" if lost else "no-mail")

    def _end(self, otherwise: Outcome = "unreachable") -> None:
        """Count the session, once; ``otherwise`` is how it ended when nothing is known to have gone wrong."""
        if not self.ended.done():
            self.ended.set_result(None)
            outcome = "delivered" if self._delivered else self._broken.outcome if self._broken else otherwise
            self.node.metrics.session_ended("send", self._session.tls, outcome)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._moved = self._loop.time()
        self._step(self._flush)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _step(self, step: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
        """Do it; whatever the peer, the certificates or the message make fail ends the session."""
        try:
            step(*arguments)
        except TlsFailed as e:
            self._tell(Mark.INFORMATION, "", f"TLS negotiation failed with error {e.reason}")
            if self._pump is not None and self._transport is not None:
                self._writes.add(self._transport, self._pump.output())
            self._break(self._failed(CANNOT_AUTHENTICATE if self.hop.server else UNREACHABLE, str(e), "tls-failed"))
        except RemoteProtocolError as e:
            self._verdicts(e.events)
            in_clear = self.hop.server is not None and self._session.tls is None
            self._break(self._failed(CANNOT_AUTHENTICATE if in_clear else UNREACHABLE, str(e), "protocol-error"))
        except SessionFailed as e:
            self._break(e)
        except KerberosFailed as e:
            self._break(self._not_authenticated(e))
        except (OSError, AnontlsError) as e:  # the message could not be read from its file or the queue
            self._break(self._failed(UNREACHABLE, str(e), "lost"))

    def _handle(self, events: list[ClientEvent]) -> None:
        if events:
            self._moved = self._loop.time()
        for event in events:
            match event:
                case RecipientAnswered():
                    pass
                case Delivered() | Rejected():
                    self._verdicts((event,))
                case Ready():
                    self.extensions = event.extensions
                    self._greeted()
                case StartTlsNow():
                    self._start_tls()
                case TlsRefused():
                    if self.hop.server is not None:
                        raise self._failed(
                            CANNOT_AUTHENTICATE, f"{event.verb} was refused: {event.reply}", "tls-failed"
                        )
                    self._in_clear(f"{event.verb} was refused: {event.reply}")
                case Challenge() if self._authentication is not None:
                    self._authentication.challenged(event.data)
                case Authenticated() if self._authentication is not None:
                    self._authentication.authenticated(event)
                    self._settle_ready()
                case Refused() if event.command == "X-EXPS" and event.reply.code != CLOSING:
                    raise KerberosFailed(Reason.OTHER, str(event.reply))
                case Refused():
                    raise self._failed(_temporary(event.reply), f"{event.command} was refused", "refused")
                case ClientClosed():
                    if event.reply is not None:
                        self._break(self._failed(_temporary(event.reply), "the peer closed the session", "refused"))
                case _:
                    pass
        self._flush()

    def _greeted(self) -> None:
        session, server, pump = self._session, self.hop.server, self._pump
        if session.tls is not None:
            if server is None or pump is None or not self._prove(server, pump):
                self._settle_ready()
        elif server is not None:
            if exchange.X_ANONYMOUSTLS not in self.extensions:
                raise self._failed(CANNOT_AUTHENTICATE, "the peer does not offer X-ANONYMOUSTLS", "tls-failed")
            session.start_tls("X-ANONYMOUSTLS")
        elif exchange.STARTTLS in self.extensions:
            session.start_tls("STARTTLS")
        else:
            self._in_clear("the peer does not offer STARTTLS")

    def _in_clear(self, why: str) -> None:
        """Without TLS, as with any mail server, unless the Send connector wants it."""
        if self.hop.require_tls:
            raise self._failed(TLS_REQUIRED, why, "tls-failed")
        self._settle_ready()

    def _start_tls(self) -> None:
        presented = self._presented or Presented(client_context(), None)
        pump = self._pump = TlsPump(presented.context)
        if presented.certificate is not None and self._session_log is not None:
            self._session_log.certificate("Sending", presented.certificate)
        pump.start()
        if self._transport is not None:
            self._writes.add(self._transport, pump.output())

    def _secured(self, pump: TlsPump) -> None:
        self._tell(Mark.INFORMATION, "", schannel_line(pump))
        self._check_peer(pump.peer)
        self._session.tls_established()
        self._flush()

    def _flush(self) -> None:
        transport, pump = self._transport, self._pump
        if transport is None:
            return
        while self._writable:
            data = self._session.output() if pump is None or pump.handshake_done else b""
            if pump is not None:
                if data:
                    pump.write(data)
                sent = pump.output()
            else:
                sent = data
            if sent:
                self._writes.add(transport, sent)
            if not data:
                break
        if self._session.closed:
            self._verdicts(self._session.eof())
            self._close_transport()

    def _verdicts(self, events: Iterable[object]) -> None:
        for event in events:
            if isinstance(event, Delivered | Rejected):
                said = self._sent.pop(id(event.envelope), None)
                if said is None:
                    continue
                if (
                    self.hop.server is not None
                    and isinstance(event, Rejected)
                    and event.reply.code == NOT_AUTHENTICATED
                ):
                    # The peer does not take us for an Exchange server: that is mended by an administrator, not a verdict
                    # on the message, which waits.
                    said(self._failed(CANNOT_AUTHENTICATE, f"{event.command} was refused: {event.reply}", "refused"))
                else:
                    self._delivered = self._delivered or isinstance(event, Delivered)
                    said(event.replies)

    def _close_transport(self) -> None:
        """Close; what the peer does not take of the last octets is cut off."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._closing = self._closing or "Local"
            if self._pump is not None:
                self._pump.close()
                self._writes.add(transport, self._pump.output())
            self._writes.flush(transport)
            transport.close()
            self._cut = self._loop.call_later(GOODBYE, transport.abort)

    def _settle_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def _break(self, failure: SessionFailed) -> None:
        waiting, self._sent = list(self._sent.values()), {}
        if waiting or not self._ready.done():
            self._told(failure)
        self._broken = self._broken or failure
        if not self._ready.done():
            self._ready.set_exception(failure)
            self._ready.exception()  # seen, should nobody wait any more
        for said in waiting:
            said(failure)
        self._close_transport()

    def _failed(self, reply: Reply, why: str, outcome: Outcome) -> SessionFailed:
        return SessionFailed(self.hop, reply, why, outcome)

    def _told(self, failure: SessionFailed) -> SessionFailed:
        """The same, once it stands in the log."""
        if self._broken is None:
            self._broken = failure
            self._tell(Mark.INFORMATION, "", f"{failure.reply}: {failure.why}")
        return failure

    def _line(self, mark: str, line: bytes) -> None:
        if self._session_log is not None:
            self._session_log.dialogue(mark, line)
        if self._trace_to is not None:
            self._trace_to(Mark(mark), line.decode("utf-8", "replace"), "")

    def _tell(self, mark: Mark, data: str = "", context: str = "") -> None:
        if self._session_log is not None:
            self._session_log.add(mark, data, context)
        if self._trace_to is not None:
            self._trace_to(mark, data, context)


def _temporary(reply: Reply) -> Reply:
    """A refusal of the session is no verdict on a message: it is tried again [FACT O 3.4]."""
    if 400 <= reply.code < 500:
        return reply
    return Reply(451, (f"4.4.395 Target host responded with error. -> {reply}",))
