"""AUTH and X-EXPS in sessions: tokens go from side to side and into no trace; the layout of our EXCHANGEAUTH token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.smtp import ClientSession, ClientSettings, ServerSession, exchange, exchange_auth
from anontls.smtp.authentication import without_token
from anontls.smtp.events import Authenticate, Authenticated
from anontls.smtp.exchange_auth import ACCEPTOR, INITIATOR, pack, signed, unpack
from tests.smtp.drive import make_settings

SECRET = b"a secret token, long enough to be found again"


class Pair:
    """A client and a server inside X-ANONYMOUSTLS, and what their traces have."""

    def __init__(self, **fields: object) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.client = ClientSession(ClientSettings(hello="c"), trace=lambda *line: self.told.append(line))
        self.server = ServerSession(
            make_settings(anonymous_tls=True, x_exps=("GSSAPI",), exchange_auth=True, **fields),
            peer="192.0.2.7",
            recipient=lambda _s, _r: None,
            trace=lambda *line: self.told.append(line),
        )
        self.server.greeting()
        self.to_client()
        self.to_server()
        self.to_client()
        self.client.start_tls("X-ANONYMOUSTLS")
        self.to_server()
        self.to_client()
        self.server.tls_established(anonymous=True)
        self.client.tls_established()
        self.to_server()
        self.to_client()

    def to_client(self) -> list[object]:
        return [*self.client.receive(self.server.output())]

    def to_server(self) -> list[object]:
        return [*self.server.receive(self.client.output())]


def test_exchangeauth_is_one_question_and_an_answer_with_a_token() -> None:
    pair = Pair()
    pair.client.authenticate("X-EXPS", "EXCHANGEAUTH", SECRET, variant="SHA256")
    assert pair.to_server() == [Authenticate("X-EXPS", "EXCHANGEAUTH", "SHA256", SECRET)]
    pair.server.authenticated("MBX1$@CONTOSO.COM", exchange_server=True, token=SECRET[::-1])
    assert pair.to_client() == [Authenticated(exchange.AUTHENTICATED, SECRET[::-1])]
    assert pair.server.exchange_server
    assert pair.told[-4:] == [
        (">", b"X-EXPS EXCHANGEAUTH SHA256"),
        ("<", b"X-EXPS EXCHANGEAUTH SHA256"),
        (">", b"235 <authentication response>"),
        ("<", b"235 <authentication response>"),
    ]


@pytest.mark.parametrize("reply", [b"235 2.7.0 Authentication successful\r\n", b"235 \r\n", b"235-!\r\n235 b\r\n"])
def test_an_answer_without_a_token_is_one_with_an_empty_token(reply: bytes) -> None:
    pair = Pair()
    pair.client.authenticate("X-EXPS", "EXCHANGEAUTH", SECRET, variant="SHA256")
    pair.client.output()
    assert pair.client.receive(reply) == [Authenticated(exchange.AUTHENTICATED, b"")]


def test_gssapi_is_a_challenge_each_way_and_an_empty_answer() -> None:
    pair = Pair()
    pair.client.authenticate("X-EXPS", "GSSAPI")
    assert pair.to_server() == [Authenticate("X-EXPS", "GSSAPI", None, None)]
    pair.server.continue_authentication(b"")
    pair.to_client()
    pair.client.respond(SECRET)
    pair.to_server()
    pair.server.continue_authentication(SECRET[::-1])
    pair.to_client()
    pair.client.respond(b"")
    assert repr(pair.to_server()) == "[AuthenticationResponse(<0 octets>)]"
    pair.server.authenticated("MBX1$@CONTOSO.COM")
    assert pair.to_client() == [Authenticated(exchange.AUTHENTICATED)]
    assert {line for _, line in pair.told[-12:]} == {
        b"X-EXPS GSSAPI",
        b"334 <authentication response>",
        b"<authentication response>",
        b"235 2.7.0 Authentication successful",
    }


def test_no_event_shows_its_token() -> None:
    for event in (Authenticate("X-EXPS", "GSSAPI", None, SECRET), Authenticated(exchange.AUTHENTICATED, SECRET)):
        assert "secret" not in repr(event)
        assert "45 octets" in repr(event)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"X-EXPS EXCHANGEAUTH SHA256 dG9rZW4=", b"X-EXPS EXCHANGEAUTH SHA256"),
        (b"x-exps exchangeauth sha256 dG9rZW4=", b"x-exps exchangeauth sha256"),
        (b"X-EXPS EXCHANGEAUTH dG9rZW4=", b"X-EXPS EXCHANGEAUTH"),
        (b"X-EXPS EXCHANGEAUTH MD5 dG9rZW4=", b"X-EXPS EXCHANGEAUTH"),
        (b"X-EXPS GSSAPI dG9rZW4=", b"X-EXPS GSSAPI"),
        (b"AUTH PLAIN dG9rZW4=", b"AUTH PLAIN"),
        (b"AUTH", b"AUTH"),
        (b"MAIL FROM:<a@c.example> AUTH=<>", b"MAIL FROM:<a@c.example> AUTH=<>"),
    ],
)
def test_what_a_trace_gets_of_a_command(line: bytes, shown: bytes) -> None:
    assert without_token(line.split()[0].decode().upper(), line) == shown


# --- our EXCHANGEAUTH token -------------------------------------------------------------------------------------------


@given(st.binary(max_size=70_000), st.binary(max_size=300))
def test_what_is_packed_is_unpacked(token: bytes, signature: bytes) -> None:
    token = token[: exchange_auth.MAX_FIELD]
    assert unpack(pack(INITIATOR, token), INITIATOR) == [token]
    assert unpack(pack(ACCEPTOR, token, signature), ACCEPTOR) == [token, signature]


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (b"", "does not begin"),
        (b"AXA1", "does not begin"),
        (b"AXA2\1\0\0", "does not begin"),
        (b"AXA1\2\0\0\0\0", "does not begin"),
        (b"AXA1\1", "cut off"),
        (b"AXA1\1\0", "cut off"),
        (b"AXA1\1\0\2x", "cut off"),
        (b"AXA1\1\0\1xy", "1 octets too many"),
    ],
)
def test_what_is_no_token_of_an_initiator(token: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        unpack(token, INITIATOR)


def test_the_signature_is_over_channel_question_and_answer() -> None:
    one = signed(b"channel", b"question", b"answer")
    assert len(one) == 32
    others = {
        signed(b"other", b"question", b"answer"),
        signed(b"channel", b"other", b"answer"),
        signed(b"channel", b"question", b"other"),
        signed(b"channelq", b"uestion", b"answer"),
        signed(b"channel", b"questiona", b"nswer"),
    }
    assert len(others) == 5
    assert one not in others
