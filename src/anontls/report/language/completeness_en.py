"""What an organisation still lacks, in English; merged into the catalogue."""

TEXTS: dict[str, str] = {
    "missing.servers": "No server is known: without Get-ExchangeServer nothing else finds its place.",
    "missing.role": "ServerRole is not known. Mailbox and Edge are asked different questions (outbound).",
    "missing.fqdn": "Fqdn is not known. A Receive connector without one of its own is looked up by it (STARTTLS).",
    "missing.thumbprint": (
        "InternalTransportCertificateThumbprint is not known. The first step of outbound anonymous TLS asks for it."
    ),
    "missing.attribute": (
        "msExchServerInternalTLSCert is not known. Both anonymous procedures load the certificate that it holds."
    ),
    "missing.certificates": "Its certificates are not known. Every procedure ends in its certificate store.",
    "missing.certificate-properties": (
        "{properties} of some certificates is not known. STARTTLS needs them to choose, anonymous TLS needs the "
        "private key."
    ),
    "missing.receive-connectors": "Its Receive connectors are not known. Both inbound procedures begin with one.",
    "missing.receive-connector-properties": "{properties} of some Receive connectors is not known.",
    "missing.queues": (
        "Its queues are not known. Outbound anonymous TLS asks for the DeliveryType of the queue; without it every"
        " kind of queue is tried."
    ),
    "missing.send-connectors": (
        "No Send connector of this Edge server is known. Outbound anonymous TLS asks for its SmartHostAuthMechanism."
    ),
    "missing.edge-subscriptions": "Which Edge servers are subscribed to which site is not known.",
    "finding.role": (
        "ServerRole {role} is out of scope. The procedures are those of Exchange 2016, 2019 and Subscription "
        "Edition, roles Mailbox and Edge."
    ),
    "finding.version": (
        "{version} is out of scope. The procedures are those of Exchange 2016, 2019 and Subscription Edition."
    ),
    "finding.copies-differ": (
        "msExchServerInternalTLSCert is {ad} in Active Directory and {adlds} in AD LDS. The Edge subscription has "
        "to be renewed."
    ),
    "finding.thumbprints-differ": (
        "Get-TransportService shows {thumbprint}, msExchServerInternalTLSCert holds {attribute}. Replication, or "
        "exports of different days."
    ),
    "finding.foreign-send-connector": (
        "Send connector {connector}: none of its source servers ({servers}) is in the sources. It may be of "
        "another organisation."
    ),
    "finding.not-read": "{file} was not read: {because}",
    "finding.mixed-origins": "The cmdlets ran in several domains: {computers}. Is this one organisation?",
    "finding.unplaced": "{type} {identities} of {file} has no place: {because}.",
}
