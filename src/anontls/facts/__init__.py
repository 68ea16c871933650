"""What is known: certificates, servers, connectors, queues.  Values only; nothing here touches the world."""

from anontls.facts.certificate import (
    ATTRIBUTE_ABSENT,
    Certificate,
    InternalTlsCert,
    Store,
    certificate_bytes,
    normal_thumbprint,
    thumbprint_of,
)
from anontls.facts.enums import (
    AUTH_MECHANISM_BITS,
    MAILBOX_TO_MAILBOX,
    SMTP_QUEUES_OF_A_MAILBOX_SERVER,
    Category,
    DeliveryType,
    Flags,
)
from anontls.facts.names import IssuerAndSubject, parse_tls_certificate_name, same_name
from anontls.facts.organization import (
    AcceptedDomain,
    EdgeSubscription,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Source,
    Unplaced,
    connector_for_session,
)
from anontls.facts.session import Phase, Scenario, SessionFacts
from anontls.facts.unknown import ABSENT, Unknown, is_null, is_unknown

__all__ = [
    "ABSENT",
    "ATTRIBUTE_ABSENT",
    "AUTH_MECHANISM_BITS",
    "MAILBOX_TO_MAILBOX",
    "SMTP_QUEUES_OF_A_MAILBOX_SERVER",
    "AcceptedDomain",
    "Category",
    "Certificate",
    "DeliveryType",
    "EdgeSubscription",
    "Flags",
    "InternalTlsCert",
    "IssuerAndSubject",
    "Organization",
    "Phase",
    "Queue",
    "ReceiveConnector",
    "Scenario",
    "SendConnector",
    "Server",
    "SessionFacts",
    "Source",
    "Store",
    "Unknown",
    "Unplaced",
    "certificate_bytes",
    "connector_for_session",
    "is_null",
    "is_unknown",
    "normal_thumbprint",
    "parse_tls_certificate_name",
    "same_name",
    "thumbprint_of",
]
