"""Plays ``tests/dialogues/*.smtp`` against the receiving session; the README beside them explains the lines."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anontls.smtp import Size
from tests.smtp.drive import Server

DIALOGUES = sorted((Path(__file__).parent.parent / "dialogues").glob("*.smtp"))


def octets(text: str) -> bytes:
    return re.sub(
        rb"\\(r|n|0|x[0-9a-f]{2})",
        lambda m: {b"r": b"\r", b"n": b"\n", b"0": b"\0"}.get(m[1]) or bytes.fromhex(m[1][1:].decode()),
        text.encode(),
    )


def settings_of(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for word in text.split():
        key, _, value = word.partition("=")
        if value in {"yes", "no"}:
            fields[key] = value == "yes"
        elif value.isdigit():
            fields[key] = int(value)
        elif key == "size":
            fields[key] = Size(value)
        else:
            fields[key] = tuple(value.split(","))
    return fields


def play(script: str, deliver: Callable[[Server, bytes], None]) -> int:
    """Play a dialogue; the number of its reply lines."""
    lines = script.splitlines()
    fields = settings_of(" ".join(line[9:] for line in lines if line.startswith("settings:")))
    server = Server(**fields)
    replies = server.session.output().split(b"\r\n")[:-1]
    group = b""
    new: list[Any] = []
    count = 0
    for number, line in enumerate([*lines, "end"], 1):
        kind, text = line[:2], line[3:]
        if kind in ("C:", "C."):
            if not group:
                assert not replies, f"line {number}: not told: {replies}"
                new = []
            group += octets(text) + (b"\r\n" if kind == "C:" else b"")
            continue
        if group:
            known = len(server.events)
            deliver(server, group)
            replies += server.session.output().split(b"\r\n")[:-1]
            new, group = server.events[known:], b""
        if kind in ("S:", "S~"):
            assert replies, f"line {number}: silence instead of {text}"
            reply = replies.pop(0).decode()
            matches = reply == text if kind == "S:" else re.fullmatch(text, reply)
            assert matches, f"line {number}: {reply!r} instead of {text!r}"
            count += 1
        elif kind == "E:":
            name, _, start = text.partition(" ")
            found = [event for event in new if type(event).__name__ == name]
            values = [str(getattr(event, type(event).__struct_fields__[0])) for event in found if start]
            assert found, f"line {number}: no {name} in {new}"
            assert not start or any(value.startswith(start) for value in values), f"line {number}: {values}"
        elif kind == "M:":
            assert server.messages[-1] == ast.literal_eval(text), f"line {number}"
        elif kind == "T:":
            assert server.session.paused
            server.session.tls_established(anonymous=text == "X-ANONYMOUSTLS")
        else:
            assert line in {"", "end", "whole"} or line.startswith(("#", "settings:")), f"line {number}: {line}"
    assert not replies, f"not told: {replies}"
    return count


def whole(server: Server, data: bytes) -> None:
    server.handle(server.session.receive(data))


def by_octets(server: Server, data: bytes) -> None:
    for octet in data:
        server.handle(server.session.receive(bytes([octet])))


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue(path: Path) -> None:
    assert play(path.read_text(encoding="utf-8"), whole)


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.stem)
def test_dialogue_octet_by_octet(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    if "\nwhole\n" in script:
        pytest.skip("shows what glued groups do")
    assert play(script, by_octets)


@pytest.mark.parametrize(
    "script",
    [
        "S~ 220 .*\nC: NOOP\nS: 250 2.0.0 Fine",
        "S~ 220 .*\nC: NOOP",
        "C: NOOP\nS: 250 2.0.0 OK",
        "S~ 220 .*\nC: NOOP\nS: 250 2.0.0 OK\nE: Hello",
        "S~ 220 .*\nC: HELO c\nS~ 250 .*\nE: Hello d",
        "S~ 220 .*\nS: more",
        "S~ 220 .*\nX: what",
    ],
)
def test_the_player_can_fail(script: str) -> None:
    with pytest.raises(AssertionError):
        play(script, whole)
