"""Notifications, read as a mail program reads them: envelope, fields, what is returned; and hostile messages."""

from __future__ import annotations

from email.message import EmailMessage, Message
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.delivery.notification import MAX_HEADER, MAX_RETURNED, Action, Report, notification, wanted
from anontls.delivery.retry import EXPIRED
from anontls.smtp import Envelope, Recipient, Reply
from anontls.smtp.syntax import valid_envelope
from fuzz.fuzz_notification import parsed

ORIGINAL = b"Received: from a by b;\r\n now\r\nSubject: Hello\r\nMessage-ID: <1@contoso.com>\r\n\r\nText\r\n..\r\n"
HEADER = ORIGINAL.partition(b"\r\n\r\n")[0] + b"\r\n"
BOB = Recipient("bob@fabrikam.com")
UNKNOWN = Reply(550, ("5.1.1 User unknown",))
ARRIVED, DATE = 1_704_164_645.0, 1_704_337_445.0


def made(
    action: Action = "failed",
    *reports: Report,
    sender: str = "alice@contoso.com",
    ret: str | None = None,
    envid: str | None = None,
    content: bytes = ORIGINAL,
    size: int | None = None,
    postmaster: str = "postmaster@contoso.com",
) -> tuple[Envelope, bytes] | None:
    return notification(
        action,
        Envelope(sender, [], ret=ret, envid=envid, smtputf8=not sender.isascii()),
        reports or (Report(recipient=BOB, reply=UNKNOWN, remote="mail.fabrikam.com"),),
        content=content,
        size=len(content) if size is None else size,
        arrived=ARRIVED,
        date=DATE,
        reporting_mta="ex1.contoso.com",
        postmaster=postmaster,
        unique="20240104.1",
    )


def read(*args: Any, **kwargs: Any) -> tuple[EmailMessage, str, list[Message], EmailMessage]:
    """The notification; its text, the groups of its status, and what is returned."""
    found = made(*args, **kwargs)
    assert found is not None
    message = parsed(found[1])
    text, status, returned = cast("list[EmailMessage]", list(message.iter_parts()))
    return message, text.get_content().replace("\r\n", "\n"), cast("list[Message]", status.get_payload()), returned


def report(recipient: Recipient = BOB, reply: Reply = UNKNOWN, **others: Any) -> Report:
    return Report(recipient=recipient, reply=reply, **others)


# --- the notification of a failure, field by field --------------------------------------------------------------------


def test_the_envelope_has_no_sender_and_asks_for_no_notification() -> None:
    found = made()
    assert found is not None
    envelope, message = found
    assert envelope == Envelope("", [Recipient("alice@contoso.com", notify="NEVER")], size=len(message))
    assert valid_envelope(envelope)


def test_the_header_says_from_whom_to_whom_and_that_no_person_wrote_it() -> None:
    message, *_ = read()
    assert {name: str(value) for name, value in message.items() if name != "Content-Type"} == {
        "From": "Postmaster <postmaster@contoso.com>",
        "To": "alice@contoso.com",
        "Subject": "Undeliverable: Hello",
        "Date": "Thu, 04 Jan 2024 03:04:05 +0000",
        "Message-ID": "<20240104.1@ex1.contoso.com>",
        "In-Reply-To": "<1@contoso.com>",
        "Auto-Submitted": "auto-replied",
        "MIME-Version": "1.0",
    }


def test_people_are_told_who_did_not_get_it_and_what_the_server_said() -> None:
    _, text, *_ = read()
    assert text == (
        "Your message was not delivered to these recipients:\n\n"
        "bob@fabrikam.com\n"
        "    mail.fabrikam.com answered: 550 5.1.1 User unknown\n\n"
        "Diagnostic information for administrators\n\n"
        "Generating server: ex1.contoso.com\n"
        "Message received: Tue, 02 Jan 2024 03:04:05 +0000\n"
    )


def test_programs_are_told_the_same_in_fields() -> None:
    _, _, (message, recipient), _ = read(
        "failed",
        report(Recipient("bob@fabrikam.com", orcpt="rfc822;Bob+2BSales@fabrikam.com"), remote="mx"),
        envid="a+3D1",
    )
    assert message.items() == [
        ("Original-Envelope-Id", "a=1"),
        ("Reporting-MTA", "dns; ex1.contoso.com"),
        ("Arrival-Date", "Tue, 02 Jan 2024 03:04:05 +0000"),
    ]
    assert recipient.items() == [
        ("Original-Recipient", "rfc822; Bob+Sales@fabrikam.com"),
        ("Final-Recipient", "rfc822; bob@fabrikam.com"),
        ("Action", "failed"),
        ("Status", "5.1.1"),
        ("Remote-MTA", "dns; mx"),
        ("Diagnostic-Code", "smtp; 550 5.1.1 User unknown"),
    ]


def test_an_expired_message_is_given_up_by_this_server_and_the_last_error_told() -> None:
    error = "[{{LED=451 4.4.397 Error}};{{MSG={}}};{{FQDN=}};{{IP=}};{{LRT=2024-01-02T03:04:05Z}}]"
    why = "Kerberos: no credentials: /etc/krb5.keytab"
    _, text, (_, recipient), _ = read("failed", report(reply=EXPIRED, last_error=error.format(why)))
    assert f"\n    550 4.4.7 QUEUE.Expired; message expired\n    Last error: {error.format('')}\n" in text
    assert why not in text, "the sender may be anybody"
    assert (recipient["Action"], recipient["Status"], recipient["Remote-MTA"]) == ("failed", "4.4.7", None)


def test_each_recipient_has_its_group() -> None:
    names = [f"user{number}@fabrikam.com" for number in range(100)]
    _, text, (_, *groups), _ = read("failed", *(report(Recipient(name)) for name in names))
    assert [group["Final-Recipient"] for group in groups] == [f"rfc822; {name}" for name in names]
    assert all(f"\n{name}\n" in text for name in names)


# --- the other actions ------------------------------------------------------------------------------------------------


def test_a_delay_says_until_when_it_is_tried() -> None:
    busy = Reply(451, ("5.7.3 Cannot achieve Exchange Server authentication",))
    message, text, (_, recipient), returned = read("delayed", report(reply=busy, retry_until=DATE), ret="FULL")
    assert message["Subject"] == "Delivery delayed: Hello"
    assert "It is tried until Thu, 04 Jan 2024 03:04:05 +0000" in text
    assert recipient["Will-Retry-Until"] == "Thu, 04 Jan 2024 03:04:05 +0000"
    assert (recipient["Action"], recipient["Status"]) == ("delayed", "4.7.3")
    assert returned.get_content_type() == "text/rfc822-headers"  # the whole message belongs to a failure


@pytest.mark.parametrize(
    ("action", "said", "status"),
    [
        ("failed", "5.1.1 x", "5.1.1"),
        ("failed", "4.4.7 x", "4.4.7"),
        ("failed", "2.0.0 x", "5.0.0"),
        ("failed", "no code", "5.0.0"),
        ("delayed", "4.2.2 x", "4.2.2"),
        ("delayed", "5.7.3 x", "4.7.3"),
        ("relayed", "2.6.0 x", "2.6.0"),
        ("delivered", "x", "2.0.0"),
    ],
)
def test_the_class_of_the_status_agrees_with_the_action(action: Action, said: str, status: str) -> None:
    _, _, (_, group), _ = read(action, report(Recipient("b@c", notify="SUCCESS,FAILURE,DELAY"), Reply(500, (said,))))
    assert (group["Action"], group["Status"]) == (action, status)


WHO = {None: "failed delayed", "NEVER": "", "FAILURE": "failed", "DELAY": "delayed", "SUCCESS": "delivered relayed"}
ACTIONS: tuple[Action, ...] = ("failed", "delayed", "delivered", "relayed")


@pytest.mark.parametrize("notify", WHO)
@pytest.mark.parametrize("action", ACTIONS)
def test_only_who_asked_is_told(action: Action, notify: str | None) -> None:
    recipient = Recipient("bob@fabrikam.com", notify=notify)
    expected = action in WHO[notify].split()
    assert wanted(action, "alice@contoso.com", recipient) == expected
    assert (made(action, report(recipient)) is not None) == expected
    assert not wanted(action, "", recipient)
    assert made(action, report(recipient), sender="") is None


def test_recipients_that_asked_for_nothing_are_left_out() -> None:
    never = Recipient("carol@fabrikam.com", notify="NEVER")
    _, text, (_, *groups), _ = read("failed", report(never), report())
    assert [group["Final-Recipient"] for group in groups] == ["rfc822; bob@fabrikam.com"]
    assert "carol" not in text


# --- what is returned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ret", [None, "HDRS"])
def test_the_header_is_returned(ret: str | None) -> None:
    *_, returned = read(ret=ret)
    assert returned.get_content_type() == "text/rfc822-headers"
    assert returned["Content-Transfer-Encoding"] == "7bit"
    assert raw(returned) == HEADER


def raw(part: EmailMessage) -> bytes:
    octets = part.get_payload(decode=True)
    assert isinstance(octets, bytes)
    return octets


def test_the_whole_message_is_returned_as_it_is_when_asked_for() -> None:
    found = made(ret="FULL")
    assert found is not None
    *_, returned = read(ret="FULL")
    assert returned.get_content_type() == "message/rfc822"
    assert b"Content-Transfer-Encoding: 7bit\r\n\r\n" + ORIGINAL + b"\r\n--" in found[1]


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (ORIGINAL, len(ORIGINAL) + 1),
        (HEADER + b"\r\n" + b"x\r\n" * MAX_RETURNED, None),
        (ORIGINAL + b"\0", None),
        (ORIGINAL + b"\n", None),
        (ORIGINAL + b"\r", None),
        (ORIGINAL + b"x" * 999, None),
        (HEADER + b"X: \xff\r\n\r\n", None),
    ],
    ids=["only-its-beginning", "large", "nul", "bare-lf", "bare-cr", "long-line", "header-in-no-charset"],
)
def test_of_a_message_that_cannot_stand_in_another_the_header_is_returned(content: bytes, size: int | None) -> None:
    *_, returned = read(content=content, size=size, ret="FULL")
    assert returned.get_content_type() == "text/rfc822-headers"
    assert raw(returned) == content.partition(b"\r\n\r\n")[0] + b"\r\n"


def test_the_longest_line_that_may_be_sent_is_returned() -> None:
    *_, returned = read(content=ORIGINAL + b"x" * 998, ret="FULL")
    assert returned.get_content_type() == "message/rfc822"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (ORIGINAL + "Grüße".encode(), "message/rfc822"),
        ("Subject: Grüße\r\n\r\n".encode(), "message/global"),
    ],
)
def test_eight_bits_are_declared(content: bytes, kind: str) -> None:
    found = made(content=content, ret="FULL")
    assert found is not None
    envelope, octets = found
    assert (envelope.body, envelope.smtputf8) == ("8BITMIME", False)
    message = parsed(octets)
    returned = list(message.iter_parts())[2]
    assert returned.get_content_type() == kind
    assert message["Content-Transfer-Encoding"] == returned["Content-Transfer-Encoding"] == "8bit"
    assert content in octets


@pytest.mark.parametrize(
    "header",
    [
        b"X: \xff\0\r\x1b[2J\n\tx\t ",
        b"X: " + b"y" * 2000,
        "Subject: Grüße".encode(),
        b".\r\n--x\r\nFrom me",
    ],
    ids=["octets", "long", "utf-8", "lines"],
)
def test_a_broken_header_is_returned_octet_by_octet_and_needs_nothing_of_a_peer(header: bytes) -> None:
    found = made(content=header + b"\r\n\r\nText")
    assert found is not None
    envelope, octets = found
    assert octets.isascii()
    assert envelope.body is None
    returned = cast("EmailMessage", list(parsed(octets).iter_parts())[2])
    assert raw(returned) == header + b"\r\n"


@pytest.mark.parametrize(
    ("content", "returned"),
    [
        (b"", b"\r\n"),
        (b"\r\nText", b"\r\n"),
        (b"\nText", b"\r\n"),
        (b"A: b\n\nText", b"A: b\r\n"),
        (b"A: b\n\r\nText", b"A: b\r\n"),
        (b"A: b", b"A: b\r\n"),
        (b"A: b\r\n" * MAX_HEADER, (b"A: b\r\n" * MAX_HEADER)[: MAX_HEADER // 6 * 6]),
        (b"x" * 2 * MAX_HEADER, b"x" * MAX_HEADER + b"\r\n"),
    ],
    ids=["empty", "no-header", "no-header-lf", "lf", "mixed", "no-text", "cut-at-a-line", "cut"],
)
def test_only_the_header_is_returned_and_not_more_than_its_limit(content: bytes, returned: bytes) -> None:
    *_, part = read(content=content)
    assert raw(part) == returned


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_sender_beyond_ascii_needs_smtputf8() -> None:
    found = made(sender="jörg@contoso.com")
    assert found is not None
    envelope, octets = found
    assert envelope.recipients == [Recipient("jörg@contoso.com", notify="NEVER")]
    assert (envelope.smtputf8, envelope.body) == (True, "8BITMIME")
    assert "\r\nTo: <jörg@contoso.com>\r\n".encode() in octets


@pytest.mark.parametrize(
    ("address", "orcpt", "final", "original"),
    [
        ("jörg@contoso.com", None, r"utf-8; j\x{F6}rg@contoso.com", None),
        ('"j ö+=\\\\"@c.de', None, r'utf-8; "j\x{20}\x{F6}\x{2B}\x{3D}\x{5C}\x{5C}"@c.de', None),
        ("b@c", "utf-8;jörg@c", "rfc822; b@c", r"utf-8; j\x{F6}rg@c"),
        ("b@c", r"UTF-8;j\x{F6}rg@c", "rfc822; b@c", r"UTF-8; j\x{F6}rg@c"),
        ("b@c", "rfc822;a+0D+0AAction:+20delivered", "rfc822; b@c", "rfc822; a+0D+0AAction:+20delivered"),
        ("b@c", "x400;/G=A+2BB/", "rfc822; b@c", "x400; /G=A+2BB/"),  # "=" is no xtext
        ("b@c", "rfc822;ö@c", "rfc822; b@c", "rfc822; ?@c"),
    ],
)
def test_addresses_of_recipients_are_ascii_in_the_fields(
    address: str, orcpt: str | None, final: str, original: str | None
) -> None:
    _, _, (_, group), _ = read("failed", report(Recipient(address, orcpt=orcpt)))
    assert (group["Final-Recipient"], group["Original-Recipient"]) == (final, original)


# --- hostile values ---------------------------------------------------------------------------------------------------


def test_a_reply_cannot_add_a_field_a_line_or_a_part() -> None:
    evil = Reply(550, ("x\r\nAction: delivered\r\n\r\n--b", "\x1b]0;title\x07\u202e" + "y" * 40_000))
    message, text, (_, group), _ = read("failed", report(reply=evil, remote="mx\r\nStatus: 2.0.0"))
    assert group.get_all("Action") == ["failed"]
    assert group.get_all("Status") == ["5.0.0"]
    assert group["Remote-MTA"] == "dns; mx??Status: 2.0.0"
    assert group["Diagnostic-Code"].startswith("smtp; 550 x??Action: delivered????--b ?]0;title??yyy")
    assert "mx??Status: 2.0.0 answered: 550 x??Action" in text
    assert len(message.as_bytes()) < 4000


@pytest.mark.parametrize(
    ("header", "subject"),
    [
        (b"Subject: Hello\r\n  world", "Undeliverable: Hello world"),
        (b"SUBJECT:Hello", "Undeliverable: Hello"),
        (b"Subject: a\rBcc: x@y\0", "Undeliverable"),
        (b"Subject: a\0b", "Undeliverable: a?b"),
        (b"Subject:", "Undeliverable"),
        (b"X-Subject: a", "Undeliverable"),
        (b"Subject: \xff", "Undeliverable"),
        (b"Subject: " + b"x " * 101, "Undeliverable"),
        (b"Subject: " + b"x" * 200, "Undeliverable: " + "x" * 200),
    ],
)
def test_the_subject_is_repeated_where_that_is_safe(header: bytes, subject: str) -> None:
    message, *_ = read(content=header + b"\r\n\r\nSubject: of the text\r\n")
    assert message["Subject"] == subject


@pytest.mark.parametrize("identity", [b"<a b@c>", b"<" + b"a" * 251 + b">", b"a@c", b"<\xff@c>"])
def test_an_odd_message_id_is_not_referred_to(identity: bytes) -> None:
    message, *_ = read(content=b"Message-ID: " + identity + b"\r\n\r\n")
    assert "In-Reply-To" not in message


def test_the_longest_addresses_fit_into_lines() -> None:
    long = '"' + "ö" * 1000 + '"@contoso.com'
    found = made("failed", report(Recipient(long, orcpt=f"utf-8;{long}")), sender=long, postmaster=long)
    assert found is not None
    parsed(found[1])
    assert found[0].recipients[0].address == long


def test_a_message_that_looks_like_parts_ends_nothing() -> None:
    found = made(ret="FULL")
    assert found is not None
    nested = b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + found[1]
    again = made(content=nested, ret="FULL")
    assert again is not None
    assert len(list(parsed(again[1]).iter_parts())) == 3


PIECES = [
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\0", b"\xff", b"\xc3\xb6", b"Subject: ", b"Message-ID: <a@b>", b"--", b".", b" ",
    b"x" * 999, b"\t", b"=?utf-8?q?=0D=0A?=", b":", b"Content-Type: multipart/mixed; boundary=x\r\n",
]  # fmt: skip
contents = st.lists(st.sampled_from(PIECES) | st.binary(max_size=20), max_size=25).map(b"".join)


@given(contents, st.sampled_from(ACTIONS), st.sampled_from(["FULL", "HDRS", None]), st.lists(st.text(), min_size=1))
def test_any_message_and_any_reply_make_a_clean_report(
    content: bytes, action: Action, ret: str | None, lines: list[str]
) -> None:
    recipient = Recipient("bob@fabrikam.com", notify="SUCCESS,FAILURE,DELAY", orcpt=f"rfc822;{lines[0]}")
    reports = (report(recipient, Reply(451, tuple(lines)), remote=lines[-1], last_error=lines[0]), report(recipient))
    found = made(action, *reports, content=content, ret=ret, envid=lines[0])
    assert found is not None
    envelope, octets = found
    message = parsed(octets)
    assert str(message["To"]) == "alice@contoso.com"
    assert envelope.recipients == [Recipient("alice@contoso.com", notify="NEVER")]
    assert octets.isascii() or (envelope.body == "8BITMIME" and ret == "FULL")
    parts = cast("list[EmailMessage]", list(message.iter_parts()))
    groups = cast("list[Message]", parts[1].get_payload())
    assert [group.get_all("Final-Recipient") for group in groups] == [None, *[["rfc822; bob@fabrikam.com"]] * 2]
    assert [group.get_all("Action") for group in groups] == [None, [action], [action]]
    if parts[2].get_content_type() == "text/rfc822-headers":
        assert content.startswith(raw(parts[2])[:-2])
    else:
        assert content in octets


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (b"Text\r\n", b"Text\n"),
        (b"Text", b"T\0xt"),
        (b"Text", b"x" * 999),
        (b"multipart/report", b"multipart/mixed"),
        (b"delivery-status;", b"x;"),
        (b"message/delivery-status", b"text/plain"),
        (b"message/rfc822", b"text/plain"),
        (b"--\r\n", b"\r\n"),
    ],
)
def test_what_is_no_clean_report_is_found(part: bytes, instead: bytes) -> None:
    found = made(ret="FULL")
    assert found is not None
    parsed(found[1])
    bad = found[1].replace(part, instead)
    assert bad != found[1]
    with pytest.raises(ValueError, match=r"not clean|not a report|Defect|\['text/plain'"):
        parsed(bad)
