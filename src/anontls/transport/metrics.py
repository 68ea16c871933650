"""What the transport counts, what a scrape reads off the node, and both as metrics of Prometheus.

Counting is plain integers in the event loop, always on.  ``docs/operations.md`` lists every metric.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec

from anontls import __version__
from anontls.delivery.notification import Action
from anontls.directory.ldap.follow import Status
from anontls.events import CATALOGUE
from anontls.facts import Certificate, DeliveryType, Scenario
from anontls.kerberos.failure import Reason
from anontls.selection import Decision
from anontls.selection.decision import Result
from anontls.transport.queue import Refusal
from anontls.transport.status import QueueStatus

if TYPE_CHECKING:
    from prometheus_client import Metric

Key = TypeVar("Key")
Direction = Literal["receive", "send"]
#: How a session ended; what came last in its life wins, but mail that was taken outweighs everything.
Outcome = Literal[
    "delivered",  # at least one message was acknowledged with 250
    "no-mail",  # it ended in good order, and nothing was sent or nothing was accepted
    "refused",  # received: a limit, the peer's address, draining; sent: the peer's 4yz or 5yz before any mail
    "stopped",  # sent: the decision has no X-ANONYMOUSTLS, so nothing was tried
    "unreachable",  # sent: no connection
    "tls-failed",  # the verb was not offered or refused where it is required, or the handshake failed
    "not-trusted",  # X-ANONYMOUSTLS, and the peer's certificate is not the directory's
    "timed-out",
    "lost",  # the connection broke in the middle of a message
    "protocol-error",  # the peer does not speak SMTP, or made too many errors
]
Mechanism = Literal["GSSAPI", "EXCHANGEAUTH"]
#: How an authentication by Kerberos ended, beside the reasons why one fails.
Proof = Literal[
    "authenticated",
    "not-allowed",  # received: the peer has proved what it is, and that has no rights here
]
Log = Literal["events", "receive", "send"]  # `log.events`, and the two of `log.protocol`
Settled = Literal["delivered", "deferred", "failed", "expired"]
VERBS = ("X-ANONYMOUSTLS", "STARTTLS", "none")

#: Seconds from acceptance to the next hop's 250: from milliseconds to the two days after which a message expires.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400, 172_800)
MOST_CERTIFICATES = 100  # that are shown, the first to expire

#: Name, description, labels, and a value for each combination of these.
Row = tuple[str, str, tuple[str, ...], Mapping[Any, float]]


class Metrics:
    """What a node counts.  For the event loop's thread only, so nothing is locked; a call costs less than 1 µs."""

    def __init__(self) -> None:
        # What can be named beforehand begins at 0: of a series that begins at 1 Prometheus sees no increase.
        sessions = product(get_args(Direction), VERBS, get_args(Outcome))
        self.sessions: dict[tuple[Direction, str, Outcome], int] = _zeros(sessions)
        self.decisions: dict[tuple[Scenario, str, Result], int] = _zeros(())
        self.last_decisions: dict[tuple[Scenario, str, Result], Decision] = {}  # of each of these
        authentications = product(get_args(Direction), get_args(Mechanism), (*get_args(Proof), *Reason))
        self.authentications: dict[tuple[Direction, str, Proof | Reason], int] = _zeros(authentications)
        self.messages = 0
        self.octets = 0
        self.recipients: dict[Settled, int] = _zeros(get_args(Settled))
        self.delays = [0] * (len(BUCKETS) + 1)
        self.delay = 0.0
        self.notifications: dict[Action, int] = _zeros(get_args(Action))
        self.events: dict[int, int] = _zeros(CATALOGUE)
        self.lost_log_lines: dict[Log, int] = _zeros(get_args(Log))

    def session_ended(self, direction: Direction, verb: str | None, outcome: Outcome) -> None:
        """A session is over; ``verb`` is the one that secured it, ``None`` in clear."""
        self.sessions[direction, verb or "none", outcome] += 1

    def decided(self, decision: Decision) -> None:
        """A selection was made."""
        key = decision.facts.scenario, decision.last.step, decision.result
        self.decisions[key] += 1
        self.last_decisions[key] = decision

    def authenticated(self, direction: Direction, mechanism: str, outcome: Proof | Reason = "authenticated") -> None:
        """An authentication by Kerberos has come to its end; ``mechanism`` is one that was offered."""
        self.authentications[direction, mechanism, outcome] += 1

    def accepted(self, octets: int) -> None:
        """A message was taken with 250."""
        self.messages += 1
        self.octets += octets

    def delivered(self, seconds: float, recipients: int = 1) -> None:
        """Recipients have their message, ``seconds`` after it was accepted."""
        self.recipients["delivered"] += recipients
        self.delays[bisect_left(BUCKETS, seconds)] += recipients
        self.delay += max(seconds, 0.0) * recipients  # a clock that was set back makes no sum fall

    def deferred(self, recipients: int = 1) -> None:
        """An attempt was put off."""
        self.recipients["deferred"] += recipients

    def failed(self, recipients: int = 1) -> None:
        """Refused for good."""
        self.recipients["failed"] += recipients

    def expired(self, recipients: int = 1) -> None:
        """Given up after ``message-expiration-timeout``."""
        self.recipients["expired"] += recipients

    def notified(self, action: Action) -> None:
        """A delivery status notification was made."""
        self.notifications[action] += 1

    def event(self, id_: int) -> None:
        """An event was raised, whether or not it is written."""
        self.events[id_] += 1

    def log_lines_lost(self, log: Log, lines: int) -> None:
        """They could not be written."""
        self.lost_log_lines[log] += lines


def _zeros(keys: Iterable[Key]) -> dict[Key, int]:
    return defaultdict(int, dict.fromkeys(keys, 0))  # half the cost of a Counter


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A running node at one moment, read in the event loop.  Times are Unix seconds; without a queue, ``None``."""

    now: float
    loaded: float  # when organisation and store were last read
    receiving: int  # sessions
    sending: int
    draining: bool
    listening: bool
    startup: Decision | None  # the selection of the last start or reload
    store: Sequence[Certificate]
    refusal: Refusal | None = None  # of new mail
    queues: Sequence[QueueStatus] = ()
    messages: int | None = None  # in the queue's database
    oldest: float | None = None  # arrival of the oldest of these
    free: int | None = None  # octets on its disk
    directory: Status | None = None  # of one that is followed

    @property
    def reasons(self) -> list[str]:
        """Why no mail is taken now; empty: it is."""
        reasons = ["the node is draining"] if self.draining else []
        if not self.listening:
            reasons.append("nothing listens")
        if self.refusal is not None:
            reasons.append(f"new mail is refused: {self.refusal.why}")
        return reasons

    @property
    def warnings(self) -> list[str]:
        """What is amiss though mail is taken."""
        warnings = []
        if self.directory is not None and self.directory.problem is not None:
            warnings.append(f"the directory does not answer: {self.directory.problem}")
        if self.startup is None or self.startup.result is Result.CERTIFICATE:
            return warnings
        return [*warnings, f"no internal transport certificate: the selection ended at step {self.startup.last.step}"]


def families(counted: Metrics, seen: Observed) -> Iterator[Metric]:
    """All metrics of the node, those of its process aside."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for kind, rows in (
        (CounterMetricFamily, (*_counters(counted), _looks(seen))),
        (GaugeMetricFamily, (*_gauges(seen), *_queue(seen), *_directory(seen))),
    ):
        for name, text, labels, values in rows:
            family = kind(name, text, labels=labels)
            for key, value in values.items():
                family.add_metric([str(getattr(part, "value", part)) for part in key], value)
            yield family
    edges = (*map(str, map(float, BUCKETS)), "+Inf")
    yield HistogramMetricFamily(
        "anontls_delivery_seconds",
        "From acceptance to the next hop's 250, for each recipient.",
        buckets=list(zip(edges, accumulate(counted.delays), strict=True)),
        sum_value=counted.delay,
    )


def _counters(counted: Metrics) -> Iterable[Row]:
    def single(values: Mapping[Any, float]) -> Mapping[Any, float]:
        return {(key,): value for key, value in values.items()}

    return (
        (
            "anontls_sessions_total",
            "Sessions that have ended, by the verb that secured them.",
            ("direction", "verb", "outcome"),
            counted.sessions,
        ),
        (
            "anontls_decisions_total",
            "Selections, by the step at which they ended.",
            ("scenario", "last_step", "result"),
            counted.decisions,
        ),
        (
            "anontls_authentications_total",
            "Authentications by Kerberos that came to an end.",
            ("direction", "mechanism", "outcome"),
            {(*key, _label(outcome)): value for (*key, outcome), value in counted.authentications.items()},
        ),
        ("anontls_events_total", "Events raised, also those not written again.", ("id",), single(counted.events)),
        ("anontls_accepted_messages_total", "Messages acknowledged with 250.", (), {(): counted.messages}),
        ("anontls_accepted_bytes_total", "Octets of these messages.", (), {(): counted.octets}),
        (
            "anontls_recipients_total",
            "Recipients settled, and attempts that were deferred.",
            ("result",),
            single(counted.recipients),
        ),
        (
            "anontls_notifications_total",
            "Delivery status notifications made.",
            ("action",),
            single(counted.notifications),
        ),
        (
            "anontls_lost_log_lines_total",
            "Lines of logs that could not be written.",
            ("log",),
            single(counted.lost_log_lines),
        ),
    )


def _label(outcome: Proof | Reason) -> str:
    return outcome.name.lower().replace("_", "-") if isinstance(outcome, Reason) else outcome


def _looks(seen: Observed) -> Row:
    directory = seen.directory
    looks = {} if directory is None else {("answered",): directory.reads, ("failed",): directory.failures}
    return "anontls_directory_looks_total", "Looks at the directory that is followed.", ("result",), looks


def _directory(seen: Observed) -> Iterable[Row]:
    directory = seen.directory
    info = {} if directory is None or directory.url is None else {(directory.url, directory.means): 1}
    age = {} if directory is None or directory.age is None else {(): directory.age}
    readable = {} if directory is None else {(): float(directory.readable)}
    return (
        ("anontls_directory_age_seconds", "Since the directory was last known to say what serves.", (), age),
        ("anontls_directory_readable", "0 when its certificates count as not to be read.", (), readable),
        (
            "anontls_directory_info",
            "The domain controller that answers, and how word of changes comes; always 1.",
            ("url", "means"),
            info,
        ),
    )


def _gauges(seen: Observed) -> Iterable[Row]:
    build = {(__version__, platform.python_version()): 1}
    sessions = {("receive",): seen.receiving, ("send",): seen.sending}
    return (
        ("anontls_build_info", "The program; always 1.", ("version", "python"), build),
        ("anontls_healthy", "1 while mail is taken, as at /health.", (), {(): not seen.reasons}),
        ("anontls_last_load_timestamp_seconds", "When organisation and store were last read.", (), {(): seen.loaded}),
        ("anontls_open_sessions", "Sessions at this moment.", ("direction",), sessions),
        (
            "anontls_certificate_not_after_timestamp_seconds",
            "Valid to of the server's own certificates.",
            ("thumbprint", "use"),
            _certificates(seen),
        ),
    )


def _certificates(seen: Observed) -> dict[tuple[str, str], float]:
    """The internal transport certificate, and those that STARTTLS may choose from."""
    until: dict[tuple[str, str], float] = {}
    candidates = [(c, "starttls") for c in seen.store if c.has_private_key is True and c.serves_smtp() is True]
    own = seen.startup.certificate if seen.startup else None
    for certificate, use in (*candidates, *(((own, "internal-transport"),) if own else ())):
        if isinstance(certificate.not_after, datetime):
            until[str(certificate.thumbprint), use] = certificate.not_after.timestamp()
    # The internal one always, whatever else there is.
    first = sorted(until, key=lambda key: (key[1] != "internal-transport", until[key]))
    return {key: until[key] for key in first[:MOST_CERTIFICATES]}


def _queue(seen: Observed) -> Iterator[Row]:
    """Labels are values that Exchange documents, never a name that a sender chose."""
    queues, messages, deferred = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for queue in seen.queues:
        key = (DeliveryType.parse(queue.delivery_type) or DeliveryType.UNDEFINED).value, queue.status
        queues[key] += 1
        messages[key] += queue.message_count
        deferred[key] += queue.deferred_message_count
    labels = ("delivery_type", "status")
    yield "anontls_queues", "Destinations that have a queue.", labels, queues
    yield "anontls_queue_messages", "Messages in the queues; one for two destinations is in two.", labels, messages
    yield "anontls_queue_deferred_messages", "Those of them that wait for another attempt.", labels, deferred
    age = None if seen.messages is None else 0.0 if seen.oldest is None else max(seen.now - seen.oldest, 0.0)
    for name, text, value in (
        ("anontls_queue_oldest_message_age_seconds", "Since the oldest message was accepted; 0 without one.", age),
        ("anontls_queue_stored_messages", "Messages in the queue's database.", seen.messages),
        ("anontls_queue_disk_free_bytes", "Free octets on its disk.", seen.free),
    ):
        yield name, text, (), {} if value is None else {(): value}
