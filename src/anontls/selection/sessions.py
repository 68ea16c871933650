"""Which sessions an organisation can have: every decision that can be asked about a server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from anontls.facts import (
    ABSENT,
    SMTP_QUEUES_OF_A_MAILBOX_SERVER,
    DirectoryWord,
    InternalTlsCert,
    Organization,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    SessionFacts,
    is_unknown,
    same_name,
)


def internal_tls_cert(server: Server) -> InternalTlsCert:
    """The attribute as this server reads it: an Edge server reads AD LDS [FACT D 5.5], every other Active Directory."""
    own = server.internal_tls_cert_adlds
    return own if server.role == "Edge" and not isinstance(own.unknown, str) else server.internal_tls_cert


def session_facts(
    server: Server,
    scenario: Scenario,
    as_of: datetime,
    *,
    phase: Phase = Phase.SESSION,
    queue: Queue | None = None,
    send_connector: SendConnector | None = None,
    receive_connector: ReceiveConnector | None = None,
    directory: DirectoryWord | None = None,
) -> SessionFacts:
    """The facts of one session of ``server``."""
    return SessionFacts(
        scenario=scenario,
        as_of=as_of,
        phase=phase,
        server=server,
        internal_tls_cert=internal_tls_cert(server),
        store=server.store,
        queue=queue,
        send_connector=send_connector,
        receive_connector=receive_connector,
        directory=directory,
    )


#: One queue of each kind that a Mailbox server can have, for servers whose queues are not known.
HYPOTHETICAL = tuple(Queue(delivery_type=kind.value, hypothetical=True) for kind in SMTP_QUEUES_OF_A_MAILBOX_SERVER)


def queues(server: Server) -> tuple[Queue, ...]:
    """The server's queues; when none are known, one for each kind it can have, marked hypothetical."""
    if not is_unknown(server.queues) and server.queues:
        return server.queues
    return HYPOTHETICAL


def send_connectors(server: Server, organization: Organization) -> tuple[SendConnector, ...]:
    """The Send connectors that ``server`` is a source server of, and those of which that is not known."""
    if is_unknown(organization.send_connectors):
        return ()
    return tuple(c for c in organization.send_connectors if not c.implicit and _is_source(server, c))


def _is_source(server: Server, connector: SendConnector) -> bool:
    sources = connector.source_transport_servers
    if is_unknown(sources):
        return True
    return any(same_name(name, server.name) or same_name(name, str(server.fqdn)) for name in sources or ())


def sessions(
    organization: Organization, server: Server, as_of: datetime, scenarios: tuple[Scenario, ...] = tuple(Scenario)
) -> Iterator[SessionFacts]:
    """The facts of every session that ``server`` can have, in the order: outbound, inbound anonymous, inbound STARTTLS.

    Where the connectors are not known there is still one of each kind, whose decision says so.
    """
    if Scenario.OUTBOUND_ANONYMOUS in scenarios:
        yield from outbound_sessions(organization, server, as_of)
    connectors: tuple[ReceiveConnector | None, ...] = (None,)
    if not is_unknown(server.receive_connectors):
        connectors = tuple(c for c in server.receive_connectors if c.enabled is not False)
    for scenario in (Scenario.INBOUND_ANONYMOUS, Scenario.INBOUND_STARTTLS):
        if scenario in scenarios:
            for connector in connectors:
                yield session_facts(server, scenario, as_of, receive_connector=connector)


def outbound_sessions(organization: Organization, server: Server, as_of: datetime) -> Iterator[SessionFacts]:
    """One for each queue of a Mailbox server, one for each Send connector of an Edge server."""
    scenario = Scenario.OUTBOUND_ANONYMOUS
    if server.role == "Edge":
        for connector in send_connectors(server, organization) or (None,):
            yield session_facts(server, scenario, as_of, send_connector=connector)
    elif is_unknown(server.role):
        yield session_facts(server, scenario, as_of)
    else:
        for queue in queues(server):
            yield session_facts(server, scenario, as_of, queue=queue)


def all_servers(organization: Organization) -> tuple[Server, ...]:
    """The servers, and one for each name that only unplaced connectors state: all else about these is not known."""
    return (*organization.servers, *_strays(organization))


def _strays(organization: Organization) -> Iterator[Server]:
    connectors: dict[str, list[ReceiveConnector]] = {}
    for item in organization.unplaced:
        if item.type == "ReceiveConnector" and item.object:
            connector = msgspec.convert(item.object, ReceiveConnector)
            if connector.server and organization.server(connector.server) is None:
                connectors.setdefault(connector.server, []).append(connector)
    for name, found in connectors.items():
        yield Server(name=name, fqdn=ABSENT, receive_connectors=tuple(found))
