"""Outbound anonymous TLS: the sending server's own certificate for X-ANONYMOUSTLS.

Mailbox                                                        Edge
-------------------------------------------------------------  ------------------------------------------------------
1.a InternalTransportCertificateThumbprint is not null          1.a the same                            [ARTICLE-OUT 1]
1.b DeliveryType is SmtpRelayWithinAdSiteToEdge                 1.b SmartHostAuthMechanism is ExchangeServer
                                                                1.c the Send connector's smart host or address space is "--"
2, 3, 4 as in :mod:`~anontls.selection.internal_certificate`
"""

from __future__ import annotations

from anontls.facts import (
    ABSENT,
    MAILBOX_TO_MAILBOX,
    DeliveryType,
    Phase,
    SendConnector,
    SessionFacts,
    Unknown,
    is_null,
    is_unknown,
)
from anontls.selection.decision import Decision, Result, Step
from anontls.selection.internal_certificate import LAST_STEPS, THUMBPRINT
from anontls.selection.procedure import X_ANONYMOUSTLS, Question, Questions, Search, decide
from anontls.selection.rules import DEFAULT, Rules


def thumbprint_shown(search: Search) -> Step:
    """Step 1.a, both roles."""
    shown, attribute = search.facts.server.internal_transport_certificate_thumbprint, search.facts.internal_tls_cert
    if is_unknown(shown):
        # 1.a and 2 are one directory value seen twice: where only one is given, the other follows.  [FACT I 1.7]
        if attribute.names is not None:
            return search.passed("1.a.follows", {"thumbprint": attribute.names, "notes": ("one-value",)})
        if not isinstance(attribute.unknown, str):
            return search.noted("1.a.decided-by-2")
        return search.not_known(THUMBPRINT, shown)
    if is_null(shown):
        return search.stopped("1.a.null")
    if attribute.names is not None and attribute.names != shown:
        return search.noted("1.a.differs", {"thumbprint": shown, "attribute": attribute.names, "notes": ("one-value",)})
    return search.passed("1.a.shown", {"thumbprint": shown})


def delivery_to_edge(search: Search) -> Step:
    """Step 1.b on a Mailbox server."""
    queue = search.facts.queue
    delivery = ABSENT if queue is None else queue.delivery
    if is_unknown(delivery):
        return search.not_known("DeliveryType", delivery)
    if delivery is DeliveryType.SMTP_RELAY_WITHIN_AD_SITE_TO_EDGE:
        return search.passed("1.b.to-edge")
    if not isinstance(delivery, DeliveryType):
        return search.stopped("1.b.other-type", {"delivery_type": delivery})
    values = {"delivery_type": delivery.value}
    if delivery not in MAILBOX_TO_MAILBOX:
        return search.stopped("1.b.other-type", values)
    if search.rules.mailbox_to_mailbox == "as-written":
        return search.stopped("1.b.mailbox", values, rule="mailbox-to-mailbox")
    return search.noted("1.b.mailbox-verb", values, rule="mailbox-to-mailbox", ends=Result.VERB_ONLY)


def smart_host_authentication(search: Search) -> Step:
    """Step 1.b on an Edge server."""
    connector = search.facts.send_connector
    mechanism = ABSENT if connector is None else connector.auth_mechanism
    if is_unknown(mechanism):
        return search.not_known("SmartHostAuthMechanism", mechanism)
    values = {"mechanism": mechanism}
    return (
        search.passed("1.b.exchange-server", values)
        if mechanism.strip().lower() == "exchangeserver"
        else search.stopped("1.b.other-mechanism", values)
    )


def dashes(search: Search) -> Step:
    """Step 1.c on an Edge server.

    The article prints "- -" and names one property; that either a smart host or an SMTP address space counts is our
    reading [FACT I 1.7].
    """
    connector = search.facts.send_connector
    unknown: Unknown | None = None if connector else ABSENT
    for name, values in _dash_properties(connector):
        if is_unknown(values):
            unknown = values
        elif any(_is_dashes(value, name) for value in values or ()):
            return search.passed(
                "1.c.dashes",
                {"property": name, "notes": ("dashes",)} if name == "AddressSpaces" else {"property": name},
            )
    if unknown is not None:
        return search.not_known("SmartHosts, AddressSpaces", unknown)
    assert connector is not None
    return search.stopped(
        "1.c.none", {"smart_hosts": connector.smart_hosts, "address_spaces": connector.address_spaces}
    )


def _dash_properties(connector: SendConnector | None) -> tuple[tuple[str, tuple[str, ...] | None | Unknown], ...]:
    return (("SmartHosts", connector.smart_hosts), ("AddressSpaces", connector.address_spaces)) if connector else ()


def _is_dashes(element: str, name: str) -> bool:
    # Whole elements only: `SMTP:--;1` counts, `contoso--.com` does not; an address space is `type:space;cost`, the type
    # SMTP when it is not given.  [FACT D 6.2]
    space = element.strip()
    if name == "AddressSpaces":
        kind, colon, rest = space.partition(":")
        if colon and kind.strip().lower() != "smtp":
            return False
        space = (rest if colon else space).partition(";")[0].strip()
    return space == "--"


MAILBOX: Questions = (
    Question(
        "1.a",
        "outbound.1.a",
        thumbprint_shown,
        "Get-TransportService {server} | Format-List Name,InternalTransportCertificateThumbprint",
    ),
    Question(
        "1.b",
        "outbound.1.b.mailbox",
        delivery_to_edge,
        "Get-Queue -Server {server} | Format-Table Identity,DeliveryType,NextHopDomain",
    ),
    *LAST_STEPS,
)
EDGE: Questions = (
    MAILBOX[0],
    Question(
        "1.b",
        "outbound.1.b.edge",
        smart_host_authentication,
        "Get-SendConnector {connector} | Format-List Name,SmartHostAuthMechanism",
    ),
    Question(
        "1.c",
        "outbound.1.c",
        dashes,
        "Get-SendConnector {connector} | Format-List Name,SmartHosts,AddressSpaces",
    ),
    *LAST_STEPS,
)


def _role_not_known(search: Search) -> Step:
    role = search.facts.server.role
    return search.not_known("ServerRole", role if is_unknown(role) else ABSENT)


ROLE_NOT_KNOWN: Questions = (
    MAILBOX[0],
    Question(
        "1.b",
        "outbound.1.b.role",
        _role_not_known,
        "Get-ExchangeServer {server} | Format-List Name,ServerRole,AdminDisplayVersion",
    ),
)


def questions(facts: SessionFacts) -> Questions:
    """The table for this server and phase."""
    if facts.phase is Phase.STARTUP:
        return LAST_STEPS
    match facts.server.role:
        case "Mailbox":
            return MAILBOX
        case "Edge":
            return EDGE
    return ROLE_NOT_KNOWN


def outbound_anonymous(facts: SessionFacts, rules: Rules = DEFAULT) -> Decision:
    """Decide one outbound session; pure."""
    return decide(questions(facts), X_ANONYMOUSTLS, facts, rules, outbound_anonymous)
