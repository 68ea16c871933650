"""Routing: recipient -> accepted domain or Send connector -> next hop and ``DeliveryType``.

For each server on the way these questions are asked, in this order:

1  Is it a Mailbox or an Edge server?
2  Is the recipient's domain an accepted domain?
3  Mailbox server, accepted domain: on which server is the mailbox?          [FACT D 6.1]
4  Which Send connectors hold the domain, and which hold it most closely?    [FACT D 6.2]
5  Which of these is the best: cost, site path, hops, name?                  [FACT D 6.2]
6  How does it leave: from here, by another server, by an Edge server?       [FACT D 6.1]

A step is data; its wording stands in ``report/language`` under ``route.``.  What documents leave open and what we read
into it stands in ``docs/routing.md``; such a step is noted, never silently passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from anontls.delivery.address_space import (
    DASHES,
    Closeness,
    address_space,
    closeness,
    domain_of,
    holds_parent_only,
)
from anontls.delivery.hop import NO_VALUES, Candidate, End, Hop, Kind, Outcome, Route, Step
from anontls.delivery.mailbox import a_database, grouped, kinds_of_delivery, same_group
from anontls.delivery.servers import Distance, Servers, is_named
from anontls.delivery.sites import SiteLink
from anontls.facts import (
    ABSENT,
    AcceptedDomain,
    DeliveryType,
    Organization,
    SendConnector,
    Server,
    Unknown,
    is_unknown,
    same_name,
)
from anontls.facts.enums import enum_name

UNREACHABLE_DOMAIN = "Unreachable Domain"  # [FACT D 6.1]


def route(
    organization: Organization,
    source: Server,
    recipient: str,
    *,
    mailbox_server: Server | None = None,
    site_links: Sequence[SiteLink] | None = None,
) -> Route:
    """The way of a message for ``recipient`` that ``source`` has accepted; pure.

    ``mailbox_server`` holds the recipient's mailbox, where that is known; ``site_links`` are all links between sites.

    Raises:
        ValueError: ``recipient`` is no address.
    """
    domain = domain_of(recipient)
    hops: list[Hop] = []
    server, passed = source, set[str]()
    while True:
        hop = _Routing(organization, server, domain, mailbox_server, site_links).hop()
        passed.add(server.name.lower())
        if hop.ends is not None:
            end = hop.ends
        elif hop.receivers[0].name.lower() in passed:
            end = End.LOOP
            again = Step("6", Outcome.STOPPED, "loop", {"server": hop.receivers[0].name})
            hop = msgspec.structs.replace(hop, steps=(*hop.steps, again), ends=end)
        else:
            hops.append(hop)
            server = hop.receivers[0]
            continue
        return Route(source, recipient, domain, (*hops, hop), end)


class _Stop(Exception):
    """The questions end: with this hop."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop


class _Routing:
    """The questions of one hop."""

    def __init__(
        self,
        organization: Organization,
        server: Server,
        domain: str,
        mailbox_server: Server | None,
        site_links: Sequence[SiteLink] | None,
    ) -> None:
        self.organization = organization
        self.server = server
        self.domain = domain
        self.mailbox_server = mailbox_server
        self.servers = Servers(organization, server, site_links)
        self.edge = server.role == "Edge"
        self.steps: list[Step] = []
        self.candidates: tuple[Candidate, ...] = ()
        self.accepted: AcceptedDomain | None = None
        self.kinds: tuple[Kind, ...] = ()

    def hop(self) -> Hop:
        try:
            self._role()
            self._accepted_domain()
            mailbox = None if self.edge or self.accepted is None else self._mailbox()
            if mailbox is not None:
                return mailbox
            found = self._leave(self._best(self._closest()))
        except _Stop as stop:
            found = stop.hop
        if not self.kinds:
            return found
        # InternalRelay: it leaves so only if the recipient has no mailbox here, and that is not known.
        kinds = self.kinds
        if not is_unknown(found.delivery_type):
            kinds += (Kind(found.delivery_type, found.next_hop_domain, "relay", found.next_hops),)
        why = next(s.values["why"] for s in found.steps if s.because == "mailbox.relay-not-known")
        assert is_unknown(why)
        return msgspec.structs.replace(
            found, delivery_type=why, next_hop_domain=why, ends=End.UNKNOWN, kinds=kinds, receivers=(), next_hops=()
        )

    # --- answers

    def _say(self, step: str, outcome: Outcome, because: str, values: Mapping[str, object] = NO_VALUES) -> None:
        self.steps.append(Step(step, outcome, because, values))

    def _found(
        self,
        delivery_type: DeliveryType | Unknown,
        next_hop_domain: str | Unknown,
        *,
        ends: End | None = None,
        connector: SendConnector | None = None,
        next_hops: Iterable[str] = (),
        receivers: Iterable[Server] = (),
        kinds: tuple[Kind, ...] = (),
    ) -> Hop:
        return Hop(
            server=self.server,
            delivery_type=delivery_type,
            next_hop_domain=next_hop_domain,
            steps=tuple(self.steps),
            ends=ends,
            connector=connector,
            next_hops=tuple(next_hops),
            receivers=tuple(receivers),
            candidates=self.candidates,
            kinds=kinds,
        )

    def _not_known(
        self, step: str, fact: str, why: Unknown, *, of: str = "", connector: SendConnector | None = None
    ) -> _Stop:
        self._say(step, Outcome.UNKNOWN, "unknown.of" if of else "unknown", {"fact": fact, "why": why, "of": of})
        return _Stop(self._found(why, why, ends=End.UNKNOWN, connector=connector))

    # --- 1, 2

    def _role(self) -> None:
        role = self.server.role
        if is_unknown(role):
            raise self._not_known("1", "ServerRole", role, of=self.server.name)
        self._say("1", Outcome.PASSED, "role", {"role": role})

    def _accepted_domain(self) -> None:
        """The accepted domain that holds the recipient's most closely, as an address space would."""
        domains = self.organization.accepted_domains
        if is_unknown(domains):
            raise self._not_known("2", "AcceptedDomains", domains)
        held: list[tuple[Closeness, AcceptedDomain]] = []
        for each in domains:
            try:
                close = closeness(each.domain_name, self.domain)
            except ValueError as e:
                raise self._not_known("2", "DomainName", Unknown(str(e)), of=each.domain_name) from None
            if close is not None:
                held.append((close, each))
        if not held:
            self._say("2", Outcome.PASSED, "domain.outside", {"domain": self.domain})
            return
        closest = max(close for close, _ in held)
        best = [each for close, each in held if close == closest]
        types = {self._type_of(each) for each in best}
        if len(types) > 1:
            raise self._not_known("2", "DomainType", Unknown("two entries differ"), of=best[0].domain_name)
        self.accepted = best[0]
        parent = holds_parent_only(best[0].domain_name, self.domain)
        self._say(
            "2",
            Outcome.NOTED if parent else Outcome.PASSED,
            "domain.accepted",
            {"entry": best[0].domain_name, "type": types.pop(), "notes": ("parent",) if parent else ()},
        )

    def _type_of(self, accepted: AcceptedDomain) -> str:
        value = accepted.domain_type
        text = ABSENT if value is None or is_unknown(value) else enum_name(value, {})
        if is_unknown(text):
            raise self._not_known("2", "DomainType", value if is_unknown(value) else text, of=accepted.domain_name)
        for known in ("Authoritative", "InternalRelay", "ExternalRelay"):
            if same_name(text.strip(), known):
                return known
        raise self._not_known("2", "DomainType", Unknown(f"{text} is none of its values"), of=accepted.domain_name)

    # --- 3

    def _mailbox(self) -> Hop | None:
        assert self.accepted is not None
        kind = self._type_of(self.accepted)
        if kind == "ExternalRelay":
            self._say("3", Outcome.NOTED, "mailbox.external-relay")
            return None
        if self.mailbox_server is not None:
            return self._to(self.mailbox_server)
        holders = [s for s in self.servers.all() if s.role != "Edge"]
        if kind == "Authoritative" and [s.name for s in holders] == [self.server.name]:
            self._say("3", Outcome.NOTED, "mailbox.only", {"server": self.server.name})
            return self._in_this_group(self.server)
        kinds = grouped(kind for holder in holders for kind in kinds_of_delivery(self.server, holder))
        why = Unknown("no export tells on which server the mailbox of a recipient is")
        if kind == "InternalRelay":
            self._say("3", Outcome.UNKNOWN, "mailbox.relay-not-known", {"why": why})
            self.kinds = kinds
            return None
        self._say("3", Outcome.UNKNOWN, "mailbox.not-known", {"why": why})
        return self._found(why, why, ends=End.UNKNOWN, kinds=kinds)

    def _to(self, holder: Server) -> Hop:
        """The way to the mailbox on ``holder``."""
        kinds = tuple(kinds_of_delivery(self.server, holder))
        if len(kinds) > 1:
            why = Unknown(
                f"which of the ways to {holder.name} it is hangs on DAG, site or hub sites that are not known"
            )
            self._say("3", Outcome.UNKNOWN, "mailbox.way-not-known", {"server": holder.name, "why": why})
            return self._found(why, why, ends=End.UNKNOWN, kinds=kinds)
        (kind,) = kinds
        self._say("3", Outcome.PASSED, f"mailbox.{kind.where}", {"server": holder.name, "domain": kind.next_hop_domain})
        if kind.delivery_type is DeliveryType.SMTP_DELIVERY_TO_MAILBOX:
            return self._in_this_group(holder)
        members = sorted((s for s in self.servers.all() if same_group(s, holder)), key=lambda s: s.name.lower())
        return self._found(
            kind.delivery_type, kind.next_hop_domain, next_hops=(s.name for s in members), receivers=members
        )

    def _in_this_group(self, holder: Server) -> Hop:
        return self._found(
            DeliveryType.SMTP_DELIVERY_TO_MAILBOX,
            a_database(),
            ends=End.MAILBOX,
            next_hops=(holder.name,),
            receivers=(holder,),
        )

    # --- 4

    def _closest(self) -> list[Candidate]:
        connectors = self.organization.send_connectors
        if is_unknown(connectors):
            raise self._not_known("4", "SendConnectors", connectors)
        found: list[Candidate] = []
        doubtful: list[tuple[Candidate, Unknown]] = []
        notes: dict[str, object] = {}
        disabled = []
        for connector in sorted(connectors, key=_by_name):
            if connector.implicit:
                continue
            if connector.enabled is False:
                disabled.append(connector.identity)
                continue
            candidate = self._candidate(connector)
            if candidate is None:
                continue
            enabled = connector.enabled
            # As with Receive connectors: one that no source calls disabled is taken as enabled, and that is said.
            if is_unknown(enabled) and enabled != ABSENT:
                doubtful.append((candidate, enabled))
            else:
                found.append(candidate)
        closest = max((c.closeness for c in found), default=None)
        for candidate, why in doubtful:
            if closest is None or candidate.closeness >= closest:
                raise self._not_known("4", "Enabled", why, of=candidate.name)
        self.candidates = tuple(
            sorted(found, key=lambda c: (-c.closeness.kind, -c.closeness.labels, c.cost, _by_name(c.connector)))
        )
        values: dict[str, object] = {"domain": self.domain, "disabled": tuple(disabled)}
        if closest is None:
            because = "space.none-disabled" if disabled else "space.none"
            self._say("4", Outcome.STOPPED, because, values)
            raise _Stop(self._found(DeliveryType.UNREACHABLE, UNREACHABLE_DOMAIN, ends=End.UNREACHABLE))
        best = [c for c in self.candidates if c.closeness == closest]
        if any(holds_parent_only(c.space, self.domain) for c in best):
            notes["parent"] = True
        if any(is_unknown(c.connector.enabled) for c in best):
            notes["enabled"] = True
        if any(self._is_far(c.connector) for c in best):
            notes["scoped"] = True
        values |= {
            "space": best[0].space,
            "connectors": tuple(c.name for c in best),
            "costs": tuple(c.cost for c in best),
            "notes": (*notes, *(("disabled",) if disabled else ())),
        }
        self._say("4", Outcome.NOTED if notes else Outcome.PASSED, "space.closest", values)
        return best

    def _candidate(self, connector: SendConnector) -> Candidate | None:
        """The connector with its closest and then cheapest address space; ``None`` when it is not one for this domain."""
        if self.edge:
            # EdgeSync gives an Edge server its own connectors; that it uses no others is our reading.
            sources = connector.source_transport_servers
            if is_unknown(sources):
                raise self._not_known("4", "SourceTransportServers", sources, of=connector.identity)
            if not any(is_named(self.server, name) for name in sources or ()):
                return None
        spaces = connector.address_spaces
        if is_unknown(spaces):
            raise self._not_known("4", "AddressSpaces", spaces, of=connector.identity)
        held = []
        for text in spaces or ():
            try:
                space = address_space(text)
                if space.type != "SMTP":
                    continue
                close = self._dashes(connector) if space.space == DASHES else closeness(space.space, self.domain)
            except ValueError as e:
                raise self._not_known("4", "AddressSpaces", Unknown(str(e)), of=connector.identity) from None
            if close is not None:
                held.append(Candidate(connector, space.space, space.cost, close))
        return min(held, key=lambda c: (-c.closeness.kind, -c.closeness.labels, c.cost), default=None)

    def _dashes(self, connector: SendConnector) -> Closeness | None:
        """``--`` holds the accepted domains, on Edge connectors only; as closely as the accepted domain itself does."""
        if not self.edge or self.accepted is None:
            return None
        if self._type_of(self.accepted) == "ExternalRelay":
            why = Unknown('whether "--" holds accepted domains of the type ExternalRelay is not confirmed')
            raise self._not_known("4", "AddressSpaces", why, of=connector.identity)
        return closeness(self.accepted.domain_name, self.domain)

    def _is_far(self, connector: SendConnector) -> bool:
        """Whether no source is in this site: only then does it matter whether the connector is scoped to its own."""
        sources = connector.source_transport_servers
        if self.edge or is_unknown(sources):
            return False
        return all(is_unknown(d) or d.place == 2 for d in map(self.servers.distance, sources or ()))

    # --- 5

    def _best(self, closest: list[Candidate]) -> Candidate:
        cost = min(c.cost for c in closest)
        cheapest = [c for c in closest if c.cost == cost]
        if len(cheapest) == 1:
            because = "best.only" if len(closest) == 1 else "best.cost"
            self._say("5", Outcome.PASSED, because, {"connector": cheapest[0].name, "cost": cost})
            return cheapest[0]
        near = [(c, Distance(0, "") if self.edge else self.servers.nearest(c.connector)) for c in cheapest]
        known = [(c, d) for c, d in near if not is_unknown(d)]
        place = min((d.place for _, d in known), default=3)
        for c, d in near:
            if is_unknown(d) and place > 0:  # what is on this server is known, and nothing is nearer
                raise self._not_known("5", "distance", d, of=c.name)
        best = [(c, d) for c, d in known if d.place == place]
        because = f"best.place.{place}"
        if place == 2 and len({d.site.lower() for _, d in best}) > 1:
            paths = [d.path for _, d in best if d.path is not None]
            if len(paths) < len(best):
                sites = Unknown("no export holds the costs of site links")
                raise self._not_known("5", "site-links", sites)
            shortest = min(paths)
            best = [(c, d) for c, d in best if d.path == shortest]
            because = "best.path"
        values: dict[str, object] = {
            "connector": best[0][0].name,
            "cost": cost,
            "others": tuple(c.name for c in cheapest),
        }
        if len(best) > 1:
            chosen = min((c for c, _ in best), key=lambda c: _by_name(c.connector))
            self._say("5", Outcome.NOTED, "best.name", {**values, "connector": chosen.name})
            return chosen
        self._say("5", Outcome.PASSED, because, values)
        return best[0][0]

    # --- 6

    def _leave(self, best: Candidate) -> Hop:
        connector = best.connector
        if self.edge:
            return self._from_here(connector)
        nearest = self.servers.nearest(connector)
        if is_unknown(nearest):
            raise self._not_known("6", "SourceTransportServers", nearest, of=connector.identity, connector=connector)
        if nearest.place == 0:
            return self._from_here(connector)
        sources = connector.source_transport_servers
        assert isinstance(sources, tuple)
        at = [name for name in sources if self.servers.is_at(name, nearest)]
        edges = [name for name in at if self.servers.is_edge(name)]
        if edges and len(edges) < len(at):
            why = Unknown("both Mailbox and Edge servers are sources, and which is used is not documented")
            raise self._not_known("6", "SourceTransportServers", why, of=connector.identity, connector=connector)
        receivers = sorted(map(self.servers.or_stub, at), key=lambda s: s.name.lower())
        names = tuple(s.name for s in receivers)
        name, site = connector.identity, nearest.site
        values: dict[str, object] = {"connector": name, "servers": names, "site": site}
        if edges and nearest.place == 1:
            self._say("6", Outcome.PASSED, "leave.edge", values)
            kind = DeliveryType.SMTP_RELAY_WITHIN_AD_SITE_TO_EDGE
        elif edges:
            receivers = self.servers.mailbox_servers_of(site)
            names = tuple(s.name for s in receivers)
            if not receivers:
                why = Unknown(f"no source holds a Mailbox server of the site {site}")
                raise self._not_known("6", "Site", why, of=site, connector=connector)
            self._say("6", Outcome.NOTED, "leave.edge-site", {**values, "notes": ("hub",)})
            kind, name = DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE, site
        else:
            kind = DeliveryType.SMTP_RELAY_TO_CONNECTOR_SOURCE_SERVERS
            notes = ("hub",) if nearest.place == 2 else ()
            outcome = Outcome.NOTED if notes else Outcome.PASSED
            self._say("6", outcome, "leave.source", {**values, "notes": notes})
        # Inside the organisation the implicit Send connector is used; this one only says where to.  [FACT D 6.2]
        return self._found(kind, name, connector=connector, next_hops=names, receivers=receivers)

    def _from_here(self, connector: SendConnector) -> Hop:
        """This server is a source: straight to the outside, or to the smart hosts."""
        dns, hosts = connector.dns_routing_enabled, connector.smart_hosts
        name = connector.identity
        if dns is True:
            notes = ("front-end",) if connector.frontend_proxy_enabled is True else ()
            self._say("6", Outcome.PASSED, "leave.dns", {"connector": name, "domain": self.domain, "notes": notes})
            return self._found(
                DeliveryType.DNS_CONNECTOR_DELIVERY,
                self.domain,
                ends=End.OUTSIDE,
                connector=connector,
                next_hops=(self.domain,),
            )
        for fact, value in (("DNSRoutingEnabled", dns), ("SmartHosts", hosts)):
            if is_unknown(value):
                raise self._not_known("6", fact, value, of=name, connector=connector)
        assert not is_unknown(hosts)
        if not hosts:
            why = Unknown("it is empty, and DNSRoutingEnabled is not true")
            raise self._not_known("6", "SmartHosts", why, of=name, connector=connector)
        next_hop_domain = ",".join(hosts)
        if DASHES in (host.strip() for host in hosts):
            return self._to_site(connector, next_hop_domain)
        ours = [server for host in hosts if (server := self.servers.smart_host(host)) is not None]
        inside = len(ours) == len(hosts)
        because = "leave.smart-host-inside" if inside else "leave.smart-host"
        notes = ("front-end",) if connector.frontend_proxy_enabled is True else ()
        self._say("6", Outcome.PASSED, because, {"connector": name, "hosts": hosts, "notes": notes})
        return self._found(
            DeliveryType.SMART_HOST_CONNECTOR_DELIVERY,
            next_hop_domain,
            ends=None if inside else End.OUTSIDE,
            connector=connector,
            next_hops=hosts,
            receivers=ours if inside else (),
        )

    def _to_site(self, connector: SendConnector, next_hop_domain: str) -> Hop:
        """``--`` as a smart host: all Mailbox servers of the subscribed site [FACT D 6.2]."""
        if not self.edge:
            why = Unknown('"--" is a smart host of Edge servers only')
            raise self._not_known("6", "SmartHosts", why, of=connector.identity, connector=connector)
        site = self.servers.subscription(self.server.name)
        if is_unknown(site):
            raise self._not_known("6", "EdgeSubscription", site, of=self.server.name, connector=connector)
        servers = self.servers.mailbox_servers_of(site)
        if not servers:
            why = Unknown(f"no source holds a Mailbox server of the site {site}")
            raise self._not_known("6", "Site", why, of=site, connector=connector)
        names = tuple(s.name for s in servers)
        self._say("6", Outcome.PASSED, "leave.site", {"connector": connector.identity, "site": site, "servers": names})
        return self._found(
            DeliveryType.SMART_HOST_CONNECTOR_DELIVERY,
            next_hop_domain,
            connector=connector,
            next_hops=names,
            receivers=servers,
        )


def _by_name(connector: SendConnector) -> tuple[str, str]:
    return connector.identity.lower(), connector.identity
