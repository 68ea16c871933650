"""What is Exchange's own: banner, EHLO answer, reply texts, X-EXPS lines, and what masking leaves of them.

Each text carries the grade of its evidence; one without a citation is our choice, worded in Exchange's manner.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Literal

import msgspec

from anontls.smtp.reply import Reply

STARTTLS = "STARTTLS"
X_ANONYMOUSTLS = "X-ANONYMOUSTLS"
TlsVerb = Literal["STARTTLS", "X-ANONYMOUSTLS"]


class Size(enum.Enum):
    """``SizeEnabled`` of a Receive connector: how SIZE is offered [FACT D/O 3.1]."""

    ENABLED = "Enabled"  # SIZE and the number
    WITHOUT_VALUE = "EnabledWithoutValue"  # SIZE alone, as internal connectors have it
    DISABLED = "Disabled"  # not offered; the limit holds all the same


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What a Receive connector and its certificates let one session offer; made once, shared by its sessions."""

    fqdn: str
    starttls: bool = False  # a certificate for STARTTLS was selected
    anonymous_tls: bool = False  # one for X-ANONYMOUSTLS
    require_tls: bool = False
    require_authentication: bool = False
    auth: tuple[str, ...] = ()  # mechanisms of AUTH, always
    auth_under_tls: tuple[str, ...] = ()  # and these behind them once TLS is on: LOGIN with BasicAuthRequireTLS
    x_exps: tuple[str, ...] = ()  # mechanisms of X-EXPS, without EXCHANGEAUTH
    exchange_auth: bool = False  # this build can do EXCHANGEAUTH
    size: Size = Size.ENABLED
    max_size: int = 36 * 1024 * 1024  # 37748736, the default of Exchange [FACT D/O 3.1]
    max_recipients: int = 200  # the default of Receive connectors
    max_errors: int = 5  # the same, MaxProtocolErrors
    pipelining: bool = True
    dsn: bool = True
    enhanced_status_codes: bool = True  # the keyword; the replies have them all the same
    eight_bit_mime: bool = True
    binary_mime: bool = True
    chunking: bool = True
    smtputf8: bool = True


# --- banner and EHLO --------------------------------------------------------------------------------------------------

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def banner(fqdn: str, at: datetime | None = None) -> Reply:
    """The greeting with its date [FACT D 3.1]; without a date when none is given."""
    text = f"{fqdn} Microsoft ESMTP MAIL Service ready"
    if at is not None:
        text += _date(at.replace(microsecond=0))
    return Reply(220, (text,))


@lru_cache(maxsize=16)  # many sessions begin in one second
def _date(at: datetime) -> str:
    return f" at {_DAYS[at.weekday()]}, {at.day} {_MONTHS[at.month - 1]} {at:%Y %H:%M:%S} {at:%z}".rstrip()


@lru_cache(maxsize=64)  # the settings of a connector are the same for all its sessions
def ehlo_keywords(settings: ServerSettings, tls: TlsVerb | None = None) -> tuple[str, ...]:
    """Keyword lines in Exchange's fixed order; ``tls`` is the verb that the session is secured with.

    Both verbs vanish after either.  EXCHANGEAUTH stands only inside anonymous TLS, and only where this build can do
    it [FACT I 3.1].  XEXCH50, XRDST, XSHADOW and XSHADOWREQUEST, which Exchange offers too, are left out: nothing
    here implements them, and a peer may use what it is offered.
    """
    words = []
    if settings.size is Size.ENABLED:
        words.append(f"SIZE {settings.max_size}")
    elif settings.size is Size.WITHOUT_VALUE:
        words.append("SIZE")
    if settings.pipelining:
        words.append("PIPELINING")
    if settings.dsn:
        words.append("DSN")
    if settings.enhanced_status_codes:
        words.append("ENHANCEDSTATUSCODES")
    if tls is None:
        if settings.starttls:
            words.append(STARTTLS)
        if settings.anonymous_tls:
            words.append(X_ANONYMOUSTLS)
    auth = auth_mechanisms(settings, tls)
    if auth:
        words.append("AUTH " + " ".join(auth))
    x_exps = exps_mechanisms(settings, tls)
    if x_exps:
        words.append("X-EXPS " + " ".join(x_exps))
    if "EXCHANGEAUTH" in x_exps:
        words.append("X-EXCHANGEAUTH SHA256")
    if settings.eight_bit_mime:
        words.append("8BITMIME")
    if settings.binary_mime and settings.chunking:
        words.append("BINARYMIME")
    if settings.chunking:
        words.append("CHUNKING")
    if settings.smtputf8 and settings.eight_bit_mime:  # [RFC6531 3.1] SMTPUTF8 needs 8BITMIME
        words.append("SMTPUTF8")
    return tuple(words)


@lru_cache(maxsize=64)
def offered(settings: ServerSettings, tls: TlsVerb | None = None) -> frozenset[str]:
    """The keywords without what follows them."""
    return frozenset(keyword.partition(" ")[0] for keyword in ehlo_keywords(settings, tls))


def auth_mechanisms(settings: ServerSettings, tls: TlsVerb | None) -> tuple[str, ...]:
    return settings.auth + settings.auth_under_tls if tls else settings.auth


def exps_mechanisms(settings: ServerSettings, tls: TlsVerb | None) -> tuple[str, ...]:
    if settings.exchange_auth and tls == X_ANONYMOUSTLS:
        return ("EXCHANGEAUTH", *settings.x_exps)
    return settings.x_exps


@lru_cache(maxsize=1024)
def ehlo_reply(settings: ServerSettings, peer: str, tls: TlsVerb | None = None) -> Reply:
    """``250-<fqdn> Hello [<ip>]`` and the keywords [FACT D 3.1]."""
    return Reply(250, (f"{settings.fqdn} Hello [{peer}]", *ehlo_keywords(settings, tls)))


def helo_reply(settings: ServerSettings, peer: str) -> Reply:
    return Reply(250, (f"{settings.fqdn} Hello [{peer}]",))


# --- replies ----------------------------------------------------------------------------------------------------------


def _reply(text: str) -> Reply:
    return Reply(int(text[:3]), (text[4:],))


# Success.
SERVER_READY_FOR_TLS = _reply("220 2.0.0 SMTP server ready")  # [FACT O 3.2]; behind X-ANONYMOUSTLS [FACT I 3.2]
CLOSING = _reply("221 2.0.0 Service closing transmission channel")
AUTHENTICATED = _reply("235 2.7.0 Authentication successful")  # [FACT O 3.4]
OK = _reply("250 2.0.0 OK")
RESET = _reply("250 2.0.0 Resetting")
SENDER_OK = _reply("250 2.1.0 Sender OK")
RECIPIENT_OK = _reply("250 2.1.5 Recipient OK")
CANNOT_VERIFY = _reply("252 2.1.5 Cannot VRFY user")
START_MAIL_INPUT = _reply("354 Start mail input; end with <CRLF>.<CRLF>")

# Not now.
SERVICE_NOT_ACTIVE = _reply("421 4.3.2 Service not active")
CONNECTION_TIMED_OUT = _reply("421 4.4.1 Connection timed out")
TOO_MANY_ERRORS = _reply("421 4.7.0 Too many errors on this connection, closing transmission channel")
INSUFFICIENT_RESOURCES = _reply("452 4.3.1 Insufficient system resources")
TOO_MANY_RECIPIENTS = _reply("452 4.5.3 Too many recipients")
MUST_ISSUE_STARTTLS = _reply("451 5.7.3 Must issue a STARTTLS command first")  # [FACT D 3.4]
CANNOT_ACHIEVE_EXCHANGE_AUTHENTICATION = _reply(
    "451 5.7.3 Cannot achieve Exchange Server authentication"  # [FACT D 3.4]
)
TEMPORARY_AUTHENTICATION_FAILURE = _reply("454 4.7.0 Temporary authentication failure")  # [FACT D 3.4]

# Syntax and order.
UNRECOGNIZED_COMMAND = _reply("500 5.3.3 Unrecognized command")
LINE_TOO_LONG = _reply("500 5.5.2 Line too long")
ILLEGAL_CHARACTER = _reply("500 5.5.2 Illegal character in command")
INVALID_ARGUMENTS = _reply("501 5.5.4 Invalid arguments")
INVALID_DOMAIN_NAME = _reply("501 5.5.4 Invalid domain name")
UNRECOGNIZED_PARAMETER = _reply("501 5.5.4 Unrecognized parameter")
INVALID_CHUNK_SIZE = _reply("501 5.5.4 Invalid chunk size, closing transmission channel")
INVALID_RECIPIENT = _reply("501 5.1.3 Invalid address")
INVALID_SENDER = _reply("501 5.1.7 Invalid address")
CANNOT_DECODE = _reply("501 5.5.2 Cannot decode base64")
AUTHENTICATION_CANCELLED = _reply("501 5.7.0 Authentication cancelled")
COMMAND_NOT_IMPLEMENTED = _reply("502 5.3.3 Command not implemented")
SEND_HELLO_FIRST = _reply("503 5.5.2 Send hello first")  # [FACT O 3.4]
NEED_MAIL_COMMAND = _reply("503 5.5.2 Need mail command")
NEED_RCPT_COMMAND = _reply("503 5.5.2 Need rcpt command")
SENDER_ALREADY_SPECIFIED = _reply("503 5.5.2 Sender already specified")
BAD_SEQUENCE = _reply("503 5.5.1 Bad sequence of commands")
BINARYMIME_NEEDS_BDAT = _reply("503 5.5.1 BINARYMIME content needs BDAT")
ALREADY_UNDER_TLS = _reply("503 5.5.2 Only one STARTTLS or X-ANONYMOUSTLS command can be issued")
ALREADY_AUTHENTICATED = _reply("503 5.5.2 Already authenticated")
COMMANDS_BEHIND_TLS_VERB = _reply("503 5.5.0 Nothing may follow this command before TLS, closing transmission channel")
INPUT_BEHIND_DATA = _reply("503 5.5.0 Nothing may follow DATA before its reply, closing transmission channel")
UNRECOGNIZED_AUTHENTICATION = _reply("504 5.7.4 Unrecognized authentication type")

# Policy and content.
CLIENT_NOT_AUTHENTICATED = _reply("530 5.7.57 Client not authenticated to send mail")  # code [FACT O 3.4]
CLIENT_WAS_NOT_AUTHENTICATED = _reply("530 5.7.1 Client was not authenticated")  # [FACT D 3.4], older builds
AUTHENTICATION_UNSUCCESSFUL = _reply("535 5.7.3 Authentication unsuccessful")  # [FACT B 3.4]
MAILBOX_UNAVAILABLE = _reply("550 5.1.1 User unknown")
BARE_LINEFEEDS = _reply("550 5.6.11 BareLinefeedsAreIllegal; message contains bare CR or LF outside of BDAT")
UNABLE_TO_RELAY = _reply("550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain")
MESSAGE_TOO_LARGE = _reply("552 5.3.4 Message size exceeds fixed maximum message size")
NEEDS_SMTPUTF8 = _reply("553 5.6.7 Address needs SMTPUTF8")  # [RFC6531 3.5]
CONVERSION_NOT_SUPPORTED = _reply("554 5.6.3 Conversion required but not supported")


def queued(message_id: str) -> Reply:
    return Reply(250, (f"2.6.0 {message_id} Queued mail for delivery",))


def chunk_received(size: int) -> Reply:
    return Reply(250, (f"2.6.0 CHUNK received OK, {size} octets",))


_VERBS = (
    *("HELO", "EHLO", STARTTLS, X_ANONYMOUSTLS, "AUTH", "X-EXPS"),
    *("MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "HELP", "QUIT"),
)


@lru_cache(maxsize=64)
def help_reply(settings: ServerSettings, tls: TlsVerb | None = None) -> Reply:
    """What a session that is secured with ``tls`` can say."""
    there = offered(settings, tls)
    some = {STARTTLS: STARTTLS, X_ANONYMOUSTLS: X_ANONYMOUSTLS, "AUTH": "AUTH", "X-EXPS": "X-EXPS", "BDAT": "CHUNKING"}
    said = " ".join(verb for verb in _VERBS if verb not in some or some[verb] in there)
    return Reply(214, ("This server supports the following commands:", said))


# --- what a probe sees ------------------------------------------------------------------------------------------------


class Authentication(msgspec.Struct, frozen=True):
    """What an EHLO answer offers: AUTH, X-EXPS, and the hashes of X-EXCHANGEAUTH; None is not offered."""

    auth: tuple[str, ...] | None
    x_exps: tuple[str, ...] | None
    exchange_auth_hashes: tuple[str, ...] | None

    @property
    def exchange_auth(self) -> bool:
        """EXCHANGEAUTH, seen only on sessions secured with X-ANONYMOUSTLS [FACT O 3.4]."""
        return self.x_exps is not None and "EXCHANGEAUTH" in self.x_exps


def offered_authentication(extensions: Mapping[str, tuple[str, ...]]) -> Authentication:
    def of(keyword: str) -> tuple[str, ...] | None:
        values = extensions.get(keyword)
        return None if values is None else tuple(value.upper() for value in values)

    return Authentication(of("AUTH"), of("X-EXPS"), of("X-EXCHANGEAUTH"))


class Masking(msgspec.Struct, frozen=True):
    """What an inspecting firewall left of banner and EHLO answer [FACT D/B 8]."""

    banner: bool = False  # asterisks
    keywords: tuple[str, ...] = ()  # XXXX
    hello: bool = False  # EHLO refused, or answered like a HELO

    def __bool__(self) -> bool:
        return self.banner or bool(self.keywords) or self.hello


# Cisco's inspection overwrites keywords that it does not know with X, keeping their length, sometimes their last letter.
_MASKED_KEYWORD = re.compile(r"X{4,}[A-Z]?")
_MASKED_BANNER = re.compile(r"[*0 ]*\*{4}[*0 ]*")


def masked_keywords(keywords: Iterable[str]) -> tuple[str, ...]:
    return tuple(keyword for keyword in keywords if _MASKED_KEYWORD.fullmatch(keyword.upper()))


def masking(greeting: Reply | None, hello: Reply | None) -> Masking:
    """Signs of masking in the banner and in the answer to an EHLO; None is what was not seen."""
    return Masking(
        banner=greeting is not None and _MASKED_BANNER.fullmatch(greeting.text) is not None,
        keywords=masked_keywords(line.split(" ")[0] for line in hello.lines[1:]) if hello else (),
        hello=hello is not None and (hello.code in {500, 502} or (hello.positive and len(hello.lines) == 1)),
    )
