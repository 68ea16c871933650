"""What routing answers: hops, the steps that led there, and where the way ends."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from anontls.delivery.address_space import Closeness
from anontls.facts import DeliveryType, SendConnector, Server, Unknown

NO_VALUES: Mapping[str, object] = {}


class Outcome(enum.Enum):
    """How a question was answered; the words are those of a selection."""

    PASSED = "passed"
    NOTED = "noted"  # goes on, with a remark
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class End(enum.Enum):
    """Where the way ends."""

    MAILBOX = "mailbox"
    OUTSIDE = "outside"
    UNREACHABLE = "unreachable"
    LOOP = "loop"
    UNKNOWN = "unknown"


class Step(msgspec.Struct, frozen=True):
    """One question and its answer; ``because`` is the key of a sentence that names ``values``."""

    step: str
    outcome: Outcome
    because: str
    values: Mapping[str, object] = NO_VALUES


class Candidate(msgspec.Struct, frozen=True):
    """A Send connector that holds the domain, and by which of its address spaces."""

    connector: SendConnector
    space: str
    cost: int
    closeness: Closeness

    @property
    def name(self) -> str:
        """The connector's name."""
        return self.connector.identity


class Kind(msgspec.Struct, frozen=True):
    """What a hop can be where it is not known what it is: on which servers, and ``where`` these stand."""

    delivery_type: DeliveryType
    next_hop_domain: str | Unknown
    where: str
    servers: tuple[str, ...]


class Hop(msgspec.Struct, frozen=True):
    """One server's part of the way, as its queue would show it.

    ``connector`` is ``None`` inside the organisation, where the Send connector is implicit.  ``next_hops`` are names of
    servers, smart hosts or the domain; ``receivers`` those of them that are servers of the organisation, of which the
    way goes on from the first.  ``candidates`` are the connectors that hold the domain, best first; ``kinds`` is what it
    can be when ``delivery_type`` is not known.
    """

    server: Server
    delivery_type: DeliveryType | Unknown
    next_hop_domain: str | Unknown
    steps: tuple[Step, ...]
    ends: End | None = None
    connector: SendConnector | None = None
    next_hops: tuple[str, ...] = ()
    receivers: tuple[Server, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    kinds: tuple[Kind, ...] = ()


class Route(msgspec.Struct, frozen=True):
    """The way of a message from ``source`` until it is delivered, leaves, or cannot be followed."""

    source: Server
    recipient: str
    domain: str
    hops: tuple[Hop, ...]
    end: End
