"""Which destination a recipient goes to, and the hosts where that is reached.

A mailbox here; else the next hop of the configuration, where there is one; else what routing says.  Inside the
organisation a hop names the server that must prove itself; that never turns into a hop to just any host.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import msgspec

from anontls.config import Delivery, host_and_port
from anontls.config import Queue as QueueSettings
from anontls.delivery import End, Hop, Route, route
from anontls.delivery.address_space import normal_domain
from anontls.delivery.hop import Outcome
from anontls.delivery.routing import UNREACHABLE_DOMAIN
from anontls.delivery.servers import Servers, is_named
from anontls.errors import UsageError
from anontls.facts import (
    AUTH_MECHANISM_BITS,
    Category,
    DeliveryType,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    is_unknown,
    same_name,
)
from anontls.facts.organization import Address, binding
from anontls.selection.sessions import send_connectors
from anontls.transport.mx import DnsResolver, HostsFailed, Resolver, best_first
from anontls.transport.node import Node
from anontls.transport.send import NextHop

__all__ = ["Destination", "Destinations", "HostsFailed", "check_delivery_type", "configured_hop"]

MOST_DOMAINS = 5000  # whose destination is remembered
SMTP_PORT, HUB_PORT = 25, 2525  # of the front end and Edge servers; of the transport service [FACT D 6.3]
# What an address literal is routed as: only an address space that holds every domain holds it.  [RFC2606 2]
ANY_DOMAIN = "address-literal.invalid"


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """A queue: all messages with the same ``key`` wait in one.

    ``local`` is a mailbox here.  ``unreachable`` says why nothing can be sent until configuration or organisation
    change; all such mail waits in one queue [FACT D 6.1], so the reason is that of the recipient.
    """

    key: str
    delivery_type: str  # this and the next two as Get-Queue prints them
    next_hop_domain: str
    category: str  # Internal or External
    local: bool = False
    unreachable: str = ""
    hops: tuple[NextHop, ...] = ()  # all that it can be sent to; empty: DNS tells
    connector: SendConnector | None = None

    @property
    def next_hop_connector(self) -> str | None:
        """``NextHopConnector``, by its identity."""
        return None if self.connector is None else self.connector.identity

    @property
    def balanced(self) -> bool:
        """Whether any of its hosts may be the first."""
        return bool(self.hops)


class Destinations:
    """Of one node.  ``hosts`` of the configuration say where a name is reached; ``shuffle`` mixes what counts the same.

    Raises:
        UsageError: the configuration names a server or Send connector that is not in the organisation.
    """

    def __init__(
        self,
        node: Node,
        delivery: Delivery,
        queue: QueueSettings,
        resolver: Resolver | None = None,
        shuffle: Callable[[list[Any]], object] = random.shuffle,
    ) -> None:
        self.node = node
        self.delivery = delivery
        self.queue = queue
        self.resolver = resolver or DnsResolver()
        self.shuffle = shuffle
        self._of_domain = lru_cache(MOST_DOMAINS)(self._destination)
        self._places = {_name(name): host_and_port(place) for name, place in delivery.hosts.items()}
        self.forget()

    def forget(self) -> None:
        """Organisation or DNS have changed; what ``of`` has said is out of date.

        Raises:
            UsageError: as above; then all stays as it was.
        """
        self._next_hop = configured_hop(self.node.server, self.node.organization, self.delivery)
        self._same: dict[str, Destination] = {}  # with fixed hops: as few as connectors, sites and smart hosts
        self._of_domain.cache_clear()
        self.resolver.forget()

    def of(self, address: str) -> Destination:
        """Where mail for ``address`` goes."""
        _, at, domain = address.rpartition("@")
        return self._of_domain(domain.lower() if at else "")

    async def hosts(self, destination: Destination) -> list[NextHop]:
        """The hosts in the order to try; never empty.  Not for a ``local`` destination.

        Raises:
            HostsFailed: there are none, now (4yz) or at all (5yz).
        """
        if destination.unreachable:
            raise HostsFailed(451, f"4.4.0 {destination.unreachable}")
        if destination.hops:
            hops = list(destination.hops)
            self.shuffle(hops)
            return hops
        domain = destination.next_hop_domain
        if domain.startswith("["):
            names = [self._literal(domain)]
        else:
            names = best_first(domain, await self.resolver.mx(domain), self.node.fqdn, self.shuffle)
        return [self._outside(destination, *self._place(name)) for name in names]

    # --- which destination --------------------------------------------------------------------------------------------

    def _destination(self, domain: str) -> Destination:
        """Where mail for anybody at ``domain`` goes; empty: for ``postmaster`` alone."""
        if self.delivery.maildir is not None and self.node.is_local(f"postmaster@{domain}" if domain else "postmaster"):
            return _destination(DeliveryType.SMTP_DELIVERY_TO_MAILBOX.value, "Maildir", local=True)
        hop = self._next_hop
        if hop is not None:
            kind = self.delivery.delivery_type
            return self._shared(_destination(kind, hop.host, hop.send_connector, hops=(hop,)))
        return self._shared(self._routed(domain or self.postmaster_domain()))

    def _shared(self, destination: Destination) -> Destination:
        return self._same.setdefault(destination.key, destination) if destination.hops else destination

    def postmaster_domain(self) -> str:
        domains = self.node.organization.accepted_domains
        first = self.node.fqdn if is_unknown(domains) or not domains else domains[0].domain_name.removeprefix("*.")
        return (self.queue.postmaster or first).rpartition("@")[2].lower()

    def _routed(self, domain: str) -> Destination:
        literal = domain.startswith("[")
        try:
            routed_as = ANY_DOMAIN if literal else normal_domain(domain)
        except ValueError:  # nor does DNS know such a domain: so it is said when its hosts are asked for
            return _destination(DeliveryType.DNS_CONNECTOR_DELIVERY.value, domain)
        way = route(self.node.organization, self.node.server, f"postmaster@{routed_as}")
        hop = way.hops[0]
        kind, next_hop_domain = hop.delivery_type, hop.next_hop_domain
        if is_unknown(kind) or is_unknown(next_hop_domain) or hop.ends is End.UNREACHABLE or way.end is End.LOOP:
            return _unreachable(_obstacle(way, domain))
        if kind is DeliveryType.DNS_CONNECTOR_DELIVERY:
            found = _destination(kind.value, domain if literal else next_hop_domain, hop.connector)
            place = self._places.get(_name(found.next_hop_domain))
            return found if place is None else msgspec.structs.replace(found, hops=(self._outside(found, *place),))
        hops = tuple(self._hops(hop, kind, next_hop_domain))
        if not hops:
            return _unreachable(f"none of {', '.join(hop.next_hops)} can be connected to")
        # Of a site it does not matter by which connector its servers send on.  [FACT D 6.1]
        to_site = kind is DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE
        return _destination(kind.value, next_hop_domain, None if to_site else hop.connector, hops=hops)

    def _hops(self, hop: Hop, kind: DeliveryType, next_hop_domain: str) -> Iterator[NextHop]:
        """Servers of the organisation; smart hosts, which may be such."""
        sender = self.node.server
        queue = Queue(delivery_type=kind.value, next_hop_domain=next_hop_domain)
        # Only a source server uses its connector; all else inside goes by the implicit one [FACT D 6.2].
        connector = hop.connector if kind is DeliveryType.SMART_HOST_CONNECTOR_DELIVERY else None
        servers = Servers(self.node.organization, sender, None)
        for name, server in zip(hop.next_hops, hop.receivers or map(servers.smart_host, hop.next_hops), strict=True):
            if server is not None and same_name(server.name, sender.name):
                continue
            try:
                if server is None:
                    host, port = self._place(name)
                else:
                    host, port = self._place(*_names(name, server), port=_port(sender, server, kind))
            except ValueError:
                continue  # a name that no connection can be made to
            yield NextHop(
                host=host,
                port=port,
                server=None if server is None else server.name,
                queue=queue,
                send_connector=connector,
                require_tls=_requires_tls(connector),
                timeout=self.delivery.timeout,
            )

    # --- where it is reached ------------------------------------------------------------------------------------------

    def _place(self, *names: str, port: int = SMTP_PORT) -> tuple[str, int]:
        """Where a host with these names is reached; the first that can be is taken.

        Raises:
            ValueError: none can be connected to.
        """
        for name in names:
            place = self._places.get(_name(name))
            if place is not None:
                return place
        for name in names:
            with suppress(ValueError):
                return str(_address(name) or normal_domain(_name(name))), port
        raise ValueError(f"no host: {names}")

    def _outside(self, destination: Destination, host: str, port: int) -> NextHop:
        return NextHop(
            host=host,
            port=port,
            queue=Queue(delivery_type=destination.delivery_type, next_hop_domain=destination.next_hop_domain),
            send_connector=destination.connector,
            require_tls=_requires_tls(destination.connector),
            timeout=self.delivery.timeout,
        )

    def _literal(self, domain: str) -> str:
        """The address in an address literal [RFC5321 4.1.3]."""
        address = _address(domain)
        if address is None:
            raise HostsFailed(550, f"5.1.2 not an address: {domain}")
        if address.is_loopback or address.is_unspecified or address in map(_address, self.node.server.addresses):
            raise HostsFailed(554, f"5.4.6 mail for {domain} loops back to this server")
        return str(address)


def check_delivery_type(name: str, place: str) -> None:
    """Refuse what no queue has.

    Raises:
        UsageError: with the name that is nearest.
    """
    if DeliveryType.parse(name) is None:
        known = {kind.value.lower(): kind.value for kind in DeliveryType}
        near = get_close_matches(name.lower(), known, 1)
        hint = f"did you mean {known[near[0]]}?" if near else f"known: {', '.join(known.values())}"
        raise UsageError(f"{place}: no DeliveryType {name}", hint=hint)


def configured_hop(server: Server, organization: Organization, delivery: Delivery) -> NextHop | None:
    """The next hop of the configuration.

    Raises:
        UsageError: its server or its Send connector is not in the organisation, or there is no such DeliveryType.
    """
    check_delivery_type(delivery.delivery_type, "delivery.delivery-type")
    if delivery.next_hop is None:
        return None
    host, port = host_and_port(delivery.next_hop)
    connector: SendConnector | None = None
    if delivery.send_connector is not None:
        known = send_connectors(server, organization)
        connector = next((c for c in known if same_name(c.identity, delivery.send_connector)), None)
        if connector is None:
            names = ", ".join(c.identity for c in known) or "none"
            raise UsageError(f"{server.name} has no Send connector {delivery.send_connector}", hint=f"known: {names}")
    if delivery.next_hop_server is not None and organization.server(delivery.next_hop_server) is None:
        known_servers = ", ".join(s.name for s in organization.servers)
        raise UsageError(
            f"delivery.next-hop-server: no server {delivery.next_hop_server} in the organisation",
            hint=f"known: {known_servers}",
        )
    if delivery.next_hop_server is None:
        why = _wants_a_server(host, organization, server, delivery, connector)
        if why is not None:
            raise UsageError(
                f"delivery.next-hop: {why}, so nothing may be sent there in clear",
                hint="delivery.next-hop-server names the Exchange server that listens there",
            )
    return NextHop(
        host=host,
        port=port,
        server=delivery.next_hop_server,
        lmtp=delivery.protocol == "lmtp",
        queue=Queue(identity=None, delivery_type=delivery.delivery_type),
        send_connector=connector,
        require_tls=_requires_tls(connector),
        timeout=delivery.timeout,
    )


def _requires_tls(connector: SendConnector | None) -> bool:
    """Where it is not known whether TLS is required, it is not: most connectors leave ``RequireTLS`` unset."""
    return connector is not None and connector.require_tls is True


def _wants_a_server(
    host: str, organization: Organization, here: Server, delivery: Delivery, connector: SendConnector | None
) -> str | None:
    """Why the next hop can only be an Exchange server, which must prove itself; ``None``: it may be any mail server."""
    if connector is not None and connector.auth_mechanism == "ExchangeServer":
        return f"SmartHostAuthMechanism of {connector.identity} is ExchangeServer"
    kind = DeliveryType.parse(delivery.delivery_type)
    if kind is not None and kind.category is Category.INTERNAL:
        return f"DeliveryType {kind.value} leads to a server of the organisation"
    named = next((s for s in organization.servers if is_named(s, host) and not is_named(s, here.name)), None)
    return None if named is None else f"{host} is the server {named.name}"


def _destination(
    delivery_type: str, next_hop_domain: str, connector: SendConnector | None = None, **more: Any
) -> Destination:
    kind = DeliveryType.parse(delivery_type)
    return Destination(
        key=f"{delivery_type} {next_hop_domain} {connector.identity if connector else ''}".lower(),
        delivery_type=delivery_type if kind is None else kind.value,
        next_hop_domain=next_hop_domain,
        category="Internal" if kind is not None and kind.category is Category.INTERNAL else "External",
        connector=connector,
        **more,
    )


def _unreachable(why: str) -> Destination:
    return _destination(DeliveryType.UNREACHABLE.value, UNREACHABLE_DOMAIN, unreachable=why)


def _obstacle(way: Route, domain: str) -> str:
    """Why mail for ``domain`` cannot be sent."""
    if way.end is End.LOOP:
        return f"mail for {domain} would come back to {way.hops[-1].receivers[0].name}"
    hop = way.hops[0]
    if hop.ends is End.MAILBOX:
        return f"the mailboxes of {domain} are on this server, and delivery.maildir is not set"
    step = next((step for step in hop.steps if step.outcome is Outcome.UNKNOWN), None)
    if step is None:
        return f"no Send connector holds {domain}"
    fact, of, why = step.values.get("fact"), step.values.get("of"), step.values["why"]
    because = why.because if is_unknown(why) else str(why)
    what = f"{fact} of {of} is not known: " if of else f"{fact} is not known: " if fact else ""
    return f"where mail for {domain} goes is not known: {what}{because}"


def _port(sender: Server, receiver: Server, kind: DeliveryType) -> int:
    """The port where ``receiver`` takes Exchange servers, the usual ones first [FACT D 6.3]; 25 where that is not known."""
    connectors = () if is_unknown(receiver.receive_connectors) else receiver.receive_connectors
    taking = [c for c in connectors if c.enabled is not False and _takes_exchange_servers(c)]
    bound = [port for connector in taking for port in _ports(connector)]
    hub = [port for c in taking if c.transport_service == "HubTransport" for port in _ports(c)]
    front_first = "Edge" in (sender.role, receiver.role) or kind is DeliveryType.SMART_HOST_CONNECTOR_DELIVERY
    usual = (SMTP_PORT, HUB_PORT) if front_first else (HUB_PORT, SMTP_PORT)
    return next((port for port in usual if port in bound), hub[0] if hub else SMTP_PORT)


def _takes_exchange_servers(connector: ReceiveConnector) -> bool:
    flags = connector.auth_flags
    return not is_unknown(flags) and flags.holds("ExchangeServer", AUTH_MECHANISM_BITS) is True


def _ports(connector: ReceiveConnector) -> list[int]:
    try:
        return [] if is_unknown(connector.bindings) else [binding(text)[1] for text in connector.bindings or ()]
    except ValueError:
        return []


def _names(name: str, server: Server) -> tuple[str, ...]:
    """The names of a server in the order to try: as a connector wrote it, its FQDN, its own name."""
    fqdn = (server.fqdn,) if isinstance(server.fqdn, str) and server.fqdn else ()
    return (*fqdn, name) if same_name(name, server.name) else (name, *fqdn, server.name)


def _name(text: str) -> str:
    """A name as it is compared; an address without brackets and tag [RFC5321 4.1.3]."""
    bare = text.strip().lower().removeprefix("[").removesuffix("]").removeprefix("ipv6:").removesuffix(".")
    try:
        return normal_domain(bare)
    except ValueError:
        return bare


def _address(text: str) -> Address | None:
    try:
        address = ip_address(_name(text))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
