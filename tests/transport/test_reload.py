"""SIGHUP: the configuration is read again, and a store that cannot be read leaves things as they were."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from anontls.transport.lab import EDGE
from tests.certstore.make import make
from tests.transport.test_service import shown
from tests.transport.world import World, connected, eventually, greeted, run

AGAIN = "the configuration has changed: restart to use "


def reloaded(world: World, change: Callable[[], None]) -> list[str]:
    """What an operator is told when the node reloads after ``change``."""

    async def session() -> list[str]:
        async with world.node(EDGE) as node:
            before = len(node.console.getvalue())
            change()
            await node.service.reload()
            return node.console.getvalue()[before:].splitlines()

    return run(session())


# --- configuration ----------------------------------------------------------------------------------------------------


def test_limits_are_taken_at_once(world: World) -> None:
    world.limits(EDGE, sessions=1, message_size=5000)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as held:
            async with connected(node.port, banner=False) as second:
                assert (await second.reply()).startswith("421 ")
            world.configure(EDGE, "sessions = 1\nmessage-size = 5000", "sessions = 2\nmessage-size = 6000")
            await node.service.reload()
            async with connected(node.port) as second:
                assert "SIZE 6000" in await second.ask("EHLO a")
            assert "SIZE 5000" in await held.ask("EHLO a"), "a session keeps what it has"

    run(session())
    assert AGAIN not in world.consoles[EDGE].getvalue()


def test_a_shorter_time_out_holds_for_sessions_that_there_are(world: World) -> None:
    world.limits(EDGE, command_timeout=1, session_timeout=600)

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            world.configure(EDGE, "session-timeout = 600", "session-timeout = 0.1")
            await node.service.reload()
            assert (await client.reply()).startswith("421 4.4.1")
            await eventually(lambda: not node.receiver.sessions)

    run(session())


def test_limits_of_a_connector_are_taken_at_once(world: World) -> None:
    def change() -> None:
        world.configure(EDGE, "[delivery]", "[listen.limits]\nmessage-size = 7000\n\n[delivery]")

    async def session() -> None:
        async with world.node(EDGE) as node:
            change()
            await node.service.reload()
            async with connected(node.port) as client:
                assert "SIZE 7000" in await client.ask("EHLO a")

    run(session())
    assert AGAIN not in world.consoles[EDGE].getvalue()


def test_rules_are_taken_at_once(world: World) -> None:
    world.publish(EDGE, make(name="elsewhere"))  # the certificate of the directory is not in the store

    async def session() -> None:
        async with world.node(EDGE) as node:
            async with connected(node.port) as client:
                assert "X-ANONYMOUSTLS" not in await client.ask("EHLO a")
            world.configure(EDGE, "[log]", '[rules]\nstore-miss = "ephemeral"\n\n[log]')
            await node.service.reload()
            async with connected(node.port) as client:
                assert "X-ANONYMOUSTLS" in await client.ask("EHLO a")

    run(session())
    assert AGAIN not in world.consoles[EDGE].getvalue()


def test_what_needs_a_restart_is_named(world: World) -> None:
    def change() -> None:
        world.configure(EDGE, "127.0.0.1:0", "127.0.0.1:2")
        world.configure(EDGE, "[delivery]\n", "[limits]\nsessions = 7\n\n[delivery]\ntimeout = 7\n")
        world.configure(EDGE, "[log]\n", '[metrics]\nlisten = "127.0.0.1:1"\n\n[log]\nlayout = "rows"\n')

    assert reloaded(world, change) == [AGAIN + "[[listen]], [delivery], [metrics], [log]", "reloaded"]


def test_a_comment_is_no_change(world: World) -> None:
    assert reloaded(world, lambda: world.configure(EDGE, "[log]", "# a comment\n[log]")) == ["reloaded"]


def test_all_faults_of_the_configuration_are_told_and_nothing_changes(world: World) -> None:
    new = make(name="edge1")

    def change() -> None:
        world.publish(EDGE, new)
        world.configure(EDGE, "[delivery]\n", "[limits]\nsession = 7\nrecipients = 0\n\n[delivery]\n")

    (said,) = reloaded(world, change)
    assert said.startswith(f"reload failed, nothing has changed: {world.config(EDGE)}: ")
    assert "limits.session: unknown key; did you mean limits.sessions?" in said
    assert "limits.recipients: Expected `int` >= 1" in said


# --- a store that cannot be read --------------------------------------------------------------------------------------


def test_a_store_that_is_open_to_others_is_not_taken(world: World) -> None:
    async def session() -> None:
        async with world.node(EDGE) as node:
            world.store(EDGE).chmod(0o755)
            await node.service.reload()
            assert await shown(node.port) == world.certificates[EDGE].thumbprint
            world.store(EDGE).chmod(0o700)
            await node.service.reload()

    run(session())
    faulty, good = world.consoles[EDGE].getvalue().splitlines()[2:4]
    assert faulty.startswith("reload failed, nothing has changed: the certificate store ")
    assert "open to others (mode 0755)" in faulty
    assert good == "reloaded"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
def test_a_store_whose_files_nobody_may_open_stays_as_it_was(world: World) -> None:
    """The folder can still be listed."""

    async def session() -> None:
        async with world.node(EDGE) as node:
            world.store(EDGE).chmod(0o400)
            try:
                await node.service.reload()
                assert await shown(node.port) == world.certificates[EDGE].thumbprint
            finally:
                world.store(EDGE).chmod(0o700)

    run(session())
    assert "reload failed, nothing has changed: the certificate store " in world.consoles[EDGE].getvalue()
