"""What the properties of a Receive connector and the limits of the configuration make of its sessions."""

from __future__ import annotations

from typing import Any

import pytest

from anontls.facts import Unknown
from anontls.transport.lab import EDGE, MAILBOX
from tests.transport.world import World, connected, greeted, run

DEFAULT = [
    "SIZE 37748736",
    "PIPELINING",
    "DSN",
    "ENHANCEDSTATUSCODES",
    "STARTTLS",
    "X-ANONYMOUSTLS",
    "8BITMIME",
    "BINARYMIME",
    "CHUNKING",
    "SMTPUTF8",
]
UNKNOWN = Unknown("not exported")
TOO_LARGE = "552 5.3.4 Message size exceeds fixed maximum message size"


async def keywords(port: int) -> list[str]:
    async with connected(port) as client:
        return [line[4:] for line in (await client.ask("EHLO a")).splitlines()[1:]]


def offered(world: World, name: str = EDGE) -> list[str]:
    async def look() -> list[str]:
        async with world.node(name) as node:
            return await keywords(node.port)

    return run(look())


# --- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "without"),
    [
        ({"pipelining_enabled": False}, {"PIPELINING"}),
        ({"delivery_status_notification_enabled": False}, {"DSN"}),
        ({"enhanced_status_codes_enabled": False}, {"ENHANCEDSTATUSCODES"}),
        ({"eight_bit_mime_enabled": False}, {"8BITMIME", "SMTPUTF8"}),
        ({"binary_mime_enabled": False}, {"BINARYMIME"}),
        ({"chunking_enabled": False}, {"CHUNKING", "BINARYMIME"}),
        ({"smtp_utf8_enabled": False}, {"SMTPUTF8"}),
        ({"size_enabled": "Disabled"}, {"SIZE 37748736"}),
        ({"pipelining_enabled": UNKNOWN, "chunking_enabled": None, "smtp_utf8_enabled": True}, set()),
    ],
)
def test_a_keyword_that_the_connector_does_not_offer(
    world: World, properties: dict[str, Any], without: set[str]
) -> None:
    world.change_connector(EDGE, **properties)
    assert offered(world) == [keyword for keyword in DEFAULT if keyword not in without]


@pytest.mark.parametrize(
    ("server", "value", "said"),
    [
        (EDGE, "Enabled", "SIZE 37748736"),
        (EDGE, 2, "SIZE"),
        (EDGE, "enabledwithoutvalue", "SIZE"),
        (EDGE, 0, "SIZE 37748736"),  # that it is Disabled is inferred
        (EDGE, UNKNOWN, "SIZE 37748736"),
        (MAILBOX, UNKNOWN, "SIZE"),
        (MAILBOX, None, "SIZE"),
        (MAILBOX, 1, "SIZE 37748736"),
    ],
)
def test_size_is_guessed_only_where_the_property_is_not_known(
    world: World, server: str, value: object, said: str
) -> None:
    world.change_connector(server, size_enabled=value)
    assert offered(world, server)[0] == said


def test_the_limit_holds_where_size_is_not_offered(world: World) -> None:
    world.change_connector(EDGE, size_enabled="Disabled", max_message_size=1000)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await client.ask("MAIL FROM:<> SIZE=2000")).startswith("501 ")
            assert (await client.message(content=b"x" * 1500 + b"\r\n"))[-1] == TOO_LARGE

    run(session())


def test_require_tls(world: World) -> None:
    world.change_connector(EDGE, require_tls=True)

    async def session() -> None:
        async with world.node(EDGE) as node:
            for verb in ("STARTTLS", "X-ANONYMOUSTLS"):
                async with greeted(node.port) as client:
                    assert await client.ask("MAIL FROM:<>") == "451 5.7.3 Must issue a STARTTLS command first"
                    await client.secure(verb)
                    await client.ask("EHLO a")
                    assert await client.ask("MAIL FROM:<>") == "250 2.1.0 Sender OK"

    run(session())


@pytest.mark.parametrize(("theirs", "ours", "holds"), [(5000, 4000, 4000), (3000, 4000, 3000), (UNKNOWN, 4000, 4000)])
def test_of_two_limits_the_lower_holds(world: World, theirs: Any, ours: int, holds: int) -> None:
    divided = theirs // 1000 if isinstance(theirs, int) else theirs
    world.change_connector(EDGE, max_message_size=theirs, max_recipients_per_message=divided)
    world.limits(EDGE, message_size=ours, recipients=ours // 1000)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert f"SIZE {holds}" in await keywords(node.port)
            assert await client.ask(f"MAIL FROM:<> SIZE={holds + 1}") == TOO_LARGE
            assert (await client.ask(f"MAIL FROM:<> SIZE={holds}")).startswith("250")
            answers = [await client.ask(f"RCPT TO:<user{n}@contoso.com>") for n in range(6)]
            assert [answer[:3] for answer in answers].count("250") == holds // 1000

    run(session())


# --- limits of the configuration --------------------------------------------------------------------------------------


def test_message_size(world: World) -> None:
    """Announced, and counted."""
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')
    world.limits(EDGE, message_size=1000)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            assert (await keywords(node.port))[0] == "SIZE 1000"
            assert (await client.message(content=b"a: b\r\n\r\n" + b"x" * 1000 + b"\r\n"))[-1] == TOO_LARGE
            assert (await client.message(content=b"a: b\r\n\r\n" + b"x" * 900 + b"\r\n"))[-1].startswith("250")

    run(session())
    assert len(world.messages()) == 1


def test_sessions_of_a_peer_are_counted_for_each_peer(world: World) -> None:
    world.limits(EDGE, sessions_per_peer=1)

    async def session() -> None:
        async with world.node(EDGE) as node, connected(node.port):
            async with connected(node.port, banner=False) as second:
                assert (await second.reply()).startswith("421 4.3.2 The maximum number of concurrent connections")
            async with (
                connected(node.port, source="127.0.0.2"),
                connected(node.port, banner=False, source="127.0.0.2") as fourth,
            ):
                assert (await fourth.reply()).startswith("421 ")

    run(session())


def test_limits_of_a_connector_override_those_of_all(world: World) -> None:
    world.limits(EDGE, message_size=2000, sessions_per_peer=3)
    world.configure(EDGE, "[limits]", "[listen.limits]\nsessions-per-peer = 1\n\n[limits]")

    async def session() -> None:
        async with world.node(EDGE) as node:
            assert (await keywords(node.port))[0] == "SIZE 2000"
            async with connected(node.port), connected(node.port, banner=False) as second:
                assert (await second.reply()).startswith("421 ")

    run(session())
