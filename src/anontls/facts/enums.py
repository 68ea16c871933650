"""Enumerations of Exchange: as the names that cmdlets print, or as the integers that ``ConvertTo-Json`` leaves.

An integer is turned into a name only where the facts grade the pairing C or better; the rest stays a number, and
a question about it is answered "unknown".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from anontls.facts.unknown import Unknown


class Flags(msgspec.Struct, frozen=True):
    """A value of a [Flags] enumeration: the names that are set, and the bits whose names are not confirmed."""

    names: frozenset[str]  # lower case
    rest: int = 0
    text: str = ""

    def holds(self, name: str, bits: Mapping[int, str]) -> bool | Unknown:
        """Whether ``name`` is set; unknown when unconfirmed bits could be it."""
        wanted = name.lower()
        if wanted in self.names:
            return True
        if self.rest and name not in bits.values():
            return Unknown(f"the value is the number {self.text}, and which of its bits is {name} is not confirmed")
        return False


# 15 and 31 were seen beside their names, so bit 16 is ExchangeServer and the four lower bits together are the four
# other names; which of the four is which is inference only.  [FACT C 5.4]
AUTH_MECHANISM_BITS: Mapping[int, str] = {16: "ExchangeServer"}
AUTH_MECHANISM_LOWER = frozenset({"tls", "integrated", "basicauth", "basicauthrequiretls"})
PERMISSION_GROUP_BITS: Mapping[int, str] = {
    1: "AnonymousUsers",
    2: "ExchangeUsers",
    4: "ExchangeServers",
    8: "ExchangeLegacyServers",
}
SERVICE_BITS: Mapping[int, str] = {1: "IMAP", 2: "POP", 8: "IIS", 16: "SMTP"}  # [FACT C 7.2]
CERTIFICATE_STATUS: Mapping[int, str] = {1: "Valid"}  # [FACT C 7.2]
SERVER_ROLE: Mapping[int, str] = {2: "Mailbox"}  # [FACT C 5.2]; 64 = Edge is graded B
TRANSPORT_ROLE: Mapping[int, str] = {32: "HubTransport", 16384: "FrontendTransport"}  # [FACT C 5.4]
SIZE_ENABLED: Mapping[int, str] = {
    1: "Enabled",
    2: "EnabledWithoutValue",
}  # [FACT C 5.4]; that 0 is Disabled is inferred
SMART_HOST_AUTH_MECHANISM: Mapping[int, str] = {0: "None"}  # [FACT C 5.4]


@lru_cache(maxsize=1024)
def auth_mechanism(value: str | int) -> Flags:
    """``AuthMechanism`` of a Receive connector."""
    flags = _flags(value, AUTH_MECHANISM_BITS)
    if flags.rest == 15:
        return Flags(flags.names | AUTH_MECHANISM_LOWER, 0, flags.text)
    return flags


@lru_cache(maxsize=1024)
def services(value: str | int) -> Flags:
    """``Services`` of a certificate."""
    return _flags(value, SERVICE_BITS)


@lru_cache(maxsize=1024)
def permission_groups(value: str | int) -> Flags:
    """``PermissionGroups`` of a Receive connector."""
    return _flags(value, PERMISSION_GROUP_BITS)


def _flags(value: str | int, bits: Mapping[int, str]) -> Flags:
    text = str(value).strip()
    if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20:
        number = int(text)
        names = frozenset(name.lower() for bit, name in bits.items() if number & bit)
        return Flags(names, number & ~sum(bits), text)
    return Flags(frozenset(part.strip().lower() for part in text.split(",")) - {"", "none"}, 0, text)


def enum_name(value: str | int, names: Mapping[int, str]) -> str | Unknown:
    """The name of an enumeration value; unknown when it is an integer without a confirmed name."""
    text = str(value).strip()
    if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20:
        return names.get(int(text)) or Unknown(f"the value is the number {text}, whose name is not confirmed")
    return text


class Category(enum.Enum):
    """``NextHopCategory`` of a delivery type."""

    EXTERNAL = "External"
    INTERNAL = "Internal"
    NONE = "-"


class DeliveryType(enum.Enum):
    """All documented values of a queue's ``DeliveryType`` [FACT D 6.1]."""

    DELIVERY_AGENT = "DeliveryAgent"
    DNS_CONNECTOR_DELIVERY = "DnsConnectorDelivery"
    HEARTBEAT = "Heartbeat"
    MAPI_DELIVERY = "MapiDelivery"
    NON_SMTP_GATEWAY_DELIVERY = "NonSmtpGatewayDelivery"
    SHADOW_REDUNDANCY = "ShadowRedundancy"
    SMART_HOST_CONNECTOR_DELIVERY = "SmartHostConnectorDelivery"
    SMTP_DELIVERY_TO_EXO = "SmtpDeliveryToExo"
    SMTP_DELIVERY_TO_MAILBOX = "SmtpDeliveryToMailbox"
    SMTP_RELAY_TO_CONNECTOR_SOURCE_SERVERS = "SmtpRelayToConnectorSourceServers"
    SMTP_RELAY_TO_DAG = "SmtpRelayToDag"
    SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP = "SmtpRelayToMailboxDeliveryGroup"
    SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE = "SmtpRelayToRemoteActiveDirectorySite"
    SMTP_RELAY_TO_REMOTE_FOREST = "SmtpRelayToRemoteForest"
    SMTP_RELAY_TO_SERVERS = "SmtpRelayToServers"
    SMTP_RELAY_TO_TI_RG = "SmtpRelayToTiRg"
    SMTP_RELAY_WITHIN_AD_SITE = "SmtpRelayWithinAdSite"
    SMTP_RELAY_WITHIN_AD_SITE_TO_EDGE = "SmtpRelayWithinAdSiteToEdge"
    UNDEFINED = "Undefined"
    UNREACHABLE = "Unreachable"

    @staticmethod
    def parse(text: str) -> DeliveryType | None:
        """The value that ``text`` names, compared without case; ``None`` when it is not in the documented list."""
        return DELIVERY_TYPE_BY_NAME.get(text.strip().lower())

    @property
    def category(self) -> Category:
        """``NextHopCategory``: Internal, External, or none for reserved and off-premises values."""
        return DELIVERY_CATEGORY.get(self, Category.NONE)


DELIVERY_TYPE_BY_NAME = {value.value.lower(): value for value in DeliveryType}
# The name that 2007 and 2010 texts print.  [FACT D 6.1]
DELIVERY_TYPE_BY_NAME["smtprelaytoremoteadsite"] = DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE

DELIVERY_CATEGORY = {
    DeliveryType.DELIVERY_AGENT: Category.EXTERNAL,
    DeliveryType.DNS_CONNECTOR_DELIVERY: Category.EXTERNAL,
    DeliveryType.NON_SMTP_GATEWAY_DELIVERY: Category.EXTERNAL,
    DeliveryType.SMART_HOST_CONNECTOR_DELIVERY: Category.EXTERNAL,
    DeliveryType.SHADOW_REDUNDANCY: Category.INTERNAL,
    DeliveryType.SMTP_DELIVERY_TO_MAILBOX: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_TO_CONNECTOR_SOURCE_SERVERS: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_TO_DAG: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_TO_SERVERS: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_WITHIN_AD_SITE: Category.INTERNAL,
    DeliveryType.SMTP_RELAY_WITHIN_AD_SITE_TO_EDGE: Category.INTERNAL,
    DeliveryType.UNDEFINED: Category.INTERNAL,
    DeliveryType.UNREACHABLE: Category.INTERNAL,
}

# Sessions from one Mailbox server to another: the delivery types that `mailbox-to-mailbox` speaks of.
MAILBOX_TO_MAILBOX = frozenset(
    {
        DeliveryType.SMTP_DELIVERY_TO_MAILBOX,
        DeliveryType.SMTP_RELAY_TO_DAG,
        DeliveryType.SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP,
        DeliveryType.SMTP_RELAY_TO_SERVERS,
        DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE,
        DeliveryType.SMTP_RELAY_TO_CONNECTOR_SOURCE_SERVERS,
        DeliveryType.SMTP_RELAY_WITHIN_AD_SITE,
    }
)
# Queues of a Mailbox server of 2016 and later that open an SMTP session; asked about when no queue is known.
SMTP_QUEUES_OF_A_MAILBOX_SERVER = (
    DeliveryType.SMTP_RELAY_WITHIN_AD_SITE_TO_EDGE,
    DeliveryType.SMTP_DELIVERY_TO_MAILBOX,
    DeliveryType.SMTP_RELAY_TO_DAG,
    DeliveryType.SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP,
    DeliveryType.SMTP_RELAY_TO_SERVERS,
    DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE,
    DeliveryType.SMTP_RELAY_TO_CONNECTOR_SOURCE_SERVERS,
    DeliveryType.SMART_HOST_CONNECTOR_DELIVERY,
    DeliveryType.DNS_CONNECTOR_DELIVERY,
)
