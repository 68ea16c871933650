"""Queues and messages as ``Get-Queue`` and ``Get-Message`` show them; times are Unix seconds [FACT D 6.1]."""

from __future__ import annotations

import enum

import msgspec


class Status(enum.Enum):
    """``Status`` of a queue."""

    ACTIVE = "Active"
    CONNECTING = "Connecting"
    READY = "Ready"
    RETRY = "Retry"
    SUSPENDED = "Suspended"


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A queue; rates are messages a second, of the last minute."""

    identity: str  # SERVER\number
    delivery_type: str
    next_hop_domain: str
    next_hop_connector: str | None
    next_hop_category: str  # Internal or External
    tls_domain: str | None
    status: str
    message_count: int
    deferred_message_count: int
    locked_message_count: int
    last_error: str
    first_retry_time: float | None
    last_retry_time: float | None
    next_retry_time: float | None
    retry_count: int
    incoming_rate: float
    outgoing_rate: float
    velocity: float


class RecipientStatus(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A recipient, as with ``-IncludeRecipientInfo``."""

    address: str
    status: str  # Ready, Retry, Locked
    last_error: str


class MessageStatus(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A message in a queue; one in two queues is shown in each."""

    identity: str  # SERVER\queue\message
    queue: str  # Identity of the queue
    from_address: str
    status: str  # Ready, Active, Locked, Retry, Suspended
    size: int
    date_received: float
    expiration_time: float
    retry_count: int
    last_error: str
    recipients: tuple[RecipientStatus, ...]
    subject: str | None = None
    internet_message_id: str | None = None
