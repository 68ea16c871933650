"""A small export for trying things out: Contoso, two Mailbox servers and an Edge server, as PowerShell writes them.

The writers of Export-Clixml's XML and of the blob inside a certificate are here for the same reason: this is the only
place that ever writes them.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from anontls.facts import thumbprint_of
from anontls.facts.certificate import CERT_CERT_PROP_ID

SITE = "Default-First-Site-Name"
DOMAIN = "contoso.com"
PUBLIC_NAME = f"mail.{DOMAIN}"
MBX1, MBX2, EDGE1 = "MBX1", "MBX2", "EDGE1"
ROOT_DN = "CN=Contoso,CN=Microsoft Exchange,CN=Services,CN=Configuration,DC=contoso,DC=com"
SERVERS_DN = f"CN=Servers,CN=Exchange Administrative Group (FYDIBOHF23SPDLT),CN=Administrative Groups,{ROOT_DN}"

# --- .NET objects, and Export-Clixml ---------------------------------------------------------------------------------

EXCHANGE_DATA = "Microsoft.Exchange.Data"
CONFIGURATION = f"{EXCHANGE_DATA}.Directory.SystemConfiguration"
TASKS = "Microsoft.Exchange.Management.SystemConfigurationTasks"
ADMIN_OBJECT = (f"{EXCHANGE_DATA}.Directory.ADObject", f"{EXCHANGE_DATA}.ConfigurableObject")
CERTIFICATE2 = "System.Security.Cryptography.X509Certificates.X509Certificate2"


class NetObject(msgspec.Struct, frozen=True, kw_only=True):
    """A .NET object: its classes from the most derived on, its text, and what it holds."""

    types: tuple[str, ...]
    text: str | None = None
    properties: Mapping[str, Any] = {}
    notes: Mapping[str, Any] = {}  # what PowerShell added: PSComputerName, SerializationData
    number: int | None = None  # an enumeration
    items: tuple[Any, ...] | None = None  # a multi-valued property


def enumeration(name: str, text: str, number: int) -> NetObject:
    return NetObject(types=(f"{CONFIGURATION}.{name}", "System.Enum", "System.ValueType"), text=text, number=number)


def several(element: str, values: Iterable[NetObject | str]) -> NetObject:
    return NetObject(types=(f"{EXCHANGE_DATA}.MultiValuedProperty`1[[{element}]]",), items=tuple(values))


def of_class(name: str, text: str, **properties: Any) -> NetObject:
    return NetObject(types=(f"{EXCHANGE_DATA}.{name}",), text=text, properties=properties)


def object_id(text: str, dn: str) -> NetObject:
    name = dn.partition(",")[0].partition("=")[2]
    return of_class("Directory.ADObjectId", text, Rdn=f"CN={name}", DistinguishedName=dn, Name=name)


def clixml(objects: Iterable[NetObject]) -> str:
    """What Export-Clixml writes of ``objects`` [MS-PSRP 2.2.5]."""
    writer = _ClixmlWriter()
    for each in objects:
        writer.write(each, None, 1)
    return "\n".join(
        ['<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">', *writer.lines, "</Objs>"]
    )


class _ClixmlWriter:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.objects = 0
        self.type_lists: dict[tuple[str, ...], int] = {}

    def write(self, value: Any, name: str | None, depth: int) -> None:
        pad = "  " * depth
        named = f" N={quoteattr(name)}" if name else ""
        match value:
            case None:
                self.lines.append(f"{pad}<Nil{named} />")
            case NetObject():
                self.lines.append(f'{pad}<Obj{named} RefId="{self.objects}">')
                self.objects += 1
                self._inside(value, depth + 1)
                self.lines.append(f"{pad}</Obj>")
            case _:
                tag, text = _primitive(value)
                self.lines.append(f"{pad}<{tag}{named}>{text}</{tag}>")

    def _inside(self, value: NetObject, depth: int) -> None:
        pad = "  " * depth
        known = self.type_lists.get(value.types)
        if known is None:
            known = self.type_lists[value.types] = len(self.type_lists)
            types = "".join(f"{pad}  <T>{escape(t)}</T>\n" for t in (*value.types, "System.Object"))
            self.lines.append(f'{pad}<TN RefId="{known}">\n{types}{pad}</TN>')
        else:
            self.lines.append(f'{pad}<TNRef RefId="{known}" />')
        if value.text is not None:
            self.lines.append(f"{pad}<ToString>{_text(value.text)}</ToString>")
        if value.number is not None:
            self.lines.append(f"{pad}<I32>{value.number}</I32>")
        if value.items is not None:
            self._group("LST", [(None, item) for item in value.items], depth)
        self._group("Props", value.properties.items(), depth)
        self._group("MS", value.notes.items(), depth)

    def _group(self, tag: str, members: Iterable[tuple[str | None, Any]], depth: int) -> None:
        pad, members = "  " * depth, list(members)
        if not members:
            if tag == "LST":
                self.lines.append(f"{pad}<LST />")
            return
        self.lines.append(f"{pad}<{tag}>")
        for name, member in members:
            self.write(member, name, depth + 1)
        self.lines.append(f"{pad}</{tag}>")


def _text(value: str) -> str:
    return escape(value).replace("\r", "_x000D_").replace("\n", "_x000A_")


def _primitive(value: Any) -> tuple[str, str]:
    match value:
        case bool():
            return "B", str(value).lower()
        case int():
            return "I32", str(value)
        case bytes():
            return "BA", base64.b64encode(value).decode()
        case datetime():
            return "DT", value.isoformat()
    return "S", _text(str(value))


# --- the blob inside a certificate -----------------------------------------------------------------------------------


def certificate_blob(
    der: bytes, *, identity: str, services: int, status: int = 1, self_signed: bool = True, root_ca_type: int = 3
) -> bytes:
    """``SerializationData`` of a certificate of Get-ExchangeCertificate, with the members of the real one [FACT C 7.2].

    Status 1 is Valid, RootCAType 3 Registry; Services are bits.
    """
    library = "Microsoft.Exchange.Management, Version=15.0.0.0, Culture=neutral, PublicKeyToken=31bf3856ad364e35"
    enums = [f"{TASKS}.CertificateStatus", f"{TASKS}.CertificateAuthorityType", f"{TASKS}.AllowedServices"]
    members = (
        "CertData", "SelfSigned", "Status", "RootCAType", "Services", "IISServices", "PrivateKeyExportable", "Identity",
    )  # fmt: skip
    of_library = struct.pack("<i", 2)
    # The form in which Windows keeps a certificate: properties, of which one is the certificate itself.
    data = struct.pack("<III", CERT_CERT_PROP_ID, 1, len(der)) + der
    return b"".join(
        [
            struct.pack("<Biiii", 0, 1, -1, 1, 0),  # header: root object 1 [MS-NRBF 2.6.1]
            struct.pack("<Bi", 12, 2) + _string(library),
            struct.pack("<Bi", 5, 1) + _string(f"{TASKS}.ExchangeCertificate"),  # [MS-NRBF 2.3.2.1]
            struct.pack("<i", len(members)) + b"".join(map(_string, members)),
            bytes([7, 0, 4, 4, 4, 3, 0, 1]),  # array, primitive, class, class, class, system class, primitive, string
            bytes([2, 1]),  # of bytes; boolean
            b"".join(_string(name) + of_library for name in enums),
            _string(f"System.Collections.Generic.List`1[[{TASKS}.IisService, {library}]]"),
            bytes([1]),
            of_library,
            struct.pack("<Bi", 9, 3),  # CertData is object 3, below
            bytes([self_signed]),
            *(
                _enum_record(name, -4 - at, n)
                for at, (name, n) in enumerate(zip(enums, (status, root_ca_type, services), strict=True))
            ),
            bytes([10, 0]),  # no IIS services; not exportable
            struct.pack("<Bi", 6, 8) + _string(identity),
            struct.pack("<BiiB", 15, 3, len(data), 2) + data,
            bytes([11]),
        ]
    )


def _enum_record(name: str, object_id: int, number: int) -> bytes:
    """An enumeration is a class with the one member ``value__``."""
    described = _string(name) + struct.pack("<i", 1) + _string("value__") + bytes([0, 8])
    return struct.pack("<Bi", 5, object_id) + described + struct.pack("<ii", 2, number)


def _string(text: str) -> bytes:
    """With its length in groups of seven bits [MS-NRBF 2.1.1.6]."""
    data, length = text.encode(), b""
    rest = len(data)
    while rest >= 0x80:
        length += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return length + bytes([rest]) + data


# --- certificates ----------------------------------------------------------------------------------------------------


def _issue(
    name: str,
    domains: Iterable[str],
    not_before: datetime,
    not_after: datetime,
    issuer: tuple[x509.Name, rsa.RSAPrivateKey] | None = None,
    authority: bool = False,
) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        names = x509.SubjectAlternativeName([x509.DNSName(domain) for domain in domains])
        builder = builder.add_extension(names, critical=False).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256()), key


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


# --- the organisation ------------------------------------------------------------------------------------------------


def write_demo_export(folder: Path, as_of: datetime) -> None:
    """Fill ``folder`` with an export of Contoso as it is at ``as_of`` (aware).

    All is well on MBX1.  The internal transport certificate of MBX2 expired two months ago (12015).  EDGE1 is
    subscribed to the site of both, and Active Directory knows its certificate.  The front ends present the public
    certificate of mail.contoso.com.
    """
    as_of = as_of.replace(microsecond=0)
    day = timedelta(days=1)
    own = {
        name: _der(_issue(name, (name, f"{name.lower()}.{DOMAIN}"), since, since + 5 * 365 * day)[0])
        for name, since in (
            (MBX1, as_of - 400 * day),
            (MBX2, as_of - 5 * 365 * day - 60 * day),
            (EDGE1, as_of - 390 * day),
        )
    }
    root, root_key = _issue("Contoso Public Root CA", (), as_of - 3000 * day, as_of + 3000 * day, authority=True)
    public, _ = _issue(
        PUBLIC_NAME,
        (PUBLIC_NAME, f"autodiscover.{DOMAIN}"),
        as_of - 100 * day,
        as_of + 265 * day,
        (root.subject, root_key),
    )
    certificates = [
        certificate
        for server, der in own.items()
        for certificate in (
            # DateInvalid is 3 as far as is remembered; no source confirms the number.
            exchange_certificate(
                server, der, services=16 if server == EDGE1 else 27, status=3 if server == MBX2 else 1
            ),
            *(
                []
                if server == EDGE1
                else [exchange_certificate(server, _der(public), services=25, self_signed=False, root_ca_type=1)]
            ),
        )
    ]
    tls_name = f"<I>CN=Contoso Public Root CA<S>CN={PUBLIC_NAME}"
    files: dict[str, str] = {
        "Get-AcceptedDomain.xml": clixml([_accepted_domain(DOMAIN)]),
        "Get-EdgeSubscription.xml": clixml([_edge_subscription()]),
        "Get-ExchangeCertificate.xml": clixml(certificates),
        "Get-ExchangeServer.xml": clixml(map(exchange_server, own)),
        "Get-Queue.txt": _queues(),
        "Get-ReceiveConnector.xml": clixml(_receive_connectors(tls_name)),
        "Get-SendConnector.xml": clixml(_send_connectors()),
        "Get-TransportService.json": _transport_services(own),
        "ServerInternalTLSCert.xml": clixml(server_attribute(name, der) for name, der in own.items()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        # Windows PowerShell 5.1 writes UTF-16 with a byte order mark unless told otherwise [PS-EXPORT-CLIXML]
        encoding = "utf-8-sig" if name.endswith(".json") else "utf-16"
        (folder / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))


def _admin_object(
    classes: tuple[str, ...], name: str, dn: str, properties: Mapping[str, Any], identity: str | None = None
) -> NetObject:
    identity = identity or name
    own = {"Name": name, "DistinguishedName": dn, "Identity": object_id(identity, dn)}
    return NetObject(
        types=classes + ADMIN_OBJECT,
        text=identity,
        properties={**properties, **own},
        notes={"PSComputerName": f"{MBX1.lower()}.{DOMAIN}", "PSShowComputerName": False},
    )


def exchange_server(name: str) -> NetObject:
    role = enumeration("ServerRole", "Edge", 64) if name == EDGE1 else enumeration("ServerRole", "Mailbox", 2)
    version = of_class("ServerVersion", "Version 15.2 (Build 1544.4)", Major=15, Minor=2, Build=1544, Revision=4)
    site = object_id(f"{DOMAIN}/Configuration/Sites/{SITE}", f"CN={SITE},CN=Sites,CN=Configuration,DC=contoso,DC=com")
    properties = {
        "Fqdn": f"{name.lower()}.{DOMAIN}",
        "AdminDisplayVersion": version,
        "Site": site,
        "ServerRole": role,
        "IsEdgeServer": name == EDGE1,
    }
    classes = (f"{EXCHANGE_DATA}.Directory.Management.ExchangeServer",)
    return _admin_object(classes, name, f"CN={name},{SERVERS_DN}", properties)


def exchange_certificate(
    server: str, der: bytes, *, services: int, status: int = 1, self_signed: bool = True, root_ca_type: int = 3
) -> NetObject:
    blob = certificate_blob(
        der,
        identity=f"{server.lower()}.{DOMAIN}\\{thumbprint_of(der)}",
        services=services,
        status=status,
        self_signed=self_signed,
        root_ca_type=root_ca_type,
    )
    return NetObject(
        types=(f"{TASKS}.ExchangeCertificate", CERTIFICATE2),
        text=f"[Thumbprint]\r\n  {thumbprint_of(der)}\r\n",
        properties={"RawData": der},
        notes={"PSComputerName": f"{MBX1.lower()}.{DOMAIN}", "SerializationData": blob},
    )


def _receive_connectors(tls_name: str) -> Iterable[NetObject]:
    all_but_exchange = 15  # Tls, Integrated, BasicAuth, BasicAuthRequireTLS [FACT C 5.4]
    for server in (MBX1, MBX2):
        # The default connectors and their permission groups [FACT D 6.3]
        yield receive_connector(server, f"Default {server}", 2525, "HubTransport", all_but_exchange | 16, 14)
        yield receive_connector(server, f"Client Proxy {server}", 465, "HubTransport", all_but_exchange | 16, 6)
        front = f"Default Frontend {server}"
        yield receive_connector(server, front, 25, "FrontendTransport", all_but_exchange | 16, 13, tls_name)
        proxy = f"Outbound Proxy Frontend {server}"
        yield receive_connector(server, proxy, 717, "FrontendTransport", all_but_exchange | 16, 4)
        client = f"Client Frontend {server}"
        yield receive_connector(server, client, 587, "FrontendTransport", all_but_exchange, 2, tls_name)
    yield receive_connector(EDGE1, f"Default internal receive connector {EDGE1}", 25, "HubTransport", 17, 5)


GROUPS = {1: "AnonymousUsers", 2: "ExchangeUsers", 4: "ExchangeServers", 8: "ExchangeLegacyServers"}
MECHANISMS = {1: "Tls", 2: "Integrated", 4: "BasicAuth", 8: "BasicAuthRequireTLS", 16: "ExchangeServer"}
ROLES = {"HubTransport": 32, "FrontendTransport": 16384}


def _flags(name: str, number: int, names: Mapping[int, str]) -> NetObject:
    return enumeration(name, ", ".join(text for bit, text in names.items() if number & bit), number)


def receive_connector(
    server: str, name: str, port: int, role: str, mechanisms: int, groups: int, tls_name: str | None = None
) -> NetObject:
    bindings = (
        NetObject(types=(f"{EXCHANGE_DATA}.IPBinding",), text=f"{host}:{port}", properties={"Port": port})
        for host in ("[::]", "0.0.0.0")  # noqa: S104
    )
    ranges = (
        of_class("IPRange", f"{low}-{high}", LowerBound=low, UpperBound=high, RangeFormat="LoHi")
        for low, high in (("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ("0.0.0.0", "255.255.255.255"))  # noqa: S104
    )
    fqdn = f"{server.lower()}.{DOMAIN}"
    server_dn = f"CN={server},{SERVERS_DN}"
    properties = {
        "AuthMechanism": _flags("AuthMechanisms", mechanisms, MECHANISMS),
        "Bindings": several(f"{EXCHANGE_DATA}.IPBinding", bindings),
        "SuppressXAnonymousTls": False,
        "Fqdn": of_class("Fqdn", fqdn, Domain=fqdn),
        "TlsCertificateName": of_class("SmtpX509Identifier", tls_name) if tls_name else None,
        "Enabled": True,
        "PermissionGroups": _flags("PermissionGroups", groups, GROUPS),
        "RemoteIPRanges": several(f"{EXCHANGE_DATA}.IPRange", ranges),
        "RequireTLS": False,
        "Server": object_id(server, server_dn),
        "TransportRole": enumeration("ServerRole", role, ROLES[role]),
    }
    dn = f"CN={name},CN=SMTP Receive Connectors,CN=Protocols,{server_dn}"
    classes = (f"{CONFIGURATION}.ReceiveConnector", f"{CONFIGURATION}.ADConfigurationObject")
    return _admin_object(classes, name, dn, properties, f"{server}\\{name}")


def _send_connectors() -> Iterable[NetObject]:
    """The two that EdgeSync makes [FACT D 6.2]; that the first authenticates as ExchangeServer is inferred."""
    yield _send_connector(f"EdgeSync - Inbound to {SITE}", "--", 1, ("ExchangeServer", 4), smart_host="--")
    yield _send_connector(f"EdgeSync - {SITE} to Internet", "*", 100, ("None", 0))


def _send_connector(
    name: str, space: str, cost: int, mechanism: tuple[str, int], smart_host: str | None = None
) -> NetObject:
    spaces = of_class("AddressSpace", f"SMTP:{space};{cost}", Address=space, Type="SMTP", Cost=cost)
    hosts = [of_class("SmartHost", smart_host, IsIPAddress=False, Domain=smart_host)] if smart_host else []
    properties = {
        "DNSRoutingEnabled": smart_host is None,
        "SmartHosts": several(f"{EXCHANGE_DATA}.SmartHost", hosts),
        "SmartHostsString": smart_host or "",
        "FrontendProxyEnabled": False,
        "Fqdn": None,
        "TlsCertificateName": None,
        "RequireTLS": False,
        "Enabled": True,
        "SmartHostAuthMechanism": enumeration("SmtpSendConnectorConfig+AuthMechanisms", *mechanism),
        "AddressSpaces": several(f"{EXCHANGE_DATA}.AddressSpace", [spaces]),
        "SourceTransportServers": several(
            f"{EXCHANGE_DATA}.Directory.ADObjectId", [object_id(EDGE1, f"CN={EDGE1},{SERVERS_DN}")]
        ),
    }
    classes = (f"{CONFIGURATION}.SmtpSendConnectorConfig", f"{CONFIGURATION}.MailGateway")
    return _admin_object(classes, name, f"CN={name},CN=Connections,{ROOT_DN}", properties)


def _accepted_domain(name: str) -> NetObject:
    properties = {
        "DomainName": of_class("SmtpDomainWithSubdomains", name, Address=name, IncludeSubDomains=False, Domain=name),
        "DomainType": enumeration("AcceptedDomainType", "Authoritative", 0),
        "Default": True,
    }
    classes = (f"{CONFIGURATION}.AcceptedDomain",)
    return _admin_object(classes, name, f"CN={name},CN=Accepted Domains,CN=Transport Settings,{ROOT_DN}", properties)


def _edge_subscription() -> NetObject:
    site = object_id(f"{DOMAIN}/Configuration/Sites/{SITE}", f"CN={SITE},CN=Sites,CN=Configuration,DC=contoso,DC=com")
    classes = (f"{TASKS}.EdgeSubscription",)
    return _admin_object(classes, EDGE1, f"CN={EDGE1},{SERVERS_DN}", {"Site": site, "Domain": DOMAIN})


def server_attribute(name: str, der: bytes) -> NetObject:
    """What the directory search in ``docs/export.md`` makes."""
    return NetObject(
        types=("System.Management.Automation.PSCustomObject",),
        notes={"Name": name, "msExchServerInternalTLSCert": der},
    )


def _transport_services(own: Mapping[str, bytes]) -> str:
    """As ConvertTo-Json of Windows PowerShell 5.1 lays it out, with two blanks behind a colon [PS-CONVERTTO-JSON]."""
    objects = [
        {"Name": name, "InternalTransportCertificateThumbprint": thumbprint_of(der)} for name, der in own.items()
    ]
    return json.dumps(objects, indent=4, separators=(",", ":  ")) + "\n"


def _queues() -> str:
    """Text of Format-List, as ``Out-File`` leaves it."""
    blocks = [
        (f"{MBX1}\\3", "SmtpRelayWithinAdSiteToEdge", f"EdgeSync - {SITE} to Internet"),
        (f"{MBX1}\\4", "SmtpDeliveryToMailbox", "Mailbox Database 1"),
        (f"{MBX2}\\2", "SmtpRelayWithinAdSiteToEdge", f"EdgeSync - {SITE} to Internet"),
        (f"{MBX2}\\5", "SmtpRelayToServers", f"{MBX1.lower()}.{DOMAIN}"),
    ]
    return (
        "\n"
        + "\n\n".join(
            f"Identity      : {identity}\nDeliveryType  : {delivery}\nNextHopDomain : {domain}\nStatus        : Ready\nMessageCount  : 0"
            for identity, delivery, domain in blocks
        )
        + "\n\n\n"
    )
