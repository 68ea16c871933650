"""Which sessions the options of ``anontls select`` ask about."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import msgspec

from anontls.errors import Unreachable, UsageError
from anontls.facts import (
    Organization,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    SessionFacts,
    connector_for_session,
    is_unknown,
    same_name,
)
from anontls.selection import sessions as enumerate_sessions

INBOUND = (Scenario.INBOUND_ANONYMOUS, Scenario.INBOUND_STARTTLS)


class Question(msgspec.Struct, kw_only=True):
    """What the command line asks about."""

    scenario: Scenario | None
    server: str | None
    connector: str | None
    queue: str | None
    delivery_type: str | None
    peer: str | None
    port: int | None
    phase: Phase
    as_of: datetime


def asked(organization: Organization, question: Question) -> Iterator[SessionFacts]:
    """The sessions that the question is about.

    Raises:
        UsageError: it names a server, connector or queue that is not there; says which are.
    """
    servers = enumerate_sessions.all_servers(organization)
    if question.server is not None:
        servers = tuple(
            s for s in servers if same_name(question.server, s.name) or same_name(question.server, str(s.fqdn))
        )
        if not servers:
            raise UsageError(
                f"no server {question.server}",
                hint=known(s.name for s in enumerate_sessions.all_servers(organization)),
            )
    if not servers:
        raise UsageError("the organisation holds no server", hint="`anontls org check` says which cmdlets are missing")
    found = [facts for server in servers for facts in _of_server(organization, server, question)]
    if not found and question.connector is not None:
        names = [c.identity for s in servers if not is_unknown(s.receive_connectors) for c in s.receive_connectors]
        names += [c.identity for s in servers for c in enumerate_sessions.send_connectors(s, organization)]
        raise UsageError(f"no connector {question.connector}", hint=known(names))
    if not found and question.queue is not None:
        raise UsageError(
            f"no queue {question.queue}",
            hint=known(str(q.identity) for s in servers for q in enumerate_sessions.queues(s)),
        )
    if not found:
        what = question.scenario.value if question.scenario else "session"
        how = "of that --delivery-type" if question.delivery_type else "with --from" if question.peer else "at all"
        raise UsageError(
            f"no {what} {how} on {', '.join(s.name for s in servers)}",
            hint="--delivery-type is of a Mailbox server that sends, --from of a session that comes in",
        )
    yield from found


def known(names: Iterable[str]) -> str:
    return "known: " + ", ".join(sorted(set(names)))


def _of_server(organization: Organization, server: Server, question: Question) -> Iterator[SessionFacts]:
    outbound, as_of = Scenario.OUTBOUND_ANONYMOUS, question.as_of
    if question.phase is Phase.STARTUP:
        # Without a session the two anonymous procedures are the same; there is none for STARTTLS.
        if question.scenario is Scenario.INBOUND_STARTTLS:
            raise UsageError("there is no inbound-starttls at the start of a service: STARTTLS is chosen in a session")
        yield enumerate_sessions.session_facts(server, question.scenario or outbound, as_of, phase=Phase.STARTUP)
        return
    scenarios = (question.scenario,) if question.scenario else tuple(Scenario)
    if question.peer is not None or question.port is not None:
        yield from _of_peer(server, tuple(s for s in scenarios if s in INBOUND), question)
        return
    if question.delivery_type is not None:
        if outbound in scenarios and server.role != "Edge":
            queue = Queue(delivery_type=question.delivery_type, hypothetical=True)
            yield enumerate_sessions.session_facts(server, outbound, as_of, queue=queue)
        return
    everything = question.connector is None and question.queue is None
    if everything and question.scenario is None:
        yield enumerate_sessions.session_facts(server, outbound, as_of, phase=Phase.STARTUP)
    for facts in enumerate_sessions.sessions(organization, server, as_of, scenarios):
        if everything or _is_about(facts, question):
            yield facts


def _is_about(facts: SessionFacts, question: Question) -> bool:
    if question.queue is not None:
        queue = facts.queue
        return queue is not None and question.queue.lower() in (
            str(queue.identity).lower(),
            str(queue.next_hop_domain).lower(),
        )
    connector: ReceiveConnector | SendConnector | None = facts.receive_connector or facts.send_connector
    if connector is None or question.connector is None:
        return False
    names = {connector.identity, connector.name if isinstance(connector, ReceiveConnector) else connector.identity}
    return any(same_name(question.connector, name) for name in names)


def _of_peer(server: Server, scenarios: Sequence[Scenario], question: Question) -> Iterator[SessionFacts]:
    if question.peer is None:
        raise UsageError("--port needs --from: the Receive connector is chosen by the peer's address as well")
    try:
        peer = ipaddress.ip_address(question.peer)
    except ValueError:
        raise UsageError(f"--from {question.peer}: not an IP address") from None
    connector = connector_for_session(server, peer, question.port or 25)
    if is_unknown(connector):
        raise Unreachable(f"{server.name}: which Receive connector the session hits is not known: {connector.because}")
    for scenario in scenarios:
        yield enumerate_sessions.session_facts(server, scenario, question.as_of, receive_connector=connector)
