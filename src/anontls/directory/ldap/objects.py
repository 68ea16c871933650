"""Exchange's objects in Active Directory or AD LDS as facts: bytes of attributes in, nothing else.

What a directory says is taken as far as it is known what its attributes mean.  Attributes of connectors whose meaning
is not verified [FACT R 5.4] are shown in the reason why the property is unknown, and nothing is decided on them.
Values are hostile: one that cannot be what it should be makes its property unknown, with its place, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from anontls.directory.exchange_export.cmdlets import NOT_NAMED, Kind
from anontls.directory.exchange_export.pieces import Piece
from anontls.directory.ldap.certificate import certificate_of
from anontls.directory.ldap.entry import CONTROL, Entry, name_in, rdn_values
from anontls.facts import (
    EdgeSubscription,
    InternalTlsCert,
    ReceiveConnector,
    SendConnector,
    Server,
    Unknown,
    is_unknown,
    parse_tls_certificate_name,
)

SERVER: Final = "msExchExchangeServer"
RECEIVE_CONNECTOR: Final = "msExchSmtpReceiveConnector"
SEND_CONNECTOR: Final = "msExchRoutingSMTPConnector"
CLASSES: Final = (SERVER, RECEIVE_CONNECTOR, SEND_CONNECTOR)  # [FACT C 5.1]

CERTIFICATE: Final = "msExchServerInternalTLSCert"
ROLES: Final = "msExchCurrentServerRoles"
SITE: Final = "msExchServerSite"
TLS_CERTIFICATE: Final = "msExchSmtpTLSCertificate"
ADDRESS_SPACES: Final = "routingList"
SMART_HOSTS: Final = "msExchSmtpSmartHost"
SOURCE_SERVERS: Final = "msExchSourceBridgeheadServersDN"

#: An attribute that is not shown is null only when the directory says so: the account may not be allowed to read it.
NULL_MATTERS: Final = {
    CERTIFICATE: SERVER,
    ADDRESS_SPACES: SEND_CONNECTOR,
    SMART_HOSTS: SEND_CONNECTOR,
    SOURCE_SERVERS: SEND_CONNECTOR,
}
# Field -> property, and the attribute that is likely to hold it; all grade R.  [FACT R 5.4]
OF_RECEIVE_CONNECTOR: Final[Mapping[str, tuple[str, str]]] = {
    "transport_role": ("TransportRole", ""),
    "enabled": ("Enabled", "msExchSmtpReceiveProtocolOptions"),
    "bindings": ("Bindings", "msExchSmtpReceiveBindings"),
    "remote_ip_ranges": ("RemoteIPRanges", "msExchSmtpReceiveRemoteIPRanges"),
    "auth_mechanism": ("AuthMechanism", "msExchSmtpReceiveInboundSecurityFlag"),
    "permission_groups": ("PermissionGroups", ""),
    "fqdn": ("Fqdn", "msExchSMTPReceiveConnectorFQDN"),
    "tls_certificate_name": ("TlsCertificateName", "msExchSmtpReceiveTlsCertificateName"),
    "suppress_x_anonymous_tls": ("SuppressXAnonymousTls", "msExchSmtpReceiveProtocolOptions"),
}
OF_SEND_CONNECTOR: Final[Mapping[str, tuple[str, str]]] = {
    "enabled": ("Enabled", "msExchSmtpSendFlags"),
    "smart_host_auth_mechanism": ("SmartHostAuthMechanism", "msExchSmtpSendFlags"),
    "dns_routing_enabled": ("DNSRoutingEnabled", "msExchSmtpSendFlags"),
    "tls_certificate_name": ("TlsCertificateName", ""),
    "fqdn": ("Fqdn", "msExchSMTPSendConnectorFQDN"),
    "require_tls": ("RequireTLS", "msExchSmtpSendFlags"),
    "frontend_proxy_enabled": ("FrontendProxyEnabled", "msExchSmtpSendFlags"),
}
ATTRIBUTES: Final = tuple(
    sorted(
        {"objectClass", CERTIFICATE, ROLES, SITE, "networkAddress", "serialNumber"}
        | {TLS_CERTIFICATE, ADDRESS_SPACES, SMART_HOSTS, SOURCE_SERVERS}
        | {attribute for _, attribute in (*OF_RECEIVE_CONNECTOR.values(), *OF_SEND_CONNECTOR.values()) if attribute}
    )
)

NOT_IN_A_DIRECTORY: Final = "a directory does not hold it: {} shows it"
CERTIFICATES: Final = Unknown(NOT_IN_A_DIRECTORY.format("Get-ExchangeCertificate"))
QUEUES: Final = Unknown(NOT_IN_A_DIRECTORY.format("Get-Queue"))
#: It follows from the attribute [FACT I 5.3]; selection says so in its step.
THUMBPRINT: Final = Unknown(f"it is not an attribute; it follows from {CERTIFICATE}, and Get-TransportService shows it")
DATABASE_AVAILABILITY_GROUP: Final = Unknown("not read from a directory: Get-MailboxServer shows it")
ACCEPTED_DOMAINS: Final = Unknown("not read from a directory: Get-AcceptedDomain shows them")
NOT_SUBSCRIBED_HERE: Final = Unknown("AD LDS of an Edge server does not tell: Get-EdgeSubscription shows them")
OF_AN_EDGE_SERVER: Final = Unknown("an Edge server has them in its own directory: Get-ReceiveConnector there")

ROLE_BITS: Final = {2: "Mailbox", 4: "ClientAccess", 16: "UnifiedMessaging", 32: "HubTransport", 64: "Edge"}
VERSION: Final = re.compile(r"Version (\d{1,3})\.\d{1,3}\b")
HOST_NAME: Final = re.compile(r"(?=.{1,255}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.IGNORECASE | re.ASCII)


class Reader:
    """Entries of one directory into pieces of an organisation."""

    def __init__(
        self,
        source: str,
        *,
        adlds: bool,
        as_server: bool,
        unset: Callable[[str], Container[str]],
        collected: datetime | None,
    ) -> None:
        """``source`` is how the snapshot calls the directory; ``adlds``: it is AD LDS of an Edge server.

        ``as_server``: what this account may not read the server cannot read either, which is an answer and not a gap.
        ``unset`` gives the names (in small letters) of the objects that are known to have no such attribute.
        """
        self.source = source
        self.adlds = adlds
        self.as_server = as_server
        self.unset = unset
        self.collected = collected

    def pieces(self, entry: Entry) -> Iterator[Piece]:
        """What an object says."""
        match entry.one_of(CLASSES):
            case "msExchExchangeServer":
                server = self.server(entry)
                named = None if server.name == NOT_NAMED else server.name
                yield self._piece(Kind.SERVER, server, entry, named or entry.dn, owner=named)
                if named and server.role == "Edge" and not self.adlds:
                    # An Edge server is in Active Directory because it is subscribed, to its site [FACT D 5.5]
                    yield self._piece(
                        Kind.EDGE_SUBSCRIPTION, EdgeSubscription(name=named, site=server.site), entry, named
                    )
            case "msExchSmtpReceiveConnector":
                receive = self.receive_connector(entry)
                yield self._piece(Kind.RECEIVE_CONNECTOR, receive, entry, receive.identity, owner=receive.server)
            case "msExchRoutingSMTPConnector":
                send = self.send_connector(entry)
                yield self._piece(Kind.SEND_CONNECTOR, send, entry, send.identity)

    def _piece(self, kind: Kind, facts: Any, entry: Entry, identity: str, *, owner: str | None = None) -> Piece:
        return Piece(
            kind=kind,
            facts=facts,
            identity=identity,
            file=self.source,
            owner=owner,
            collected=self.collected,
            organization=name_in("Microsoft Exchange", entry.parts) if kind is Kind.SERVER else None,
        )

    # --- servers ------------------------------------------------------------------------------------------------------

    def server(self, entry: Entry) -> Server:
        version, attribute = _version(entry), self.internal_tls_cert(entry)
        role = _role(entry, version)
        where = "internal_tls_cert_adlds" if self.adlds else "internal_tls_cert"
        facts: dict[str, Any] = {where: attribute}
        if role == "Edge" and not self.adlds:
            facts["receive_connectors"] = OF_AN_EDGE_SERVER
        return Server(
            name=entry.name or NOT_NAMED,
            fqdn=_fqdn(entry),
            server_role=role,
            admin_display_version=version,
            site=_site(entry),
            database_availability_group=DATABASE_AVAILABILITY_GROUP,
            internal_transport_certificate_thumbprint=THUMBPRINT,
            certificates=CERTIFICATES,
            queues=QUEUES,
            **facts,
        )

    def internal_tls_cert(self, entry: Entry) -> InternalTlsCert:
        """``msExchServerInternalTLSCert``: the certificate, null, or why there is none."""
        values = entry.octets(CERTIFICATE)
        if is_unknown(values):
            return InternalTlsCert(error=values.because)
        if not values:
            if entry.dn.lower() in self.unset(CERTIFICATE):
                return InternalTlsCert(value=None)
            because = entry.unknown(
                CERTIFICATE, "not shown, nor known to be unset: this account may not read it"
            ).because
            return InternalTlsCert(error=because) if self.as_server else InternalTlsCert(unknown=because)
        if len(values) > 1:
            return InternalTlsCert(error=entry.unknown(CERTIFICATE, f"{len(values)} values").because)
        if not values[0]:
            return InternalTlsCert(value=None)  # empty counts as null [FACT I 1.7]
        try:
            return InternalTlsCert(der=certificate_of(values[0]))
        except ValueError as e:
            return InternalTlsCert(error=entry.unknown(CERTIFICATE, str(e)).because)

    # --- connectors ---------------------------------------------------------------------------------------------------

    def receive_connector(self, entry: Entry) -> ReceiveConnector:
        server, name = name_in("Servers", entry.parts[1:]), entry.name or NOT_NAMED
        facts = _unverified(entry, OF_RECEIVE_CONNECTOR, "Get-ReceiveConnector")
        return ReceiveConnector(
            identity=f"{server}\\{name}" if server else name, **facts | _tls_certificate_name(entry)
        )

    def send_connector(self, entry: Entry) -> SendConnector:
        facts = _unverified(entry, OF_SEND_CONNECTOR, "Get-SendConnector") | _tls_certificate_name(entry)
        sources = self.documented(entry, SOURCE_SERVERS)
        if isinstance(sources, tuple):
            sources = tuple(_server_named(dn) for dn in sources)
        hosts = self.documented(entry, SMART_HOSTS)
        if isinstance(hosts, tuple):
            hosts = tuple(host for value in hosts for host in re.split(r"[,;\s]+", value) if host)
        return SendConnector(
            identity=entry.name or NOT_NAMED,
            address_spaces=self.documented(entry, ADDRESS_SPACES),
            smart_hosts=hosts,
            source_transport_servers=sources,
            **facts,
        )

    def documented(self, entry: Entry, attribute: str) -> tuple[str, ...] | None | Unknown:
        """An attribute whose meaning Microsoft documents [FACT D 5.4]."""
        values = entry.texts(attribute)
        if is_unknown(values) or values:
            return values
        if entry.dn.lower() in self.unset(attribute):
            return None
        return entry.unknown(attribute, "not shown, nor known to be unset: this account may not read it")


def _server_named(dn: str) -> str:
    """The server that a name is of, or of something below it."""
    parts = rdn_values(dn)
    return name_in("Servers", parts) or next(filter(None, parts), dn)


def _version(entry: Entry) -> str | Unknown:
    values = entry.texts("serialNumber")
    if is_unknown(values):
        return values
    for value in values:
        if VERSION.match(value):
            return value
    return entry.unknown("serialNumber", f"no version: {entry.shown('serialNumber')}")


def _role(entry: Entry, version: str | Unknown) -> str | Unknown:
    """``ServerRole`` as Get-ExchangeServer prints it, from the bits of the attribute [FACT B 5.2]."""
    values = entry.texts(ROLES)
    if is_unknown(values):
        return values
    if len(values) != 1 or not re.fullmatch(r"-?[0-9]{1,10}", values[0]):
        return entry.unknown(ROLES, f"no number: {entry.shown(ROLES)}")
    number = int(values[0])
    names = [name for bit, name in ROLE_BITS.items() if number & bit]
    if "Edge" in names:
        return "Edge"
    major = VERSION.match(version) if isinstance(version, str) else None
    if "Mailbox" in names and (major is None or int(major[1]) >= 15):
        return "Mailbox"  # which from Exchange 2013 on has the others in it
    return ", ".join(names) or entry.unknown(ROLES, f"{number} has no bit whose role is known")


def _fqdn(entry: Entry) -> str | Unknown:
    addresses = entry.texts("networkAddress")
    if is_unknown(addresses):
        return addresses
    for address in addresses:
        protocol, _, host = address.partition(":")
        if protocol.lower() == "ncacn_ip_tcp" and HOST_NAME.fullmatch(host):
            return host
    return entry.unknown("networkAddress", f"no ncacn_ip_tcp with a host name: {entry.shown('networkAddress')}")


def _site(entry: Entry) -> str | Unknown:
    values = entry.texts(SITE)
    if is_unknown(values):
        return values
    parts = rdn_values(values[0]) if len(values) == 1 else []
    if not parts or not parts[0] or CONTROL.search(parts[0]):
        return entry.unknown(SITE, f"no name of a site: {entry.shown(SITE)}")
    return parts[0]


def _tls_certificate_name(entry: Entry) -> dict[str, Any]:
    """Where it is set it is TlsCertificateName [FACT D 5.4]; where it is not, another attribute may hold that."""
    values = entry.texts(TLS_CERTIFICATE)
    if is_unknown(values) or len(values) != 1:
        return {}
    try:
        parse_tls_certificate_name(values[0])
    except ValueError:
        return {}
    return {"tls_certificate_name": values[0]}


def _unverified(entry: Entry, table: Mapping[str, tuple[str, str]], cmdlet: str) -> dict[str, Any]:
    return {
        field: _not_verified(name, attribute, entry.shown(attribute) if entry.octets(attribute) else "", cmdlet)
        for field, (name, attribute) in table.items()
    }


@lru_cache(maxsize=4096)
def _not_verified(name: str, attribute: str, shown: str, cmdlet: str) -> Unknown:
    if not shown:
        return Unknown(f"which attribute of a directory holds it is not verified: {cmdlet} shows it")
    return Unknown(f"{attribute} is {shown}, and that this is {name} is not verified: {cmdlet} shows it")
