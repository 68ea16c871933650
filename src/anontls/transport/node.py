"""A node: one server of the organisation with its local certificate store; it decides as ``anontls select`` does."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from OpenSSL import SSL

from anontls.certstore import CertificateStore
from anontls.certstore.new import new_internal_certificate
from anontls.eventlog import EventLog
from anontls.events import Event, source
from anontls.facts import (
    Certificate,
    Organization,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    Store,
    is_unknown,
)
from anontls.facts.certificate import certificate_bytes
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused
from anontls.facts.trust import Trust, TrustResult, direct_trust
from anontls.selection import DEFAULT, Decision, Result, Rules, select
from anontls.selection.sessions import session_facts
from anontls.tls import client_context, server_context
from anontls.transport.metrics import Metrics

if TYPE_CHECKING:
    from anontls.directory.ldap.follow import Follower
    from anontls.transport.authentication import Authentication


class Presented(NamedTuple):
    """A TLS context, and the certificate of our own in it."""

    context: SSL.Context
    certificate: Certificate | None


class Node:
    """What all sessions of one server share.

    ``organization`` and ``server`` are replaced whole by :meth:`take`; a session decides on what is there when it asks.
    ``now`` is the clock.  Without ``authentication`` there is no Kerberos, without ``follower`` no directory is followed.
    """

    def __init__(
        self,
        organization: Organization,
        server: Server,
        store: CertificateStore,
        events: EventLog,
        now: Callable[[], datetime],
        rules: Rules = DEFAULT,
        metrics: Metrics | None = None,
        authentication: Authentication | None = None,
        follower: Follower | None = None,
    ) -> None:
        self.store = store
        self.events = events
        self.now = now
        self.rules = rules
        self.metrics = metrics or Metrics()
        self.authentication = authentication
        self.follower = follower
        self._ephemeral: OwnCertificate | None = None
        self._read: Store | None = None  # the store that the next two are about
        self._usable = Store(())
        self._loaded: set[str] = set()
        self.take(organization, server)

    def take(self, organization: Organization, server: Server) -> None:
        """From now on this is what the directory says."""
        self.organization = organization
        self.server = server
        self._servers = {
            name.lower(): each
            for each in reversed(organization.servers)
            for name in (each.name, each.fqdn)
            if isinstance(name, str)
        }
        self._peers: dict[str, tuple[bytes, ...]] = {}
        domains = () if is_unknown(organization.accepted_domains) else organization.accepted_domains
        names = [domain.domain_name.lower() for domain in domains]
        self._domains = frozenset(names)
        self._parents = tuple(name[1:] for name in names if name.startswith("*."))

    def is_local(self, address: str) -> bool:
        """Whether the domain of ``address`` is an accepted domain; ``postmaster`` alone is ours [RFC5321 4.5.1]."""
        _, at, domain = address.rpartition("@")
        domain = domain.lower()
        return not at or domain in self._domains or domain.endswith(self._parents)

    @property
    def fqdn(self) -> str:
        """The server's FQDN; its name where that is not known."""
        return self.server.fqdn if isinstance(self.server.fqdn, str) and self.server.fqdn else self.server.name

    def server_called(self, name: str) -> Server | None:
        """The server of that name or FQDN, without case."""
        return self._servers.get(name.lower())

    def select(
        self,
        scenario: Scenario,
        *,
        phase: Phase = Phase.SESSION,
        queue: Queue | None = None,
        send_connector: SendConnector | None = None,
        receive_connector: ReceiveConnector | None = None,
    ) -> Decision:
        """Decide for one session, with the local store as it is now, and log the events."""
        facts = session_facts(
            self.server,
            scenario,
            self.now(),
            phase=phase,
            queue=queue,
            send_connector=send_connector,
            receive_connector=receive_connector,
            directory=None if self.follower is None else self.follower.word,
        )
        decision = select(msgspec.structs.replace(facts, store=self._store()), self.rules)
        if decision.certificate is not None and not self.load(decision.certificate):
            decision = select(msgspec.structs.replace(facts, store=self._store()), self.rules)
        self.metrics.decided(decision)
        connector = receive_connector or send_connector
        for step in decision.steps:
            if step.event is not None:
                event = msgspec.structs.replace(step.event, cause=step.because)
                self.events.write(event, connector=connector.identity if connector else "")
        return decision

    def presented(self, decision: Decision) -> Presented | None:
        """What a receiving session presents its certificate with; ``None``: the verb is not offered."""
        return self._context(decision, server_context)

    def shown(self, decision: Decision) -> Presented | None:
        """What a sending session shows when it is asked; ``None``: the verb is not used."""
        if decision.result is Result.VERB_ONLY:
            return Presented(client_context(), None)
        return self._context(decision, client_context)

    def load(self, certificate: Certificate) -> bool:
        """Whether a certificate of the store can be loaded; tried once, as long as the store does not change.

        One that the TLS library refuses cannot: for Exchange's events, it is like one that is not there.
        """
        store, thumbprint = self._store(), str(certificate.thumbprint)
        if thumbprint in self._loaded:
            return True
        if thumbprint in store.refused:
            return False
        reason = "its private key is not there"
        try:
            own = self.store.find(thumbprint)
            if own is not None:
                server_context(own)
                self._loaded.add(thumbprint)
                return True
        except OwnCertificateRefused as e:
            reason = e.reason
        self._usable = Store(store, {**store.refused, thumbprint: reason})
        return False

    def _store(self) -> Store:
        """The local store as it is now, with what was found not to load."""
        store = self.store.store()
        if store is not self._read:
            self._read = self._usable = store
            self._loaded.clear()
        return self._usable

    def _context(self, decision: Decision, context: Callable[[OwnCertificate], SSL.Context]) -> Presented | None:
        if decision.verb is None:
            return None
        if decision.ephemeral:
            own: OwnCertificate | None = self._temporary()
        else:
            own = self.store.find(str(decision.certificate.thumbprint)) if decision.certificate else None
        return None if own is None else Presented(context(own), own.certificate)

    def _temporary(self) -> OwnCertificate:
        """What stands in for a certificate that is not in the store, under the rule that wants it (event 12024)."""
        if self._ephemeral is None:
            self._ephemeral = new_internal_certificate(self.server.name, self.fqdn, now=self.now())
        return self._ephemeral

    def peer_certificates(self, name: str) -> tuple[bytes, ...]:
        """The certificates (DER) that the directory holds for the server called ``name``; empty when it holds none.

        Of an Edge server both copies count, the one in Active Directory and the one in its own AD LDS.  A thumbprint
        without the certificate is a name and proves nothing.
        """
        name = name.lower()
        server = self._servers.get(name)
        if server is None:
            return ()
        known = self._peers.get(name)
        if known is not None:
            return known
        found = []
        for attribute in (server.internal_tls_cert, server.internal_tls_cert_adlds):
            if isinstance(attribute.der, bytes):
                try:
                    found.append(certificate_bytes(attribute.der))
                except ValueError:
                    continue  # garbage in the directory names nobody
        known = self._peers[name] = tuple(dict.fromkeys(found))
        return known

    def trust(self, peer: Certificate | None, name: str, connector: ReceiveConnector | None = None) -> Trust:
        """Whether the peer that calls itself ``name`` shows the certificate that the directory holds for it; logs 12019.

        ``connector`` is the one that received the session.
        """
        trust = direct_trust(peer, self.peer_certificates(name), self.now())
        if peer is not None and trust.expired and trust.result is TrustResult.MATCH:
            values = {"subject": peer.subject, "thumbprint": peer.thumbprint}
            self.events.write(Event(12019, source(connector and connector.transport_service), values))
        return trust


_SESSION_IDS: Final = count(secrets.randbits(64))


def new_session_id() -> str:
    """Sixteen hexadecimal digits, as real protocol logs have [FACT O 4.1]; names a session, and proves nothing."""
    return f"{next(_SESSION_IDS) % 2**64:016X}"
