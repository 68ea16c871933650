"""Delivery status notifications: what a sender is told about a message that failed, is late, or went on.

A notification has three parts [RFC6522 3]: a text for people, the fields for programs, and the header of the message,
or all of it.  Nothing from outside can end a line, a field or a part: values are put on one line, what is no clean text
is sent in quoted-printable, and the boundary is a hash of what it encloses.
"""

from __future__ import annotations

import re
from binascii import b2a_qp
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from hashlib import sha256
from textwrap import wrap
from typing import Final, Literal, TypeAlias

import msgspec

from anontls.delivery.retry import MAX_ERROR, one_line, without_why
from anontls.smtp.content import only_crlf
from anontls.smtp.reply import Reply
from anontls.smtp.syntax import MAX_ADDRESS, Envelope, Recipient, from_xtext

MAX_HEADER = 64 * 1024  # octets of the header that are returned
MAX_RETURNED = 256 * 1024  # octets of a message that is returned whole
MAX_LINE = 998  # octets, without CRLF [RFC5321 4.5.3.1.6]
MAX_SUBJECT = 200  # characters of a subject that is repeated

Action: TypeAlias = Literal["failed", "delayed", "delivered", "relayed"]


class _Wording(msgspec.Struct, frozen=True):
    keyword: str  # of NOTIFY
    classes: tuple[int, ...]  # of status codes that an action can have, the usual one first
    subject: str
    text: str


_WORDING: Final[dict[Action, _Wording]] = {
    # 4: given up although it may pass later [RFC3463 2]
    "failed": _Wording("FAILURE", (5, 4), "Undeliverable", "Your message was not delivered to these recipients:"),
    "delayed": _Wording(
        "DELAY",
        (4,),
        "Delivery delayed",
        "Your message has not yet been delivered to these recipients. There is no need to send it again: it is tried further.",
    ),
    "delivered": _Wording("SUCCESS", (2,), "Delivered", "Your message was delivered to these recipients:"),
    "relayed": _Wording(
        "SUCCESS",
        (2,),
        "Relayed",
        "Your message was handed on for these recipients, to a server that does not tell about their delivery:",
    ),
}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one recipient.

    ``remote`` is the server that gave the reply, ``None`` when it was this one.  ``last_error`` is told beside a reply of
    our own, such as that of an expired message.  ``retry_until``, in Unix seconds, belongs to a delay only [RFC3464 2.3.9].
    """

    recipient: Recipient
    reply: Reply
    remote: str | None = None
    last_error: str = ""
    retry_until: float | None = None


def wanted(action: Action, sender: str, recipient: Recipient) -> bool:
    """Whether anybody is to be told: never a null sender, so never about a notification [RFC5321 6.1].

    Without NOTIFY a sender is told of failures and delays [RFC3461 4.1].
    """
    if not sender:
        return False
    if recipient.notify is None:
        return action in {"failed", "delayed"}
    return _WORDING[action].keyword in recipient.notify.split(",")


def notification(
    action: Action,
    original: Envelope,
    reports: Sequence[Report],
    *,
    content: bytes,
    size: int,
    arrived: float,
    date: float,
    reporting_mta: str,
    postmaster: str,
    unique: str,
) -> tuple[Envelope, bytes] | None:
    """Envelope and content of the notification to the sender of a message; ``None`` when nobody wants it.

    ``content`` is the message, of ``size`` octets, or at least what it begins with, the header.  It is returned whole
    only when the sender asked for that (RET=FULL), the action is "failed" [RFC3461 4.3], and it is short and clean.
    ``date`` and ``arrived`` are Unix seconds; ``unique`` goes into the Message-ID.
    """
    told = [report for report in reports if wanted(action, original.sender, report.recipient)]
    if not told:
        return None
    header = _header(content)
    whole = _whole(content, header, size) if action == "failed" and original.ret == "FULL" else None
    parts = (
        _part("text/plain; charset=utf-8", _text(action, told, arrived, reporting_mta)),
        _part("message/delivery-status", _status(action, original, told, arrived, reporting_mta)),
        whole or _part("text/rfc822-headers", header + b"\r\n"),  # encoded where broken or extended [RFC6522 4]
    )
    boundary = sha256(b"".join((unique.encode("utf-8", "replace"), *parts))).hexdigest()[:40]
    delimiter = f"\r\n--{boundary}".encode()
    body = b"".join(delimiter + b"\r\n" + part for part in parts) + delimiter + b"--\r\n"

    fields = [
        _field("From", f"Postmaster <{postmaster}>"),
        _field("To", f"<{original.sender}>"),
        _field("Subject", _subject(_WORDING[action].subject, header)),
        _field("Date", _date(date)),
        _field("Message-ID", f"<{unique}@{reporting_mta}>"),
    ]
    if reference := _MESSAGE_ID.search(header):
        fields.append(_field("In-Reply-To", reference[1].decode("ascii")))
    fields += [
        "Auto-Submitted: auto-replied",  # [RFC3834 5]
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
    ]
    if not body.isascii():
        fields.append("Content-Transfer-Encoding: 8bit")
    head = "".join(f"{field}\r\n" for field in fields).encode()
    message = head + body
    envelope = Envelope(  # [RFC3461 6.1]
        "",
        [Recipient(original.sender, notify="NEVER")],
        size=len(message),
        body=None if message.isascii() else "8BITMIME",
        smtputf8=not head.isascii(),
    )
    return envelope, message


# --- the parts --------------------------------------------------------------------------------------------------------


def _text(action: Action, reports: Sequence[Report], arrived: float, reporting_mta: str) -> bytes:
    lines = [_WORDING[action].text, ""]
    for report in reports:
        lines.append(one_line(report.recipient.address, MAX_ADDRESS))
        reply = one_line(str(report.reply))
        lines.append(f"    {one_line(report.remote)} answered: {reply}" if report.remote else f"    {reply}")
        if report.last_error:
            lines.append(f"    Last error: {one_line(without_why(report.last_error), 2 * MAX_ERROR)}")
        if report.retry_until is not None:
            lines.append(f"    It is tried until {_date(report.retry_until)}")
        lines.append("")
    lines += [
        "Diagnostic information for administrators",
        "",
        f"Generating server: {one_line(reporting_mta)}",
        f"Message received: {_date(arrived)}",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _status(action: Action, original: Envelope, reports: Sequence[Report], arrived: float, reporting_mta: str) -> bytes:
    """The fields about the message, and a group of them for each recipient; ASCII only.  [RFC3464 2.1]"""
    lines = []
    if original.envid is not None:
        lines.append(_field("Original-Envelope-Id", _from_xtext(original.envid)))
    lines += [_field("Reporting-MTA", f"dns; {reporting_mta}"), _field("Arrival-Date", _date(arrived))]
    for report in reports:
        lines += ["", *_recipient_fields(action, report)]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii", "replace")


def _recipient_fields(action: Action, report: Report) -> Iterator[str]:
    if report.recipient.orcpt is not None:
        yield _field("Original-Recipient", _original_recipient(report.recipient.orcpt))
    yield _field("Final-Recipient", _final_recipient(report.recipient.address))
    yield _field("Action", action)
    yield _field("Status", _status_code(action, report.reply))
    if report.remote:
        yield _field("Remote-MTA", f"dns; {report.remote}")
    yield _field("Diagnostic-Code", f"smtp; {one_line(str(report.reply))}")
    if report.retry_until is not None:
        yield _field("Will-Retry-Until", _date(report.retry_until))


def _status_code(action: Action, reply: Reply) -> str:
    """The enhanced code of the reply; where its class contradicts the action, with another [RFC3464 2.3.4].

    Exchange says ``451 5.7.3`` of what is tried again [FACT D 3.4].
    """
    code, subject, detail = reply.enhanced or (0, 0, 0)
    classes = _WORDING[action].classes
    return f"{code if code in classes else classes[0]}.{subject}.{detail}"


def _whole(content: bytes, header: bytes, size: int) -> bytes | None:
    """The message as a part, if it can be one.

    A message inside a message is not encoded [RFC2046 5.2.1], so it must be short and clean as it is; one with
    letters beyond ASCII in its header has a type of its own [RFC6532 3.7].
    """
    if size != len(content) or size > MAX_RETURNED or not _clean(content):
        return None
    kind = "message/rfc822"
    if not header.isascii():
        try:
            header.decode()
        except UnicodeDecodeError:
            return None
        kind = "message/global"
    encoding = "7bit" if content.isascii() else "8bit"
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + content


def _part(kind: str, data: bytes) -> bytes:
    """A part that needs no extension of the peer; quoted-printable carries any octets."""
    encoding = "7bit"
    if not (data.isascii() and _clean(data)):
        encoding = "quoted-printable"
        lines = (b2a_qp(line, istext=False) for line in data.split(b"\r\n"))
        data = b"\r\n".join(line.replace(b"\n", b"\r\n") for line in lines)  # what it breaks itself, it breaks with LF
    return f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode() + data


def _clean(data: bytes) -> bool:
    """What 7bit and 8bit have in common: no NUL, lines end with CRLF and are not too long.  [RFC2045 2.8]"""
    return b"\0" not in data and only_crlf(data) and max(map(len, data.split(b"\r\n"))) <= MAX_LINE


# --- the original -----------------------------------------------------------------------------------------------------

_END_OF_HEADER = re.compile(rb"(?:\A|\r?\n)\r?\n")
_SUBJECT = re.compile(rb"^Subject:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)\r?$", re.IGNORECASE | re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^Message-ID:[ \t]*(<[!-;=?-~]{1,250}>)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


def _header(content: bytes) -> bytes:
    """The header without its last line end; of a long one the first fields, up to a line end."""
    head = content[:MAX_HEADER]
    end = _END_OF_HEADER.search(head)
    if end is not None:
        return head[: end.start()]
    return head if len(content) <= MAX_HEADER else head[: max(head.rfind(b"\r\n"), 0)] or head


def _subject(word: str, header: bytes) -> str:
    """The original's subject behind a word, where it is plain or made of encoded words."""
    found = _SUBJECT.search(header)
    text = b" ".join(found[1].split()) if found else b""
    if not text or len(text) > MAX_SUBJECT or not text.isascii():
        return word
    return f"{word}: {text.decode('ascii')}"


# --- fields -----------------------------------------------------------------------------------------------------------

# What has to be written as \x{…}, besides all beyond ASCII.  [RFC6533 3]
_SPECIAL = re.compile(r"[^!-*,-<>-\[\]-~]")
_WIDE = re.compile(r"[^ -~]")


def _field(name: str, value: str) -> str:
    """A field, folded at blanks; a word longer than a line can be is broken."""
    text = one_line(f"{name}: {value}", 16 * MAX_ADDRESS)
    if len(text) <= 78:
        return text
    most = MAX_LINE - 8 if text.isascii() else MAX_LINE // 4 - 8  # octets of a character: 4
    lines = wrap(text, 78, break_long_words=False, break_on_hyphens=False)
    return "\r\n ".join(line[at : at + most] for line in lines for at in range(0, len(line), most))


def _date(at: float) -> str:
    return format_datetime(datetime.fromtimestamp(at, UTC))


def _from_xtext(text: str) -> str:
    """The decoded value; what would not be printable ASCII stays as it was."""
    try:
        decoded = from_xtext(text)
    except ValueError:
        return text
    return decoded if decoded.isascii() and decoded.isprintable() else text


def _final_recipient(address: str) -> str:
    if address.isascii():
        return f"rfc822; {address}"
    return f"utf-8; {_SPECIAL.sub(_code_point, address)}"


def _original_recipient(orcpt: str) -> str:
    """ORCPT with its xtext decoded [RFC3461 6.3]; addresses of type utf-8 have an ASCII form [RFC6533 3]."""
    kind, _, address = orcpt.partition(";")
    return f"{kind}; {_WIDE.sub(_code_point, address) if kind.lower() == 'utf-8' else _from_xtext(address)}"


def _code_point(match: re.Match[str]) -> str:
    return rf"\x{{{ord(match[0]):X}}}"
