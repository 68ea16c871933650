"""The objects of exports and snapshots as pieces: each with what it is, and whose it says it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, tzinfo
from typing import Any

import msgspec

from anontls.directory.exchange_export import cmdlets
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.cmdlets import NOT_NAMED, Kind
from anontls.facts import (
    AcceptedDomain,
    Certificate,
    EdgeSubscription,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Unplaced,
    is_unknown,
)

STRUCT: Mapping[Kind, type[msgspec.Struct]] = {
    Kind.SERVER: Server,
    Kind.TRANSPORT_SERVICE: Server,
    Kind.MAILBOX_SERVER: Server,
    Kind.INTERNAL_TLS_CERT: Server,
    Kind.CERTIFICATE: Certificate,
    Kind.BARE_CERTIFICATE: Certificate,
    Kind.RECEIVE_CONNECTOR: ReceiveConnector,
    Kind.SEND_CONNECTOR: SendConnector,
    Kind.QUEUE: Queue,
    Kind.ACCEPTED_DOMAIN: AcceptedDomain,
    Kind.EDGE_SUBSCRIPTION: EdgeSubscription,
}
#: What a server has many of, and what the organisation has many of: the field of the structure.
OF_A_SERVER: Mapping[Kind, str] = {
    Kind.CERTIFICATE: "certificates",
    Kind.RECEIVE_CONNECTOR: "receive_connectors",
    Kind.QUEUE: "queues",
}
OF_THE_ORGANIZATION: Mapping[Kind, str] = {
    Kind.SEND_CONNECTOR: "send_connectors",
    Kind.ACCEPTED_DOMAIN: "accepted_domains",
    Kind.EDGE_SUBSCRIPTION: "edge_subscriptions",
}


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One object on the way to its place; ``owner`` is the server that it says it belongs to, name or FQDN."""

    kind: Kind
    facts: Any
    identity: str
    file: str
    owner: str | None = None
    computer: str | None = None
    collected: datetime | None = None
    organization: str | None = None


def piece_of(found: CmdletObject, kind: Kind, *, collected: datetime | None, zone: tzinfo | None) -> Piece:
    """An object of an export."""
    properties, where = found.properties, f"{found.file}: {found.where}"
    owner: str | None = None
    organization: str | None = None
    identity = NOT_NAMED
    facts: msgspec.Struct
    match kind:
        case Kind.SERVER | Kind.MAILBOX_SERVER | Kind.TRANSPORT_SERVICE | Kind.INTERNAL_TLS_CERT:
            facts = server = _server(properties, kind, where)
            identity = server.name
            owner = None if identity == NOT_NAMED else identity
            organization = cmdlets.organization_of_dn(properties) if kind is Kind.SERVER else None
        case Kind.CERTIFICATE | Kind.BARE_CERTIFICATE:
            lists_keys = kind is Kind.CERTIFICATE
            owner = cmdlets.name_of(properties, "Server")
            if owner:  # a certificate with its server beside it is of that server's store
                kind = Kind.CERTIFICATE
            facts, named = cmdlets.exported_certificate(properties, where, lists_keys=lists_keys, zone=zone)
            owner = named.partition("\\")[0] if named else owner
            identity = named or str(facts.thumbprint if not is_unknown(facts.thumbprint) else facts.subject)
        case Kind.RECEIVE_CONNECTOR:
            facts = receive = cmdlets.receive_connector(properties, where)
            identity, owner = receive.identity, receive.server
        case Kind.QUEUE:
            facts = queue = cmdlets.queue(properties, where)
            identity = queue.identity or NOT_NAMED
            owner = _owner_in(identity)
        case Kind.SEND_CONNECTOR:
            facts = send = cmdlets.send_connector(properties, where)
            identity = send.identity
        case Kind.ACCEPTED_DOMAIN:
            facts = domain = cmdlets.accepted_domain(properties, where)
            identity = domain.domain_name
        case Kind.EDGE_SUBSCRIPTION:
            facts = subscription = cmdlets.edge_subscription(properties, where)
            identity = subscription.name
    return Piece(
        kind=kind,
        facts=facts,
        identity=identity,
        file=found.file,
        owner=owner or None,
        computer=found.computer,
        collected=collected,
        organization=organization,
    )


def _server(properties: Mapping[str, Any], kind: Kind, where: str) -> Server:
    if kind is Kind.INTERNAL_TLS_CERT:
        return cmdlets.server(cmdlets.attribute_of(properties), where)
    server = cmdlets.server(properties, where)
    if kind is Kind.TRANSPORT_SERVICE and "InternalTransportCertificate" in properties:
        # The same bytes as the attribute of the server object [FACT O 5.3]
        attribute = cmdlets.internal_tls_cert(properties["InternalTransportCertificate"], where)
        if isinstance(attribute.der, bytes):
            return msgspec.structs.replace(server, internal_tls_cert=attribute)
    return server


def _owner_in(identity: str) -> str | None:
    owner, backslash, _ = identity.partition("\\")
    return owner if backslash else None


def pieces_of(organization: Organization, file: str) -> Iterator[Piece | Unplaced]:
    """The objects of a snapshot, apart again; an unplaced one that cannot be read any more stays as it is."""
    rows = {source.file: source for source in organization.sources}
    times = [source.collected for source in organization.sources if source.collected]
    collected = max(times, default=None)

    def piece(kind: Kind, facts: Any, identity: str, owner: str | None = None) -> Piece:
        return Piece(kind=kind, facts=facts, identity=identity, file=file, owner=owner, collected=collected)

    for server in organization.servers:
        yield Piece(
            kind=Kind.SERVER,
            facts=server,
            identity=server.name,
            file=file,
            owner=server.name,
            collected=collected,
            organization=organization.name,
        )
        for kind, field in OF_A_SERVER.items():
            for facts in _known(getattr(server, field)):
                yield piece(kind, facts, str(key_of(kind, facts)), server.name)
    for kind, field in OF_THE_ORGANIZATION.items():
        for facts in _known(getattr(organization, field)):
            yield piece(kind, facts, str(key_of(kind, facts)))
    for item in organization.unplaced:
        try:
            kind = Kind(item.type)
            facts = msgspec.convert(item.object, STRUCT[kind])
        except (ValueError, msgspec.ValidationError):
            yield item
            continue
        source = rows.get(item.file)
        owner = facts.name if isinstance(facts, Server) and facts.name != NOT_NAMED else None
        yield Piece(
            kind=kind,
            facts=facts,
            identity=item.identity,
            file=item.file,
            owner=owner or _owner_in(item.identity),
            computer=source.computers[0] if source and len(source.computers) == 1 else None,
            collected=source.collected if source else None,
        )


def _known(values: Any) -> Iterable[Any]:
    return () if is_unknown(values) else values


def key_of(kind: Kind, facts: Any) -> str:
    """What makes two objects of one place the same object."""
    match kind:
        case Kind.CERTIFICATE:
            return facts.thumbprint if isinstance(facts.thumbprint, str) else repr(facts)
        case Kind.QUEUE:
            return facts.identity.lower() if facts.identity else repr(facts)
        case Kind.ACCEPTED_DOMAIN:
            return str(facts.domain_name).lower()
        case Kind.EDGE_SUBSCRIPTION:
            return str(facts.name).lower()
    return str(facts.identity).lower()
