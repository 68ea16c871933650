"""The whole way of a message: routing, and at each hop the selection decisions of both its ends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Any

import click
import msgspec

from anontls.delivery import End, Hop, Kind, Outcome, Route, Step
from anontls.facts import (
    Category,
    DeliveryType,
    Queue,
    ReceiveConnector,
    Scenario,
    Server,
    Unknown,
    connector_for_session,
    is_unknown,
    powershell_argument,
    same_name,
)
from anontls.facts.organization import Address, binding, ip_range
from anontls.report import json
from anontls.report.explain import Explanation
from anontls.report.language import Language, say, show, texts
from anontls.report.text import explained
from anontls.selection import Decision, Result, Rules, select
from anontls.selection.sessions import session_facts

SCHEMA = "anontls/route/1"
MOST_NAMES = 12
END_COLOUR = {
    End.MAILBOX: "green",
    End.OUTSIDE: "green",
    End.UNREACHABLE: "red",
    End.LOOP: "red",
    End.UNKNOWN: "magenta",
}
OUTCOME_COLOUR = {
    Outcome.PASSED: "green",
    Outcome.NOTED: "yellow",
    Outcome.STOPPED: "red",
    Outcome.UNKNOWN: "magenta",
}
# Where a server listens; the first port that any of its connectors is bound to is taken.  [FACT D 6.3]
MAILBOX_DELIVERY, BACK_END, FRONT_END = 475, 2525, 25

#: The cmdlet that would tell a fact of routing; ``of`` is what it belongs to.
CHECKS = {
    "ServerRole": "Get-ExchangeServer {of} | Format-List Name,ServerRole,AdminDisplayVersion",
    "AcceptedDomains": "Get-AcceptedDomain | Export-Clixml -Depth 4 Get-AcceptedDomain.xml",
    "DomainName": "Get-AcceptedDomain | Format-List DomainName,DomainType",
    "DomainType": "Get-AcceptedDomain | Format-List DomainName,DomainType",
    "SendConnectors": "Get-SendConnector | Export-Clixml -Depth 4 Get-SendConnector.xml",
    "Enabled": "Get-SendConnector {of} | Format-List Name,Enabled",
    "AddressSpaces": "Get-SendConnector {of} | Format-List Name,AddressSpaces,IsScopedConnector",
    "SourceTransportServers": "Get-SendConnector {of} | Format-List Name,SourceTransportServers",
    "SmartHosts": "Get-SendConnector {of} | Format-List Name,SmartHosts,DNSRoutingEnabled",
    "DNSRoutingEnabled": "Get-SendConnector {of} | Format-List Name,SmartHosts,DNSRoutingEnabled",
    "EdgeSubscription": "Get-EdgeSubscription | Export-Clixml -Depth 4 Get-EdgeSubscription.xml",
    "Site": "Get-ExchangeServer | Format-List Name,Site,ServerRole",
    "distance": "Get-ExchangeServer | Format-List Name,Site,ServerRole; Get-EdgeSubscription | Format-List Name,Site",
    "site-links": "Get-AdSiteLink | Format-List Name,Sites,Cost,ExchangeCost",
}
MAILBOX_CHECK = "Get-Recipient {recipient} | Format-List RecipientType,ServerName,Database"
GROUP_CHECK = (
    "Get-MailboxServer | Format-List Name,DatabaseAvailabilityGroup; Get-AdSite | Format-List Name,HubSiteEnabled"
)


class Arrival(msgspec.Struct, frozen=True):
    """The receiving end of a hop: which connector takes the session, and what it decides."""

    server: Server
    port: int | None
    connector: ReceiveConnector | Unknown
    decisions: tuple[Decision, ...]


class Passage(msgspec.Struct, frozen=True):
    """A hop with the decisions of its two ends; several ``sends`` where it is not known what kind of hop it is."""

    hop: Hop
    sends: tuple[Decision, ...]
    arrivals: tuple[Arrival, ...]


class Way(msgspec.Struct, frozen=True):
    """A route with all decisions on it."""

    route: Route
    as_of: datetime
    passages: tuple[Passage, ...]

    @property
    def unknown(self) -> bool:
        """Whether anything that the way needs is not known."""
        return (
            self.route.end is End.UNKNOWN
            or any(is_unknown(arrival.connector) for passage in self.passages for arrival in passage.arrivals)
            or any(decision.result is Result.UNKNOWN for decision in self.decisions)
        )

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """All of them, in their order."""
        return tuple(
            decision
            for passage in self.passages
            for decision in (*passage.sends, *(d for arrival in passage.arrivals for d in arrival.decisions))
        )


# --- both ends of each hop


def way(route: Route, as_of: datetime, rules: Rules) -> Way:
    """``route`` with the decisions of sender and receivers at each hop; pure."""
    return Way(route, as_of, tuple(_passage(hop, as_of, rules) for hop in route.hops))


def _passage(hop: Hop, as_of: datetime, rules: Rules) -> Passage:
    arrivals = tuple(_arrival(hop, receiver, as_of, rules) for receiver in hop.receivers)
    return Passage(hop, tuple(_sends(hop, as_of, rules)), arrivals)


def _sends(hop: Hop, as_of: datetime, rules: Rules) -> Iterator[Decision]:
    server, outbound = hop.server, Scenario.OUTBOUND_ANONYMOUS
    queues = dict.fromkeys(_queue(server, *each) for each in _types(hop))
    if server.role == "Edge":
        if queues:
            yield select(session_facts(server, outbound, as_of, send_connector=hop.connector), rules)
        return
    for queue in queues:
        yield select(session_facts(server, outbound, as_of, queue=queue), rules)


def _types(hop: Hop) -> Iterator[tuple[DeliveryType, str | Unknown]]:
    """The delivery types that the hop has or can have and that open an SMTP session, with their domains."""
    types: dict[DeliveryType, str | Unknown] = {}
    if is_unknown(hop.delivery_type):
        for kind in hop.kinds:
            types.setdefault(kind.delivery_type, kind.next_hop_domain)
    else:
        types[hop.delivery_type] = hop.next_hop_domain
    types.pop(DeliveryType.UNREACHABLE, None)
    yield from types.items()


def _queue(server: Server, delivery_type: DeliveryType, domain: str | Unknown) -> Queue:
    """The server's queue of that kind, a hypothetical one where it shows none."""
    queues = () if is_unknown(server.queues) else server.queues
    for queue in queues:
        shown = queue.next_hop_domain
        same = isinstance(domain, str) and isinstance(shown, str) and same_name(domain, shown)
        if same and queue.delivery is delivery_type:
            return queue
    return Queue(delivery_type=delivery_type.value, next_hop_domain=domain, hypothetical=True)


def _arrival(hop: Hop, receiver: Server, as_of: datetime, rules: Rules) -> Arrival:
    port, connector = receive_connector(hop.server, receiver, _ports(hop, receiver))
    decisions: tuple[Decision, ...] = ()
    if not is_unknown(connector):
        decisions = tuple(
            select(session_facts(receiver, scenario, as_of, receive_connector=connector), rules)
            for scenario in (Scenario.INBOUND_ANONYMOUS, Scenario.INBOUND_STARTTLS)
        )
    return Arrival(receiver, port, connector, decisions)


def _ports(hop: Hop, receiver: Server) -> tuple[int, ...]:
    """The ports at which ``receiver`` may take this session, the usual one first [FACT D 6.3]."""
    if hop.delivery_type is DeliveryType.SMTP_DELIVERY_TO_MAILBOX:
        return (MAILBOX_DELIVERY,)
    if receiver.role == "Edge":
        return (FRONT_END,)
    if hop.delivery_type is DeliveryType.SMART_HOST_CONNECTOR_DELIVERY:
        return (FRONT_END, BACK_END)
    return (BACK_END, FRONT_END)


def receive_connector(
    sender: Server, receiver: Server, ports: Sequence[int]
) -> tuple[int | None, ReceiveConnector | Unknown]:
    """The port and Receive connector that a session of ``sender`` hits.

    Without the sender's address it is known only where one connector alone is bound to the port and takes everybody.
    """
    connectors = receiver.receive_connectors
    if is_unknown(connectors):
        return None, Unknown(f"no source holds the Receive connectors of {receiver.name}")
    try:
        at = {port: [c for c in connectors if c.enabled is not False and _versions(c, port)] for port in ports}
    except ValueError as e:
        return None, Unknown(f"a Receive connector of {receiver.name}: {e}")
    port = next((port for port in ports if at[port]), None)
    if port is None:
        listed = " or ".join(map(str, ports))
        return None, Unknown(f"no enabled Receive connector of {receiver.name} is bound to port {listed}")
    addresses = [address for text in sender.addresses if (address := _address(text)) is not None]
    if addresses:
        hits = [connector_for_session(receiver, address, port) for address in addresses]
        known = [hit for hit in hits if not is_unknown(hit)]
        if len({hit.identity for hit in known}) == 1:
            return port, known[0]
        doubts = [hit.because for hit in hits if is_unknown(hit)]
        return port, Unknown(doubts[0] if doubts else "it depends on which of its addresses the sender uses")
    if len(at[port]) == 1 and _takes_everybody(at[port][0], port):
        return port, at[port][0]
    names = ", ".join(connector.identity for connector in at[port])
    return port, Unknown(f"the address of {sender.name} is not known, and on it hangs which takes it: {names}")


def _versions(connector: ReceiveConnector, port: int) -> set[int]:
    """The versions of IP with which the connector is bound to ``port``."""
    bindings = connector.bindings
    if is_unknown(bindings):
        raise ValueError(f"Bindings of {connector.identity} is not known: {bindings.because}")
    return {address.version for address, bound in map(binding, bindings or ()) if bound == port}


def _takes_everybody(connector: ReceiveConnector, port: int) -> bool:
    ranges = connector.remote_ip_ranges
    try:
        spans = [ip_range(text) for text in ranges] if isinstance(ranges, tuple) else []
    except ValueError:
        return False
    whole = {low.version for low, high in spans if int(low) == 0 and int(high) == (1 << low.max_prefixlen) - 1}
    return _versions(connector, port) <= whole


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


# --- words


def because(step: Step, language: Language) -> str:
    """Why a question of routing was answered as it was."""
    fact = step.values.get("fact")
    name = texts(language).get(f"route.fact.{fact}")
    values = dict(step.values) if name is None else {**step.values, "fact": name}
    notes = step.values.get("notes", ())
    assert isinstance(notes, tuple)
    sentences = [say(language, f"route.because.{step.because}", values)]
    return "; ".join([*sentences, *(say(language, f"route.note.{note}", values) for note in notes)])


def check(step: Step, route: Route) -> str | None:
    """The cmdlet that would tell what a step did not know."""
    if step.outcome is not Outcome.UNKNOWN:
        return None
    if step.because == "mailbox.way-not-known":
        return GROUP_CHECK
    if step.because.startswith("mailbox."):
        return MAILBOX_CHECK.format(recipient=powershell_argument(route.recipient))
    line = CHECKS[str(step.values["fact"])]
    return line.format(of=powershell_argument(str(step.values.get("of") or "")))


def headline(way: Way, language: Language) -> str:
    """The way in one sentence."""
    route = way.route
    values = {"source": route.source.name, "recipient": route.recipient, "count": len(route.hops)}
    return say(language, f"route.end.{route.end.value}", values)


def next_hops(hop: Hop, language: Language) -> str:
    """Where the hop leads."""
    if hop.next_hops:
        return show(language, _few(hop.next_hops))
    return texts(language)["route.word.nowhere" if hop.ends is End.UNREACHABLE else "route.word.not-known"]


def _where(kind: Kind, language: Language) -> str:
    return say(language, f"route.where.{kind.where}", {"servers": _few(kind.servers)})


def _few(names: tuple[str, ...]) -> tuple[str, ...]:
    """No more names than a reader takes in; JSON has them all."""
    return names if len(names) <= MOST_NAMES else (*names[:MOST_NAMES], f"+{len(names) - MOST_NAMES}")


def _connector(hop: Hop, language: Language) -> str:
    """The Send connector as the one that says where to, or that sends."""
    if hop.connector is None:
        return texts(language)["word.unknown" if is_unknown(hop.delivery_type) else "route.word.implicit"]
    relayed = not is_unknown(hop.delivery_type) and hop.delivery_type.category is Category.INTERNAL
    name = show(language, hop.connector.identity)
    return say(language, "route.word.says", {"connector": name}) if relayed else name


def text(way: Way, language: Language, *, width: int = 100, details: bool = False) -> str:
    """The way hop by hop: what the queue shows, why, then the decisions of sender and receivers.

    Of several receivers the first is explained, of the others only the answers stand there; ``details`` explains all.
    """
    lines = [
        click.style(headline(way, language), fg=END_COLOUR[way.route.end], bold=True),
        say(language, "word.as-of", {"as_of": way.as_of}),
    ]
    for number, passage in enumerate(way.passages, 1):
        hop = passage.hop
        values = {"number": number, "sender": hop.server.name, "next_hops": next_hops(hop, language)}
        lines += ["", click.style(say(language, "route.word.hop", values), bold=True)]
        lines += _hop(hop, language)
        for step in hop.steps:
            lines += _step(step, way.route, language, width)
        lines += _ends(passage, language, width - 4, details)
    return "\n".join(lines)


def _hop(hop: Hop, language: Language) -> Iterator[str]:
    words = texts(language)
    if hop.ends is not End.UNREACHABLE:
        yield f"  {words['route.word.connector']:<15} {_connector(hop, language)}"
    if is_unknown(hop.delivery_type):
        yield f"  DeliveryType    {words['word.unknown']}"
    else:
        yield f"  DeliveryType    {hop.delivery_type.value}"
        yield f"  NextHopDomain   {_domain(hop.next_hop_domain, language)}"
    for kind in hop.kinds:
        name = "" if is_unknown(kind.next_hop_domain) else f" ({_domain(kind.next_hop_domain, language)})"
        yield f"                  {kind.delivery_type.value}{name}: {_where(kind, language)}"
    yield ""


def _domain(domain: str | Unknown, language: Language) -> str:
    unknown = f"{texts(language)['word.unknown']}: " if is_unknown(domain) else ""
    return unknown + show(language, domain)


def _step(step: Step, route: Route, language: Language, width: int) -> Iterator[str]:
    words = texts(language)
    outcome = click.style(f"{words[f'outcome.{step.outcome.value}']:<9}", fg=OUTCOME_COLOUR[step.outcome])
    margin = " " * 16
    yield f"  {step.step:<3}{outcome}  {words[f'route.question.{step.step}']}"
    yield from textwrap.wrap(
        because(step, language),
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if line := check(step, route):
        yield f"{margin}{words['route.word.check']}: {line}"


def _ends(passage: Passage, language: Language, width: int, details: bool) -> Iterator[str]:
    hop = passage.hop
    if passage.sends:
        yield "\n  " + say(language, "route.word.sends", {"server": hop.server.name})
        yield from _explained(passage.sends, language, width, full=1, details=details)
    for number, arrival in enumerate(passage.arrivals):
        server = arrival.server.name
        if is_unknown(arrival.connector):
            yield "\n  " + say(language, "route.word.receiver-unknown", {"server": server, "why": arrival.connector})
            continue
        values = {"server": server, "connector": arrival.connector.identity, "port": arrival.port}
        yield "\n  " + say(language, "route.word.receives", values)
        yield from _explained(arrival.decisions, language, width, full=0 if number else 2, details=details)
    if hop.ends is End.OUTSIDE:
        yield "\n  " + texts(language)["route.word.outside"]
    elif passage.sends and not passage.arrivals:
        yield "\n  " + texts(language)["route.word.receivers-unknown"]


def _explained(
    decisions: Sequence[Decision], language: Language, width: int, *, full: int, details: bool
) -> Iterator[str]:
    for number, decision in enumerate(decisions):
        if number < full or details:
            yield "\n" * bool(number) + textwrap.indent(
                explained(decision, language, width=width, details=details), "    "
            )
        else:
            yield f"    {texts(language)['route.word.also']}: {Explanation(decision, language).headline}"


def in_short(decision: Decision, language: Language) -> str:
    """Verb and certificate of a decision, in few words."""
    words = texts(language)
    if decision.result is Result.UNKNOWN:
        return words["word.unknown"]
    if decision.last.because == "1.b.mailbox":
        return f"{words['word.none']} ({words['word.in-practice']})"
    verb = decision.verb or words["word.none"]
    if decision.ephemeral:
        return f"{verb}, {words['word.temporary']}"
    if decision.certificate is not None:
        return f"{verb}, {Explanation(decision, language).certificate(decision.certificate)}"
    return f"{verb}, {words['word.verb-only']}" if decision.result is Result.VERB_ONLY else verb


# --- JSON


def route_json(way: Way, language: Language = "en") -> dict[str, Any]:
    """The way as ``anontls/route/1``; decisions as in ``anontls/decision/1``."""
    route = way.route
    return {
        "schema": SCHEMA,
        "from": route.source.name,
        "recipient": route.recipient,
        "domain": route.domain,
        "as_of": json.time(way.as_of),
        "end": route.end.value,
        "headline": headline(way, language),
        "hops": [_passage_json(passage, route, language) for passage in way.passages],
    }


def _passage_json(passage: Passage, route: Route, language: Language) -> dict[str, Any]:
    hop = passage.hop
    return {
        "from": hop.server.name,
        "connector": hop.connector.identity if hop.connector else None,
        "delivery_type": _value(hop.delivery_type),
        "next_hop_domain": json.fact(hop.next_hop_domain),
        "next_hops": list(hop.next_hops),
        "ends": hop.ends.value if hop.ends else None,
        "can_be": [
            {
                "delivery_type": kind.delivery_type.value,
                "next_hop_domain": json.fact(kind.next_hop_domain),
                "where": _where(kind, language),
                "servers": list(kind.servers),
            }
            for kind in hop.kinds
        ],
        "candidates": [{"connector": c.name, "address_space": c.space, "cost": c.cost} for c in hop.candidates],
        "steps": [
            {
                "step": step.step,
                "outcome": step.outcome.value,
                "question": texts(language)[f"route.question.{step.step}"],
                "because": because(step, language),
                "check": check(step, route),
            }
            for step in hop.steps
        ],
        "sends": [json.decision_json(decision, language) for decision in passage.sends],
        "receives": [
            {
                "server": arrival.server.name,
                "port": arrival.port,
                "connector": json.fact(arrival.connector)
                if is_unknown(arrival.connector)
                else arrival.connector.identity,
                "decisions": [json.decision_json(decision, language) for decision in arrival.decisions],
            }
            for arrival in passage.arrivals
        ],
    }


def _value(delivery_type: DeliveryType | Unknown) -> Any:
    return json.fact(delivery_type) if is_unknown(delivery_type) else delivery_type.value


# --- SVG


def route_svg(way: Way, language: Language = "en") -> str:
    """The servers as boxes with arrows between them that name queue and certificates; one self-contained file."""
    from anontls.report.route_picture import picture

    return picture(way, language)
