"""What a failure means, at each boundary of the schedule."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.config import Queue
from anontls.delivery.retry import (
    EXPIRED,
    MAX_HEADER,
    Deferred,
    Done,
    Failed,
    Schedule,
    hops,
    last_error,
    verdict,
    waiting,
    without_why,
)
from anontls.smtp import Reply, exchange

ARRIVED = 1_000_000.0
SCHEDULE = Schedule()
MESSAGE, DELAY, EXPIRY = 900.0, 14_400.0, 172_800.0


def reply(text: str) -> Reply:
    return Reply(int(text[:3]), (text[4:],))


def test_the_defaults_are_those_of_the_configuration() -> None:
    assert msgspec.convert(Queue(), Schedule, from_attributes=True) == SCHEDULE


def test_the_configuration_is_taken_over_by_name() -> None:
    queue = Queue(glitch_retry_count=1, message_expiration_timeout=5.0)
    schedule = msgspec.convert(queue, Schedule, from_attributes=True)
    assert (schedule.glitch_retry_count, schedule.message_expiration_timeout) == (1, 5.0)


@pytest.mark.parametrize(
    ("retries", "seconds"), [(0, 60), (3, 60), (4, 300), (9, 300), (10, 600), (11, 600), (1_000_000, 600)]
)
def test_a_destination_is_tried_quickly_then_slower(retries: int, seconds: float) -> None:
    assert SCHEDULE.next_retry(retries) == seconds


def test_phases_without_retries_are_left_out() -> None:
    schedule = Schedule(glitch_retry_count=0, transient_failure_retry_count=0)
    assert schedule.next_retry(0) == 600
    assert Schedule(glitch_retry_count=0).next_retry(0) == 300


@pytest.mark.parametrize(
    ("said", "age", "delayed", "means"),
    [
        ("250 2.6.0 Queued", 0.0, False, Done()),
        ("250 2.6.0 Queued", EXPIRY, False, Done()),
        ("550 5.1.1 User unknown", 0.0, False, Failed(reply("550 5.1.1 User unknown"))),
        ("550 5.1.1 User unknown", EXPIRY, True, Failed(reply("550 5.1.1 User unknown"))),
        # the code decides, whatever the enhanced code says
        ("550 4.2.2 Mailbox full", 0.0, False, Failed(reply("550 4.2.2 Mailbox full"))),
        ("451 5.7.1 Greylisted", 0.0, False, Deferred(ARRIVED + MESSAGE, tell_delay=False)),
        # an old server that can take no more recipients; a message that is too large
        ("552 5.5.3 Too many recipients", 0.0, False, Deferred(ARRIVED + MESSAGE, tell_delay=False)),
        ("552 5.3.4 Message too large", 0.0, False, Failed(reply("552 5.3.4 Message too large"))),
        ("552 Too large", 0.0, False, Failed(reply("552 Too large"))),
        # an answer that is none
        ("354 Go on", 0.0, False, Deferred(ARRIVED + MESSAGE, tell_delay=False)),
        # the sender is told of a delay once
        ("450 4.2.1 Busy", DELAY - 1, False, Deferred(ARRIVED + DELAY - 1 + MESSAGE, tell_delay=False)),
        ("450 4.2.1 Busy", DELAY, False, Deferred(ARRIVED + DELAY + MESSAGE, tell_delay=True)),
        ("450 4.2.1 Busy", DELAY, True, Deferred(ARRIVED + DELAY + MESSAGE, tell_delay=False)),
        # the last attempt comes when the message expires
        ("450 4.2.1 Busy", EXPIRY - MESSAGE - 1, True, Deferred(ARRIVED + EXPIRY - 1, tell_delay=False)),
        ("450 4.2.1 Busy", EXPIRY - 1, True, Deferred(ARRIVED + EXPIRY, tell_delay=False)),
        ("450 4.2.1 Busy", EXPIRY, True, Failed(EXPIRED)),
        ("450 4.2.1 Busy", EXPIRY * 10, False, Failed(EXPIRED)),
        # a clock that was put back
        ("450 4.2.1 Busy", -5000.0, False, Deferred(ARRIVED - 5000 + MESSAGE, tell_delay=False)),
    ],
)
def test_a_reply_about_a_recipient(said: str, age: float, delayed: bool, means: object) -> None:
    assert verdict(reply(said), now=ARRIVED + age, arrived=ARRIVED, delayed=delayed, schedule=SCHEDULE) == means


@pytest.mark.parametrize(
    ("age", "delayed", "means"),
    [
        (0.0, False, Deferred(ARRIVED + 60, tell_delay=False)),
        (DELAY, False, Deferred(ARRIVED + DELAY + 60, tell_delay=True)),
        (DELAY, True, Deferred(ARRIVED + DELAY + 60, tell_delay=False)),
        (EXPIRY - 1, True, Deferred(ARRIVED + EXPIRY, tell_delay=False)),
        (EXPIRY, True, Failed(EXPIRED)),
    ],
)
def test_a_session_that_failed_defers_until_the_message_is_too_old(age: float, delayed: bool, means: object) -> None:
    now = ARRIVED + age
    assert waiting(now + 60, now=now, arrived=ARRIVED, delayed=delayed, schedule=SCHEDULE) == means


def test_the_word_on_exchange_authentication_is_temporary() -> None:
    said = exchange.CANNOT_ACHIEVE_EXCHANGE_AUTHENTICATION
    found = verdict(said, now=ARRIVED, arrived=ARRIVED, delayed=False, schedule=SCHEDULE)
    assert found == Deferred(ARRIVED + MESSAGE, tell_delay=False)


def test_a_message_that_lives_shortly_is_tried_once_more_and_returned() -> None:
    schedule = Schedule(message_expiration_timeout=2.0)
    busy = reply("450 Busy")
    first = verdict(busy, now=ARRIVED, arrived=ARRIVED, delayed=False, schedule=schedule)
    assert first == Deferred(ARRIVED + 2, tell_delay=False)
    assert verdict(busy, now=ARRIVED + 2, arrived=ARRIVED, delayed=False, schedule=schedule) == Failed(EXPIRED)


# --- LastError --------------------------------------------------------------------------------------------------------


def test_last_error_has_exchanges_form() -> None:
    said = reply("451 4.4.397 Error communicating with target host. -> 421 4.4.2 Connection dropped")
    assert last_error(said, "mail.fabrikam.com", "192.0.2.1", 1_704_164_645.9) == (
        "[{LED=451 4.4.397 Error communicating with target host. -> 421 4.4.2 Connection dropped};{MSG=};"
        "{FQDN=mail.fabrikam.com};{IP=192.0.2.1};{LRT=2024-01-02T03:04:05Z}]"
    )


def test_why_a_session_failed_stands_in_msg_and_is_not_for_the_sender() -> None:
    why = "Kerberos: no credentials: Key table file '/etc/krb5.keytab' not found"
    form = "[{{LED=451 5.7.3 no}};{{MSG={}}};{{FQDN=MBX2}};{{IP=}};{{LRT=1970-01-01T00:00:00Z}}]"
    shown = last_error(reply("451 5.7.3 no"), "MBX2", "", 0.0, why)
    assert shown == form.format(why)
    assert without_why(shown) == form.format("")


FORM = re.compile(
    r"\[\{LED=[^{}]*\};\{MSG=[^{}]*\};\{FQDN=[^{}]*\};\{IP=[^{}]*\};\{LRT=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\}\]"
)


@given(st.lists(st.text(), min_size=1), st.text(), st.text(), st.text())
def test_nothing_a_peer_says_breaks_the_form(lines: list[str], fqdn: str, ip: str, why: str) -> None:
    shown = last_error(Reply(451, tuple(lines)), fqdn, ip, ARRIVED, why)
    assert FORM.fullmatch(shown)
    assert shown.isprintable()
    assert without_why(shown) == last_error(Reply(451, tuple(lines)), fqdn, ip, ARRIVED)


def test_braces_and_line_ends_of_a_reply_are_replaced_and_long_ones_cut() -> None:
    shown = last_error(Reply(451, ("};{FQDN=evil}\r\n\x1b[2J", "x" * 10_000)), "", "", 0.0)
    assert shown.startswith("[{LED=451 );(FQDN=evil)???[2J xxx")
    assert shown.endswith("x...};{MSG=};{FQDN=};{IP=};{LRT=1970-01-01T00:00:00Z}]")
    assert len(shown) < 600
    said = "MAIL was refused: };{FQDN=evil}\r\n\x1b[2J "
    shown = last_error(Reply(451, ("no",)), "", "", 0.0, said + "x" * 10_000)
    assert shown.startswith("[{LED=451 no};{MSG=MAIL was refused: );(FQDN=evil)???[2J xxx")
    assert shown.endswith("x...};{FQDN=};{IP=};{LRT=1970-01-01T00:00:00Z}]")
    assert len(shown) < 600


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (b"", 0),
        (b"Received: a\r\nreceived: b\r\nX: y\r\nRECEIVED: c\r\n\r\n", 3),
        (b"Subject: Received:\r\nX-Received: a\r\n Received: b\r\n\r\n", 0),
        (b"Received: a\r\n\r\nReceived: in the text\r\n", 1),
        (b"Received: a\r\n" * 70, 70),
        (b"Received: a\r\n" + b"X: y\r\n" * MAX_HEADER + b"Received: b\r\n", 1),
    ],
    ids=["none", "any-case", "not-at-the-start", "text", "many", "bounded"],
)
def test_hops_are_received_fields_of_the_header(head: bytes, count: int) -> None:
    assert hops(head) == count
