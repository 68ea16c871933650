"""``anontls select``: what an administrator asks, and what comes back."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from anontls.directory import snapshot
from tests.cli.conftest import Anontls

AS_OF = ("--as-of", "2026-11-24T12:00:00Z")
ZERO = "0" * 40


def internal(org: Path, server: str) -> str:
    """The thumbprint that the directory names for a server."""
    found = snapshot.load(org, "org").server(server)
    assert found is not None and found.internal_tls_cert.names is not None
    return found.internal_tls_cert.names


def case(**changes: Any) -> dict[str, Any]:
    """A case of a facts file that reaches step 4."""
    thumbprint = "AB" * 20
    certificate = {
        "Thumbprint": thumbprint,
        "Subject": "CN=MBX1",
        "Issuer": "CN=MBX1",
        "CertificateDomains": ["MBX1"],
        "NotBefore": "2024-01-01T00:00:00Z",
        "NotAfter": "2029-01-01T00:00:00Z",
        "Version": 3,
        "HasPrivateKey": True,
        "IsSelfSigned": True,
        "Services": "SMTP",
        "Status": "Valid",
    }
    return {
        "schema": "anontls/facts/1",
        "scenario": "outbound-anonymous",
        "as_of": "2026-11-24T12:00:00Z",
        "server": {"Name": "MBX1", "ServerRole": "Mailbox", "InternalTransportCertificateThumbprint": thumbprint},
        "msExchServerInternalTLSCert": {"thumbprint": thumbprint},
        "queue": {"DeliveryType": "SmtpRelayWithinAdSiteToEdge"},
        "store": [certificate],
        **changes,
    }


# --- an organisation ---------------------------------------------------------------------------------------------------


def test_without_a_scenario_everything_is_a_table(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, *AS_OF)
    assert ran.status == 0
    for expected in ("MBX1\n", "EDGE1\n", "service start", r"MBX1\Default Mailbox Delivery MBX1", "12015", "12016"):
        assert expected in ran.out
    assert "\x1b" not in ran.out, "a pipe gets no colours"


def test_the_table_and_json_hold_the_same_decisions(anontls: Anontls, org: Path) -> None:
    documents = anontls("select", "--org", org, "--json", *AS_OF).documents()
    assert {d["schema"] for d in documents} == {"anontls/decision/1"}
    assert {(d["server"], d["scenario"]) for d in documents} >= {
        (server, scenario)
        for server in ("MBX1", "MBX2", "EDGE1")
        for scenario in ("outbound-anonymous", "inbound-anonymous", "inbound-starttls")
    }
    table = anontls("select", "--org", org, *AS_OF).out
    assert f"{len(documents)} decisions" in table


def test_one_decision_is_explained(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "outbound-anonymous", "--org", org, "--queue", r"MBX2\2", *AS_OF)
    assert ran.status == 0
    first = ran.out.splitlines()[0]
    assert internal(org, "MBX2") in first and "expired" in first and r"MBX2\2" in first
    steps = [line.split()[0] for line in ran.out.splitlines() if line[:1].isdigit()]
    assert steps == ["1.a", "1.b", "2", "3", "4"]
    assert "[event 12015]" in ran.out and "remedy:" in ran.out


def test_as_of_moves_the_clock(anontls: Anontls, org: Path) -> None:
    asked = ("select", "outbound-anonymous", "--org", org, "--queue", r"MBX2\2", "--json")
    assert [e["id"] for e in anontls(*asked, "--as-of", "2026-12-01").documents()[0]["events"]] == [12015]  # type: ignore[attr-defined]
    assert anontls(*asked, "--as-of", "2026-01-01").documents()[0]["events"] == []


def test_a_session_hits_the_connector_of_its_port(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--server", "mbx1.contoso.com", "--from", "10.0.0.9", "--port", 25, "--json")
    assert {d["connector"] for d in ran.documents()} == {r"MBX1\Default Frontend MBX1"}
    assert [d["scenario"] for d in ran.documents()] == ["inbound-anonymous", "inbound-starttls"]


def test_no_connector_on_the_port_is_not_known(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--server", "MBX1", "--from", "10.0.0.9", "--port", 26)
    assert ran.status == 3 and "port 26" in ran.err and not ran.out


def test_a_connector_is_found_with_and_without_its_server(anontls: Anontls, org: Path) -> None:
    full = anontls("select", "--org", org, "--connector", r"MBX1\Default MBX1", "--json", *AS_OF)
    short = anontls("select", "--org", org, "--connector", "default mbx1", "--json", *AS_OF)
    assert full.out == short.out and len(full.documents()) == 2


def test_send_connector_of_an_edge_server(anontls: Anontls, org: Path) -> None:
    name = "EdgeSync - Inbound to Default-First-Site-Name"
    (document,) = anontls("select", "outbound-anonymous", "--org", org, "--connector", name, "--json").documents()
    assert (document["server"], document["connector"], document["verb"]) == ("EDGE1", name, "X-ANONYMOUSTLS")


def test_startup_asks_the_last_three_steps(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--phase", "startup", "--server", "MBX1", "--json", *AS_OF)
    (document,) = ran.documents()
    assert [s["step"] for s in document["steps"]] == ["2", "3", "4"]  # type: ignore[attr-defined]
    assert document["phase"] == "startup" and document["connector"] is None
    assert anontls("select", "inbound-starttls", "--org", org, "--phase", "startup").status == 2


def test_hypothetical_delivery_types_are_marked(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--server", "MBX1", "--delivery-type", "SmtpRelayToDag", "--json", *AS_OF)
    (document,) = ran.documents()
    assert document["hypothetical"] is True and document["result"] == "none"
    headline = anontls("select", "--org", org, "--server", "MBX1", "--delivery-type", "smtprelaytodag").out
    assert "as written" in headline and "in practice" in headline


def test_rules_decide_otherwise(anontls: Anontls, org: Path) -> None:
    asked = ("select", "--org", org, "--server", "MBX1", "--delivery-type", "SmtpRelayToDag", "--json", *AS_OF)
    (document,) = anontls(*asked, "--rules", "mailbox-to-mailbox=verb-without-certificate").documents()
    assert (document["result"], document["verb"], document["certificate"]) == ("verb-only", "X-ANONYMOUSTLS", None)
    (as_written,) = anontls(*asked).documents()
    assert as_written["differs_under"][0]["rule"] == "mailbox-to-mailbox"  # type: ignore[index]


def test_what_if_the_certificate_were_gone(anontls: Anontls, org: Path) -> None:
    thumbprint = internal(org, "MBX1")
    asked = ("select", "--org", org, "--server", "MBX1", "--queue", r"MBX1\3", "--without", thumbprint.lower(), *AS_OF)
    (document,) = anontls(*asked, "--json").documents()
    assert document["assumed"] == [{"path": "without", "value": thumbprint}]
    assert document["before"]["verb"] == "X-ANONYMOUSTLS"  # type: ignore[index]
    assert document["verb"] is None and [e["id"] for e in document["events"]] == [12013]  # type: ignore[attr-defined]
    text = anontls(*asked).out
    assert "before" in text and "after" in text and "1 changed" in text


def test_what_if_another_certificate_were_named(anontls: Anontls, org: Path) -> None:
    public = next(
        str(c.thumbprint)
        for c in snapshot.load(org, "org").servers[1].certificates  # type: ignore[union-attr]
        if c.is_self_signed is False
    )
    ran = anontls("select", "--org", org, "--server", "MBX1", "--assume", f"itc={public}", "--json", *AS_OF)
    changed = [d for d in ran.documents() if d["certificate"] and d["scenario"] != "inbound-starttls"]
    assert changed and {d["certificate"]["thumbprint"] for d in changed} == {public}  # type: ignore[index]
    starttls = [d for d in ran.documents() if d["scenario"] == "inbound-starttls"]
    assert all(d["certificate"] == d["before"]["certificate"] for d in starttls), "a separate choice"  # type: ignore[index]


@pytest.mark.parametrize(
    ("assume", "expected"),
    [
        ("receive_connector.AuthMechanism=Tls", "1"),
        ("receive_connector.suppressxanonymoustls=true", "1.s"),
        ("msExchServerInternalTLSCert=null", "2"),
        ('msExchServerInternalTLSCert={"error": "no domain controller"}', "2"),
        (f"itc={ZERO}", "3"),
    ],
)
def test_assumptions(anontls: Anontls, org: Path, assume: str, expected: str) -> None:
    asked = ("select", "inbound-anonymous", "--org", org, "--connector", "Default MBX1", "--json")
    (document,) = anontls(*asked, "--assume", assume).documents()
    assert document["result"] == "none" and document["steps"][-1]["step"] == expected  # type: ignore[index]


def test_assumption_about_a_certificate_of_the_store(anontls: Anontls, org: Path) -> None:
    path = f"store[{internal(org, 'MBX1')}].NotAfter=2020-01-01T00:00:00Z"
    asked = ("select", "--org", org, "--queue", r"MBX1\3", "--assume", path, "--json")
    (document,) = anontls(*asked).documents()
    assert [e["id"] for e in document["events"]] == [12015]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("met", "not_met"),
    [
        ("certificate", "none"),
        ("x-anonymoustls", "STARTTLS"),
        ("event=12015", "event=12013"),
        ("event=12015", "no-events"),
    ],
)
def test_expect(anontls: Anontls, org: Path, met: str, not_met: str) -> None:
    asked = ("select", "--org", org, "--queue", r"MBX2\2", *AS_OF)
    assert anontls(*asked, "--expect", met, "--expect", internal(org, "MBX2")).status == 0
    ran = anontls(*asked, "--expect", not_met)
    assert ran.status == 1 and f"--expect {not_met}" in ran.err
    assert anontls(*asked, "--expect", ZERO).status == 1
    assert anontls(*asked, "--expect", "purple").status == 2


def test_german(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--queue", r"MBX2\2", "--lang", "de", *AS_OF)
    for word in ("Fingerabdruck", "vermerkt", "Ereignis 12015", "Abhilfe", "Zertifikatspeicher"):
        assert word in ran.out
    refused = anontls(
        "select", "inbound-anonymous", "--org", org, "--connector", "Client Frontend MBX1", "--lang", "de"
    )
    assert "kündigt X-ANONYMOUSTLS" in refused.out and "nicht an" in refused.out


def test_verbose_shows_every_cmdlet(anontls: Anontls, org: Path) -> None:
    ran = anontls("select", "--org", org, "--server", "MBX1", "-v", *AS_OF)
    assert "check: Get-TransportService MBX1 | Format-List Name,InternalTransportCertificateThumbprint" in ran.out
    assert r"Get-ReceiveConnector 'MBX1\Default MBX1'" in ran.out


def test_svg(anontls: Anontls, org: Path, tmp_path: Path) -> None:
    file = tmp_path / "way.svg"
    assert anontls("select", "--org", org, "--queue", r"MBX2\2", "--svg", file).status == 0
    assert ElementTree.parse(file).getroot().tag.endswith("svg")
    shown = anontls("select", "--org", org, "--queue", r"MBX2\2", "--svg", "-")
    assert shown.out == file.read_text(encoding="utf-8")
    assert anontls("select", "--org", org, "--queue", r"MBX2\2", "--svg", "-", "--json").status == 2
    several = anontls("select", "--org", org, "--svg", file)
    assert several.status == 2 and "one decision" in several.err


def test_a_folder_of_exports_is_an_organisation(anontls: Anontls, demo_export: Path, org: Path) -> None:
    assert (
        anontls("select", "--org", demo_export, "--json", *AS_OF).out
        == anontls("select", "--org", org, "--json", *AS_OF).out
    )


# --- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--server", "MBX9"], "known: EDGE1, MBX1, MBX2"),
        (["--connector", "Nobody"], "known: "),
        (["--queue", "99"], "known: "),
        (["--without", ZERO], "no such certificate"),
        (["--assume", f"store[{ZERO}].Services=None"], "no such certificate"),
        (["--assume", "itc=0123"], "40 hexadecimal digits"),
        (["--assume", "nonsense"], "PATH=VALUE"),
        (["--assume", "planet.Name=Mars"], "names no fact"),
        (["--assume", "server.Colour=red"], "no property"),
        (["--assume", "receive_connector.Enabled=perhaps"], "Enabled"),
        (["--rules", "store-miss=perhaps"], "none and ephemeral"),
        (["--rules", "nonsense"], "the rules are"),
        (["--port", "25"], "--from"),
        (["--from", "here"], "not an IP address"),
        (["--delivery-type", "Pigeon"], "smtprelaytodag"),
        (["--as-of", "yesterday"], "not a date"),
        (["--as-of", "9999-12-31T23:59:59-12:00"], "not a date"),
        (["--expect", "purple"], "not an answer"),
        (["--expect", "event=soon"], "not an answer"),
        (["outbound-anonymous", "--from", "10.0.0.9"], "no outbound-anonymous"),
        (["inbound-starttls", "--delivery-type", "SmtpRelayToDag"], "no inbound-starttls"),
        (["--server", "EDGE1", "--delivery-type", "SmtpRelayToDag"], "on EDGE1"),
        (["--from", "10.0.0.9", "--queue", r"MBX1\3"], "exclude each other"),
        (["--phase", "startup", "--connector", "Default MBX1"], "exclude each other"),
        (["--lang", "fr"], "fr"),
    ],
)
def test_wrong_usage_says_what_there_is(anontls: Anontls, org: Path, arguments: list[str], says: str) -> None:
    ran = anontls("select", "--org", org, *arguments)
    assert ran.status == 2
    assert says in ran.err
    assert "Traceback" not in ran.err and not ran.out


def test_needs_facts_or_an_organisation(anontls: Anontls, tmp_path: Path) -> None:
    assert anontls("select").status == 2
    assert anontls("select", "--org", tmp_path / "none.json").status == 2
    assert anontls("select", "--org", "ldaps://").status == 2
    assert anontls("select", "--facts", tmp_path / "none.json").status == 2
    ran = anontls("select", "--facts", tmp_path / "none.json", "--server", "MBX1")
    assert ran.status == 2 and "go with --org" in ran.err


# --- facts files -------------------------------------------------------------------------------------------------------


def test_facts_file(anontls: Anontls, tmp_path: Path) -> None:
    file = tmp_path / "case.json"
    file.write_text(json.dumps(case(), indent=2))
    ran = anontls("select", "--facts", file, "--json")
    (document,) = ran.documents()
    assert ran.status == 0 and document["result"] == "certificate"


def test_lines_are_answered_in_order_and_a_bad_one_in_its_place(anontls: Anontls, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    unknown = case(msExchServerInternalTLSCert={"unknown": "?"}, server={"Name": "M", "ServerRole": "Mailbox"})
    lines = [json.dumps(case()), "{oops", json.dumps(case(servr={})), json.dumps(unknown), json.dumps(case(store=[]))]
    file.write_text("\n".join(lines) + "\n")
    ran = anontls("select", "--facts", file, "--json")
    schemas = [d["schema"] for d in ran.documents()]
    assert schemas == [
        "anontls/decision/1",
        "anontls/error/1",
        "anontls/error/1",
        "anontls/decision/1",
        "anontls/decision/1",
    ]
    assert ran.documents()[1]["line"] == 2 and ran.documents()[2]["line"] == 3
    assert "server" in str(ran.documents()[2]["message"])
    assert ran.status == 3, "the highest of all"


def test_standard_input(anontls: Anontls, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (json.dumps(case(), indent=2), json.dumps(case()) + "\n" + json.dumps(case())):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        ran = anontls("select", "--facts", "-", "--json")
        assert ran.status == 0 and all(d["result"] == "certificate" for d in ran.documents())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"scenario": "sideways"}, "scenario"),
        ({"as_of": "2026-11-24T12:00:00"}, "as_of"),
        ({"server": {"Name": "M", "ServerRoles": "Mailbox"}}, "ServerRole"),
        ({"queue": {"deliverytype": "x"}}, "DeliveryType"),
        ({"store": [{"der": "!!"}]}, "store[0]"),
        ({"store": {}}, "store"),
        ({"msExchServerInternalTLSCert": {"thumbprint": "AB", "error": "x"}}, "msExchServerInternalTLSCert"),
        ({"schema": "anontls/facts/9"}, "schema"),
        ({"phase": "startup", "scenario": "inbound-starttls"}, "inbound-starttls"),
    ],
)
def test_faults_are_located(anontls: Anontls, tmp_path: Path, change: dict[str, Any], place: str) -> None:
    file = tmp_path / "case.json"
    file.write_text(json.dumps(case(**change)))
    ran = anontls("select", "--facts", file)
    assert ran.status == 2 and place in ran.err and "Traceback" not in ran.err


# --- a real export -----------------------------------------------------------------------------------------------------


def test_real_export(anontls: Anontls, shared: Path) -> None:
    asked = ("select", "outbound-anonymous", "--org", shared / "data/exports/solo-e19a", "--server", "Solo-E19A")
    ran = anontls(*asked, "--json")
    assert ran.status == 3
    assert {(d["result"], d["steps"][-1]["step"]) for d in ran.documents()} == {("unknown", "1.a")}  # type: ignore[index]
    assert "Get-TransportService SOLO-E19A" in anontls(*asked).out
    itc = ("--assume", "itc=6C7DE09FB39A40144F57EFEBC3DF0148E3A9AB28", "--delivery-type", "SmtpRelayWithinAdSiteToEdge")
    for day, events in (("2024-12-02", []), ("2024-12-05", [12015])):
        ran = anontls(*asked, *itc, "--as-of", day, "--json")
        (document,) = ran.documents()
        assert ran.status == 0 and document["steps"][-1]["step"] == "4"  # type: ignore[index]
        assert document["result"] == "certificate" and [e["id"] for e in document["events"]] == events  # type: ignore[attr-defined]


def test_every_connector_of_a_real_export_is_decided_or_honestly_unknown(anontls: Anontls, shared: Path) -> None:
    ran = anontls("select", "--org", shared / "data/exports/solo-e19a", "--server", "WIN-CTD3L0RGEN4", "--json", *AS_OF)
    inbound = [d for d in ran.documents() if str(d["scenario"]).startswith("inbound")]
    assert len(inbound) == 10
    client = [d for d in inbound if "Client Frontend" in str(d["connector"]) and d["scenario"] == "inbound-anonymous"]
    assert [d["result"] for d in client] == ["none"], (
        "no ExchangeServer in its AuthMechanism, whatever else is not known"
    )
