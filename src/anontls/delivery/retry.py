"""What a failure means: when a recipient is tried again, when its message is returned, what stands as last error.

The peer's word on a recipient is final with 2yz and 5yz; with 4yz the recipient is tried again after
`Schedule.message_retry_interval`.  A session that failed says nothing about a message: no connection, no greeting, an
anonymous TLS that was refused or proved nobody.  The destination is tried again after `Schedule.next_retry`, its
messages wait, and nothing is ever sent in a weaker way instead.  Both end when the message is too old.

Age is asked only after an attempt, so a clock that jumps returns no mail that nobody has tried to send.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from anontls.smtp.reply import Reply

# How Exchange words it [FACT R 3.4].  The class of the enhanced code is 4 although the message is given up: it was
# valid, and may pass when it is sent again.  [RFC3463 2]
EXPIRED = Reply(550, ("4.4.7 QUEUE.Expired; message expired",))
LOOP = Reply(554, ("5.4.6 Hop count exceeded - possible mail loop",))
MAX_HOPS = 60  # Received fields; MaxHopCount of a Receive connector
MAX_HEADER = 256 * 1024  # octets in which they are counted
MAX_ERROR = 500  # characters that are kept of a peer's reply, and of why a session failed

_RECEIVED = re.compile(rb"^Received:", re.IGNORECASE | re.MULTILINE)
_BRACES = str.maketrans("{}", "()")
_WHY = re.compile(r"\{MSG=[^{}]*\}")


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Counts and seconds; named like the keys of the configuration and the parameters of Set-TransportService."""

    glitch_retry_count: int = 4
    glitch_retry_interval: float = 60.0
    transient_failure_retry_count: int = 6
    transient_failure_retry_interval: float = 300.0
    outbound_connection_failure_retry_interval: float = 600.0
    message_retry_interval: float = 900.0
    delay_notification_timeout: float = 14_400.0
    message_expiration_timeout: float = 172_800.0

    def next_retry(self, retry_count: int) -> float:
        """Seconds until a destination that could not be reached is tried again, after so many retries in a row."""
        if retry_count < self.glitch_retry_count:
            return self.glitch_retry_interval
        if retry_count < self.glitch_retry_count + self.transient_failure_retry_count:
            return self.transient_failure_retry_interval
        return self.outbound_connection_failure_retry_interval

    @property
    def longest(self) -> float:
        """The longest pause before anything is tried again, seconds."""
        return max(
            self.glitch_retry_interval,
            self.transient_failure_retry_interval,
            self.outbound_connection_failure_retry_interval,
            self.message_retry_interval,
        )

    def expires(self, arrived: float) -> float:
        """When a message that arrived then is given up; Unix seconds."""
        return arrived + self.message_expiration_timeout


class Done(msgspec.Struct, frozen=True):
    """The next hop has taken responsibility."""


class Deferred(msgspec.Struct, frozen=True):
    """To be tried again, not before ``due`` (Unix seconds); ``tell_delay``: it is late, and the sender not yet told."""

    due: float
    tell_delay: bool


class Failed(msgspec.Struct, frozen=True):
    """Given up; the sender is told why."""

    reply: Reply


def verdict(reply: Reply, *, now: float, arrived: float, delayed: bool, schedule: Schedule) -> Done | Deferred | Failed:
    """What the peer's reply about one recipient means.  The code decides; enhanced codes only inform.

    ``delayed``: the sender was told before that the message is late.  Times are Unix seconds.
    """
    if reply.positive:
        return Done()
    if reply.permanent and not _too_many_recipients(reply):
        return Failed(reply)
    return waiting(now + schedule.message_retry_interval, now=now, arrived=arrived, delayed=delayed, schedule=schedule)


def waiting(due: float, *, now: float, arrived: float, delayed: bool, schedule: Schedule) -> Deferred | Failed:
    """What it means for a recipient that it could not be tried because the session failed, whatever that ended with.

    ``due`` is when the destination is tried again.  The last attempt comes when the message expires, not later.
    """
    expires = schedule.expires(arrived)
    if now >= expires:
        return Failed(EXPIRED)
    late = now >= arrived + schedule.delay_notification_timeout
    return Deferred(min(due, expires), tell_delay=late and not delayed)


def _too_many_recipients(reply: Reply) -> bool:
    """Old servers say 552 where 452 is meant; the others of the message are to be sent later [RFC5321 4.5.3.1.10]."""
    return reply.code == 552 and reply.enhanced is not None and reply.enhanced[1:] == (5, 3)


def last_error(reply: Reply, fqdn: str, ip: str, at: float, why: str = "") -> str:
    """``LastError`` as queues show it [FACT O 3.4]; how the time is written is our choice.

    ``fqdn`` and ``ip`` are those of the host that was tried, empty where there was none; ``at`` is in Unix seconds.
    ``why`` goes to ``MSG``, which is empty in what is recorded of Exchange: the reply of a session that failed is the
    same whatever was wrong.
    """
    led, said, name, address = (one_line(text).translate(_BRACES) for text in (str(reply), why, fqdn, ip))
    when = datetime.fromtimestamp(at, UTC)
    return f"[{{LED={led}}};{{MSG={said}}};{{FQDN={name}}};{{IP={address}}};{{LRT={when:%Y-%m-%dT%H:%M:%SZ}}}]"


def without_why(last_error: str) -> str:
    """``LastError`` for a sender, who may be anybody: accounts, files and steps are for the administrator."""
    return _WHY.sub("{MSG=}", last_error)


def one_line(text: str, most: int = MAX_ERROR) -> str:
    """What a peer said, cut to ``most`` characters, with a question mark for all that cannot be printed."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def hops(head: bytes) -> int:
    """How many servers a message has been through, by its Received fields [RFC5321 6.3]."""
    end = head.find(b"\r\n\r\n", 0, MAX_HEADER)
    return len(_RECEIVED.findall(head, 0, end if end >= 0 else MAX_HEADER))
