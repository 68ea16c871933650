"""What an organisation still lacks for the questions that can be asked, and which cmdlet would bring it.

Nothing here is a decision about certificates; whoever reads the answer knows which export to make next, and what in
the sources contradicts itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import msgspec

from anontls.directory.exchange_export.place import CURE, NO_SUCH_SERVER
from anontls.facts import (
    Certificate,
    InternalTlsCert,
    Organization,
    ReceiveConnector,
    Server,
    in_ldap_filter,
    in_single_quotes,
    is_null,
    is_unknown,
    powershell_argument,
    same_name,
)


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is missing or does not fit.

    ``key`` names the sentence, ``values`` fill its fields; ``cmdlet`` is the PowerShell line, or the command of this
    program, that helps: as it would be typed, empty where none does.  ``server`` is ``None`` for the organisation.
    """

    key: str
    cmdlet: str = ""
    server: str | None = None
    values: dict[str, str] = {}


#: Without these properties some step of some procedure cannot be answered.
NEEDED_OF_RECEIVE_CONNECTOR = {
    "AuthMechanism": "auth_mechanism",
    "SuppressXAnonymousTls": "suppress_x_anonymous_tls",
    "TlsCertificateName": "tls_certificate_name",
    "Fqdn": "fqdn",
    "Bindings": "bindings",
    "RemoteIPRanges": "remote_ip_ranges",
}
NEEDED_OF_CERTIFICATE = {"Services": "services", "Status": "status", "HasPrivateKey": "has_private_key"}
#: 15.1 is Exchange 2016, 15.2 Exchange 2019 and Subscription Edition.
VERSIONS = re.compile(r"Version 15\.[12]\b|15\.[12]\b|15\.0?[12]\.")
EXPORT = "Export-Clixml -Depth 4"


def missing(organization: Organization) -> list[Missing]:
    """All that is missing, the servers in their order, then the organisation, then the sources."""
    if not organization.servers:
        line = f"Get-ExchangeServer | {EXPORT} Get-ExchangeServer.xml"
        return [Missing(key="missing.servers", cmdlet=line), *_of_sources(organization)]
    found = [item for server in organization.servers for item in _of_server(server, organization)]
    return [*found, *_of_organization(organization), *_of_sources(organization)]


# --- one server ------------------------------------------------------------------------------------------------------


def _of_server(server: Server, organization: Organization) -> Iterator[Missing]:
    name = server.name

    def lacks(key: str, cmdlet: str, **values: str) -> Missing:
        return Missing(key=f"missing.{key}", cmdlet=cmdlet, server=name, values={"server": name, **values})

    def finds(key: str, cmdlet: str = "", **values: str) -> Missing:
        return Missing(key=f"finding.{key}", cmdlet=cmdlet, server=name, values={"server": name, **values})

    if is_unknown(server.server_role) or is_null(server.server_role):
        yield lacks("role", _exported("Get-ExchangeServer", name))
    elif is_unknown(server.role):
        yield finds("role", role=str(server.server_role))
    version = server.admin_display_version
    if isinstance(version, str) and version and not VERSIONS.match(version):
        yield finds("version", version=version)
    if is_unknown(server.fqdn):
        yield lacks("fqdn", _exported("Get-ExchangeServer", name))
    yield from _of_internal_certificate(server, lacks, finds)
    certificates = server.certificates
    if is_unknown(certificates):
        yield lacks("certificates", _exported("Get-ExchangeCertificate", name, switch="-Server "))
    elif properties := _unknown_of(certificates, NEEDED_OF_CERTIFICATE):
        cmdlet = f"Get-ExchangeCertificate -Server {powershell_argument(name)} | Format-List Thumbprint,Services,Status,HasPrivateKey"
        yield lacks("certificate-properties", cmdlet, properties=properties)
    connectors = server.receive_connectors
    get_connectors = _exported("Get-ReceiveConnector", name, switch="-Server ")
    if is_unknown(connectors):
        yield lacks("receive-connectors", get_connectors)
    elif properties := _unknown_of([c for c in connectors if not c.implicit], NEEDED_OF_RECEIVE_CONNECTOR):
        yield lacks("receive-connector-properties", get_connectors, properties=properties)
    if server.role == "Mailbox" and is_unknown(server.queues):
        yield lacks("queues", _exported("Get-Queue", name, switch="-Server "))
    if server.role == "Edge" and not _sends(server, organization):
        yield lacks("send-connectors", f"Get-SendConnector | {EXPORT} Get-SendConnector.xml")


def _of_internal_certificate(
    server: Server, lacks: Callable[..., Missing], finds: Callable[..., Missing]
) -> Iterator[Missing]:
    shown = server.internal_transport_certificate_thumbprint
    in_ad, in_adlds = server.internal_tls_cert, server.internal_tls_cert_adlds
    # The thumbprint and the attribute are one value seen twice, so one of them is enough [FACT O 5.3]
    if is_unknown(shown) and not _is_known(in_ad) and not _is_known(in_adlds):
        yield lacks("thumbprint", _exported("Get-TransportService", server.name))
        yield lacks("attribute", attribute_search(server.name, edge=server.role == "Edge"))
    if _is_known(in_ad) and _is_known(in_adlds) and in_ad.names != in_adlds.names:
        yield finds("copies-differ", ad=_named(in_ad), adlds=_named(in_adlds))
    own = in_adlds if server.role == "Edge" and _is_known(in_adlds) else in_ad
    if isinstance(shown, str) and shown and own.names and own.names != shown:
        yield finds("thumbprints-differ", thumbprint=shown, attribute=own.names)


def _is_known(attribute: InternalTlsCert) -> bool:
    return not isinstance(attribute.unknown, str)


def _named(attribute: InternalTlsCert) -> str:
    return attribute.names or (attribute.error if isinstance(attribute.error, str) else "null")


def _unknown_of(objects: tuple[Certificate, ...] | list[ReceiveConnector], properties: dict[str, str]) -> str:
    """The properties that some object does not tell, as text; a request has no Services to tell."""
    asked = [each for each in objects if not (isinstance(each, Certificate) and each.is_request)]
    return ", ".join(
        name for name, field in properties.items() if any(is_unknown(getattr(each, field)) for each in asked)
    )


def _sends(server: Server, organization: Organization) -> bool:
    connectors = organization.send_connectors
    if is_unknown(connectors):
        return False
    for connector in connectors:
        sources = connector.source_transport_servers
        if not connector.implicit and (is_unknown(sources) or any(_is_server(server, each) for each in sources or ())):
            return True
    return False


def _is_server(server: Server, name: str) -> bool:
    return same_name(server.name, name) or same_name(str(server.fqdn), name)


# --- the organisation and its sources --------------------------------------------------------------------------------


def _of_organization(organization: Organization) -> Iterator[Missing]:
    if is_unknown(organization.edge_subscriptions):
        yield Missing(
            key="missing.edge-subscriptions", cmdlet=f"Get-EdgeSubscription | {EXPORT} Get-EdgeSubscription.xml"
        )
    for connector in organization.send_connectors if not is_unknown(organization.send_connectors) else ():
        sources = connector.source_transport_servers
        if is_unknown(sources) or not sources or any(organization.server(name) for name in sources):
            continue
        yield Missing(
            key="finding.foreign-send-connector",
            cmdlet=_exported("Get-ExchangeServer", sources[0]),
            values={"connector": connector.identity, "servers": ", ".join(sources)},
        )


def _of_sources(organization: Organization) -> Iterator[Missing]:
    for source in organization.sources:
        if source.note and source.note.startswith("not read: "):
            values = {"file": source.file, "because": source.note.removeprefix("not read: ")}
            yield Missing(key="finding.not-read", values=values)
    computers = sorted({computer for source in organization.sources for computer in source.computers})
    if len({computer.lower().partition(".")[2] for computer in computers if "." in computer}) > 1:
        yield Missing(key="finding.mixed-origins", values={"computers": ", ".join(computers)})
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for item in organization.unplaced:
        owner = item.identity.partition("\\")[0] if item.because == NO_SUCH_SERVER else ""
        groups.setdefault((item.file, item.type, item.because, owner), []).append(item.identity)
    for (file, kind, because, owner), identities in groups.items():
        more = f" (+{len(identities) - 3})" if len(identities) > 3 else ""
        because, cure, file_argument = because.partition(CURE)
        yield Missing(
            key="finding.unplaced",
            cmdlet=_exported("Get-ExchangeServer", owner)
            if owner
            else f"anontls {cure[2:]}{file_argument}"
            if cure
            else "",
            values={
                "file": file,
                "type": kind,
                "identities": ", ".join(identities[:3]) + more,
                "because": because,
            },
        )


# --- PowerShell lines ------------------------------------------------------------------------------------------------


def _exported(cmdlet: str, server: str, switch: str = "") -> str:
    file = re.sub(r"[^A-Za-z0-9._-]", "_", f"{cmdlet}-{server}.xml")
    return f"{cmdlet} {switch}{powershell_argument(server)} | {EXPORT} {file}"


def attribute_search(server: str, *, edge: bool = False) -> str:
    """The directory search for ``msExchServerInternalTLSCert``; of an Edge server in its AD LDS [FACT D 5.5]."""
    host = "LDAP://localhost:50389/" if edge else "LDAP://"
    attribute = "msExchServerInternalTLSCert" + ("_adlds" if edge else "")
    escaped = in_single_quotes(in_ldap_filter(server))
    file = re.sub(r"[^A-Za-z0-9._-]", "_", f"ServerInternalTLSCert-{server}.xml")
    return (
        f"(New-Object DirectoryServices.DirectorySearcher([adsi]\"{host}$(([adsi]'{host}RootDSE').configurationNamingContext)\", "
        f"'(&(objectClass=msExchExchangeServer)(cn={escaped}))')).FindAll() | ForEach-Object {{ [pscustomobject]@{{ "
        f"Name = \"$($_.Properties['cn'])\"; {attribute} = @($_.Properties['msexchserverinternaltlscert'])[0] }} }} | "
        f"Export-Clixml {file}"
    )
