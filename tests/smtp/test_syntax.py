"""Paths, parameters and EHLO keywords."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.smtp import Envelope, Recipient, exchange
from anontls.smtp.syntax import (
    MAX_ADDRESS,
    SyntaxFault,
    from_xtext,
    mail_parameters,
    parse_extensions,
    parse_mail,
    parse_rcpt,
    rcpt_parameters,
    size_limit,
    valid_address,
    valid_envelope,
    valid_hello,
    xtext,
)

ALL = frozenset({"SIZE", "8BITMIME", "BINARYMIME", "SMTPUTF8", "DSN", "AUTH"})


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("<a@b.example>", "a@b.example"),
        (" <a@b.example>", "a@b.example"),
        ("<a@b.example>  ", "a@b.example"),
        ("<a.b-c+d=e@b>", "a.b-c+d=e@b"),
        ("<!#$%&'*+-/=?^_`{|}~@b.example>", "!#$%&'*+-/=?^_`{|}~@b.example"),
        ('<"a b"@b.example>', '"a b"@b.example'),
        (r'<"a\"\\>@"@b.example>', r'"a\"\\>@"@b.example'),
        ('<""@b.example>', '""@b.example'),
        ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        ("<a@[ipv6:::1]>", "a@[ipv6:::1]"),
        ("<@x.example:a@b.example>", "a@b.example"),
        ("<@x.example,@y.example:a@b.example>", "a@b.example"),
        ("<j\u00f6rg@m\u00e4il.example>", "j\u00f6rg@m\u00e4il.example"),
        ("<\u7528\u6237@\u4f8b\u5b50.example>", "\u7528\u6237@\u4f8b\u5b50.example"),
        (
            "<IMCEAEX-_o=First+20Org_cn=" + "x" * 200 + "@b.example>",
            "IMCEAEX-_o=First+20Org_cn=" + "x" * 200 + "@b.example",
        ),
    ],
)
def test_paths(path: str, address: str) -> None:
    assert parse_mail("MAIL FROM:" + path) == (address, None)
    assert parse_rcpt("rcpt to:" + path) == (address, None)
    assert valid_address(address)


def parse_line(line: str) -> None:
    """A whole command, as a session reads it."""
    _, parameters = parse_mail(line) if line.startswith("MAIL") else parse_rcpt(line)
    if parameters is not None:
        mail_parameters(parameters, ALL)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a@b.example",
        "<a@b.example",
        "a@b.example>",
        "<<a@b.example>>",
        "<a@b.example>x",
        "<a@b.example><c@d.example>",
        "<a@b.example> <c@d.example",
        "<a>",
        "<@b.example>",
        "<a@>",
        "<a@b@c>",
        "<.a@b.example>",
        "<a.@b.example>",
        "<a..b@b.example>",
        "<a@.b>",
        "<a@b.>",
        "<a@b..c>",
        "<a@-b>",
        "<a@b->",
        "<a@b_c>",
        "<a b@b.example>",
        '<"a@b.example>',
        '<"a"b@b.example>',
        '<"a\\"@b.example>',
        "<a@[192.0.2]>",
        "<a@[192.0.2.1.1]>",
        "<a@[IPv6:2001:db8::g]>",
        "<a@[2001:db8::1]>",
        "<a@[x-tag:content]>",
        "<a@[192.0.2.1]x>",
        "<@x.example a@b.example>",
        "<@x.example:>",
        "<@x.example,:a@b.example>",
        "<a@b.example\u202e>",
        "<a\u00a0b@b.example>",
        "<a\u0085@b.example>",
        "<a\u200b@b.example>",
        "<" + "a" * MAX_ADDRESS + "@b.example>",
    ],
)
def test_no_paths(path: str) -> None:
    for line in ("MAIL FROM:", "RCPT TO:"):
        with pytest.raises(SyntaxFault):
            parse_line(line + path)
    assert not valid_address(path[1:-1]) or path[:1] != "<" or path[-1:] != ">"


def test_null_sender_and_postmaster() -> None:
    assert parse_mail("MAIL FROM:<>") == ("", None)
    assert parse_rcpt("RCPT TO:<Postmaster>") == ("Postmaster", None)
    for line, parse, reply in (
        ("RCPT TO:<>", parse_rcpt, exchange.INVALID_RECIPIENT),
        ("MAIL FROM:<postmaster>", parse_mail, exchange.INVALID_SENDER),
        ("MAIL TO:<a@b.example>", parse_mail, exchange.INVALID_ARGUMENTS),
        ("RCPT", parse_rcpt, exchange.INVALID_ARGUMENTS),
        ("MAIL FROM<a@b.example>", parse_mail, exchange.INVALID_ARGUMENTS),
    ):
        with pytest.raises(SyntaxFault) as fault:
            parse(line)
        assert fault.value.reply == reply
    assert Recipient("postmaster").domain == ""
    assert Recipient("postmaster").local_part == "postmaster"
    assert Recipient('"a@b"@c.example').domain == "c.example"
    assert Recipient('"a@b"@c.example').local_part == '"a@b"'


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("SIZE=10", {"size": 10}),
        ("SIZE=0 BODY=7BIT", {"size": 0, "body": "7BIT"}),
        ("SIZE=12345678901234567890", {"size": 12345678901234567890}),
        ("size=10  body=8bitmime", {"size": 10, "body": "8BITMIME"}),
        ("BODY=BinaryMime SMTPUTF8", {"body": "BINARYMIME", "smtputf8": True}),
        ("RET=hdrs ENVID=a+2Bb", {"ret": "HDRS", "envid": "a+2Bb"}),
        ("AUTH=<>", {"auth": "<>"}),
        ("AUTH=a+40b.example RET=FULL", {"auth": "a+40b.example", "ret": "FULL"}),
    ],
)
def test_mail_parameters(text: str, fields: dict[str, object]) -> None:
    assert mail_parameters(text, ALL) == fields
    assert valid_envelope(Envelope("", [Recipient("a@b.example")], **fields))
    with pytest.raises(SyntaxFault):
        mail_parameters(text, frozenset())


@pytest.mark.parametrize(
    "text",
    [
        "SIZE", "SIZE=", "SIZE=-1", "SIZE=1x", "SIZE=123456789012345678901", "SIZE=1 SIZE=1", "BODY=9BIT", "BODY",
        "SMTPUTF8=1", "RET=ALL", "ENVID=a=b", "ENVID=+g0", "ENVID=" + "a" * 101, "AUTH=", "AUTH", "NOTIFY=NEVER", "X=1",
        "FROM:<a@b>", "=", "SIZE=\u0661",
    ],
)  # fmt: skip
def test_bad_mail_parameters(text: str) -> None:
    with pytest.raises(SyntaxFault):
        mail_parameters(text, ALL)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("NOTIFY=never", {"notify": "NEVER"}),
        ("NOTIFY=SUCCESS,FAILURE,DELAY", {"notify": "SUCCESS,FAILURE,DELAY"}),
        ("ORCPT=rfc822;a+2Bb@c.example NOTIFY=DELAY", {"orcpt": "rfc822;a+2Bb@c.example", "notify": "DELAY"}),
        ("ORCPT=utf-8;j\u00f6rg@c.example", {"orcpt": "utf-8;j\u00f6rg@c.example"}),
    ],
)
def test_rcpt_parameters(text: str, fields: dict[str, str]) -> None:
    assert rcpt_parameters(text, ALL) == fields
    assert valid_envelope(Envelope("", [Recipient("a@b.example", **fields)]))
    with pytest.raises(SyntaxFault):
        rcpt_parameters(text, ALL - {"DSN"})


@pytest.mark.parametrize(
    "text",
    ["NOTIFY=NEVER,DELAY", "NOTIFY=", "NOTIFY=SUCCESS,", "ORCPT=a@b", "ORCPT=rfc822;a b", "SIZE=1", "ORCPT=rfc822;"],
)
def test_bad_rcpt_parameters(text: str) -> None:
    with pytest.raises(SyntaxFault):
        rcpt_parameters(text, ALL)


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope("a", [Recipient("b@c")]),
        Envelope("postmaster", [Recipient("b@c")]),
        Envelope("a@b>\r\nRCPT TO:<x@y", [Recipient("b@c")]),
        Envelope("", [Recipient("")]),
        Envelope("", [Recipient("b@c> NOTIFY=NEVER")]),
        Envelope("", [Recipient("b@c", notify="NEVER\r\nQUIT")]),
        Envelope("", [Recipient("b@c", orcpt="rfc822;a\r\nb")]),
        Envelope("", [Recipient("b@c")], envid="a\nb"),
        Envelope("", [Recipient("b@c")], ret="full\n"),
        Envelope("", [Recipient("b@c")], auth="a b"),
        Envelope("", [Recipient("b@c")], body="X"),
    ],
)
def test_envelopes_that_cannot_be_said(envelope: Envelope) -> None:
    assert not valid_envelope(envelope)


@given(st.text(st.characters(max_codepoint=126, min_codepoint=1)))
def test_xtext(text: str) -> None:
    encoded = xtext(text)
    assert from_xtext(encoded) == text
    assert encoded.isascii()
    assert not {" ", "=", "\r", "\n"} & set(encoded)


@pytest.mark.parametrize("text", ["a=b", "+", "+4", "+4g", "+2b", "a b", "\u00f6"])
def test_not_xtext(text: str) -> None:
    with pytest.raises(ValueError, match="xtext"):
        from_xtext(text)


@given(st.text(max_size=40))
def test_any_text_in_a_path(text: str) -> None:
    """A path is understood or refused, and what is understood means the same when it is said again."""
    try:
        address, _ = parse_rcpt(f"RCPT TO:<{text}>")
    except SyntaxFault:
        return
    assert valid_address(address)
    assert parse_rcpt(f"RCPT TO:<{address}>") == (address, None)


def test_extensions() -> None:
    found = parse_extensions(
        ["SIZE 100", "pipelining", "AUTH NTLM", "AUTH LOGIN", "", "*** masked ***", "X-EXPS  GSSAPI NTLM"]
    )
    assert found == {"SIZE": ("100",), "PIPELINING": (), "AUTH": ("NTLM", "LOGIN"), "X-EXPS": ("GSSAPI", "NTLM")}
    assert size_limit(found) == 100
    for values in ({}, {"SIZE": ()}, {"SIZE": ("0",)}, {"SIZE": ("x",)}):
        assert size_limit(values) is None


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("ex1.contoso.example", True), ("EX_1", True), ("[192.0.2.1]", True), ("[IPv6:::1]", True), ("", False),
        ("a b", False), ("-a", False), ("a\n", False), ("a" * 256, False), ("[", False), ("j\u00f6rg", False),
    ],
)  # fmt: skip
def test_hello_names(name: str, valid: bool) -> None:
    assert valid_hello(name) is valid
