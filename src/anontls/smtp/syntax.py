"""Commands, paths, parameters and EHLO keywords: text to values and back.

A parser returns a value or raises `SyntaxFault`, which carries the reply.  Nothing is tolerated behind a path or a
parameter: what one server skips, the next may obey.  Blanks are forgiven after the colon of ``MAIL FROM:`` (old
devices), between parameters, and at the end of a line [RFC5321 4.1.1].
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TypedDict

import msgspec

from anontls.smtp import exchange
from anontls.smtp.reply import Reply

# A line of a command, CRLF included.  [RFC5321 4.5.3.1.4] wants 512; SIZE, DSN, AUTH= and SMTPUTF8 add up to some
# 1,500 [RFC3461 4], and Exchange writes encapsulated X.400/X.500 addresses with long local parts.  Postfix: 2,048.
MAX_COMMAND_LINE = 4 * 1024

# [RFC4954 4] asks for 12,288 octets in an authentication line; a Kerberos token of Windows may have 48,000 octets
# (MaxTokenSize), which are 64,000 in base64.
MAX_AUTHENTICATION_LINE = 64 * 1024

# An address.  [RFC5321 4.5.3.1] asks for 64 octets before the @, 255 behind it; encapsulated addresses need more.
MAX_ADDRESS = 1024


class SyntaxFault(Exception):
    """A command that cannot be understood; ``reply`` answers it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """A recipient, with its DSN parameters as they stood on the wire (xtext) [RFC3461 4]."""

    address: str
    notify: str | None = None
    orcpt: str | None = None

    @property
    def local_part(self) -> str:
        return self.address.rpartition("@")[0] or self.address

    @property
    def domain(self) -> str:
        """Domain or address literal; empty for ``postmaster`` alone."""
        return self.address.rpartition("@")[2] if "@" in self.address else ""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What MAIL and RCPT said.  ``sender`` is empty for the null reverse-path; ``envid`` and ``auth`` are xtext."""

    sender: str
    recipients: list[Recipient]
    size: int | None = None
    body: str | None = None
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None
    auth: str | None = None


# --- paths ------------------------------------------------------------------------------------------------------------

# Letters beyond ASCII [RFC6531 3.3], without controls, blanks, separators and marks that turn the direction of text.
_WIDE = (
    "\u00a1-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\ud7ff\uf900-\ufefe\uff00-\uffef\U00010000-\U0010ffff"
)
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_WIDE}-]++"
_LOCAL = rf'(?:{_ATOM}(?:\.{_ATOM})*+|"(?:[ !#-\[\]-~{_WIDE}]|\\[ -~])*+")'
_LABEL = rf"[A-Za-z0-9{_WIDE}]++(?:-++[A-Za-z0-9{_WIDE}]++)*+"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*+"
_LITERAL = r"\[[0-9A-Za-z:.]++\]"
_MAILBOX = rf"{_LOCAL}@(?:{_DOMAIN}|{_LITERAL})"
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*+:)?"

_MAIL = re.compile(rf"(?i:MAIL +FROM:) *<(?:{_ROUTE}({_MAILBOX}))?>(?: +([!-~{_WIDE}][ -~{_WIDE}]*))? *")
_RCPT = re.compile(rf"(?i:RCPT +TO:) *<(?:{_ROUTE}({_MAILBOX})|((?i:postmaster)))>(?: +([!-~{_WIDE}][ -~{_WIDE}]*))? *")
_MAIL_HEAD = re.compile(r"(?i:MAIL +FROM:) *(\S.*)?")
_RCPT_HEAD = re.compile(r"(?i:RCPT +TO:) *(\S.*)?")
_ADDRESS = re.compile(_MAILBOX)
# Underscores are no host name, but Windows computers have them.
_HELLO_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|\[[0-9A-Za-z:.]{1,64}\]")


def valid_literal(domain: str) -> bool:
    """Whether an address literal holds an address; general literals have no registered tag [RFC5321 4.1.3]."""
    inner = domain[1:-1]
    try:
        if inner[:5].upper() == "IPV6:":
            ipaddress.IPv6Address(inner[5:])
        else:
            ipaddress.IPv4Address(inner)
    except ValueError:
        return False
    return True


def valid_address(address: str) -> bool:
    """Whether an address may be sent in a path; one domain only, nothing behind it."""
    if len(address) > MAX_ADDRESS or not _ADDRESS.fullmatch(address):
        return address.lower() == "postmaster"
    return address[-1] != "]" or valid_literal(address[address.rindex("[") :])


def valid_hello(name: str) -> bool:
    """A domain or address literal of EHLO, as loosely as hosts name themselves."""
    return _HELLO_NAME.fullmatch(name) is not None


def parse_mail(line: str) -> tuple[str, str | None]:
    """Reverse-path and parameters of MAIL; a source route is dropped [RFC5321 C]."""
    match = _MAIL.fullmatch(line)
    if match is None:
        raise SyntaxFault(exchange.INVALID_SENDER if _MAIL_HEAD.fullmatch(line) else exchange.INVALID_ARGUMENTS)
    address, parameters = match.groups()
    if address is None:
        return "", parameters
    if len(address) > MAX_ADDRESS or (address[-1] == "]" and not valid_literal(address[address.rindex("[") :])):
        raise SyntaxFault(exchange.INVALID_SENDER)
    return address, parameters


def parse_rcpt(line: str) -> tuple[str, str | None]:
    """Forward-path and parameters of RCPT; ``postmaster`` needs no domain [RFC5321 4.1.1.3]."""
    match = _RCPT.fullmatch(line)
    if match is None:
        raise SyntaxFault(exchange.INVALID_RECIPIENT if _RCPT_HEAD.fullmatch(line) else exchange.INVALID_ARGUMENTS)
    address, postmaster, parameters = match.groups()
    if address is None:
        return postmaster, parameters
    if len(address) > MAX_ADDRESS or (address[-1] == "]" and not valid_literal(address[address.rindex("[") :])):
        raise SyntaxFault(exchange.INVALID_RECIPIENT)
    return address, parameters


# --- parameters -------------------------------------------------------------------------------------------------------

# Printable ASCII but "+" and "="; "+" and two hexadecimal digits for the rest.  [RFC3461 4]
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_XTEXT_VALUE = re.compile(rf"{_XTEXT}*+")
_XTEXT_OTHER = re.compile(r"[^!-*,-<>-~]")
_SIZE = re.compile(r"[0-9]{1,20}")  # [RFC1870 3]
_BODY = frozenset({"7BIT", "8BITMIME", "BINARYMIME"})
_USUAL_PARAMETERS = re.compile(r"SIZE=([0-9]{1,20})(?: BODY=(7BIT|8BITMIME))?")
_ENVID = re.compile(rf"{_XTEXT}{{1,100}}")  # [RFC3461 4.4]
_AUTH = re.compile(rf"<>|{_XTEXT}{{1,500}}")  # [RFC4954 5]
_NOTIFY = re.compile(r"NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}")
# An addr-type and xtext; with SMTPUTF8 the address may be raw or have \x{…} in it.  [RFC3461 4.2] [RFC6533 3]
_ORCPT = re.compile(rf"[A-Za-z0-9-]{{1,64}};(?:{_XTEXT}|[{{}}{_WIDE}]){{1,500}}")


def xtext(text: str) -> str:
    """Encode ASCII text for a parameter."""
    return _XTEXT_OTHER.sub(lambda match: f"+{ord(match[0]):02X}", text)


def from_xtext(text: str) -> str:
    """Decode; raises ValueError for what is not xtext."""
    if not _XTEXT_VALUE.fullmatch(text):
        raise ValueError("not xtext")
    return re.sub(r"\+([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), text)


def parse_parameters(text: str) -> dict[str, str | None]:
    """ESMTP parameters by keyword in capitals; a keyword given twice is a fault."""
    found: dict[str, str | None] = {}
    for word in text.split():
        keyword, equals, value = word.partition("=")
        keyword = keyword.upper()
        if keyword in found or (equals and not value):
            raise SyntaxFault(exchange.INVALID_ARGUMENTS)
        found[keyword] = value if equals else None
    return found


class MailParameters(TypedDict, total=False):
    """Fields of `Envelope`."""

    size: int
    body: str
    smtputf8: bool
    ret: str
    envid: str
    auth: str


class RcptParameters(TypedDict, total=False):
    """Fields of `Recipient`."""

    notify: str
    orcpt: str


def mail_parameters(text: str, offered: frozenset[str]) -> MailParameters:
    """The parameters of MAIL; ``offered`` are the keywords of our EHLO answer."""
    usual = _USUAL_PARAMETERS.fullmatch(text)
    if usual is not None and "SIZE" in offered and "8BITMIME" in offered:
        body = usual[2]
        return {"size": int(usual[1]), "body": body} if body else {"size": int(usual[1])}
    fields: MailParameters = {}
    for keyword, value in parse_parameters(text).items():
        match keyword, value:
            case "SIZE", str() if _SIZE.fullmatch(value) and "SIZE" in offered:
                fields["size"] = int(value)
            case "BODY", str() if _body_offered(value.upper(), offered):
                fields["body"] = value.upper()
            case "SMTPUTF8", None if "SMTPUTF8" in offered:
                fields["smtputf8"] = True
            case "RET", str() if value.upper() in {"FULL", "HDRS"} and "DSN" in offered:
                fields["ret"] = value.upper()
            case "ENVID", str() if _ENVID.fullmatch(value) and "DSN" in offered:
                fields["envid"] = value
            case "AUTH", str() if _AUTH.fullmatch(value) and "AUTH" in offered:
                fields["auth"] = value
            case _:
                raise SyntaxFault(exchange.UNRECOGNIZED_PARAMETER)
    return fields


def _body_offered(body: str, offered: frozenset[str]) -> bool:
    return body in _BODY and ("8BITMIME" if body == "7BIT" else body) in offered


def rcpt_parameters(text: str, offered: frozenset[str]) -> RcptParameters:
    """The parameters of RCPT."""
    fields: RcptParameters = {}
    for keyword, value in parse_parameters(text).items():
        match keyword, value:
            case "NOTIFY", str() if _NOTIFY.fullmatch(value.upper()) and "DSN" in offered:
                fields["notify"] = value.upper()
            case "ORCPT", str() if _ORCPT.fullmatch(value) and "DSN" in offered:
                fields["orcpt"] = value
            case _:
                raise SyntaxFault(exchange.UNRECOGNIZED_PARAMETER)
    return fields


def valid_envelope(envelope: Envelope) -> bool:
    """Whether every value can stand in a command without changing its meaning."""
    for recipient in envelope.recipients:
        if not (
            valid_address(recipient.address)
            and (recipient.notify is None or _NOTIFY.fullmatch(recipient.notify) is not None)
            and (recipient.orcpt is None or _ORCPT.fullmatch(recipient.orcpt) is not None)
        ):
            return False
    return (
        (not envelope.sender or (valid_address(envelope.sender) and "@" in envelope.sender))
        and (envelope.body is None or envelope.body in _BODY)
        and (envelope.ret is None or envelope.ret in {"FULL", "HDRS"})
        and (envelope.envid is None or _ENVID.fullmatch(envelope.envid) is not None)
        and (envelope.auth is None or _AUTH.fullmatch(envelope.auth) is not None)
    )


# --- EHLO keywords ----------------------------------------------------------------------------------------------------

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


def parse_extensions(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Keywords, in capitals, and their parameters out of the lines behind the greeting of an EHLO answer.

    A line that is no keyword line is passed over [RFC5321 4.1.1.1]; a keyword that comes twice gathers its
    parameters.
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        words = line.split()
        if words and _KEYWORD.fullmatch(words[0]):
            keyword = words[0].upper()
            found[keyword] = found.get(keyword, ()) + tuple(words[1:])
    return found


def size_limit(extensions: Mapping[str, tuple[str, ...]]) -> int | None:
    """The largest message that the peer takes; None when it does not say (no SIZE, no number, or 0) [RFC1870 4]."""
    values = extensions.get("SIZE", ())
    if values and _SIZE.fullmatch(values[0]):
        return int(values[0]) or None
    return None
