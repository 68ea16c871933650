"""What a node logs where, as its configuration says; and with how many writes it answers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anontls.facts import InternalTlsCert
from anontls.transport.lab import EDGE
from tests.transport.world import World, eventually, greeted, run


def log(world: World, **values: object) -> None:
    lines = "\n".join(f"{key.replace('_', '-')} = {value}" for key, value in values.items())
    world.configure(EDGE, "[log]\n", f"[log]\n{lines}\n")


def files(world: World) -> list[str]:
    return sorted(path.name for path in (world.folder / "edge1-log" / "SmtpReceive").iterdir())


async def sessions(world: World, count: int) -> None:
    async with world.node(EDGE) as node:
        for _ in range(count):
            async with greeted(node.port) as client:
                await client.ask("QUIT")
            await eventually(lambda: not node.receiver.sessions)
            assert node.service.receive_log is not None
            node.service.receive_log.flush()


@pytest.mark.parametrize(("layout", "rows"), [("row", 1), ("rows", 11)])
def test_layout(world: World, layout: str, rows: int) -> None:
    log(world, layout=f'"{layout}"')
    run(sessions(world, 1))
    answer = [line for line in world.log(EDGE, "Receive").splitlines() if ",>,250" in line]
    assert len(answer) == rows


def test_a_file_of_the_protocol_log_has_an_end(world: World) -> None:
    log(world, max_file_size=500)
    run(sessions(world, 4))
    assert len(files(world)) == 4


def test_the_protocol_log_keeps_no_more_than_it_may(world: World) -> None:
    log(world, max_file_size=500, max_directory_size=3000)
    run(sessions(world, 8))
    assert 1 < len(files(world)) < 6


@pytest.mark.parametrize(("days", "there"), [(36_500, True), (5, False)])
def test_old_protocol_logs_go(world: World, days: int, there: bool) -> None:
    old = world.folder / "edge1-log" / "SmtpReceive" / "RECV2020010100-1.LOG"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    log(world, max_age_days=days)
    run(sessions(world, 1))
    assert old.exists() is there


def test_events_go_to_syslog(world: World) -> None:
    null = InternalTlsCert(value=None)
    world.change_server(EDGE, internal_tls_cert=null, internal_tls_cert_adlds=null)
    path = world.folder / "syslog"
    log(world, syslog=f'"{path}"')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        daemon.settimeout(5)
        run(sessions(world, 0))
        assert daemon.recv(4096).startswith(b"<19>anontls: MSExchangeTransport 12012: ")


def test_logs_on_a_full_disk_stop_no_mail_and_are_told_of(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and counted, though each session and each event of it has lines that are lost."""
    null = InternalTlsCert(value=None)
    world.change_server(EDGE, internal_tls_cert=null, internal_tls_cert_adlds=null)
    world.configure(EDGE, 'events = "edge1-events.jsonl"', 'events = "/dev/full"')
    opened = Path.open

    def full(path: Path, *arguments: Any, **more: Any) -> Any:
        return opened(Path("/dev/full") if path.suffix == ".LOG" else path, *arguments, **more)

    async def session() -> None:
        async with world.node(EDGE) as node:
            for _ in range(3):
                async with greeted(node.port) as client:
                    await client.ask("QUIT")
                await eventually(lambda: not node.receiver.sessions)
                assert node.service.receive_log is not None
                node.service.receive_log.flush()
            lost = node.service.node.metrics.lost_log_lines
            assert lost["receive"] > 3
            assert lost["events"] > 0
            assert lost["send"] == 0
            told = [line for line in node.console.getvalue().splitlines() if "lost" in line]
            folder = world.folder / "edge1-log" / "SmtpReceive"
            assert sorted(told) == [
                f"log lines are lost until {path} can be written: No space left on device"
                for path in sorted((str(folder), "/dev/full"))
            ]

    monkeypatch.setattr(Path, "open", full)
    run(session())


# --- writes -----------------------------------------------------------------------------------------------------------


class Counting:
    """A transport that counts what is written."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)
        self.transport.write(data)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self.transport, name)
        return found


@pytest.mark.parametrize("verb", ["", "STARTTLS", "X-ANONYMOUSTLS"])
def test_a_group_of_commands_is_answered_with_one_write(world: World, verb: str) -> None:
    group = (
        b"MAIL FROM:<>\r\n" + b"RCPT TO:<anna@contoso.com>\r\n" * 20 + b"NOOP\r\nRCPT TO:<x@other.example>\r\nDATA\r\n"
    )

    async def session() -> None:
        async with world.node(EDGE) as node, greeted(node.port) as client:
            if verb:
                await client.secure(verb)
                await client.ask("EHLO a")
            (connection,) = node.receiver.sessions
            counting = connection._transport = Counting(connection._transport)
            await client.send(group)
            answers = [await client.reply() for _ in range(24)]
            assert [answers[0][:3], answers[-2][:3], answers[-1][:3]] == ["250", "550", "354"]
            assert len(counting.writes) == 1

    run(session())
