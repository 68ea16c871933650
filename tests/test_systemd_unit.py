"""contrib/anontls@.service: what systemd says of it, and that it fits the program and the documentation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from anontls.cli import Exit
from anontls.config import Limits
from anontls.transport.service import DRAIN, SPARE_FILES
from tests.test_docs import fault

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "contrib" / "anontls@.service"
PROGRAM = Path(sys.executable).with_name("anontls")
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")

# The directives of systemd 252 that it may have (systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5),
# systemd.resource-control(5)); systemd itself only warns of a misspelt one, and the service runs without it.
KNOWN = {
    "Unit": {"Description", "Documentation", "Wants", "After", "Requires", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *(
            "Type",
            "Environment",
            "User",
            "Group",
            "UMask",
            "ExecStart",
            "ExecReload",
            "TimeoutStopSec",
            "Restart",
            "RestartSec",
        ),
        *("RestartPreventExitStatus", "LimitNOFILE", "StateDirectory", "StateDirectoryMode", "LogsDirectory"),
        *("LogsDirectoryMode", "ProtectSystem", "ProtectHome", "PrivateTmp", "AmbientCapabilities"),
        *("CapabilityBoundingSet", "NoNewPrivileges", "RestrictSUIDSGID", "RestrictAddressFamilies"),
        *("SystemCallFilter", "SystemCallErrorNumber", "SystemCallArchitectures", "DevicePolicy", "PrivateDevices"),
        *("ProtectProc", "ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs"),
        *("ProtectKernelModules", "ProtectKernelTunables", "PrivateIPC", "RemoveIPC", "KeyringMode"),
        *("LockPersonality", "RestrictNamespaces", "RestrictRealtime", "MemoryDenyWriteExecute", "PrivateUsers"),
    },
    "Install": {"WantedBy"},
}


def directives(text: str) -> Iterator[tuple[str, str, str]]:
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            yield section, name, value


def unknown(text: str) -> list[str]:
    return [f"{section}.{name}" for section, name, _ in directives(text) if name not in KNOWN.get(section, ())]


def value(name: str) -> str:
    (found,) = (given for _, each, given in directives(UNIT.read_text()) if each == name)
    return found


def analyzed(folder: Path, text: str, *command: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of the unit with a program that is there."""
    path = folder / UNIT.name
    path.write_text(text.replace("/opt/anontls/bin/anontls", str(PROGRAM)))
    return subprocess.run(
        ["systemd-analyze", *command, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    ran = analyzed(tmp_path, UNIT.read_text(), "verify")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize(("old", "new"), [("UMask=", "UMaks="), ("Type=notify", "Type=notfiy"), ("%i.toml", "%k.toml")])
def test_systemd_would_find_one(tmp_path: Path, old: str, new: str) -> None:
    text = UNIT.read_text()
    assert old in text
    ran = analyzed(tmp_path, text.replace(old, new), "verify")
    assert ran.stderr


@needs_systemd
def test_exposure_is_as_documented(tmp_path: Path) -> None:
    ran = analyzed(tmp_path, UNIT.read_text(), "security", "--offline=true", "--no-pager")
    level = re.search(r"exposure level for \S+ ([\d.]+) OK", ran.stdout)
    documented = re.search(r"rates it ([\d.]+) of 10", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert level is not None
    assert documented is not None
    assert float(level[1]) <= float(documented[1]) < 2


def test_every_directive_is_known() -> None:
    assert unknown(UNIT.read_text()) == []
    assert unknown("[Service]\nUMaks=0077\n[Instal]\nWantedBy=x\n") == ["Service.UMaks", "Instal.WantedBy"]


def test_it_fits_the_program() -> None:
    program, *arguments = value("ExecStart").replace("%i", "mbx1").split()
    assert Path(program).name == "anontls"
    assert fault(" ".join(arguments)) is None
    assert float(value("TimeoutStopSec")) > DRAIN
    assert int(value("LimitNOFILE")) >= 3 * 3 * Limits().sessions + SPARE_FILES
    assert int(value("RestartPreventExitStatus")) == Exit.USAGE
    assert value("ExecReload").split()[1:] == ["-HUP", "$MAINPID"]


def test_the_documented_configuration_writes_where_it_may() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[node]" in block)
    given = tomllib.loads(block)
    state = Path("/var/lib") / value("StateDirectory").replace("%i", "mbx1")
    logs = Path("/var/log") / value("LogsDirectory").replace("%i", "mbx1")
    for path in (given["delivery"]["maildir"], given["queue"]["database"]):
        assert Path(path).is_relative_to(state)
    for path in (given["log"]["events"], given["log"]["protocol"]):
        assert Path(path).is_relative_to(logs)


LAST_FLIGHT = """
from tests.test_tls import Side, TlsPump, client_context, own, server_context
server, client = TlsPump(server_context(own())), TlsPump(client_context(own()))
client.start()
while not server.handshake_done:
    server.received(client.output())
    client.received(last := server.output())
print(len(last))
"""


@pytest.mark.parametrize("with_settings", [True, False])
def test_no_tickets_are_sent_with_its_settings_of_openssl(with_settings: bool) -> None:
    settings = ROOT / "contrib" / Path(value("Environment").partition("=")[2]).name
    ran = subprocess.run(
        [sys.executable, "-c", LAST_FLIGHT],
        cwd=ROOT,
        env=os.environ | {"OPENSSL_CONF": str(settings) if with_settings else "/dev/null"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (ran.stdout == "0\n") is with_settings, ran.stdout


MDWE = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: Linux 6.3
    sys.exit(77)
from OpenSSL import SSL
try:
    SSL.Context(SSL.TLS_METHOD).set_verify(SSL.VERIFY_PEER, lambda *_: True)
except MemoryError:
    sys.exit(0)
sys.exit("MemoryDenyWriteExecute=yes can be set: nothing needs such memory any more")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_why_memory_may_be_written_and_executed() -> None:
    ran = subprocess.run([sys.executable, "-c", MDWE], capture_output=True, text=True, timeout=60, check=False)
    if ran.returncode == 77:
        pytest.skip("this kernel cannot refuse such memory")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "MemoryDenyWriteExecute" not in {name for _, name, _ in directives(UNIT.read_text())}
