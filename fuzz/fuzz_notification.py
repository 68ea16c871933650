"""A message that is returned to its sender: any octets, any reply, make a notification that is clean and whole.

The first octet chooses what is asked for; the first line behind it is the reply, the rest the message.
"""

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import cast

from anontls.delivery.notification import MAX_LINE, Action, Report, notification
from anontls.smtp import Envelope, Recipient, Reply
from anontls.smtp.content import only_crlf

FIELDS = b"Received: from a by b; now\r\nSubject: =?utf-8?q?a?=\r\n b\r\nMessage-ID: <x@contoso.com>\r\n"
SEEDS = [
    b"\x0f550 5.1.1 User unknown\n" + FIELDS + b"\r\nText\r\n",
    b"\x07\n" + FIELDS + b"\n\nText\n",
    "\x1f550 Grüße\nSubject: Grüße\r\nFrom: j\u00f6rg@contoso.com\r\n\r\nGrüße\r\n".encode(),
    b"\x0b421\nSubject: " + b"x" * 2000 + b"\r\n\r\n" + b"y" * 2000,
    b"\x0f551 --b\n\r\n--b--\r\nContent-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\n",
]
TOKENS = [
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"\n\n", b"\0", b"\xff", b"--", b"Subject:", b"Message-ID: <", b">", b" ", b"=",
    b"\r\n.\r\n", b"\r\nFrom ", b"Content-Type: message/rfc822\r\n", "\u202e\u2028\u0085".encode(), b"x" * 1200, b"\t \t",
]  # fmt: skip
ACTIONS: tuple[Action, ...] = ("failed", "delayed", "delivered", "relayed")


def parsed(content: bytes) -> EmailMessage:
    """A notification with its three parts; raises ValueError when it is none, or not fit to be sent."""
    if not only_crlf(content) or b"\0" in content or max(map(len, content.split(b"\r\n"))) > MAX_LINE:
        raise ValueError("not clean")
    message = message_from_bytes(content, policy=policy.default)
    if message.get_content_type() != "multipart/report" or message.get_param("report-type") != "delivery-status":
        raise ValueError("not a report")
    if message.defects:
        raise ValueError(message.defects)
    kinds = [part.get_content_type() for part in message.iter_parts()]
    if kinds[:2] != ["text/plain", "message/delivery-status"] or len(kinds) != 3:
        raise ValueError(kinds)
    if kinds[2] not in {"text/rfc822-headers", "message/rfc822", "message/global"}:
        raise ValueError(kinds)
    return message


def one_input(data: bytes) -> None:
    choice, line = data[:1] or b"\0", data[1:].split(b"\n", 1)
    told, content = line[0].decode("utf-8", "replace"), line[-1]
    action = ACTIONS[choice[0] & 3]
    recipient = Recipient(
        told or "x", notify=None if choice[0] & 4 else "SUCCESS,FAILURE,DELAY", orcpt=f"rfc822;{told}"
    )
    sender = "j\u00f6rg@contoso.com" if choice[0] & 16 else "bob@contoso.com"
    envelope = Envelope(sender, [recipient], ret="FULL" if choice[0] & 8 else "HDRS", envid=told or None)
    made = notification(
        action,
        envelope,
        [Report(recipient=recipient, reply=Reply(550, (told,)), remote=told, last_error=told, retry_until=0.0)],
        content=content,
        size=len(content),
        arrived=0.0,
        date=0.0,
        reporting_mta="ex1.contoso.com",
        postmaster="postmaster@contoso.com",
        unique="1",
    )
    if made is None:
        if recipient.notify is not None or action in {"failed", "delayed"}:
            raise AssertionError("nobody is told")
        return
    reply, message = made
    report = parsed(message)
    status = list(report.iter_parts())[1].get_payload()
    if [group.get("Action") for group in cast("list[EmailMessage]", status)] != [None, action]:
        raise AssertionError(f"the status is not what was told: {status}")
    if [r.address for r in reply.recipients] != [sender] or reply.sender or reply.size != len(message):
        raise AssertionError(reply)
    if not message.isascii() and reply.body != "8BITMIME":
        raise AssertionError("eight bits, not declared")
