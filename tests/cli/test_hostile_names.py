"""Exports are files that anybody may have made: nothing in them reaches a terminal as a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Anontls

# Sets the title, clears the screen (in seven and in eight bits), writes from right to left, begins a line of its own.
EVIL = "\x1b]0;title\x07\x1b[2J\x9b2J\u202e\u2028\r\nMBX9: all is well\t\U000e0001"
THUMBPRINT = "AB" * 20


def hostile() -> dict[str, Any]:
    """A snapshot with evil in every text."""
    certificate: dict[str, Any] = {
        "Thumbprint": THUMBPRINT,
        "Subject": f"CN={EVIL}",
        "NotAfter": "2025-01-01T00:00:00Z",
    }
    certificate |= {"HasPrivateKey": True, "Services": f"SMTP, {EVIL}", "Status": EVIL, "CertificateDomains": [EVIL]}
    connector = {"Identity": f"MBX1{EVIL}\\In{EVIL}", "Fqdn": EVIL, "Bindings": [EVIL], "TlsCertificateName": None}
    attribute = {"msExchServerInternalTLSCert": {"error": EVIL}}
    mailbox = {"Name": f"MBX1{EVIL}", "Fqdn": EVIL, "ServerRole": "Mailbox", "AdminDisplayVersion": EVIL, "Site": EVIL}
    edge = {"Name": f"EDGE1{EVIL}", "Fqdn": {"unknown": EVIL}, "ServerRole": "Edge"}
    return {
        "schema": "anontls/org/1",
        "name": EVIL,
        "sources": [{"kind": "export", "file": EVIL, "computers": [f"a{EVIL}.a", "b.b"], "note": f"not read: {EVIL}"}],
        "servers": [
            mailbox
            | attribute
            | {
                "InternalTransportCertificateThumbprint": THUMBPRINT,
                "certificates": [certificate],
                "receive_connectors": [
                    connector | {"AuthMechanism": f"Tls, ExchangeServer, {EVIL}", "SuppressXAnonymousTls": False},
                    connector | {"AuthMechanism": {"unknown": EVIL}},
                ],
                "queues": [
                    {"Identity": EVIL, "DeliveryType": EVIL, "NextHopDomain": EVIL},
                    {"Identity": EVIL, "DeliveryType": "SmtpRelayToDag"},
                    {"Identity": EVIL, "DeliveryType": "SmtpRelayWithinAdSiteToEdge"},
                ],
            },
            edge
            | {
                "msExchServerInternalTLSCert": {"thumbprint": THUMBPRINT},
                "certificates": [certificate],
            },
            {"Name": f"OLD{EVIL}", "ServerRole": EVIL},
        ],
        "send_connectors": [
            {
                "Identity": EVIL,
                "SmartHosts": [EVIL, "--"],
                "AddressSpaces": [EVIL],
                "SmartHostAuthMechanism": "ExchangeServer",
                "SourceTransportServers": [f"EDGE1{EVIL}"],
            },
            {"Identity": EVIL, "SourceTransportServers": [EVIL]},
        ],
        "unplaced": [{"file": EVIL, "type": EVIL, "identity": EVIL, "because": EVIL}],
    }


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["select", "--org", "{org}"],
        ["select", "--org", "{org}", "-v"],
        [
            "select",
            "--org",
            "{org}",
            "-v",
            "--rules",
            "store-miss=ephemeral,mailbox-to-mailbox=verb-without-certificate",
        ],
        ["select", "--org", "{org}", "--phase", "startup"],
        ["select", "--org", "{org}", "--assume", f"itc={THUMBPRINT}"],
        ["select", "--org", "{org}", "--assume", f"server.Fqdn={EVIL}", "-v"],
        ["select", "--org", "{org}", "--without", THUMBPRINT],
        ["select", "--org", "{org}", "--expect", "certificate"],
        ["select", "--org", "{org}", "--json"],
        ["org", "show", "{org}"],
        ["org", "show", "{org}", "--expiry"],
        ["org", "show", "{org}", "--expiry", "--json"],
        ["org", "show", "{org}", "--json"],
        ["org", "check", "{org}"],
        ["org", "check", "{org}", "--json"],
        ["org", "import", "{org}"],
    ],
    ids=" ".join,
)
def test_names_of_an_export_are_shown_and_never_obeyed(
    anontls: Anontls, tmp_path: Path, arguments: list[str], language: str
) -> None:
    org = tmp_path / "org.json"
    org.write_text(json.dumps(hostile()), encoding="utf-8")
    languages = [] if arguments[1] == "import" else ["--lang", language]
    ran = anontls(*(argument.replace("{org}", str(org)) for argument in arguments), *languages)
    assert ran.status in (0, 1, 3), ran.err
    for line in (*ran.out.split("\n"), *ran.err.split("\n")):
        assert line.isprintable() and not line.startswith("MBX9"), line
    if "--json" in arguments:
        assert all(json.loads(line) for line in ran.out.splitlines())


def test_escaped_json_says_the_same(anontls: Anontls, tmp_path: Path) -> None:
    org = tmp_path / "org.json"
    org.write_text(json.dumps(hostile()), encoding="utf-8")
    shown = json.loads(anontls("org", "show", org, "--json").out)
    assert shown["name"] == EVIL and shown["servers"][0]["Name"] == f"MBX1{EVIL}"
    assert json.loads(anontls("org", "import", org).out)["name"] == EVIL


@pytest.mark.parametrize(
    "arguments", [["--server", "nope"], ["--connector", "nope"], ["--queue", "99"], ["--from", "10.0.0.1"]]
)
def test_errors_that_name_them(anontls: Anontls, tmp_path: Path, arguments: list[str]) -> None:
    org = tmp_path / "org.json"
    org.write_text(json.dumps(hostile()), encoding="utf-8")
    ran = anontls("select", "--org", org, *arguments)
    assert ran.status in (2, 3) and ran.err
    assert all(line.isprintable() and not line.startswith("MBX9") for line in ran.err.split("\n"))
