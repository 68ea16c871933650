"""The part of Exchange's directory schema that we read, for two directories: as LDIF for Active Directory, for slapd.

Active Directory addresses attributes by name, so an identifier of a test arc stands for those that are not published.
The class identifiers are Exchange's own where they are.
"""

from __future__ import annotations

import base64
import uuid
from typing import NamedTuple

ARC = "1.3.6.1.4.1.4203.666.11.99"  # OpenLDAP's for experiments
EXCHANGE = "1.2.840.113556.1.5.7000.62"


class Attribute(NamedTuple):
    """An attribute of the schema: its common name and its LDAP name."""

    cn: str
    name: str
    kind: str  # octets, integer, text or dn
    single: bool = True
    guid: str = ""  # schemaIDGUID where it is public


ATTRIBUTES = (
    Attribute(
        "ms-Exch-Server-Internal-TLS-Cert",
        "msExchServerInternalTLSCert",
        "octets",
        guid="D0AD315B-0A1D-42E3-B93C-47B119C2D59A",
    ),
    Attribute(
        "ms-Exch-Current-Server-Roles",
        "msExchCurrentServerRoles",
        "integer",
        guid="53436E7C-17D9-40F4-954D-C34D013E9C16",
    ),
    Attribute("ms-Exch-Server-Site", "msExchServerSite", "dn"),
    Attribute(
        "ms-Exch-SMTP-Receive-Connector-FQDN",
        "msExchSMTPReceiveConnectorFQDN",
        "text",
        guid="88B5E259-A18F-4202-ADC3-CD24A603B266",
    ),
    Attribute(
        "ms-Exch-Smtp-Receive-Bindings",
        "msExchSmtpReceiveBindings",
        "text",
        single=False,
        guid="6408DC1D-D8A3-4168-AA75-816F3E9AC211",
    ),
    Attribute("ms-Exch-Smtp-Receive-Remote-IP-Ranges", "msExchSmtpReceiveRemoteIPRanges", "text", single=False),
    Attribute("ms-Exch-Smtp-Receive-Inbound-Security-Flag", "msExchSmtpReceiveInboundSecurityFlag", "integer"),
    Attribute("ms-Exch-Smtp-Receive-Protocol-Options", "msExchSmtpReceiveProtocolOptions", "integer"),
    Attribute(
        "ms-Exch-Smtp-Receive-Tls-Certificate-Name",
        "msExchSmtpReceiveTlsCertificateName",
        "text",
        guid="8560430C-AEC4-4624-A5B2-6357FE90D358",
    ),
    Attribute("ms-Exch-Smtp-TLS-Certificate", "msExchSmtpTLSCertificate", "text"),
    Attribute("Routing-List", "routingList", "text", single=False),
    Attribute("ms-Exch-Smtp-Smart-Host", "msExchSmtpSmartHost", "text"),
    Attribute("ms-Exch-Source-Bridgehead-Servers-DN", "msExchSourceBridgeheadServersDN", "dn", single=False),
    Attribute("ms-Exch-Smtp-Send-Flags", "msExchSmtpSendFlags", "integer"),
    Attribute("ms-Exch-SMTP-Send-Connector-FQDN", "msExchSMTPSendConnectorFQDN", "text"),
)


class Class(NamedTuple):
    """A class of the schema: its common name and its LDAP name."""

    cn: str
    name: str
    oid: str
    below: str  # the class that may hold it
    parent: str = "top"
    attributes: tuple[str, ...] = ()


CLASSES = (
    Class(
        "ms-Exch-Organization-Container",
        "msExchOrganizationContainer",
        f"{EXCHANGE}.50020",
        "msExchConfigurationContainer",
    ),
    Class(
        "ms-Exch-Admin-Group-Container",
        "msExchAdminGroupContainer",
        f"{EXCHANGE}.50019",
        "msExchOrganizationContainer",
    ),
    Class("ms-Exch-Admin-Group", "msExchAdminGroup", f"{EXCHANGE}.50011", "msExchAdminGroupContainer"),
    Class("ms-Exch-Servers-Container", "msExchServersContainer", f"{EXCHANGE}.50013", "msExchAdminGroup"),
    Class(
        "ms-Exch-Exchange-Server",
        "msExchExchangeServer",
        f"{EXCHANGE}.50009",
        "msExchServersContainer",
        "server",
        ("msExchServerInternalTLSCert", "msExchCurrentServerRoles", "msExchServerSite", "networkAddress"),
    ),
    Class("ms-Exch-Protocol-Cfg-Container", "msExchProtocolCfgContainer", f"{ARC}.201", "msExchExchangeServer"),
    Class(
        "ms-Exch-Protocol-Cfg-SMTP-Container",
        "msExchProtocolCfgSMTPContainer",
        f"{ARC}.203",
        "msExchProtocolCfgContainer",
    ),
    Class(
        "ms-Exch-Smtp-Receive-Connector",
        "msExchSmtpReceiveConnector",
        f"{ARC}.202",
        "msExchProtocolCfgSMTPContainer",
        attributes=(
            "msExchSMTPReceiveConnectorFQDN",
            "msExchSmtpReceiveBindings",
            "msExchSmtpReceiveRemoteIPRanges",
            "msExchSmtpReceiveInboundSecurityFlag",
            "msExchSmtpReceiveProtocolOptions",
            "msExchSmtpReceiveTlsCertificateName",
            "msExchSmtpTLSCertificate",
        ),
    ),
    Class("ms-Exch-Routing-Group-Container", "msExchRoutingGroupContainer", f"{EXCHANGE}.12001", "msExchAdminGroup"),
    Class("ms-Exch-Routing-Group", "msExchRoutingGroup", f"{EXCHANGE}.12002", "msExchRoutingGroupContainer"),
    Class("ms-Exch-Connectors", "msExchConnectors", f"{EXCHANGE}.12003", "msExchRoutingGroup"),
    Class(
        "ms-Exch-Routing-SMTP-Connector",
        "msExchRoutingSMTPConnector",
        f"{EXCHANGE}.12008",
        "msExchConnectors",
        attributes=(
            "routingList",
            "msExchSmtpSmartHost",
            "msExchSourceBridgeheadServersDN",
            "msExchSmtpSendFlags",
            "msExchSMTPSendConnectorFQDN",
            "msExchSmtpTLSCertificate",
        ),
    ),
)

#: What Active Directory has by itself, for slapd.
IN_ACTIVE_DIRECTORY = (
    Attribute("Network-Address", "networkAddress", "text", single=False),
    Attribute("Site-List", "siteList", "dn", single=False),
    Attribute("Cost", "cost", "integer"),
    Attribute("Configuration-NC", "configurationNamingContext", "dn"),
    Attribute("Supported-Capabilities", "supportedCapabilities", "text", single=False),
)
CLASSES_IN_ACTIVE_DIRECTORY = (
    Class("Container", "container", "", ""),
    Class("Configuration", "configuration", "", ""),
    Class("Server", "server", "", "", attributes=("networkAddress", "serialNumber")),
    Class("Site", "site", "", ""),
    Class("Sites-Container", "sitesContainer", "", ""),
    Class("Inter-Site-Transport", "interSiteTransport", "", ""),
    Class("Site-Link", "siteLink", "", "", attributes=("siteList", "cost")),
    Class("ms-Exch-Configuration-Container", "msExchConfigurationContainer", "", "", "container"),
)

# [attributeSyntax, oMSyntax] of Active Directory
SYNTAX = {"octets": ("2.5.5.10", 4), "integer": ("2.5.5.9", 2), "text": ("2.5.5.12", 64), "dn": ("2.5.5.1", 127)}
OF_SLAPD = {
    "octets": "EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40",
    "integer": "EQUALITY integerMatch ORDERING integerOrderingMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27",
    "text": "EQUALITY caseIgnoreMatch SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15",
    "dn": "EQUALITY distinguishedNameMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.12",
}
# Domain administrators and the system may do all, whoever is authenticated may read.
READABLE_BY_ALL = "D:(A;;RPWPCRCCDCLCLOLORCWOWDSDDTDTSW;;;DA)(A;;RPWPCRCCDCLCLORCWOWDSDDTSW;;;SY)(A;;RPLCLORC;;;AU)"
NOW = "\ndn:\nchangetype: modify\nadd: schemaUpdateNow\nschemaUpdateNow: 1\n"


def for_active_directory(base: str) -> str:
    """As LDIF; a class can be named once the schema is up to date with it."""
    schema = f"CN=Schema,CN=Configuration,{base}"
    attributes = [_attribute(attribute, number, schema) for number, attribute in enumerate(ATTRIBUTES, 1)]
    return "\n".join([*attributes, NOW, *(_class(each, schema) + NOW for each in CLASSES)])


def _attribute(attribute: Attribute, number: int, schema: str) -> str:
    syntax, om_syntax = SYNTAX[attribute.kind]
    lines = [
        f"dn: CN={attribute.cn},{schema}",
        "changetype: add",
        "objectClass: attributeSchema",
        f"cn: {attribute.cn}",
        f"lDAPDisplayName: {attribute.name}",
        f"attributeID: {ARC}.{number}",
        f"attributeSyntax: {syntax}",
        f"oMSyntax: {om_syntax}",
        f"isSingleValued: {str(attribute.single).upper()}",
        "searchFlags: 0",
    ]
    if attribute.kind == "dn":
        lines.append("oMObjectClass:: " + base64.b64encode(bytes.fromhex("2b0c0287731c00854a")).decode())
    if attribute.guid:
        lines.append("schemaIDGUID:: " + base64.b64encode(uuid.UUID(attribute.guid).bytes_le).decode())
    return "\n".join(lines) + "\n"


def _class(each: Class, schema: str) -> str:
    lines = [
        f"dn: CN={each.cn},{schema}",
        "changetype: add",
        "objectClass: classSchema",
        f"cn: {each.cn}",
        f"lDAPDisplayName: {each.name}",
        f"governsID: {each.oid}",
        f"subClassOf: {each.parent}",
        "objectClassCategory: 1",
        "rDNAttID: cn",
        f"possSuperiors: {each.below}",
        *(f"mayContain: {name}" for name in each.attributes),
        f"defaultObjectCategory: CN={each.cn},{schema}",
        f"defaultSecurityDescriptor: {READABLE_BY_ALL}",
    ]
    return "\n".join(lines) + "\n"


def for_slapd() -> str:
    """The same as a schema file of slapd, with what it needs of Active Directory's own."""
    lines = []
    for number, attribute in enumerate((*ATTRIBUTES, *IN_ACTIVE_DIRECTORY), 1):
        single = "SINGLE-VALUE" if attribute.single else ""
        lines.append(f"attributetype ( {ARC}.{number} NAME '{attribute.name}' {OF_SLAPD[attribute.kind]} {single} )")
    for number, each in enumerate((*CLASSES_IN_ACTIVE_DIRECTORY, *CLASSES), 101):
        may = f"MAY ( {' $ '.join(each.attributes)} )" if each.attributes else ""
        lines.append(f"objectclass ( {ARC}.{number} NAME '{each.name}' SUP {each.parent} STRUCTURAL MUST cn {may} )")
    return "\n".join(lines) + "\n"
