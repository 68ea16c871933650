"""Writes CLIXML and .NET binary blobs of the form that Exchange's exports have."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape, quoteattr

EXCHANGE = "Microsoft.Exchange.Data.Directory.SystemConfiguration"
SERVER_TYPE = "Microsoft.Exchange.Data.Directory.Management.ExchangeServer"
CERTIFICATE_TYPE = "Microsoft.Exchange.Management.SystemConfigurationTasks.ExchangeCertificate"


@dataclass
class Obj:
    """An object: its types, its text, what it holds."""

    types: tuple[str, ...] = ()
    text: str | None = None
    props: Mapping[str, Any] = field(default_factory=dict)
    ms: Mapping[str, Any] = field(default_factory=dict)
    items: Iterable[Any] | None = None
    number: int | None = None  # of an enumeration
    entries: Mapping[str, Any] | None = None  # of a hash table


@dataclass
class Xml:
    """An element as it stands; ``{name}`` is where its ``N`` attribute goes."""

    text: str


def enumeration(text: str, number: int, type_name: str = f"{EXCHANGE}.AuthMechanisms") -> Obj:
    return Obj((type_name, "System.Enum", "System.ValueType"), text, number=number)


def multi_valued(items: Iterable[Any], of: str = "System.String") -> Obj:
    name = f"Microsoft.Exchange.Data.MultiValuedProperty`1[[{of}, mscorlib, Version=4.0.0.0, Culture=neutral]]"
    return Obj((name, "Microsoft.Exchange.Data.MultiValuedPropertyBase"), items=items)


class Writer:
    """Numbers objects and types as Export-Clixml does: a type is written once, then referred to."""

    def __init__(self) -> None:
        self.refs = 0
        self.types: dict[tuple[str, ...], int] = {}

    def document(self, objects: Iterable[Any]) -> str:
        body = "".join(self.element(found, "") for found in objects)
        namespace = "http://schemas.microsoft.com/powershell/2004/04"
        return f'<Objs Version="1.1.0.1" xmlns="{namespace}">\r\n{body}</Objs>'

    def element(self, value: Any, name: str) -> str:
        attribute = f" N={quoteattr(escaped(name))}" if name else ""
        match value:
            case Obj():
                return self.object(value, attribute)
            case Xml():
                return value.text.replace("{name}", attribute)
            case None:
                return f"<Nil{attribute} />"
            case bool():
                return f"<B{attribute}>{str(value).lower()}</B>"
            case int():
                return f"<I32{attribute}>{value}</I32>"
            case bytes():
                return f"<BA{attribute}>{base64.b64encode(value).decode()}</BA>"
            case str():
                return f"<S{attribute}>{escape(escaped(value))}</S>"
            case list() | tuple():
                return self.object(multi_valued(value), attribute)
        raise TypeError(value)

    def object(self, found: Obj, attribute: str) -> str:
        out = [f'  <Obj{attribute} RefId="{self.refs}">']
        self.refs += 1
        if found.types in self.types:
            out.append(f'<TNRef RefId="{self.types[found.types]}" />')
        elif found.types:
            number = self.types[found.types] = len(self.types)
            names = "".join(f"<T>{escape(name)}</T>" for name in (*found.types, "System.Object"))
            out.append(f'<TN RefId="{number}">{names}</TN>')
        if found.text is not None:
            out.append(f"<ToString>{escape(escaped(found.text))}</ToString>")
        if found.number is not None:
            out.append(f"<I32>{found.number}</I32>")
        if found.entries is not None:
            pairs = (
                f"<En>{self.element(key, 'Key')}{self.element(value, 'Value')}</En>"
                for key, value in found.entries.items()
            )
            out.append(f"<DCT>{''.join(pairs)}</DCT>")
        if found.items is not None:
            out.append(f"<LST>{''.join(self.element(item, '') for item in found.items)}</LST>")
        for tag, members in (("Props", found.props), ("MS", found.ms)):
            if members:
                inside = "\r\n    ".join(self.element(value, name) for name, value in members.items())
                out.append(f"<{tag}>\r\n    {inside}\r\n  </{tag}>")
        return "\r\n  ".join([*out, "</Obj>\r\n"])


def clixml(*objects: Any) -> str:
    return Writer().document(objects)


def escaped(text: str) -> str:
    """Control characters, and what would read as an escape, as ``_xHHHH_``; what is beyond 16 bits as two."""

    def code(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be")
        return "".join(f"_x{units[at : at + 2].hex().upper()}_" for at in range(0, len(units), 2))

    return re.sub(r"[\0-\x1f\x7f-\x9f\ufffe\uffff\U00010000-\U0010ffff]|_(?=x[0-9A-Fa-f]{4}_)", code, text)


# --- Exchange's objects ----------------------------------------------------------------------------------------------


def remote(computer: str, blob: bytes = b"") -> dict[str, Any]:
    """What implicit remoting adds to an object."""
    blobs = {"SerializationData": blob} if blob else {}
    return {
        "PSComputerName": computer,
        "RunspaceId": Xml(f"<G{{name}}>{'0' * 8}</G>"),
        "PSShowComputerName": False,
        **blobs,
    }


def parsed(type_name: str, text: str, **props: Any) -> Obj:
    """A value that has a text, properties and a serialized copy, as most of Exchange's have."""
    return Obj((type_name,), text, props, {"SerializationData": b"\0\1\0\0\0\xff\xff\xff\xff" * 20})


def address(text: str) -> Obj:
    return parsed("System.Net.IPAddress", text, Address=0, AddressFamily="InterNetwork", IsIPv6Multicast=False)


def receive_connector(server: str, name: str, **properties: Any) -> Obj:
    binding = parsed("Microsoft.Exchange.Data.IPBinding", "0.0.0.0:25", Port=25, Address=address("0.0.0.0"))
    ranges = parsed("Microsoft.Exchange.Data.IPRange", "0.0.0.0-255.255.255.255", LowerBound="0.0.0.0", Size=32)
    values: dict[str, Any] = {
        "AuthMechanism": enumeration("Tls, ExchangeServer", 17),
        "Banner": "",
        "Bindings": multi_valued([binding], "Microsoft.Exchange.Data.IPBinding"),
        "ChunkingEnabled": True,
        "DefaultDomain": None,
        "Enabled": True,
        "Fqdn": parsed("Microsoft.Exchange.Data.Fqdn", f"{server}.example.org".lower(), Domain=f"{server}.example.org"),
        "TlsCertificateName": None,
        "MaxHopCount": 60,
        "PermissionGroups": enumeration("ExchangeServers", 16, "Microsoft.Exchange.Data.PermissionGroups"),
        "RemoteIPRanges": multi_valued([ranges], "Microsoft.Exchange.Data.IPRange"),
        "SuppressXAnonymousTls": False,
        "TransportRole": enumeration("HubTransport", 32, f"{EXCHANGE}.ServerRole"),
        "Server": parsed("Microsoft.Exchange.Data.Directory.ADObjectId", server, Name=server, Depth=9),
        "Identity": parsed("Microsoft.Exchange.Data.Directory.ADObjectId", f"{server}\\{name}", Name=name, Depth=12),
        "Name": name,
        "WhenChangedUTC": Xml("<DT{name}>2024-10-06T19:24:05Z</DT>"),
    }
    return Obj(
        (f"{EXCHANGE}.ReceiveConnector",),
        f"{server}\\{name}",
        values | properties,
        remote(f"{server}.example.org".lower()),
    )


def exchange_server(name: str, **properties: Any) -> Obj:
    values: dict[str, Any] = {
        "Name": name,
        "Fqdn": f"{name}.example.org".lower(),
        "ServerRole": enumeration("Mailbox", 54, f"{EXCHANGE}.ServerRole"),
        "AdminDisplayVersion": parsed("Microsoft.Exchange.Data.ServerVersion", "Version 15.2 (Build 1544.4)", Major=15),
        "Site": parsed("Microsoft.Exchange.Data.Directory.ADObjectId", "example.org/Configuration/Sites/Berlin"),
    }
    return Obj((SERVER_TYPE,), name, values | properties, remote(f"{name}.example.org".lower()))


def exchange_certificate(der: bytes, blob: bytes = b"", computer: str = "mbx1.example.org") -> Obj:
    types = (CERTIFICATE_TYPE, "System.Security.Cryptography.X509Certificates.X509Certificate2")
    return Obj(types, "[Subject]\r\n  CN=MBX1\r\n\r\n", {"RawData": der}, remote(computer, blob))


# --- .NET's binary format --------------------------------------------------------------------------------------------


def string(text: str) -> bytes:
    """LengthPrefixedString."""
    data = text.encode()
    length, prefix = len(data), b""
    while True:
        length, low = length >> 7, length & 0x7F
        prefix += bytes([low | (0x80 if length else 0)])
        if not length:
            return prefix + data


def int32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


HEADER = b"\0" + int32(1, -1, 1, 0)
END = b"\x0b"
LIBRARY = b"\x0c" + int32(2) + string("Microsoft.Exchange.Management, Version=15.0.0.0")


def class_record(object_id: int, name: str, members: Mapping[str, tuple[int, bytes]], library: int | None = 2) -> bytes:
    """A class with members and types; each member is its BinaryTypeEnumeration value and what that adds."""
    kinds = bytes(kind for kind, _ in members.values()) + b"".join(more for _, more in members.values())
    names = b"".join(string(member) for member in members)
    tail = b"" if library is None else int32(library)
    record = b"\4" if library is None else b"\5"
    return record + int32(object_id) + string(name) + int32(len(members)) + names + kinds + tail


def certificate_blob(
    *,
    services: int = 16,
    status: int = 1,
    root_ca_type: int = 3,
    identity: str = "MBX1.example.org\\" + "0" * 40,
    exportable: bool = False,
    certificate: bytes = b"\x30\x82",
    sites: tuple[str, ...] = (),
) -> bytes:
    """What Get-ExchangeCertificate leaves in SerializationData."""
    prefix = "Microsoft.Exchange.Management.SystemConfigurationTasks"
    listed = f"System.Collections.Generic.List`1[[{prefix}.IisService, Microsoft.Exchange.Management]]"
    enums = {"Status": "CertificateStatus", "RootCAType": "CertificateAuthorityType", "Services": "AllowedServices"}
    out = HEADER + LIBRARY
    out += class_record(
        1,
        f"{prefix}.ExchangeCertificate",
        {"CertData": (7, b"\2"), "SelfSigned": (0, b"\1")}
        | {name: (4, string(f"{prefix}.{kind}") + int32(2)) for name, kind in enums.items()}
        | {"IISServices": (3, string(listed)), "PrivateKeyExportable": (0, b"\1"), "Identity": (1, b"")},
    )
    out += b"\x09" + int32(3) + b"\1"  # CertData is object 3; SelfSigned
    for object_id, (name, number) in enumerate(zip(enums, (status, root_ca_type, services), strict=True), 4):
        out += class_record(-object_id, f"{prefix}.{enums[name]}", {"value__": (0, b"\x08")}) + int32(number)
    out += b"\x09" + int32(7) + bytes([exportable]) + b"\x06" + int32(8) + string(identity)
    out += b"\x0f" + int32(3, len(certificate)) + b"\2" + certificate
    out += class_record(
        7,
        listed,
        {"_items": (4, string(f"{prefix}.IisService[]") + int32(2)), "_size": (0, b"\x08"), "_version": (0, b"\x08")},
        library=None,
    )
    out += b"\x09" + int32(9, len(sites), 1)
    # the array has room for four, as a list's has, the rest one record of nulls
    room = 4 if sites else 0
    out += b"\x07" + int32(9) + b"\0" + int32(1, room) + b"\4" + string(f"{prefix}.IisService") + int32(2)
    out += b"".join(b"\x09" + int32(20 + at) for at in range(len(sites)))
    if room > len(sites):
        out += b"\x0d" + bytes([room - len(sites)])
    for at, site in enumerate(sites):
        if at:
            out += b"\x01" + int32(20 + at, 20)  # ClassWithId: the same class again
        else:
            out += class_record(20, f"{prefix}.IisService", {"serviceName": (1, b""), "internalUrl": (1, b"")})
        out += b"\x06" + int32(40 + at) + string(site) + b"\x0a"
    return out + END
