"""A node: one server of the organisation with its local certificate store; it decides as ``anontls select`` does."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import msgspec
from OpenSSL import SSL

from anontls.certstore import CertificateStore
from anontls.eventlog import EventLog
from anontls.events import TRANSPORT, Event
from anontls.facts import Certificate, Organization, Phase, Queue, ReceiveConnector, Scenario, SendConnector, Server
from anontls.facts.certificate import certificate_bytes
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused
from anontls.facts.trust import Trust, TrustResult, direct_trust
from anontls.selection import DEFAULT, Decision, Result, Rules, select
from anontls.selection.sessions import session_facts
from anontls.tls import client_context, server_context


class Presented(NamedTuple):
    """A TLS context, and the certificate of our own in it."""

    context: SSL.Context
    certificate: Certificate | None


class Node:
    """What all sessions of one server share.

    ``organization``, ``server`` and ``store`` are replaced whole by a reload; a session decides on what is there when
    it asks.  ``now`` is the clock.
    """

    def __init__(
        self,
        organization: Organization,
        server: Server,
        store: CertificateStore,
        events: EventLog,
        now: Callable[[], datetime],
        rules: Rules = DEFAULT,
    ) -> None:
        self.organization = organization
        self.server = server
        self.store = store
        self.events = events
        self.now = now
        self.rules = rules

    @property
    def fqdn(self) -> str:
        """The server's FQDN; its name where that is not known."""
        return self.server.fqdn if isinstance(self.server.fqdn, str) and self.server.fqdn else self.server.name

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
        )
        decision = select(msgspec.structs.replace(facts, store=self.store.store()), self.rules)
        connector = receive_connector or send_connector
        for event in decision.events:
            self.events.write(event, connector=connector.identity if connector else "")
        return decision

    def presented(self, decision: Decision) -> Presented | None:
        """What a receiving session presents its certificate with; ``None``: the verb is not offered."""
        return self._loaded(decision, server_context)

    def shown(self, decision: Decision) -> Presented | None:
        """What a sending session shows when it is asked; ``None``: the verb is not used."""
        if decision.result is Result.VERB_ONLY:
            return Presented(client_context(), None)
        return self._loaded(decision, client_context)

    def _loaded(self, decision: Decision, context: Callable[[OwnCertificate], SSL.Context]) -> Presented | None:
        if decision.verb is None or decision.certificate is None:
            return None
        try:
            own = self.store.find(str(decision.certificate.thumbprint))
            return None if own is None else Presented(context(own), own.certificate)
        except OwnCertificateRefused as e:
            self.refused(e)
            return None

    def refused(self, error: OwnCertificateRefused) -> None:
        """A certificate of our own that the TLS library does not take is one that cannot be loaded: event 12013."""
        values = {"thumbprint": error.thumbprint, "reason": error.reason}
        self.events.write(Event(12013, TRANSPORT, values))

    def peer_certificates(self, name: str) -> tuple[bytes, ...]:
        """The certificates (DER) that the directory holds for the server called ``name``; empty when it holds none.

        Of an Edge server both copies count, the one in Active Directory and the one in its own AD LDS.  A thumbprint
        without the certificate is a name and proves nothing.
        """
        server = self.organization.server(name)
        if server is None:
            return ()
        found = []
        for attribute in (server.internal_tls_cert, server.internal_tls_cert_adlds):
            if isinstance(attribute.der, bytes):
                try:
                    found.append(certificate_bytes(attribute.der))
                except ValueError:
                    continue  # garbage in the directory names nobody
        return tuple(dict.fromkeys(found))

    def trust(self, peer: Certificate | None, name: str) -> Trust:
        """Whether the peer that calls itself ``name`` shows the certificate that the directory holds for it; logs 12019."""
        trust = direct_trust(peer, self.peer_certificates(name), self.now())
        if peer is not None and trust.expired and trust.result is TrustResult.MATCH:
            values = {"subject": peer.subject, "thumbprint": peer.thumbprint}
            self.events.write(Event(12019, TRANSPORT, values))
        return trust


def new_session_id() -> str:
    """Sixteen hexadecimal digits, as real protocol logs have [FACT O 4.1]."""
    return secrets.token_hex(8).upper()
