"""Servers, connectors, queues: what the directory and the cmdlets say, under their PowerShell property names.

The same structures are the organisation snapshot ``anontls/org/1``: what is decoded is what is decided on.
"""

from __future__ import annotations

from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal

import msgspec

from anontls.facts.certificate import (
    ATTRIBUTE_ABSENT,
    Certificate,
    Flag,
    InternalTlsCert,
    Store,
    Text,
    Time,
    normal_thumbprint,
)
from anontls.facts.enums import (
    PERMISSION_GROUP_BITS,
    SERVER_ROLE,
    SIZE_ENABLED,
    SMART_HOST_AUTH_MECHANISM,
    TRANSPORT_ROLE,
    DeliveryType,
    Flags,
    auth_mechanism,
    enum_name,
    permission_groups,
)
from anontls.facts.unknown import ABSENT, Unknown, is_null, is_unknown

Texts = tuple[str, ...] | None | Unknown
Number = str | int | None | Unknown
Count = int | None | Unknown
Address = IPv4Address | IPv6Address
Role = Literal["Mailbox", "Edge"]


class _Object(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """An object of the directory; whatever no source mentions is :data:`~anontls.facts.unknown.ABSENT`."""


def _property(name: str, default: Any = ABSENT) -> Any:
    return msgspec.field(name=name, default=default)


class ReceiveConnector(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-ReceiveConnector``."""

    identity: str = msgspec.field(name="Identity")
    transport_role: Number = _property("TransportRole")
    enabled: Flag = _property("Enabled")
    bindings: Texts = _property("Bindings")
    remote_ip_ranges: Texts = _property("RemoteIPRanges")
    auth_mechanism: Number = _property("AuthMechanism")
    permission_groups: Number = _property("PermissionGroups")
    fqdn: Text = _property("Fqdn")
    tls_certificate_name: Text = _property("TlsCertificateName")
    suppress_x_anonymous_tls: Flag = _property("SuppressXAnonymousTls")
    require_tls: Flag = _property("RequireTLS")
    size_enabled: Number = _property("SizeEnabled")
    pipelining_enabled: Flag = _property("PipeliningEnabled")
    delivery_status_notification_enabled: Flag = _property("DeliveryStatusNotificationEnabled")
    enhanced_status_codes_enabled: Flag = _property("EnhancedStatusCodesEnabled")
    eight_bit_mime_enabled: Flag = _property("EightBitMimeEnabled")
    binary_mime_enabled: Flag = _property("BinaryMimeEnabled")
    chunking_enabled: Flag = _property("ChunkingEnabled")
    smtp_utf8_enabled: Flag = _property("SmtpUtf8Enabled")
    max_message_size: Count = _property("MaxMessageSize")
    max_recipients_per_message: Count = _property("MaxRecipientsPerMessage")
    implicit: bool = False

    @cached_property
    def auth_flags(self) -> Flags | Unknown:
        """``AuthMechanism`` as flags; null means none."""
        value = self.auth_mechanism
        return value if is_unknown(value) else auth_mechanism("None" if value is None else value)

    def lets_in(self, group: str) -> bool | Unknown:
        """Whether ``group`` is among the ``PermissionGroups``."""
        value = self.permission_groups
        if is_unknown(value):
            return value
        return permission_groups("None" if value is None else value).holds(group, PERMISSION_GROUP_BITS)

    @property
    def name(self) -> str:
        """The part of ``Identity`` behind the server's name."""
        return self.identity.partition("\\")[2] or self.identity

    @property
    def server(self) -> str | None:
        """The server's name, as ``Identity`` states it."""
        server, backslash, _ = self.identity.partition("\\")
        return server if backslash else None

    @property
    def transport_service(self) -> str | Unknown:
        """``TransportRole`` as a name."""
        value = self.transport_role
        if value is None or is_unknown(value):
            return ABSENT if value is None else value
        return enum_name(value, TRANSPORT_ROLE)

    @property
    def size(self) -> str | Unknown:
        """``SizeEnabled`` as a name."""
        value = self.size_enabled
        if value is None or is_unknown(value):
            return ABSENT if value is None else value
        return enum_name(value, SIZE_ENABLED)


class SendConnector(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-SendConnector``."""

    identity: str = msgspec.field(name="Identity")
    enabled: Flag = _property("Enabled")
    address_spaces: Texts = _property("AddressSpaces")
    smart_hosts: Texts = _property("SmartHosts")
    smart_host_auth_mechanism: Number = _property("SmartHostAuthMechanism")
    source_transport_servers: Texts = _property("SourceTransportServers")
    dns_routing_enabled: Flag = _property("DNSRoutingEnabled")
    tls_certificate_name: Text = _property("TlsCertificateName")
    fqdn: Text = _property("Fqdn")
    require_tls: Flag = _property("RequireTLS")
    frontend_proxy_enabled: Flag = _property("FrontendProxyEnabled")
    implicit: bool = False

    @property
    def auth_mechanism(self) -> str | Unknown:
        """``SmartHostAuthMechanism`` as a name; null means ``None``."""
        value = self.smart_host_auth_mechanism
        if is_unknown(value):
            return value
        return "None" if is_null(value) or value is None else enum_name(value, SMART_HOST_AUTH_MECHANISM)


class Queue(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-Queue``."""

    identity: str | None = msgspec.field(name="Identity", default=None)
    delivery_type: Number = _property("DeliveryType")
    next_hop_domain: Text = _property("NextHopDomain")
    next_hop_connector: Text = _property("NextHopConnector")
    hypothetical: bool = False

    @cached_property
    def delivery(self) -> DeliveryType | str | Unknown:
        """``DeliveryType``; as text when it is none of the documented values."""
        value = self.delivery_type
        if is_unknown(value):
            return value
        text = enum_name("" if value is None else value, {})
        return text if is_unknown(text) else DeliveryType.parse(text) or text


class Server(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-ExchangeServer``, ``Get-TransportService`` and what belongs to the server."""

    name: str = msgspec.field(name="Name")
    fqdn: Text = _property("Fqdn")
    server_role: Number = _property("ServerRole")
    admin_display_version: Text = _property("AdminDisplayVersion")
    site: Text = _property("Site")
    database_availability_group: Text = _property("DatabaseAvailabilityGroup")
    internal_transport_certificate_thumbprint: Text = _property("InternalTransportCertificateThumbprint")
    internal_tls_cert: InternalTlsCert = _property("msExchServerInternalTLSCert", ATTRIBUTE_ABSENT)
    internal_tls_cert_adlds: InternalTlsCert = _property("msExchServerInternalTLSCert_adlds", ATTRIBUTE_ABSENT)
    certificates: tuple[Certificate, ...] | Unknown = ABSENT
    receive_connectors: tuple[ReceiveConnector, ...] | Unknown = ABSENT
    queues: tuple[Queue, ...] | Unknown = ABSENT
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        thumbprint = self.internal_transport_certificate_thumbprint
        if isinstance(thumbprint, str):
            normal = normal_thumbprint(thumbprint)
            msgspec.structs.force_setattr(self, "internal_transport_certificate_thumbprint", normal)

    @cached_property
    def store(self) -> Store | Unknown:
        """The server's certificate store."""
        return self.certificates if is_unknown(self.certificates) else Store(self.certificates)

    @cached_property
    def role(self) -> Role | Unknown:
        """Mailbox or Edge; any other role, or combination of 2013 and earlier, is out of the articles' scope."""
        value = self.server_role
        if value is None or is_unknown(value):
            return ABSENT if value is None else value
        text = enum_name(value, SERVER_ROLE)
        if is_unknown(text):
            return text
        match text.strip().lower():
            case "mailbox":
                return "Mailbox"
            case "edge":
                return "Edge"
        return Unknown(
            f"ServerRole {text} is out of scope: the articles are for Exchange 2016, 2019 and Subscription Edition"
        )


class AcceptedDomain(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-AcceptedDomain``."""

    domain_name: str = msgspec.field(name="DomainName")
    domain_type: Number = _property("DomainType")


class EdgeSubscription(_Object, frozen=True, kw_only=True, omit_defaults=True):
    """``Get-EdgeSubscription``."""

    name: str = msgspec.field(name="Name")
    site: Text = _property("Site")


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where facts came from."""

    kind: str
    file: str
    objects: int = 0
    collected: Time | None = None
    computers: tuple[str, ...] = ()
    note: str | None = None


class Unplaced(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object that fits nowhere, with the reason; it is kept, never dropped."""

    file: str
    type: str
    identity: str
    because: str
    object: dict[str, Any] = {}


class Organization(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The organisation snapshot."""

    schema: Literal["anontls/org/1"]
    name: str | None = None
    sources: tuple[Source, ...] = ()
    accepted_domains: tuple[AcceptedDomain, ...] | Unknown = ABSENT
    servers: tuple[Server, ...] = ()
    send_connectors: tuple[SendConnector, ...] | Unknown = ABSENT
    edge_subscriptions: tuple[EdgeSubscription, ...] | Unknown = ABSENT
    unplaced: tuple[Unplaced, ...] = ()

    def server(self, name: str) -> Server | None:
        """The server of that name or FQDN, without case."""
        wanted = name.lower()
        return next((s for s in self.servers if wanted in (s.name.lower(), str(s.fqdn).lower())), None)


def ip_range(text: str) -> tuple[Address, Address]:
    """First and last address of an entry of ``RemoteIPRanges``: address, a-b, CIDR, or address(mask).

    Raises:
        ValueError: ``text`` is none of these.
    """
    text = text.strip()
    first, dash, last = text.partition("-")
    if dash:
        a, b = ip_address(first.strip()), ip_address(last.strip())
        if a.version != b.version or int(b) < int(a):
            raise ValueError(f"not an address range: {text!r}")
        return a, b
    if text.endswith(")") and "(" in text:
        address, _, mask = text[:-1].partition("(")
        text = f"{address.strip()}/{mask.strip()}"
    if "/" in text:
        network = ip_network(text, strict=False)
        return network[0], network[-1]
    return ip_address(text), ip_address(text)


def binding(text: str) -> tuple[Address, int]:
    """Address and port of an entry of ``Bindings`` such as ``0.0.0.0:25`` or ``[::]:25``.

    Raises:
        ValueError: ``text`` is not a binding.
    """
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"not a binding: {text!r}")
    return ip_address(host.removeprefix("[").removesuffix("]")), int(port)


def connector_for_session(server: Server, peer: Address, port: int) -> ReceiveConnector | Unknown:
    """The Receive connector that a session from ``peer`` to ``port`` hits.

    Of the enabled connectors whose bindings fit, the one whose ``RemoteIPRanges`` hold the peer most narrowly
    [FACT D 6.3].
    """
    if is_unknown(server.receive_connectors):
        return server.receive_connectors
    peer = getattr(peer, "ipv4_mapped", None) or peer
    hits: list[tuple[int, ReceiveConnector]] = []
    doubts: list[str] = []
    for connector in server.receive_connectors:
        if connector.enabled is False:
            continue
        bindings, ranges = connector.bindings, connector.remote_ip_ranges
        try:
            if not is_unknown(bindings) and not any(
                p == port and a.version == peer.version for a, p in map(binding, bindings or ())
            ):
                continue
            for name, value in (("Enabled", connector.enabled), ("Bindings", bindings), ("RemoteIPRanges", ranges)):
                if is_unknown(value) and not (name == "Enabled" and value == ABSENT):
                    doubts.append(f"{name} of {connector.identity} is not known: {value.because}")
            spans = [ip_range(r) for r in ranges] if isinstance(ranges, tuple) else []
        except ValueError as e:
            doubts.append(f"{connector.identity}: {e}")
            continue
        sizes = [int(b) - int(a) for a, b in spans if a.version == peer.version and int(a) <= int(peer) <= int(b)]
        if sizes:
            hits.append((min(sizes), connector))
    if doubts:
        return Unknown("; ".join(doubts))
    if not hits:
        return Unknown(f"no enabled Receive connector of {server.name} takes {peer} on port {port}")
    narrowest = min(size for size, _ in hits)
    best = [connector for size, connector in hits if size == narrowest]
    if len(best) > 1:
        return Unknown("these fit equally: " + ", ".join(c.identity for c in best))
    return best[0]
