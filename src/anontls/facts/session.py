"""The facts of one decision."""

from __future__ import annotations

import enum
from datetime import datetime

import msgspec

from anontls.facts.certificate import InternalTlsCert, Store
from anontls.facts.organization import Queue, ReceiveConnector, SendConnector, Server
from anontls.facts.unknown import Unknown


class Scenario(enum.Enum):
    """The three procedures."""

    OUTBOUND_ANONYMOUS = "outbound-anonymous"
    INBOUND_ANONYMOUS = "inbound-anonymous"
    INBOUND_STARTTLS = "inbound-starttls"


class Phase(enum.Enum):
    """When the question is asked: as a session is set up, or as the transport service starts."""

    SESSION = "session"
    STARTUP = "startup"


class DirectoryWord(msgspec.Struct, frozen=True, kw_only=True):
    """How fresh it is what a directory says; ``age`` is counted by a clock that nobody sets."""

    url: str  # the domain controller
    as_of: datetime  # when it answered last
    age: float  # seconds from then to the decision


class SessionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that one decision may ask about; ``as_of`` (aware) is its "now".

    A connector or queue of ``None`` was not given: whoever asks about it is told that it is not known.  Without
    ``directory`` the facts come from elsewhere, or it has never answered.
    """

    scenario: Scenario
    as_of: datetime
    server: Server
    internal_tls_cert: InternalTlsCert
    store: Store | Unknown
    phase: Phase = Phase.SESSION
    queue: Queue | None = None
    send_connector: SendConnector | None = None
    receive_connector: ReceiveConnector | None = None
    directory: DirectoryWord | None = None
