"""The catalogue of certificate and authentication events of the Exchange transport services.

Ids, names, levels and occasions are facts [FACT D 2]; the texts are our own.  A level on which sources disagree
says so in ``level_note``.  The texts and remedies in other languages stand in ``report/language``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Literal

import msgspec

Level = Literal["information", "warning", "error"]

#: Event source by transport service; the ids are the same [FACT D 2].
TRANSPORT = "MSExchangeTransport"
FRONT_END_TRANSPORT = "MSExchangeFrontEndTransport"


def source(transport_service: object) -> str:
    """The source of an event about a Receive connector of that ``TransportRole``; ``None``: about none."""
    return FRONT_END_TRANSPORT if transport_service == "FrontendTransport" else TRANSPORT


class EventType(msgspec.Struct, frozen=True, kw_only=True):
    """One event as the catalogue knows it; ``text`` and ``remedy`` have named fields in braces."""

    id: int
    name: str | None  # symbolic name; None where no clean source gives it
    level: Level
    category: str
    text: str
    when: str
    remedy: str
    level_note: str | None = None
    name_note: str | None = None
    sources: tuple[str, ...] = (TRANSPORT, FRONT_END_TRANSPORT)

    @property
    def fields(self) -> frozenset[str]:
        """The names that ``text`` and ``remedy`` need."""
        parts = string.Formatter().parse(self.text + self.remedy)
        return frozenset(name for _, name, _, _ in parts if name)


class Event(msgspec.Struct, frozen=True):
    """An event as it was raised.

    ``cause`` tells apart why, one word of an enumeration of ours: what a peer says is none.
    """

    id: int
    source: str
    values: Mapping[str, object]
    cause: str = ""

    @property
    def type(self) -> EventType:
        """Its row of the catalogue."""
        return CATALOGUE[self.id]


_ROWS = (
    EventType(
        id=1035,
        name="SmtpReceiveAuthenticationFailed",
        level="warning",
        level_note="seen as Warning in the field; the support article calls it an Error",
        category="SmtpReceive",
        text="A server at {address} failed to authenticate to the Receive connector {connector}: {error}. Mechanism: {mechanism}.",
        when="an inbound authentication (EXCHANGEAUTH, GSSAPI, NTLM, LOGIN) fails",
        remedy="Compare the clocks of both servers, check the SMTPSVC entries with `setspn -L {server}`, the Kerberos ports"
        " and the replication between domain controllers.",
    ),
    EventType(
        id=2016,
        name="SmtpSendAuthenticationInitializationFailed",
        level="error",
        category="SmtpSend",
        text="{server} could not prepare credentials for the Send connector {connector}: {error}."
        " Mechanism: {mechanism}, target: {target} at {address}.",
        when="credentials cannot be set up before an outbound authentication",
        remedy="Enter the credential again: `Set-SendConnector {connector} -AuthenticationCredential (Get-Credential)`.",
    ),
    EventType(
        id=2017,
        name="SmtpSendOutboundAuthenticationFailed",
        level="error",
        category="SmtpSend",
        text="An outbound authentication on the Send connector {connector} failed: {error}."
        " Mechanism: {mechanism}, target: {target} at {address}.",
        when="the sender cannot get a Kerberos ticket for the target, or the target refuses it",
        remedy="Check the domain controller, the trust, and the service principal name: `setspn -Q {target}`.",
    ),
    EventType(
        id=12012,
        name="InternalTransportCertificateMissingInAD",
        level="error",
        level_note="documented as Error; the monitoring alert is a Warning",
        category="TransportService",
        text="The internal transport certificate of {server} could not be read from the directory: {reason}."
        " Authentication with other Exchange servers by this certificate is not possible.",
        when="the transport service starts and msExchServerInternalTLSCert is null or cannot be read; never during a session",
        remedy="Enable-ExchangeCertificate -Server {server} -Thumbprint <thumbprint> -Services SMTP"
        " (or New-ExchangeCertificate first), then wait for replication.",
    ),
    EventType(
        id=12013,
        name="CannotLoadInternalTransportCertificateFromStore",
        level="error",
        category="TransportService",
        text="{server} cannot load its internal transport certificate {thumbprint} from the local computer's certificate store.",
        when="no usable certificate of the thumbprint that the directory names is in the store",
        remedy="Enable-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} -Services SMTP; if it is gone,"
        " Import-ExchangeCertificate from a backup or New-ExchangeCertificate.",
    ),
    EventType(
        id=12014,
        name=None,
        name_note="no clean source gives the symbolic name",
        level="error",
        level_note="Error in logs of 2010 and later; the article for 2007 calls it a Warning",
        category="TransportService",
        text="{server} has no certificate to offer STARTTLS with on {connector}: no usable one for {name} is in the"
        " local computer's certificate store (Fqdn of the connector: {fqdn}).",
        when="no certificate matches the connector's name, or no match can be used",
        remedy="Set-ReceiveConnector {connector} -Fqdn <name on a certificate>, or import a certificate for {name} and"
        " Enable-ExchangeCertificate -Services SMTP.",
    ),
    EventType(
        id=12015,
        name="InternalTransportCertificateExpired",
        level="warning",
        level_note="the documentation's text says Information; Warning in the field",
        category="TransportService",
        text="The internal transport certificate {thumbprint} of {server} expired on {not_after}. It is still used.",
        when="the internal transport certificate is past its Valid to",
        remedy="Get-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} | New-ExchangeCertificate",
    ),
    EventType(
        id=12016,
        name="STARTTLSCertificateExpired",
        level="error",
        category="TransportService",
        text="The certificate {thumbprint} that {server} offers STARTTLS with for {name} expired on {not_after}.",
        when="the certificate chosen for STARTTLS is past its Valid to",
        remedy="Import a renewed certificate, or New-ExchangeCertificate -Server {server} -DomainName <name> -Services SMTP.",
    ),
    EventType(
        id=12017,
        name="InternalTransportCertificateExpiresSoon",
        level="warning",
        level_note="the documentation's text says Information; the monitoring alert is a Warning. The lead time is not documented",
        category="TransportService",
        text="The internal transport certificate {thumbprint} of {server} expires in {hours} hours.",
        when="the internal transport certificate is near its Valid to",
        remedy="Get-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} | New-ExchangeCertificate",
    ),
    EventType(
        id=12018,
        name="STARTTLSCertificateExpiresSoon",
        level="warning",
        level_note="sources are unclear between Error and Warning. The lead time is not documented",
        category="TransportService",
        text="The STARTTLS certificate {thumbprint} ({subject}) of {server} expires in {hours} hours.",
        when="a certificate in use for STARTTLS is near its Valid to",
        remedy="Import a renewed certificate, or New-ExchangeCertificate -Server {server} -DomainName <name> -Services SMTP.",
    ),
    EventType(
        id=12019,
        name="RemoteInternalTransportCertificateExpired",
        level="information",
        level_note="the documentation's text says Information; no field sample is known",
        category="TransportService",
        text="The internal transport certificate of the other server has expired: {subject}. The session goes on.",
        when="the certificate that the peer presents after X-ANONYMOUSTLS is past its Valid to",
        remedy="On the other server: Get-ExchangeCertificate -Thumbprint {thumbprint} | New-ExchangeCertificate",
    ),
    EventType(
        id=12024,
        name="CannotLoadInternalTransportCertificateFallbackEphemeralCertificate",
        level="information",
        level_note="the documentation's text says Information; that it replaces 12013 is known of the 2010 event library only",
        category="TransportService",
        text="{server} cannot load its internal transport certificate {thumbprint} from the local computer's certificate"
        " store and uses a temporary self-signed certificate in its place.",
        when="as 12013, under the rule store-miss=ephemeral",
        remedy="Enable-ExchangeCertificate -Server {server} -Thumbprint {thumbprint} -Services SMTP; if it is gone,"
        " Import-ExchangeCertificate from a backup or New-ExchangeCertificate.",
    ),
)

CATALOGUE: Mapping[int, EventType] = {row.id: row for row in _ROWS}
