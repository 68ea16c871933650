"""The probe never raises on account of the peer, whatever it says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anontls.diagnose.probe import Probed, probe
from tests.support.fake_server import BANNER, EHLO, fake_server

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def probed(timeout: float = 5.0, **told: object) -> Probed:
    with fake_server(**told) as server:
        return asyncio.run(probe("127.0.0.1", server.port, hello="me", timeout=timeout, now=NOW))


# What follows the banner, the EHLO answer, and the 220 of a TLS verb; the peer then closes or goes on.
LINES = st.sampled_from(
    [b"", b"250 x\r\n", b"220 \r\n", b"421 bye\r\n", b"\r\n", b"250-", b"999 x\r\n", b"\x16\x03\x01"]
)


@settings(max_examples=30)
@given(
    banner=LINES | st.binary(max_size=40), ehlo=LINES | st.binary(max_size=40), tls=st.binary(min_size=1, max_size=80)
)
def test_any_bytes(banner: bytes, ehlo: bytes, tls: bytes) -> None:
    seen = probed(
        timeout=0.15,
        banner=banner or BANNER,
        answers={"EHLO": ehlo or EHLO, "X-ANONYMOUSTLS": b"220 go\r\n"},
        garbage=tls,
    )
    assert seen.failure or seen.banner


def test_a_banner_is_bounded() -> None:
    assert probed(banner=b"220-x\r\n" * 100_000).failure is not None


@pytest.mark.parametrize("answer", [b"250-mbx1\r\n250-\r\n250 X-ANONYMOUSTLS argument\r\n", EHLO.lower()])
def test_the_verb_is_found_however_it_is_written(answer: bytes) -> None:
    seen = probed(answers={"EHLO": answer, "X-ANONYMOUSTLS": b"454 no\r\n"})
    assert [behind.offered for behind in seen.behind] == [True, False]


def test_the_first_word_of_the_answer_is_the_servers_name() -> None:
    assert probed(answers={"EHLO": b"250 mail.example says hello\r\n"}).name == "mail.example"
    assert probed(answers={"EHLO": b"250\r\n"}).name is None


def test_it_shows_no_certificate_and_sends_no_mail() -> None:
    with fake_server(answers={"X-ANONYMOUSTLS": b"454 no\r\n"}) as server:
        asyncio.run(probe("127.0.0.1", server.port, hello="me", timeout=5, now=NOW))
    assert {line.split()[0] for line in server.heard.splitlines()} <= {b"EHLO", b"X-ANONYMOUSTLS", b"QUIT"}
