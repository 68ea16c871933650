"""X-EXPS: how Exchange servers prove to each other by Kerberos which they are, bound to the TLS channel.

``X-EXPS GSSAPI``: Kerberos tokens, bound to the receiver's certificate (``tls-server-end-point``).  An empty answer of the
sender to the receiver's last token says that it has checked it; only then comes 235.
``X-EXPS EXCHANGEAUTH SHA256``: a token of our own (:mod:`anontls.smtp.exchange_auth`), bound to the exporter of TLS 1.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from anontls.certstore.files import open_to_others
from anontls.config import Kerberos as Settings
from anontls.errors import UsageError
from anontls.events import TRANSPORT, Event, source
from anontls.facts import Certificate, ReceiveConnector, Server
from anontls.facts.enums import AUTH_MECHANISM_BITS
from anontls.facts.unknown import is_unknown
from anontls.kerberos import (
    SERVICES,
    Acceptor,
    Initiator,
    Kerberos,
    computer_account,
    realm_of,
    same_account,
)
from anontls.kerberos.failure import KerberosFailed, Reason
from anontls.smtp import ClientSession, Reply, ServerSession, exchange, exchange_auth
from anontls.smtp.events import Authenticate, Authenticated, ServerEvent
from anontls.tls import BindingUndefined, TlsPump, exporter, server_end_point
from anontls.transport.metrics import Metrics, Proof

if TYPE_CHECKING:
    from anontls.transport.node import Node

#: As event 1035 and 2017 name them; ``ExchangeAuth`` is observed [FACT O 2], the other is our reading.
MECHANISMS = {"GSSAPI": "Gssapi", "EXCHANGEAUTH": "ExchangeAuth"}
MAX_ASKING = 16  #: threads that wait for the KDC at a time
MAX_TOKEN = (
    48_000  #: octets; in base64 with its command it fills MAX_AUTHENTICATION_LINE. Windows' MaxTokenSize is the same
)


class Authentication:
    """How a node authenticates: its Kerberos, what its configuration says about it, and where it is counted.

    Raises:
        UsageError: the keytab cannot be used, the realm is not known, or the library is not installed.
    """

    def __init__(self, settings: Settings, base: Path, server: Server, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        realm = self.realm(server)
        if not realm:
            raise UsageError(f"kerberos.realm: the FQDN of {server.name} is not known, so neither is its realm")
        self.kerberos = Kerberos(
            computer_account(server.name, realm),
            keytab=None if settings.keytab is None else _keytab(base / settings.keytab),
            credential_cache=settings.credential_cache,
        )
        if settings.keytab is not None:
            try:
                self.kerberos.check_keytab()
            except UsageError as e:
                raise UsageError(f"kerberos.keytab: {base / settings.keytab}: {e}", hint=e.hint) from None
        self._asking: list[Thread] = []

    @property
    def exchange_auth(self) -> bool:
        """Whether EXCHANGEAUTH with our own token is wanted."""
        return self.settings.exchangeauth == "anontls"

    def offered(self, connector: ReceiveConnector) -> tuple[tuple[str, ...], bool]:
        """What sessions of a Receive connector are offered: mechanisms of X-EXPS, and whether EXCHANGEAUTH."""
        flags = connector.auth_flags
        if not self.kerberos.accepts or is_unknown(flags):
            return (), False
        servers = flags.holds("ExchangeServer", AUTH_MECHANISM_BITS) is True
        if not servers and flags.holds("Integrated", AUTH_MECHANISM_BITS) is not True:
            return (), False
        return ("GSSAPI",), servers and self.exchange_auth

    def realm(self, server: Server) -> str:
        """The realm of a server's computer account; empty when it is not known."""
        return self.settings.realm or (realm_of(server.fqdn) if isinstance(server.fqdn, str) else "")

    def not_a_member(self, node: Node, principal: str, name: str) -> str | None:
        """Why ``principal`` is not the computer account of the Exchange server called ``name``; ``None``: it is.

        Only a Mailbox server has an account to be known by.  An Edge server is in no domain; who may add computers to
        the domain could make one of its name.
        """
        server = node.server_called(name)
        if server is None or server.role != "Mailbox":
            return f"{name} is not a Mailbox server of the organisation"
        if not same_account(principal, computer_account(server.name, self.realm(server))):
            return f"{principal} is not the computer account of {name}"
        return None

    async def first_token(self, initiator: Initiator) -> bytes:
        """The first token of ``initiator``, made in a thread of its own.

        Raises:
            KerberosFailed: there is none, or not within the deadline.
        """
        self._asking = [thread for thread in self._asking if thread.is_alive()]
        if len(self._asking) >= MAX_ASKING:
            raise KerberosFailed(Reason.KDC_UNREACHABLE, f"{MAX_ASKING} sessions wait for it")
        loop = asyncio.get_running_loop()
        made: asyncio.Future[bytes] = loop.create_future()

        no_failure: KerberosFailed | None = None

        def make() -> None:
            try:
                token, failure = initiator.step() or b"", no_failure
            except KerberosFailed as e:
                token, failure = b"", e
            except Exception as e:  # noqa: BLE001 - whatever it is, the session that waits must hear of it
                token, failure = b"", KerberosFailed(Reason.OTHER, f"{type(e).__name__}: {e}")
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(told, token, failure)

        def told(token: bytes, failure: KerberosFailed | None) -> None:
            if made.done():
                return
            if failure is None:
                made.set_result(token)
            else:
                made.set_exception(failure)

        thread = Thread(target=make, name="kerberos", daemon=True)  # a KDC that does not answer delays no exit
        thread.start()
        self._asking.append(thread)
        try:
            async with asyncio.timeout(self.settings.deadline):
                return await made
        except TimeoutError:
            raise KerberosFailed(Reason.KDC_UNREACHABLE, f"no answer in {self.settings.deadline:g} s") from None


def _keytab(path: Path) -> Path:
    """A keytab lets its reader be this server; it is read again each time it is used."""
    try:
        with path.open("rb"):
            state = path.stat()
    except OSError as e:
        raise UsageError(f"kerberos.keytab: {path}: {e.strerror}") from None
    unsafe = open_to_others(state.st_mode, state.st_uid, path)
    if unsafe is not None:
        raise UsageError(f"kerberos.keytab: {path}: {unsafe.message}", hint=unsafe.cure)
    return path


def channel_binding(mechanism: str, pump: TlsPump, certificate: Certificate | None) -> bytes:
    """The channel of a session: what an authentication inside it is bound to; ``certificate`` is the receiver's.

    Raises:
        KerberosFailed: it has no such binding.
    """
    try:
        if mechanism == "EXCHANGEAUTH":
            if pump.protocol != "TLSv1.3":
                raise BindingUndefined("tls-exporter: TLS 1.2 has none that is safe")  # [RFC9266 4.2]
            return b"tls-exporter:" + exporter(pump, b"EXPORTER-Channel-Binding", 32)
        return b"tls-server-end-point:" + server_end_point((certificate and certificate.der) or b"")
    except BindingUndefined as e:
        raise KerberosFailed(Reason.NO_BINDING, str(e)) from None


class Inbound:
    """One authentication of a receiving session.  ``tell`` hears what its log gets: data and context."""

    def __init__(
        self,
        node: Node,
        connector: ReceiveConnector,
        session: ServerSession,
        channel: tuple[TlsPump, Certificate | None] | None,
        tell: Callable[[str, str], None],
    ) -> None:
        self.node = node
        self.connector = connector
        self.session = session
        self.tell = tell
        self._channel = channel  # and the certificate that we have shown on it; None in clear
        self._mechanism = ""
        self._acceptor: Acceptor | None = None

    def begin(self, event: Authenticate) -> list[ServerEvent]:
        """The peer has begun."""
        self._mechanism = event.mechanism
        authentication, node = self.node.authentication, self.node
        if authentication is None or event.verb != "X-EXPS":
            return self.session.authenticated(None, exchange.UNRECOGNIZED_AUTHENTICATION)
        try:
            binding = None if self._channel is None else channel_binding(event.mechanism, *self._channel)
            self._acceptor = authentication.kerberos.acceptor((node.fqdn, node.server.name), binding)
            if event.mechanism == "EXCHANGEAUTH":
                return self._exchange_auth(self._acceptor, event.initial or b"", binding or b"")
        except KerberosFailed as e:
            return self._failed(str(e), e.reason)
        return self.session.continue_authentication(b"") if event.initial is None else self.respond(event.initial)

    def respond(self, token: bytes) -> list[ServerEvent]:
        """The peer has answered: with a token, or with nothing to our last one."""
        acceptor = self._acceptor
        assert acceptor is not None
        try:
            if not acceptor.complete:
                return self.session.continue_authentication(acceptor.step(token) or b"")
            if token:
                raise KerberosFailed(Reason.MALFORMED, "a token behind the last one")
        except KerberosFailed as e:
            return self._failed(str(e), e.reason)
        return self._proved(acceptor)

    def _exchange_auth(self, acceptor: Acceptor, token: bytes, binding: bytes) -> list[ServerEvent]:
        try:
            (kerberos,) = exchange_auth.unpack(token, exchange_auth.INITIATOR)
        except ValueError as e:
            raise KerberosFailed(Reason.MALFORMED, f"the EXCHANGEAUTH token {e}") from None
        answer = acceptor.step(kerberos)
        if answer is None or not acceptor.complete:
            raise KerberosFailed(Reason.MALFORMED, "the Kerberos token is not the only one")
        signature = acceptor.sign(exchange_auth.signed(binding, token, answer))
        return self._proved(acceptor, exchange_auth.pack(exchange_auth.ACCEPTOR, answer, signature))

    def _proved(self, acceptor: Acceptor, token: bytes | None = None) -> list[ServerEvent]:
        """It is known who the peer is; what it may do is that of the server which it has greeted as."""
        authentication, connector = self.node.authentication, self.connector
        assert authentication is not None
        assert acceptor.complete
        why = authentication.not_a_member(self.node, acceptor.peer, self.session.hello or "")
        rights = acceptor.bound and connector.lets_in("ExchangeServers") is True
        if why is None and not rights and connector.lets_in("ExchangeUsers") is not True:
            why = "the connector lets no Exchange servers in" if acceptor.bound else "a server has no rights in clear"
        if why is not None:
            return self._failed(why, "not-allowed", exchange.AUTHENTICATION_UNSUCCESSFUL)
        self.tell(acceptor.peer, "authenticated")  # [FACT O 4.3]
        self.node.metrics.authenticated("receive", self._mechanism)
        return self.session.authenticated(acceptor.peer, exchange_server=rights, token=token)

    def _failed(
        self, why: str, outcome: Proof | Reason, reply: Reply = exchange.TEMPORARY_AUTHENTICATION_FAILURE
    ) -> list[ServerEvent]:
        self.node.metrics.authenticated("receive", self._mechanism, outcome)
        mechanism = MECHANISMS.get(self._mechanism, self._mechanism)
        self.tell("", f"Inbound {mechanism} failed because of {why}")
        values = {"error": why, "mechanism": mechanism, "address": self.session.peer}
        cause = outcome.value if isinstance(outcome, Reason) else outcome
        self.node.events.write(
            Event(1035, source(self.connector.transport_service), values, cause=cause),
            connector=self.connector.identity,
        )
        return self.session.authenticated(None, reply)


class Outbound:
    """The authentication of one sending session to the Exchange server called ``name``.

    :meth:`prepare` and then :meth:`begin` as soon as the peer has been greeted inside TLS; :meth:`challenged` and
    :meth:`authenticated` hear what it says.
    """

    def __init__(
        self,
        authentication: Authentication,
        server: Server,
        session: ClientSession,
        pump: TlsPump,
        certificate: Certificate | None,
    ) -> None:
        self.mechanism = "GSSAPI"
        self.target = f"{SERVICES[0]}/{server.fqdn if isinstance(server.fqdn, str) else server.name}"
        self._authentication = authentication
        self._session = session
        self._channel = (pump, certificate)
        self._realm = authentication.realm(server)
        self._initiator: Initiator | None = None
        self._binding = b""
        self._first: bytes | KerberosFailed = b""

    async def prepare(self) -> None:
        """Get the ticket; what goes wrong is told by `begin`."""
        offers = exchange.offered_authentication(self._session.extensions)
        if self._authentication.exchange_auth and offers.exchange_auth and self._channel[0].protocol == "TLSv1.3":
            self.mechanism = "EXCHANGEAUTH"
        try:
            if not self._realm:
                raise KerberosFailed(
                    Reason.UNKNOWN_SPN, "the FQDN of the server is not known, nor kerberos.realm given"
                )
            if self.mechanism not in (offers.x_exps or ()):
                raise KerberosFailed(Reason.OTHER, f"the peer does not offer X-EXPS {self.mechanism}")
            self._binding = channel_binding(self.mechanism, *self._channel)
            self._initiator = self._authentication.kerberos.initiator(f"{self.target}@{self._realm}", self._binding)
            self._first = await self._authentication.first_token(self._initiator)
            if len(self._first) > MAX_TOKEN:
                raise KerberosFailed(Reason.OTHER, f"a ticket of {len(self._first)} octets does not fit into a line")
        except KerberosFailed as e:
            self._first = e

    def begin(self) -> None:
        """Say the verb.

        Raises:
            KerberosFailed: there is no ticket.
        """
        if isinstance(self._first, KerberosFailed):
            raise self._first
        if self.mechanism == "GSSAPI":
            self._session.authenticate("X-EXPS", "GSSAPI")  # a ticket does not fit into a command line [RFC4954 4]
            return
        self._first = exchange_auth.pack(exchange_auth.INITIATOR, self._first)
        self._session.authenticate("X-EXPS", "EXCHANGEAUTH", self._first, variant="SHA256")

    def challenged(self, token: bytes) -> None:
        """Answer a 334.

        Raises:
            KerberosFailed: the peer does not prove what it is.
        """
        initiator, first = self._initiator, self._first
        assert initiator is not None
        assert isinstance(first, bytes)
        if self.mechanism != "GSSAPI" or (first and token) or initiator.complete:
            raise KerberosFailed(Reason.MALFORMED, "the peer asks for more than there is to say")
        if first:
            self._first = b""
            self._session.respond(first)
        else:
            self._session.respond(initiator.step(token) or b"")

    def authenticated(self, event: Authenticated) -> None:
        """Check that a 235 comes from the server.

        Raises:
            KerberosFailed: it has not proved what it is.
        """
        initiator, first = self._initiator, self._first
        assert initiator is not None
        assert isinstance(first, bytes)
        if self.mechanism == "EXCHANGEAUTH":
            try:
                answer, signature = exchange_auth.unpack(event.token or b"", exchange_auth.ACCEPTOR)
            except ValueError as e:
                raise KerberosFailed(Reason.MALFORMED, f"the EXCHANGEAUTH token {e}") from None
            initiator.step(answer)
            initiator.verify(exchange_auth.signed(self._binding, first, answer), signature)
        if not initiator.complete:
            raise KerberosFailed(Reason.NOT_MUTUAL, "235 before the server has proved what it is")
        self._authentication.metrics.authenticated("send", self.mechanism)

    def event(self, error: KerberosFailed, address: str) -> Event:
        """The event of a failure, which is counted: 2016 where credentials of our own are missing, else 2017."""
        self._authentication.metrics.authenticated("send", self.mechanism, error.reason)
        values = {
            "error": str(error),
            "mechanism": MECHANISMS[self.mechanism],
            "target": self.target,
            "address": address,
        }
        number = 2016 if error.reason is Reason.NO_CREDENTIALS else 2017
        return Event(number, TRANSPORT, values, cause=error.reason.value)
