"""EHLO answers as Exchange gives them, and what a probe reads out of others'."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from anontls.smtp import Reply, Size, exchange
from anontls.smtp.exchange import TlsVerb, ehlo_keywords, ehlo_reply, masking, offered_authentication
from anontls.smtp.syntax import parse_extensions
from tests.smtp.drive import make_settings

# What Exchange was seen to offer, and we do not implement.
NOT_OURS = {"XEXCH50", "XRDST", "XSHADOW", "XSHADOWREQUEST"}

FRONTEND: dict[str, Any] = {
    "starttls": True,
    "anonymous_tls": True,
    "auth": ("NTLM",),
    "auth_under_tls": ("LOGIN",),
    "x_exps": ("GSSAPI", "NTLM"),
}
HUB_2010 = FRONTEND | {"size": Size.WITHOUT_VALUE, "smtputf8": False, "exchange_auth": True}


# Published answers, each beside the settings and the TLS that it was given under.
@pytest.mark.parametrize(
    ("fields", "tls", "published"),
    [
        pytest.param(
            FRONTEND | {"smtputf8": False},
            None,
            "SIZE 37748736|PIPELINING|DSN|ENHANCEDSTATUSCODES|STARTTLS|X-ANONYMOUSTLS|AUTH NTLM|X-EXPS GSSAPI NTLM|"
            "8BITMIME|BINARYMIME|CHUNKING|XRDST",
            id="2016 Default Frontend in clear",
        ),
        pytest.param(
            FRONTEND,
            None,
            "SIZE 37748736|PIPELINING|DSN|ENHANCEDSTATUSCODES|STARTTLS|X-ANONYMOUSTLS|AUTH NTLM|X-EXPS GSSAPI NTLM|"
            "8BITMIME|BINARYMIME|CHUNKING|SMTPUTF8|XRDST",
            id="newer build in clear",
        ),
        pytest.param(
            FRONTEND | {"smtputf8": False},
            "STARTTLS",
            "SIZE 37748736|PIPELINING|DSN|ENHANCEDSTATUSCODES|AUTH NTLM LOGIN|X-EXPS GSSAPI NTLM|"
            "8BITMIME|BINARYMIME|CHUNKING|XRDST",
            id="2016 after STARTTLS",
        ),
        pytest.param(
            HUB_2010,
            None,
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|STARTTLS|X-ANONYMOUSTLS|AUTH NTLM|X-EXPS GSSAPI NTLM|"
            "8BITMIME|BINARYMIME|CHUNKING|XEXCH50|XRDST|XSHADOW",
            id="2010 Hub in clear: no EXCHANGEAUTH",
        ),
        pytest.param(
            HUB_2010,
            "X-ANONYMOUSTLS",
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|AUTH NTLM LOGIN|X-EXPS EXCHANGEAUTH GSSAPI NTLM|"
            "X-EXCHANGEAUTH SHA256|8BITMIME|BINARYMIME|CHUNKING|XEXCH50|XRDST|XSHADOW",
            id="2010 Hub after X-ANONYMOUSTLS",
        ),
        pytest.param(
            {
                "starttls": True,
                "anonymous_tls": True,
                "x_exps": ("NTLM",),
                "size": Size.WITHOUT_VALUE,
                "smtputf8": False,
            },
            None,
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|STARTTLS|X-ANONYMOUSTLS|X-EXPS NTLM|8BITMIME|BINARYMIME|CHUNKING|"
            "XEXCH50|XSHADOW",
            id="Edge",
        ),
        pytest.param(
            {
                "starttls": True,
                "anonymous_tls": True,
                "x_exps": ("NTLM",),
                "size": Size.WITHOUT_VALUE,
                "smtputf8": False,
            },
            "STARTTLS",
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|X-EXPS NTLM|8BITMIME|BINARYMIME|CHUNKING|XEXCH50|XSHADOW",
            id="Edge after STARTTLS",
        ),
        pytest.param(
            FRONTEND | {"auth": ("GSSAPI", "NTLM"), "max_size": 52428800},
            None,
            "SIZE 52428800|PIPELINING|DSN|ENHANCEDSTATUSCODES|STARTTLS|X-ANONYMOUSTLS|AUTH GSSAPI NTLM|"
            "X-EXPS GSSAPI NTLM|8BITMIME|BINARYMIME|CHUNKING|XEXCH50|SMTPUTF8|XRDST|XSHADOWREQUEST",
            id="Client Proxy in clear",
        ),
        pytest.param(
            HUB_2010 | {"starttls": False},
            None,
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|X-ANONYMOUSTLS|AUTH NTLM|X-EXPS GSSAPI NTLM|8BITMIME|BINARYMIME|"
            "CHUNKING|XEXCH50|XRDST|XSHADOW",
            id="2010 with an expired certificate",
        ),
        pytest.param(
            HUB_2010 | {"exchange_auth": False},
            "X-ANONYMOUSTLS",
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|AUTH NTLM LOGIN|X-EXPS GSSAPI NTLM|8BITMIME|BINARYMIME|CHUNKING",
            id="a build that cannot do EXCHANGEAUTH",
        ),
        pytest.param(
            HUB_2010,
            "STARTTLS",
            "SIZE|PIPELINING|DSN|ENHANCEDSTATUSCODES|AUTH NTLM LOGIN|X-EXPS GSSAPI NTLM|8BITMIME|BINARYMIME|CHUNKING",
            id="EXCHANGEAUTH only inside anonymous TLS",
        ),
        pytest.param(
            {"size": Size.DISABLED, "chunking": False, "smtputf8": False, "dsn": False, "pipelining": False},
            None,
            "ENHANCEDSTATUSCODES|8BITMIME",
            id="the least; BINARYMIME needs CHUNKING",
        ),
    ],
)
def test_keywords(fields: dict[str, Any], tls: TlsVerb | None, published: str) -> None:
    ours = [keyword for keyword in published.split("|") if keyword not in NOT_OURS]
    settings = make_settings(**fields)
    assert list(ehlo_keywords(settings, tls)) == ours
    reply = ehlo_reply(settings, "192.0.2.7", tls)
    assert reply.encode().splitlines()[0] == b"250-mail.example Hello [192.0.2.7]"
    assert reply.encode().endswith(f"\r\n250 {ours[-1]}\r\n".encode())


def test_published_answers_on_file(shared: Any) -> None:
    """The same order in answers of real servers."""
    for path in sorted((shared / "data" / "ehlo").glob("*.txt")):
        lines = [line.removeprefix("<-- ") for line in path.read_text(encoding="utf-8").splitlines()]
        keywords = [line[4:] for line in lines if line.startswith(("250-", "250 ")) and "Hello" not in line]
        if not keywords:
            continue
        after = "AUTH NTLM LOGIN" in keywords
        for tls in (None, "STARTTLS") if after else (None,):
            expected = list(ehlo_keywords(make_settings(**FRONTEND, smtputf8=False), tls))
            assert "|".join(expected) in "|".join(keyword for keyword in keywords if keyword not in NOT_OURS)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, "mail.example Microsoft ESMTP MAIL Service ready"),
        (
            datetime(2023, 1, 11, 16, 59, 51, tzinfo=timezone(timedelta(hours=1))),
            "mail.example Microsoft ESMTP MAIL Service ready at Wed, 11 Jan 2023 16:59:51 +0100",
        ),
        (
            datetime(2026, 3, 1, 0, 0, tzinfo=UTC),
            "mail.example Microsoft ESMTP MAIL Service ready at Sun, 1 Mar 2026 00:00:00 +0000",
        ),
    ],
)
def test_banner(at: datetime | None, text: str) -> None:
    assert exchange.banner("mail.example", at) == Reply(220, (text,))


def test_replies_are_well_formed() -> None:
    replies = {name: value for name, value in vars(exchange).items() if isinstance(value, Reply)}
    assert len(replies) > 40
    for name, reply in replies.items():
        assert reply.enhanced is not None or reply.code == 354, name
        assert reply.encode() == f"{reply}\r\n".encode(), name


def test_authentication_lines() -> None:
    found = offered_authentication(
        parse_extensions(["AUTH NTLM LOGIN", "x-exps ExchangeAuth GSSAPI NTLM", "X-EXCHANGEAUTH SHA256"])
    )
    assert found.auth == ("NTLM", "LOGIN")
    assert found.x_exps == ("EXCHANGEAUTH", "GSSAPI", "NTLM")
    assert found.exchange_auth_hashes == ("SHA256",)
    assert found.exchange_auth
    nothing = offered_authentication({})
    assert (nothing.auth, nothing.x_exps, nothing.exchange_auth_hashes) == (None, None, None)
    assert not nothing.exchange_auth


@pytest.mark.parametrize(
    ("greeting", "hello", "keywords", "banner", "refused"),
    [
        ("220 mail ESMTP", "250-mail\n250-SIZE\n250 X-EXPS NTLM", (), False, False),
        (
            "220 ****************",
            "250-mail\n250-XXXXXXXX\n250-XXXXXXXA\n250 SIZE",
            ("XXXXXXXX", "XXXXXXXA"),
            True,
            False,
        ),
        ("220 mail", "500 5.3.3 Unrecognized command", (), False, True),
        ("220 mail", "250 mail Hello", (), False, True),
        ("220 mail", "550 5.7.1 not you", (), False, False),
    ],
)
def test_masking(greeting: str, hello: str, keywords: tuple[str, ...], banner: bool, refused: bool) -> None:
    found = masking(
        Reply(int(greeting[:3]), (greeting[4:],)),
        Reply(int(hello[:3]), tuple(line[4:] for line in hello.split("\n"))),
    )
    assert (found.keywords, found.banner, found.hello) == (keywords, banner, refused)
    assert bool(found) == bool(keywords or banner or refused)
    assert not masking(None, None)


@pytest.mark.parametrize(
    ("fields", "tls", "verbs"),
    [
        ({"chunking": False}, None, "HELO EHLO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"),
        (FRONTEND, None, "HELO EHLO STARTTLS X-ANONYMOUSTLS AUTH X-EXPS MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"),
        (FRONTEND, "STARTTLS", "HELO EHLO AUTH X-EXPS MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"),
        ({"exchange_auth": True}, "X-ANONYMOUSTLS", "HELO EHLO X-EXPS MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT"),
    ],
)
def test_help_tells_what_this_session_is_offered(fields: dict[str, Any], tls: TlsVerb | None, verbs: str) -> None:
    assert exchange.help_reply(make_settings(**fields), tls).lines[1] == verbs
