"""Cmdlet objects, or the same objects written by hand, into the structures of :mod:`anontls.facts`.

Each kind of object has one table: property name, and who reads its value.  A value comes in many forms, as each file
format keeps another part of it.  A value that cannot be what its property is makes a hand-written file wrong
(``strict``), and leaves a property of an export unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from datetime import tzinfo
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from anontls.directory.exchange_export import nrbf
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.values import (
    Reader,
    Unfit,
    address_space,
    binding,
    certificate_name,
    dn_parts,
    domain,
    enumeration,
    flag,
    guid,
    ip_range,
    last_part,
    names,
    number,
    octets,
    several,
    shown,
    size,
    smart_host,
    text,
    time,
    value_of,
    version,
)
from anontls.errors import MalformedInput
from anontls.facts import (
    ABSENT,
    AcceptedDomain,
    Certificate,
    EdgeSubscription,
    InternalTlsCert,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Unknown,
    certificate_bytes,
    is_unknown,
)

Properties = Mapping[str, Any]
Table = Mapping[str, Reader]
T = TypeVar("T", bound=msgspec.Struct)

#: The name of an object that has none: a hand-written connector needs no name to be decided on.
NOT_NAMED = "(not named)"


class Kind(enum.Enum):
    """The kinds of objects that some question needs; the value is the word that tables and reports print."""

    SERVER = "ExchangeServer"
    TRANSPORT_SERVICE = "TransportService"
    MAILBOX_SERVER = "MailboxServer"
    INTERNAL_TLS_CERT = "msExchServerInternalTLSCert"
    CERTIFICATE = "ExchangeCertificate"
    BARE_CERTIFICATE = "X509Certificate2"
    RECEIVE_CONNECTOR = "ReceiveConnector"
    SEND_CONNECTOR = "SendConnector"
    QUEUE = "Queue"
    ACCEPTED_DOMAIN = "AcceptedDomain"
    EDGE_SUBSCRIPTION = "EdgeSubscription"


#: .NET class name, without its namespace: the kind.  What no question needs is not here.
KIND_BY_TYPE: Mapping[str, Kind] = {
    "ExchangeServer": Kind.SERVER,
    "TransportService": Kind.TRANSPORT_SERVICE,
    "TransportServer": Kind.TRANSPORT_SERVICE,
    "MailboxServer": Kind.MAILBOX_SERVER,
    "ExchangeCertificate": Kind.CERTIFICATE,
    "X509Certificate2": Kind.BARE_CERTIFICATE,
    "ReceiveConnector": Kind.RECEIVE_CONNECTOR,
    "SmtpSendConnectorConfig": Kind.SEND_CONNECTOR,
    "ExtensibleQueueInfo": Kind.QUEUE,
    "QueueInfo": Kind.QUEUE,
    "AcceptedDomain": Kind.ACCEPTED_DOMAIN,
    "EdgeSubscription": Kind.EDGE_SUBSCRIPTION,
}
#: An object without a telling type (ConvertTo-Json, Format-List, objects made by hand) is of the first kind whose
#: properties it has, one of each group.
KIND_BY_PROPERTIES: tuple[tuple[Kind, tuple[frozenset[str], ...]], ...] = (
    (
        Kind.RECEIVE_CONNECTOR,
        (frozenset({"AuthMechanism"}), frozenset({"Bindings", "RemoteIPRanges", "PermissionGroups"})),
    ),
    (Kind.SEND_CONNECTOR, (frozenset({"SmartHostAuthMechanism", "SmartHosts"}), frozenset({"AddressSpaces"}))),
    (Kind.QUEUE, (frozenset({"DeliveryType"}), frozenset({"NextHopDomain", "Identity"}))),
    (Kind.TRANSPORT_SERVICE, (frozenset({"InternalTransportCertificateThumbprint", "InternalTransportCertificate"}),)),
    (Kind.SERVER, (frozenset({"ServerRole"}), frozenset({"Fqdn", "Site", "Edition"}))),
    (Kind.MAILBOX_SERVER, (frozenset({"DatabaseAvailabilityGroup"}), frozenset({"Name", "Identity"}))),
    (Kind.CERTIFICATE, (frozenset({"Thumbprint", "RawData"}), frozenset({"Services", "CertificateDomains"}))),
    (Kind.BARE_CERTIFICATE, (frozenset({"RawData"}),)),
    (Kind.BARE_CERTIFICATE, (frozenset({"Thumbprint"}), frozenset({"NotAfter"}))),
    (Kind.ACCEPTED_DOMAIN, (frozenset({"DomainName"}), frozenset({"DomainType"}))),
    (Kind.EDGE_SUBSCRIPTION, (frozenset({"Site"}), frozenset({"Name"}), frozenset({"Domain"}))),
)


def recognise_kind(found: CmdletObject) -> Kind | None:
    """Which kind of object this is; ``None`` when no question needs it."""
    for name in found.types:
        if kind := KIND_BY_TYPE.get(name.rpartition(".")[2]):
            return kind
    if any(not name.startswith("System.") for name in found.types):
        return None
    if attribute_of(found.properties):
        return Kind.INTERNAL_TLS_CERT
    for kind, groups in KIND_BY_PROPERTIES:
        if all(group & found.properties.keys() for group in groups):
            return kind
    return None


# --- the tables ----------------------------------------------------------------------------------------------------

RECEIVE_CONNECTOR: Table = {
    "TransportRole": enumeration,
    "Enabled": flag,
    "Bindings": several(binding),
    "RemoteIPRanges": several(ip_range),
    "AuthMechanism": enumeration,
    "PermissionGroups": enumeration,
    "Fqdn": domain,
    "TlsCertificateName": certificate_name,
    "SuppressXAnonymousTls": flag,
    "RequireTLS": flag,
    "SizeEnabled": enumeration,
    "PipeliningEnabled": flag,
    "DeliveryStatusNotificationEnabled": flag,
    "EnhancedStatusCodesEnabled": flag,
    "EightBitMimeEnabled": flag,
    "BinaryMimeEnabled": flag,
    "ChunkingEnabled": flag,
    "SmtpUtf8Enabled": flag,
    "MaxMessageSize": size,
    "MaxRecipientsPerMessage": number,
}
SEND_CONNECTOR: Table = {
    "Enabled": flag,
    "AddressSpaces": several(address_space),
    "SmartHosts": several(smart_host),
    "SmartHostAuthMechanism": enumeration,
    "SourceTransportServers": names,
    "DNSRoutingEnabled": flag,
    "TlsCertificateName": certificate_name,
    "Fqdn": domain,
    "RequireTLS": flag,
    "FrontendProxyEnabled": flag,
}
QUEUE: Table = {"DeliveryType": enumeration, "NextHopDomain": text, "NextHopConnector": guid}
SERVER: Table = {
    "Fqdn": domain,
    "ServerRole": enumeration,
    "AdminDisplayVersion": version,
    "Site": last_part,
    "DatabaseAvailabilityGroup": last_part,
    "InternalTransportCertificateThumbprint": text,
}
CERTIFICATE: Table = {
    "Thumbprint": text,
    "Subject": text,
    "Issuer": text,
    "CertificateDomains": several(domain),
    "NotBefore": time,
    "NotAfter": time,
    "Version": number,
    "HasPrivateKey": flag,
    "IsSelfSigned": flag,
    "Services": enumeration,
    "Status": enumeration,
}
ACCEPTED_DOMAIN: Table = {"DomainType": enumeration}
EDGE_SUBSCRIPTION: Table = {"Site": last_part}

#: What an object may be called by, beside its table.
NAMES: Table = {"Name": text, "Identity": text}
ATTRIBUTE = "msExchServerInternalTLSCert"

FIELDS: Mapping[type[msgspec.Struct], Mapping[str, str]] = {
    struct: {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    for struct in (ReceiveConnector, SendConnector, Queue, Server, Certificate, AcceptedDomain, EdgeSubscription)
}


def read_properties(
    table: Table, properties: Properties, where: str, *, strict: bool = False, zone: tzinfo | None = None
) -> dict[str, Any]:
    """The properties that ``table`` has and the object holds.

    Raises:
        MalformedInput: with ``strict``, a value cannot be one of its property.
    """
    found: dict[str, Any] = {}
    for name, read in table.items():
        if name not in properties:
            continue
        try:
            found[name] = value_of(read, properties[name], zone)
        except Unfit as e:
            found[name] = _unfit(f"{where}: {name}", str(e), properties[name], strict)
    return found


def _unfit(where: str, expected: str, value: object, strict: bool) -> Unknown:
    message = f"expected {expected}, found {shown(value)}"
    if strict:
        raise MalformedInput(where, message)
    return Unknown(f"{where}: {message}")


def _make(
    struct: type[T], table: Table, properties: Properties, where: str, strict: bool, zone: tzinfo | None, **own: Any
) -> T:
    fields = FIELDS[struct]
    read = read_properties(table, properties, where, strict=strict, zone=zone)
    return struct(**{fields[name]: value for name, value in read.items()}, **own)


def name_of(properties: Properties, *keys: str) -> str | None:
    """The first of the properties ``keys`` that holds a name."""
    for key in keys:
        match properties.get(key):
            case str(found) if found:
                return found
            case {"Name": str(found)} if found:
                return found
    return None


# --- one function a kind -------------------------------------------------------------------------------------------


def receive_connector(properties: Properties, where: str, *, strict: bool = False) -> ReceiveConnector:
    return _make(
        ReceiveConnector, RECEIVE_CONNECTOR, properties, where, strict, None, identity=_receive_identity(properties)
    )


def _receive_identity(properties: Properties) -> str:
    identity = properties.get("Identity")
    if isinstance(identity, str) and "\\" in identity and not dn_parts(identity):
        return identity
    name = name_of(properties, "Name", "Identity") or NOT_NAMED
    server = server_of_dn(properties) or name_of(properties, "Server")
    return f"{last_part(server)}\\{name}" if server else name


def server_of_dn(properties: Properties) -> str | None:
    """The server under which the directory keeps the object [FACT C 5.1]."""
    return _below(properties, "Servers")


def organization_of_dn(properties: Properties) -> str | None:
    """The organisation under which the directory keeps the object [FACT C 5.1]."""
    return _below(properties, "Microsoft Exchange")


def _below(properties: Properties, container: str) -> str | None:
    identity = properties.get("Identity")
    identity = identity.get("DistinguishedName") if isinstance(identity, dict) else identity
    for dn in (properties.get("DistinguishedName"), identity):
        parts = dn_parts(dn) if isinstance(dn, str) else []
        if container in parts[1:]:
            return parts[parts.index(container, 1) - 1]
    return None


def send_connector(properties: Properties, where: str, *, strict: bool = False) -> SendConnector:
    identity = name_of(properties, "Identity", "Name") or NOT_NAMED
    return _make(SendConnector, SEND_CONNECTOR, properties, where, strict, None, identity=identity)


def queue(properties: Properties, where: str, *, strict: bool = False) -> Queue:
    identity = properties.get("Identity")
    match identity:
        case {"Server": str(server), "RowId": int(row)}:
            identity = f"{server}\\{row}"
        case str():
            pass
        case _:
            identity = None
    return _make(Queue, QUEUE, properties, where, strict, None, identity=identity)


def server(properties: Properties, where: str, *, strict: bool = False) -> Server:
    """A server, or what one cmdlet says of it."""
    read = read_properties(SERVER, properties, where, strict=strict)
    fqdn = read.get("Fqdn")
    name = name_of(properties, "Name", "Identity") or (fqdn.partition(".")[0] if isinstance(fqdn, str) else None)
    if not name and strict:
        raise MalformedInput(f"{where}: Name", "is missing")
    attributes: dict[str, Any] = {
        FIELDS[Server][key]: internal_tls_cert(properties[key], f"{where}: {key}", strict=strict)
        for key in (ATTRIBUTE, f"{ATTRIBUTE}_adlds")
        if key in properties
    }
    return Server(name=name or NOT_NAMED, **{FIELDS[Server][key]: value for key, value in read.items()}, **attributes)


def internal_tls_cert(value: Any, where: str, *, strict: bool = False) -> InternalTlsCert:
    """``msExchServerInternalTLSCert``: the bytes as a directory gives them, or one of the five things said of it."""
    because: str | None = None
    match value:
        case None | () | []:
            return InternalTlsCert(value=None)
        case Unknown(because):
            return InternalTlsCert(unknown=because)
        case {"der": encoded, **rest} if not rest:
            value = encoded
        case dict():
            try:
                return msgspec.convert(value, InternalTlsCert)
            except msgspec.ValidationError as e:
                because = f"one of thumbprint, der, value (null), error, unknown ({e})"
    try:
        if because is None:
            return InternalTlsCert(der=certificate_bytes(octets(value)))
    except ValueError:
        because = "the bytes of a certificate, in base64"
    return InternalTlsCert(unknown=_unfit(where, because or "", value, strict).because)


def certificate(properties: Properties, where: str, *, strict: bool = False, zone: tzinfo | None = None) -> Certificate:
    """An entry of a certificate store.

    Without other word it has its private key: Get-ExchangeCertificate lists no other certificates, requests excepted
    [FACT D 7.2].
    """
    read = read_properties(CERTIFICATE, properties, where, strict=strict, zone=zone)
    der: Any = ABSENT
    for key in ("der", "RawData"):
        if key in properties:
            found = read_properties({key: octets}, properties, where, strict=strict)[key]
            der = der if is_unknown(found) else found
    status = read.get("Status")
    if not (isinstance(status, str) and status.lower() == "pendingrequest"):
        read.setdefault("HasPrivateKey", True)
    if isinstance(der, bytes):  # all else is derived from them
        read = {name: read[name] for name in ("HasPrivateKey", "IsSelfSigned", "Services", "Status") if name in read}
        read["der"] = der
    elif isinstance(read.get("Subject"), str) and isinstance(read.get("Issuer"), str):
        read.setdefault("IsSelfSigned", read["Subject"] == read["Issuer"])  # [RFC5280 3.2]
    return Certificate(**{FIELDS[Certificate][name]: value for name, value in read.items()})


def exported_certificate(
    properties: Properties, where: str, *, lists_keys: bool = True, zone: tzinfo | None = None
) -> tuple[Certificate, str | None]:
    """A certificate of an export, and its ``Identity`` (server and thumbprint) where the export tells.

    ``Services``, ``Status`` and ``Identity`` of Get-ExchangeCertificate are only inside its blob [FACT C 7.2].
    ``lists_keys``: it comes from that cmdlet, which lists only certificates with a private key.
    """
    read = dict(properties)
    inside = _blob(properties)
    for name, member in (("Services", "Services"), ("Status", "Status"), ("IsSelfSigned", "SelfSigned")):
        if is_unknown(inside):
            if lists_keys and name != "IsSelfSigned":
                read.setdefault(name, inside)
        elif member in inside:
            read.setdefault(name, inside[member])
    if not lists_keys:
        read.setdefault("HasPrivateKey", ABSENT)
    identity = None if is_unknown(inside) else inside.get("Identity")
    if not isinstance(identity, str) or "\\" not in identity:
        identity = properties.get("Identity")
    named = isinstance(identity, str) and "\\" in identity
    return certificate(read, where, zone=zone), str(identity) if named else None


def _blob(properties: Properties) -> dict[str, Any] | Unknown:
    try:
        data = octets(properties["SerializationData"])
        members: dict[str, Any] = nrbf.read_members(data)
    except KeyError:
        return Unknown("the export has no SerializationData, which holds Services and Status")
    except (Unfit, nrbf.NrbfError) as e:
        return Unknown(f"SerializationData cannot be read: {e}")
    inner, outer = members.get("CertData"), properties.get("RawData")
    try:
        if isinstance(inner, bytes) and isinstance(outer, bytes) and certificate_bytes(inner) != outer:
            return Unknown("SerializationData is that of another certificate")
    except ValueError as e:
        return Unknown(f"CertData in SerializationData is {e}")
    return members


def attribute_of(properties: Properties) -> dict[str, Any]:
    """``msExchServerInternalTLSCert`` (and the copy in AD LDS) beside the names of its server.

    Directory searches of .NET spell attributes in small letters, and put them into ``Properties``.
    """
    flat: dict[str, Any] = {}
    inner = properties.get("Properties")
    for source in (properties, inner if isinstance(inner, dict) else {}):
        for name, value in source.items():
            flat.setdefault(name.lower(), value)
    found = {name: flat[name.lower()] for name in (ATTRIBUTE, f"{ATTRIBUTE}_adlds") if name.lower() in flat}
    if found:
        for name in ("Server", "Name", "cn"):
            value = flat.get(name.lower())
            while isinstance(value, list | tuple) and len(value) == 1:
                value = value[0]
            if isinstance(value, str) and value:
                return {"Name": last_part(value), **found}
        dn = flat.get("distinguishedname") or flat.get("path") or flat.get("adspath")
        if isinstance(dn, str):
            return {"Name": last_part(dn.rpartition("/")[2]), **found}
    return found


def accepted_domain(properties: Properties, where: str, *, strict: bool = False) -> AcceptedDomain:
    named = read_properties({"DomainName": domain}, properties, where, strict=strict).get("DomainName")
    name = named if isinstance(named, str) else name_of(properties, "Name")
    return _make(AcceptedDomain, ACCEPTED_DOMAIN, properties, where, strict, None, domain_name=name or NOT_NAMED)


def edge_subscription(properties: Properties, where: str, *, strict: bool = False) -> EdgeSubscription:
    name = name_of(properties, "Name", "Identity") or NOT_NAMED
    return _make(EdgeSubscription, EDGE_SUBSCRIPTION, properties, where, strict, None, name=name)


# --- misspelt property names ---------------------------------------------------------------------------------------

#: Real properties of the cmdlets' objects that are near to one in a table.
NOT_MISSPELT = frozenset({"PrivateKey", "InternalTransportCertificate"})
NEAR = 0.85


def misspelt(properties: Iterable[str], known: Collection[str]) -> tuple[str, str] | None:
    """A key that looks like a misspelling of a known one that is missing; with that known one."""
    given = list(properties)
    missing = [name for name in known if name not in given]
    for key in given:
        if key in known or key in NOT_MISSPELT:
            continue
        for name in missing:
            if _near(key, name):
                return key, name
    return None


@lru_cache(maxsize=16384)
def _near(key: str, name: str) -> bool:
    if key.lower() == name.lower():
        return True
    matcher = SequenceMatcher(None, key[:100], name, autojunk=False)
    return matcher.quick_ratio() >= NEAR and matcher.ratio() >= NEAR
