"""Certificates between Active Directory and the Edge nodes' own directories, so that direct trust needs no copied files.

    Active Directory   certificate of each Mailbox server   ->   AD LDS of the Edge
    subscription       certificate of the Edge              ->   its server object in Active Directory

It does for our own nodes what EdgeSync does for these certificates [FACT D 5.5], and is not EdgeSync: no recipients, no
connectors, no lease, no accounts.  Only differences are written, nothing is ever taken away, and what is not a
certificate goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from anontls.directory.edge_subscription import NAME, Subscription
from anontls.directory.ldap import LdapDirectory
from anontls.directory.ldap.connection import Connection, DomainControllerFailed
from anontls.directory.ldap.objects import CERTIFICATE
from anontls.directory.ldap.publish import (
    Conflict,
    ServerObject,
    WriteRefused,
    create,
    publish,
    server_objects,
)
from anontls.errors import MalformedInput, Unreachable
from anontls.facts import is_unknown, thumbprint_of

INTERVAL: Final = 180.0  # seconds; what EdgeSync has for the configuration [FACT D 5.5]
FIRST_RETRY: Final = 5.0  # seconds after a round in which a directory was down; doubled each time, up to the interval
MAKE_ONE: Final = (
    "an Edge server has an object in Active Directory when it is subscribed (New-EdgeSubscription); none is made here"
)

What = Literal["written", "created", "skipped", "conflict", "unreachable", "reachable"]


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that was done, or could not be.  A failure is reported when it begins or changes, not in every round."""

    what: What
    directory: str  #: the URL that was written or not
    edge: str = ""  #: the Edge server of the subscription
    server: str = ""  #: whose certificate it is
    before: str | None = None  #: thumbprint, or what there was instead
    after: str | None = None  #: thumbprint
    because: str = ""
    hint: str = ""


class Edge(msgspec.Struct, frozen=True):
    """One Edge node: what it handed over, and its AD LDS."""

    subscription: Subscription
    directory: LdapDirectory
    file: str = "the subscription"  #: how errors call it

    @property
    def url(self) -> str:
        """How reports call its directory."""
        return ",".join(self.directory.settings.urls)


class EdgeSync:
    """Rounds between one Active Directory and the Edge nodes; for one thread, each round blocks."""

    def __init__(self, active_directory: LdapDirectory, edges: Iterable[Edge]) -> None:
        self._active_directory = active_directory
        self._url = ",".join(active_directory.settings.urls)
        self._edges = tuple(edges)
        self._failures: set[Report] = set()  #: what could not be done in the last round; it has been reported
        self._down: set[str] = set()  #: directories that did not answer in the last round
        self._written: dict[tuple[str, str], str] = {}  #: directory, server -> thumbprint that was last written there
        self._wait = FIRST_RETRY
        self.failed = False  #: whether something of the last round could not be done

    @property
    def down(self) -> bool:
        """Whether a directory did not answer in the last round."""
        return bool(self._down)

    def next_round(self, interval: float) -> float:
        """Seconds until the next one."""
        if not self.down:
            self._wait = FIRST_RETRY
            return interval
        wait, self._wait = min(self._wait, interval), min(2 * self._wait, interval)
        return wait

    def round(self) -> list[Report]:
        """Read all, write what differs, and say what is new about it.

        Raises:
            MalformedInput: a subscription names a Mailbox server; nothing is written.
        """
        new: list[Report] = []
        failures: set[Report] = set()
        down: set[str] = set()
        for each in self._round():
            if each.what == "unreachable":
                # once, whatever its reasons are: they may change with each attempt
                if each.directory not in self._down | down:
                    new.append(each)
                down.add(each.directory)
            elif each.what in ("written", "created"):
                new.append(each)
            else:
                failures.add(each)
                if each not in self._failures:
                    new.append(each)
        if self._url in down:
            down |= self._down  # the others were not asked
        back = [Report(what="reachable", directory=url) for url in sorted(self._down - down)]
        # What a directory that is down hides is not new again afterwards.
        hidden = {old for old in self._failures if self._url in down or old.directory in down}
        self._failures, self._down = failures | hidden, down
        self.failed = bool(failures or down)
        return back + new

    def _round(self) -> Iterator[Report]:
        try:
            servers = self._active_directory.call(_active_directory)
        except Unreachable as e:
            yield _unreachable(self._url, e)
            return
        for edge in self._edges:
            self._require_edge(edge, servers)
        for edge in self._edges:
            yield from self._to_edge(edge, servers)
            yield from self._to_active_directory(edge, servers)

    def _require_edge(self, edge: Edge, servers: dict[str, list[ServerObject]]) -> None:
        """A subscription is a file from outside: it must never name the certificate of a Mailbox server."""
        found = _only(servers, edge.subscription.server)
        if found is not None and found.server.role == "Mailbox":
            message = f"{found.name} is a Mailbox server in Active Directory ({self._url}), not an Edge server"
            hint = "give the file that `anontls edge subscribe` has made on the Edge server"
            raise MalformedInput(f"{edge.file}: $.server", message, hint=hint)

    # --- Mailbox servers' certificates to the Edge ------------------------------------------------------------------------

    def _to_edge(self, edge: Edge, servers: dict[str, list[ServerObject]]) -> Iterator[Report]:
        name, url = edge.subscription.server, edge.url
        try:
            there = edge.directory.call(_adlds)
        except Unreachable as e:
            yield _unreachable(url, e, edge=name)
            return
        own = _only(there, name)
        if own is None:
            because = (
                f"it has no server object {name}, so it is not this Edge server's directory: nothing is written to it"
            )
            yield Report(what="skipped", directory=url, edge=name, because=because)
            return
        if (now := own.shown) != thumbprint_of(edge.subscription.certificate):
            because = f"the Edge's own directory has another certificate for it ({now or 'none'}) than the subscription"
            hint = "after a renewal: `anontls edge subscribe` again, and give the new file to `edge sync`"
            yield Report(what="skipped", directory=url, edge=name, server=name, because=because, hint=hint)
        for found in servers.values():
            if all(each.server.role == "Mailbox" for each in found):
                yield from self._one_to_edge(edge, own, found, there)
        for gone in there.keys() - servers.keys():
            if there[gone][0].server.role == "Mailbox":
                because = (
                    "Active Directory shows no such server; the Edge trusts its certificate until the object is deleted"
                )
                yield Report(what="skipped", directory=url, edge=name, server=there[gone][0].name, because=because)

    def _one_to_edge(
        self, edge: Edge, own: ServerObject, found: list[ServerObject], there: dict[str, list[ServerObject]]
    ) -> Iterator[Report]:
        server, name, url = found[0], edge.subscription.server, edge.url

        def skipped(because: str, hint: str = "") -> Report:
            return Report(what="skipped", directory=url, edge=name, server=server.name, because=because, hint=hint)

        if len(found) > 1 or len(targets := there.get(server.name.lower(), [])) > 1:
            yield skipped("several servers have this name")
            return
        try:
            certificate = server.certificate
        except (ValueError, WriteRefused) as e:
            yield skipped(f"what Active Directory has is not a certificate: {e}")
            return
        if certificate is None:
            yield skipped(f"Active Directory shows no {CERTIFICATE} of it", "`anontls cert publish` puts one there")
        elif targets and targets[0].server.role == "Edge":
            yield skipped("in the Edge's directory this is an Edge server")
        elif targets:
            yield from self._write(edge.directory, url, name, targets[0], certificate)
        elif not NAME.fullmatch(server.name):
            yield skipped("no server is called like that; no object is made for it")
        else:
            yield from self._create(edge, own, server, certificate)

    def _create(self, edge: Edge, own: ServerObject, server: ServerObject, certificate: bytes) -> Iterator[Report]:
        name, url = edge.subscription.server, edge.url
        try:
            edge.directory.call(lambda connection: create(connection, own, server, certificate))
        except Unreachable as e:
            yield _failure(e, url, name, server.name)
            return
        after = self._written[url, server.name] = thumbprint_of(certificate)
        yield Report(what="created", directory=url, edge=name, server=server.name, after=after)

    # --- the Edge's certificate to Active Directory -----------------------------------------------------------------------

    def _to_active_directory(self, edge: Edge, servers: dict[str, list[ServerObject]]) -> Iterator[Report]:
        subscription = edge.subscription
        found = _only(servers, subscription.server)
        because, hint = "", ""
        if found is None:
            because, hint = f"Active Directory has no server object {subscription.server}, or several", MAKE_ONE
        elif is_unknown(role := found.server.role):
            because = f"in Active Directory {found.name} is not known to be an Edge server: {role.because}"
        elif is_unknown(found.server.fqdn) or str(found.server.fqdn).lower() != subscription.fqdn.lower():
            fqdn = found.server.fqdn
            because = (
                f"in Active Directory its name is {fqdn.because if is_unknown(fqdn) else fqdn}, not {subscription.fqdn}"
            )
        if found is None or because:
            yield Report(
                what="skipped",
                directory=self._url,
                edge=subscription.server,
                server=subscription.server,
                because=because,
                hint=hint,
            )
            return
        yield from self._write(self._active_directory, self._url, subscription.server, found, subscription.certificate)

    def _write(
        self, directory: LdapDirectory, url: str, edge: str, there: ServerObject, certificate: bytes
    ) -> Iterator[Report]:
        before, after = there.shown, thumbprint_of(certificate)
        try:
            if there.certificate == certificate:
                return
        except (ValueError, WriteRefused):
            pass  # garbage is replaced, and publish() says what cannot be
        try:
            directory.call(lambda connection: publish(connection, there, certificate))
        except Unreachable as e:
            yield _failure(e, url, edge, there.name)
            return
        last = self._written.get((url, there.name))
        self._written[url, there.name] = after
        because = "it was written before, and changed by somebody else since" if last == after else ""
        yield Report(
            what="written", directory=url, edge=edge, server=there.name, before=before, after=after, because=because
        )


def _by_name(connection: Connection) -> dict[str, list[ServerObject]]:
    found: dict[str, list[ServerObject]] = {}
    for each in server_objects(connection):
        found.setdefault(each.name.lower(), []).append(each)
    return found


def _active_directory(connection: Connection) -> dict[str, list[ServerObject]]:
    if connection.root.adlds:
        raise DomainControllerFailed(f"{connection.url}: AD LDS, not Active Directory")
    return _by_name(connection)


def _adlds(connection: Connection) -> dict[str, list[ServerObject]]:
    if not connection.root.adlds:
        raise DomainControllerFailed(f"{connection.url}: not AD LDS of an Edge server")
    return _by_name(connection)


def _only(servers: dict[str, list[ServerObject]], name: str) -> ServerObject | None:
    found = servers.get(name.lower(), [])
    return found[0] if len(found) == 1 else None


def _unreachable(url: str, error: Unreachable, *, edge: str = "") -> Report:
    return Report(what="unreachable", directory=url, edge=edge, because=str(error), hint=error.hint or "")


def _failure(error: Unreachable, url: str, edge: str, server: str) -> Report:
    what: What = "unreachable"
    if isinstance(error, Conflict):
        what = "conflict"
    elif isinstance(error, WriteRefused):
        what = "skipped"
    return Report(what=what, directory=url, edge=edge, server=server, because=str(error), hint=error.hint or "")
