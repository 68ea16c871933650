"""Peers that mean harm or do not know better: refused or bounded, and the node goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from pathlib import Path

import pytest

from anontls.transport import receive
from anontls.transport.lab import EDGE, INBOUND, MAILBOX
from tests.transport.world import (
    ANNA,
    MESSAGE,
    Client,
    Hop,
    Running,
    World,
    connected,
    eventually,
    exchange_server,
    greeted,
    run,
)

VERBS = ("STARTTLS", "X-ANONYMOUSTLS")
ENVELOPE = b"MAIL FROM:<ben@fabrikam.com>\r\nRCPT TO:<anna@contoso.com>\r\n"


def local(world: World) -> None:
    world.deliver(EDGE, 'maildir = "mail"\ncreate-mailboxes = true')


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def takes(client: Client, piece: bytes, times: int) -> bool:
    """Whether the node takes so many pieces."""
    try:
        for _ in range(times):
            await client.send(piece)
            await asyncio.sleep(0)
        await client.reply()
        await client.reply()
    except (ConnectionError, EOFError):
        return False
    return True


async def alive(node: Running) -> None:
    async with greeted(node.port) as client:
        assert (await client.message())[-1].startswith("250")
    await eventually(lambda: not node.receiver.sessions, "no session stays behind")
    assert not node.receiver.by_peer


# --- injection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("glued", [b"NOOP\r\n", b"EHLO evil\r\n", b"x", b"\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_commands_behind_a_tls_verb(world: World, verb: str, glued: bytes) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.send(verb.encode() + b"\r\n" + glued)
                answer = await client.rest()
                assert b"220" not in answer
                assert answer.startswith(b"503 5.5.0 Nothing may follow this command before TLS")
            await alive(node)

    run(session())


@pytest.mark.parametrize("verb", VERBS)
def test_commands_that_come_after_the_220_in_clear(world: World, verb: str) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.ask(verb)
                await client.send(b"EHLO evil\r\n" + ENVELOPE)
                rest = await client.rest()
                assert b"250" not in rest
            await alive(node)

    run(session())
    assert "plain text where TLS begins" in world.log(EDGE, "Receive")


def test_what_was_learnt_in_clear_is_forgotten(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            await client.ask("MAIL FROM:<ben@fabrikam.com>")
            assert (await client.ask("STARTTLS")).startswith("503"), "not in a transaction"
            await client.ask("RSET")
            await client.secure()
            for command in ("MAIL FROM:<ben@fabrikam.com>", f"RCPT TO:<{ANNA}>", "DATA", "STARTTLS"):
                assert await client.ask(command) == "503 5.5.2 Send hello first", command

    run(session())


def test_verbs_vanish_and_are_refused_after_either(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            for verb in VERBS:
                async with greeted(node.port) as client:
                    await client.secure(verb)
                    hello = await client.ask("EHLO again")
                    assert "TLS" not in hello
                    for again in VERBS:
                        assert (await client.ask(again)).startswith("503 5.5.2 Only one")

    run(session())


# --- smuggling --------------------------------------------------------------------------------------------------------

SMUGGLED = b"MAIL FROM:<boss@contoso.com>\r\nRCPT TO:<anna@contoso.com>\r\nDATA\r\nSubject: smuggled\r\n\r\n"
ENDS = [
    before + b"." + after
    for before in (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\n", b"\r\n\r", b"\0\r\n")
    for after in (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n\n", b"\0\r\n")
    if (before, after[:2]) != (b"\r\n", b"\r\n") and not (before.endswith(b"\r\n") and after.startswith(b"\r\n"))
]


@pytest.mark.parametrize("secured", [False, True])
def test_no_false_end_of_data_is_an_end(world: World, secured: bool) -> None:
    """Each variant in one session, end to end: what the next hop gets is one message, or nothing."""
    world.limits(EDGE, session_timeout=60)

    async def session() -> None:
        async with world.node(MAILBOX) as mailbox:
            world.deliver(
                EDGE,
                f'next-hop = "127.0.0.1:{mailbox.port}"\nnext-hop-server = "MBX1"\nsend-connector = "{INBOUND}"',
            )
            async with world.node(EDGE) as edge:
                for end in ENDS:
                    async with greeted(edge.port) as client:
                        if secured:
                            await client.secure("STARTTLS")
                            await client.ask("EHLO mail.fabrikam.com")
                        await client.ask("MAIL FROM:<ben@fabrikam.com>")
                        await client.ask(f"RCPT TO:<{ANNA}>")
                        assert (await client.ask("DATA")).startswith("354")
                        await client.send(b"Subject: outer\r\n\r\ntext" + end + SMUGGLED + b"inner\r\n.\r\n")
                        answer = await client.reply()
                        bare = end.replace(b"\r\n", b"").count(b"\r") + end.replace(b"\r\n", b"").count(b"\n")
                        assert answer.startswith("550 5.6.11" if bare else "250"), (end, answer)
                        await client.send(b"QUIT\r\n")
                        assert (await client.rest()).count(b"\r\n") == 1, end

    run(session())
    messages = world.messages()
    harmless = [
        end for end in ENDS if not (end.replace(b"\r\n", b"").count(b"\r") + end.replace(b"\r\n", b"").count(b"\n"))
    ]
    assert len(messages) == len(harmless)
    assert all(b"Subject: outer" in message for message in messages)


@pytest.mark.parametrize("end", ENDS)
def test_bdat_content_cannot_end_a_message_of_the_next_hop(world: World, end: bytes) -> None:
    """BDAT may hold anything; a next hop without CHUNKING gets no bare CR or LF and no single dot."""
    hop = Hop(ehlo=b"250-next Hello\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
    content = b"Subject: outer\r\n\r\ntext" + end + SMUGGLED

    async def session() -> str:
        async with hop.listening():
            world.deliver(EDGE, f'next-hop = "127.0.0.1:{hop.port}"')
            async with world.node(EDGE) as node, greeted(node.port) as client:
                await client.send(ENVELOPE + b"BDAT %d LAST\r\n" % len(content) + content)
                await client.reply()
                await client.reply()
                return await client.reply()

    answer = run(session())
    assert len([line for line in hop.commands if line.startswith("MAIL")]) <= 1
    if not answer.startswith("250"):
        assert answer.startswith("550 5.6.11")
        assert hop.contents == []


def test_pipelined_commands_behind_data(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.send(ENVELOPE + b"DATA\r\n" + MESSAGE + b".\r\n" + SMUGGLED)
                assert b"503 5.5.0 Nothing may follow DATA" in await client.rest()
            await alive(node)

    run(session())
    assert len(world.messages()) == 1, "the one of the living"


# --- lines, octets and time -------------------------------------------------------------------------------------------


def test_lines_that_are_too_long(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                assert await client.ask("NOOP " + "x" * 100_000) == "500 5.5.2 Line too long"
                assert (await client.ask("NOOP")).startswith("250")
            async with greeted(node.port) as client:
                assert not await takes(client, b"x" * 65536, 200)
            async with greeted(node.port) as client:
                await client.message(content=b"y" * 3_000_000 + b"\r\n")
            await alive(node)

    run(session())


@pytest.mark.parametrize("what", ["nothing", "half a line", "one octet after the other", "half a message"])
def test_slow_clients(world: World, what: str) -> None:
    local(world)
    world.limits(EDGE, command_timeout=0.3, session_timeout=0.9)

    async def session() -> None:
        async with world.node(EDGE) as node:
            start = asyncio.get_running_loop().time()
            async with greeted(node.port) as client:
                if what == "half a line":
                    await client.send(b"MAIL FROM:")
                elif what == "half a message":
                    for command in ("MAIL FROM:<ben@fabrikam.com>", f"RCPT TO:<{ANNA}>", "DATA"):
                        await client.ask(command)
                    await client.send(b"Subject: half\r\n")
                try:
                    for _ in range(200 if what == "one octet after the other" else 0):
                        await client.send(b"x")
                        await asyncio.sleep(0.02)
                except (ConnectionError, RuntimeError):  # of uvloop's, for a transport that was closed meanwhile
                    pass
                rest = await client.rest()
                assert what == "one octet after the other" or rest.endswith(b"421 4.4.1 Connection timed out\r\n")
            assert asyncio.get_running_loop().time() - start < 5
            await eventually(lambda: not node.receiver.sessions)
            assert node.receiver.by_peer == {}

    run(session())
    assert world.messages() == []


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_that_does_not_go_on(world: World, sent: bytes) -> None:
    local(world)
    world.limits(EDGE, handshake_timeout=0.3)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.ask("X-ANONYMOUSTLS")
                await client.send(sent)
                assert b"421" not in await client.rest()
            await alive(node)

    run(session())
    assert "TLS negotiation failed with error the handshake timed out" in world.log(EDGE, "Receive")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x40\x01" + b"\0" * 100,
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x10" + b"A" * 16,
        os.urandom(4000),
        b"\x16\x03\x01\xff\xff" * 80_000,
    ],
    ids=["record", "hello", "alert", "data", "chance", "much"],
)
def test_tls_garbage(world: World, garbage: bytes) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.ask("X-ANONYMOUSTLS")
                client.writer.write(garbage)
                await client.rest()
            await alive(node)

    run(session())
    assert "TLS negotiation failed with error" in world.log(EDGE, "Receive")


def test_garbage_inside_tls(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with exchange_server(node.port, "mbx1.contoso.com", None) as client:
                client.writer.write(b"\x17\x03\x03\x00\x20" + b"A" * 32)
                await client.rest()
            await alive(node)

    run(session())


# --- half-closed and unread -------------------------------------------------------------------------------------------


def test_a_peer_that_says_no_more_still_gets_its_answer(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with greeted(node.port) as client:
                await client.send(ENVELOPE + b"BDAT %d LAST\r\n" % len(MESSAGE) + MESSAGE)
                client.writer.write_eof()
                answers = (await client.rest()).split(b"\r\n")
                assert answers[2].startswith(b"250 2.6.0 <")
            await eventually(lambda: not node.receiver.sessions)

    run(session())
    assert len(world.messages()) == 1


def test_close_notify_ends_the_session_and_a_message_before_it_is_answered(world: World) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            for chunk in (b"", ENVELOPE + b"BDAT %d LAST\r\n" % len(MESSAGE) + MESSAGE):
                async with exchange_server(node.port, "a.example", None) as client:
                    assert client.pump is not None
                    if chunk:
                        client.pump.write(chunk)
                    client.pump.close()
                    await client.flush()
                    raw = b""
                    while data := await client.reader.read(65536):
                        raw += data
                    await eventually(lambda: not node.receiver.sessions)

    run(session())
    assert len(world.messages()) == 1


@pytest.mark.parametrize("at", ["greeting", "command", "content", "handshake"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_goes_away(world: World, at: str, how: str) -> None:
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with connected(node.port, banner=at != "greeting") as client:
                if at == "command":
                    await client.send(b"EHLO a\r\nMAIL FROM:<")
                elif at == "content":
                    await client.send(b"EHLO a\r\n" + ENVELOPE + b"BDAT 5000 LAST\r\nSubject:")
                elif at == "handshake":
                    await client.ask("EHLO a")
                    await client.ask("X-ANONYMOUSTLS")
                    await client.send(b"\x16\x03\x01\x02\x00")
                if how == "reset":
                    client.writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
            await alive(node)

    run(session())
    assert len(world.messages()) == 1


@pytest.mark.parametrize("secured", [False, True])
def test_a_client_that_never_reads_its_answers(world: World, secured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are not read any more, and at the end it is cut off."""
    local(world)
    world.limits(EDGE, command_timeout=0.5, session_timeout=2)
    monkeypatch.setattr(receive, "LINGER", 0.3)

    async def session() -> None:
        async with world.node(EDGE) as node:
            here = socket.socket()
            here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            here.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(here, ("127.0.0.1", node.port))
            reader, writer = await asyncio.open_connection(sock=here, limit=1024)
            client = Client(reader, writer)
            await client.reply()
            await client.ask("EHLO a")
            if secured:
                await client.secure()
                await client.ask("EHLO a")
            group = b"HELP\r\n" * 500
            writer.transport.pause_reading()  # type: ignore[attr-defined] # a ReadTransport too
            (connection,) = node.receiver.sessions
            for _ in range(400):
                if client.pump is not None:
                    client.pump.write(group)
                    writer.write(client.pump.output())
                else:
                    writer.write(group)
                await asyncio.sleep(0)
                if not node.receiver.sessions:
                    break
            await eventually(lambda: not node.receiver.sessions, "cut off")
            assert connection._transport is None
            writer.transport.abort()
            await alive(node)

    run(session())


# --- floods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["sessions", "sessions_per_peer"])
def test_more_sessions_than_allowed(world: World, limit: str) -> None:
    local(world)
    world.limits(EDGE, **{limit: 10})

    async def session() -> None:
        async with world.node(EDGE) as node:
            held = [connected(node.port) for _ in range(10)]
            for one in held:
                await one.__aenter__()
            before = descriptors()
            for _ in range(200):
                async with connected(node.port, banner=False) as client:
                    assert (await client.reply()).startswith("421 4.3.2 The maximum number of concurrent connections")
                    assert await client.rest() == b""
            assert len(node.receiver.sessions) == 10
            await eventually(lambda: descriptors() <= before, "no descriptor is lost")
            for one in held:
                await one.__aexit__(None, None, None)
            await alive(node)

    run(session())


def test_nothing_is_left_of_many_sessions(world: World) -> None:
    """No task, no descriptor, no connection object."""
    local(world)

    async def session() -> None:
        async with world.node(EDGE) as node:

            async def one(number: int) -> None:
                async with greeted(node.port) as client:
                    if number % 2:
                        await client.secure()
                        await client.ask("EHLO a")
                    if number % 3:
                        await client.message()

            await asyncio.gather(*(one(number) for number in range(10)))
            await eventually(lambda: not node.receiver.sessions)
            before = descriptors()
            tasks = len(asyncio.all_tasks())
            for _ in range(6):
                await asyncio.gather(*(one(number) for number in range(25)))
            await eventually(lambda: not node.receiver.sessions)
            await eventually(lambda: descriptors() <= before)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
            await asyncio.sleep(0.1)
            gc.collect()
            left = [each for each in gc.get_objects() if isinstance(each, receive.Connection)]
            assert len(left) <= 2

    run(session())


def test_too_many_recipients(world: World) -> None:
    local(world)
    world.limits(EDGE, recipients=3)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            replies = await client.message(*(f"user{n}@contoso.com" for n in range(5)))
            assert [reply[:3] for reply in replies] == ["250", "250", "250", "250", "452", "452", "354", "250"]

    run(session())
    assert len(list(Path(world.folder / "mail").iterdir())) == 3
