"""What the tests of this folder stand on can itself fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.peers.conftest import Peer, absent
from tests.peers.relay import from_client, from_server

FOLDER = Path(__file__).parent


def test_a_missing_peer_is_skipped_and_in_ci_a_failure(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match=r"no-such-peer is not installed; .*install\.sh"):
        peer("no-such-peer")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="sh needs root"):
        peer("sh", root=True)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="gone"):
        absent("gone")


def test_every_peer_is_installed_by_the_script() -> None:
    used = {
        name
        for path in (*FOLDER.glob("test_*.py"), *(FOLDER.parent / "ad").glob("*.py"))
        for name in re.findall(r"""peer\(["']([\w.-]+)["']""", path.read_text())
    }
    installed = set(re.findall(r"^  ([\w.-]+) [\w-]+$", (FOLDER / "install.sh").read_text(), re.MULTILINE))
    assert used - {"no-such-peer", "sh"} == installed


@pytest.mark.parametrize(
    ("line", "passed"),
    [
        (b"250-STARTTLS\r\n", b""),
        (b"250-X-ANONYMOUSTLS\r\n", b"250-STARTTLS\r\n"),
        (b"250 X-ANONYMOUSTLS\r\n", b"250 STARTTLS\r\n"),
        (b"250-SIZE 1\r\n", b"250-SIZE 1\r\n"),
        (b"220 STARTTLS\r\n", b"220 STARTTLS\r\n"),
    ],
)
def test_the_relay_exchanges_the_keyword(line: bytes, passed: bytes) -> None:
    assert from_server(line) == (passed, False)


@pytest.mark.parametrize(
    ("line", "passed", "last"),
    [
        (b"StartTLS\r\n", b"X-ANONYMOUSTLS\r\n", True),
        (b"STARTTLS x\r\n", b"STARTTLS x\r\n", False),
        (b"EHLO STARTTLS\r\n", b"EHLO STARTTLS\r\n", False),
    ],
)
def test_the_relay_exchanges_the_command(line: bytes, passed: bytes, last: bool) -> None:
    assert from_client(line) == (passed, last)
