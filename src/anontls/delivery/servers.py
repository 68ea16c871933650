"""The servers of an organisation as seen from one of them: how far each is, and in which site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from anontls.delivery.sites import Path, SiteLink, best_path
from anontls.facts import Organization, SendConnector, Server, Unknown, is_unknown, same_name


def is_named(server: Server, name: str) -> bool:
    """Whether ``name`` is the server's name or FQDN."""
    return same_name(name, server.name) or (isinstance(server.fqdn, str) and same_name(name, server.fqdn))


class Distance(NamedTuple):
    """How far a source server is: 0 this server, 1 another in or subscribed to this site, 2 another site."""

    place: int
    site: str
    path: Path | None = None  # to another site, where the costs of links are known


class Servers:
    """The servers of ``organization`` as ``here`` sees them."""

    def __init__(self, organization: Organization, here: Server, site_links: Sequence[SiteLink] | None) -> None:
        self.organization = organization
        self.here = here
        self.site_links = site_links

    def all(self) -> tuple[Server, ...]:
        return tuple(sorted(self.organization.servers, key=lambda s: s.name.lower()))

    def named(self, name: str) -> Server | None:
        return next((s for s in self.organization.servers if is_named(s, name)), None)

    def or_stub(self, name: str) -> Server:
        """The server; one of which nothing is known where no source holds it."""
        return self.named(name) or Server(name=name)

    def smart_host(self, host: str) -> Server | None:
        address = host.strip().removeprefix("[").removesuffix("]")
        return next((s for s in self.all() if is_named(s, host.strip()) or address in s.addresses), None)

    def mailbox_servers_of(self, site: str) -> list[Server]:
        return [s for s in self.all() if s.role == "Mailbox" and isinstance(s.site, str) and same_name(s.site, site)]

    def nearest(self, connector: SendConnector) -> Distance | Unknown:
        """The distance of the nearest source server."""
        sources = connector.source_transport_servers
        if is_unknown(sources):
            return sources
        distances = [self.distance(name) for name in sources or ()]
        if not distances:
            return Unknown("it has no source server")
        known = [d for d in distances if not is_unknown(d)]
        best = min(known, key=lambda d: d.place, default=None)
        for d in distances:
            if is_unknown(d) and (best is None or best.place > 0):
                return d
        assert best is not None
        if best.place < 2 or len({d.site.lower() for d in known}) == 1:
            return best
        ways = [(d.path, d) for d in known if d.path is not None]
        if len(ways) < len(known):
            return Unknown("its source servers are in several other sites, and no export holds the costs of site links")
        return min(ways, key=lambda way: way[0])[1]

    def distance(self, name: str) -> Distance | Unknown:
        if is_named(self.here, name):
            return Distance(0, "")
        here, there = site_of(self.here), self.site_of_source(name)
        if is_unknown(there):
            return there
        if is_unknown(here):
            return Unknown(f"the site of {self.here.name} is not known: {here.because}")
        if same_name(here, there):
            return Distance(1, there)
        if self.site_links is None:
            return Distance(2, there)
        path = best_path(self.site_links, here, there)
        return Unknown(f"no site links lead from {here} to {there}") if path is None else Distance(2, there, path)

    def site_of_source(self, name: str) -> str | Unknown:
        """The site that a source server stands in, or that an Edge server is subscribed to."""
        server = self.named(name)
        if server is not None and server.role == "Mailbox":
            site = site_of(server)
            return Unknown(f"the site of {name} is not known: {site.because}") if is_unknown(site) else site
        subscribed = self.subscription(name)
        if server is not None and server.role == "Edge":
            return subscribed
        if isinstance(subscribed, str):  # only Edge servers are subscribed
            return subscribed
        why = server.role if server is not None else Unknown("no source holds this server")
        assert is_unknown(why)
        return Unknown(f"what {name} is is not known: {why.because}")

    def subscription(self, edge: str) -> str | Unknown:
        """The site that the Edge server is subscribed to."""
        subscriptions = self.organization.edge_subscriptions
        if is_unknown(subscriptions):
            return Unknown(f"the site that {edge} is subscribed to is not known: {subscriptions.because}")
        server = self.named(edge)
        for each in subscriptions:
            if same_name(each.name, edge) or (server is not None and is_named(server, each.name)):
                if is_unknown(each.site):
                    return Unknown(f"the site that {edge} is subscribed to is not known: {each.site.because}")
                if each.site:
                    return each.site
        return Unknown(f"{edge} is not subscribed to a site")

    def is_at(self, name: str, nearest: Distance) -> bool:
        found = self.distance(name)
        return not is_unknown(found) and found.place == nearest.place and same_name(found.site, nearest.site)

    def is_edge(self, name: str) -> bool:
        server = self.named(name)
        return server is None or server.role != "Mailbox"  # one whose site is known without a role is subscribed


def site_of(server: Server) -> str | Unknown:
    return Unknown("it is not set") if server.site is None or server.site == "" else server.site
