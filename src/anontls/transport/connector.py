"""What a Receive connector is here: its properties and the limits of this machine, as the settings of its sessions."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from anontls.config import Limits
from anontls.errors import UsageError
from anontls.facts import ReceiveConnector, Server, is_unknown, same_name
from anontls.facts.organization import Address, ip_range
from anontls.smtp import ServerSettings, Size, exchange
from anontls.transport.node import Node


def receive_connector(server: Server, name: str) -> ReceiveConnector:
    """The Receive connector of that name.

    Raises:
        UsageError: there is none, and it says which there are; or it is not enabled.
    """
    connectors = () if is_unknown(server.receive_connectors) else server.receive_connectors
    for connector in connectors:
        if same_name(name, connector.identity) or same_name(name, connector.name):
            if connector.enabled is False:
                raise UsageError(f"the Receive connector {connector.identity} is not enabled")
            return connector
    known = ", ".join(connector.name for connector in connectors) or "none"
    raise UsageError(f"{server.name} has no Receive connector {name}", hint=f"known: {known}")


def server_settings(node: Node, connector: ReceiveConnector, limits: Limits, verbs: frozenset[str]) -> ServerSettings:
    """What sessions of ``connector`` offer and take; ``verbs``: those of TLS that there is a certificate for.

    A property that is not known is as Exchange has it by default; of the connector's limits and ours the lower holds.
    """
    x_exps, exchange_auth = node.authentication.offered(connector) if node.authentication else ((), False)
    return ServerSettings(
        fqdn=connector.fqdn if isinstance(connector.fqdn, str) and connector.fqdn else node.fqdn,
        starttls=exchange.STARTTLS in verbs,
        anonymous_tls=exchange.X_ANONYMOUSTLS in verbs,
        require_tls=connector.require_tls is True,
        x_exps=x_exps,
        exchange_auth=exchange_auth,
        # of groups that are not known nobody is let in
        require_authentication=connector.lets_in("AnonymousUsers") is not True,
        size=_size(connector),
        max_size=_lower(limits.message_size, connector.max_message_size),
        max_recipients=_lower(limits.recipients, connector.max_recipients_per_message),
        pipelining=connector.pipelining_enabled is not False,
        dsn=connector.delivery_status_notification_enabled is not False,
        enhanced_status_codes=connector.enhanced_status_codes_enabled is not False,
        eight_bit_mime=connector.eight_bit_mime_enabled is not False,
        binary_mime=connector.binary_mime_enabled is not False,
        chunking=connector.chunking_enabled is not False,
        smtputf8=connector.smtp_utf8_enabled is not False,
    )


def _size(connector: ReceiveConnector) -> Size:
    known = connector.size
    for size in Size:
        if not is_unknown(known) and known.lower() == size.value.lower():
            return size
    # Internal connectors have no value [FACT O 3.1].
    internal = connector.transport_service == "HubTransport" and connector.lets_in("AnonymousUsers") is False
    return Size.WITHOUT_VALUE if internal else Size.ENABLED


def _lower(ours: int, connectors: object) -> int:
    return min(ours, connectors) if isinstance(connectors, int) and connectors > 0 else ours


def serves(connector: ReceiveConnector, address: str) -> bool:
    """Whether ``RemoteIPRanges`` hold the peer [FACT D 6.3]; where they are not known, nobody is kept out."""
    ranges = connector.remote_ip_ranges
    return not isinstance(ranges, tuple) or _within(ranges, address)


@lru_cache(maxsize=4096)
def _within(ranges: tuple[str, ...], address: str) -> bool:
    try:
        peer = ip_address(address)
        peer = getattr(peer, "ipv4_mapped", None) or peer
        spans = _spans(ranges)
    except ValueError:
        return False
    return any(low.version == peer.version and int(low) <= int(peer) <= int(high) for low, high in spans)


@lru_cache(maxsize=256)
def _spans(ranges: tuple[str, ...]) -> tuple[tuple[Address, Address], ...]:
    return tuple(ip_range(one) for one in ranges)
