"""``anontls route``: arguments, exit statuses, and what it prints."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Anontls

AS_OF = ("--as-of", "2026-11-24T12:00:00Z")
OUT = ("--from", "MBX1", "--recipient", "somebody@example.net", *AS_OF)
IN = ("--from", "EDGE1", "--recipient", "user@contoso.com", *AS_OF)


def test_out_by_the_edge_server(anontls: Anontls, org: Path) -> None:
    ran = anontls("route", "--org", org, *OUT)
    assert ran.status == 0 and not ran.err
    for words in (
        "MBX1 to somebody@example.net: leaves the organisation, hops: 2",
        "hop 1: MBX1 to EDGE1",
        "SmtpRelayWithinAdSiteToEdge",
        "MBX1 uses X-ANONYMOUSTLS for MBX1\\3 with",
        "EDGE1 advertises X-ANONYMOUSTLS",
        "hop 2: EDGE1 to example.net",
        "DnsConnectorDelivery",
    ):
        assert words in ran.out


def test_in_ends_where_the_mailbox_is_not_known(anontls: Anontls, org: Path) -> None:
    ran = anontls("route", "--org", org, *IN)
    assert ran.status == 3
    assert "hop 1: EDGE1 to MBX1, MBX2" in ran.out and "Get-Recipient" in ran.out


def test_the_mailbox_server_can_be_told(anontls: Anontls, org: Path) -> None:
    ran = anontls(
        "route", "--org", org, "--from", "MBX1", "--recipient", "u@contoso.com", "--mailbox-server", "mbx1", *AS_OF
    )
    assert ran.status == 0 and "SmtpDeliveryToMailbox" in ran.out and "into the mailbox" in ran.out


def test_json_and_german_and_rules(anontls: Anontls, org: Path) -> None:
    ran = anontls("route", "--org", org, *IN, "--json", "--lang", "de", "--rules", "expired-starttls=withdrawn")
    (document,) = ran.documents()
    assert ran.status == 3 and document["schema"] == "anontls/route/1" and document["end"] == "unknown"
    assert "EDGE1 an user@contoso.com" in str(document["headline"])
    assert "withdrawn" in str(document["hops"])


def test_svg(anontls: Anontls, org: Path, tmp_path: Path) -> None:
    file = tmp_path / "way.svg"
    assert anontls("route", "--org", org, *OUT, "--svg", file).status == 0
    assert ElementTree.parse(file).getroot().get("data-end") == "outside"
    assert anontls("route", "--org", org, *OUT, "--svg", tmp_path / "no" / "way.svg").status == 2


def test_svg_to_standard_output(anontls: Anontls, org: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = anontls("route", "--org", org, *OUT, "--svg", "-")
    assert ran.status == 0 and ElementTree.fromstring(ran.out).get("data-end") == "outside"
    assert not (tmp_path / "-").exists()
    assert anontls("route", "--org", org, *OUT, "--svg", "-", "--json").status == 2


def test_an_export_will_do(anontls: Anontls, demo_export: Path) -> None:
    assert anontls("route", "--org", demo_export, *OUT).status == 0


def test_lab(anontls: Anontls, lab: Path) -> None:
    ran = anontls("route", "--org", lab / "org.json", "--from", "EDGE1", "--recipient", "user@contoso.com")
    assert "hop 2: MBX1 to MBX1" in ran.out and "SmtpDeliveryToMailbox" in ran.out
    assert ran.status == 3, "no source of the lab holds the connector at port 475"
    ran = anontls("route", "--org", lab / "org.json", "--from", "MBX1", "--recipient", "user@example.net")
    assert ran.status == 0 and "Unreachable Domain" in ran.out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--from", "MBX9"), "known: EDGE1, MBX1, MBX2"),
        (("--recipient", "nobody"), "not an address"),
        (("--recipient", "a@[192.0.2.1]"), "not a domain name"),
        (("--mailbox-server", "EDGE1"), "no mailboxes"),
        (("--mailbox-server", "MBX9"), "no server MBX9"),
        (("--site-link", "A=1"), "SITE,SITE=COST"),
        (("--site-link", "A,B=0"), "SITE,SITE=COST"),
        (("--rules", "nonsense=1"), "no rule"),
    ],
)
def test_wrong_usage(anontls: Anontls, org: Path, changed: tuple[str, str], said: str) -> None:
    ran = anontls("route", "--org", org, *OUT, *changed)
    assert ran.status == 2 and said in ran.err and not ran.out


def test_what_is_missing_is_said(anontls: Anontls, org: Path) -> None:
    assert anontls("route", "--org", org, "--from", "MBX1").status == 2
    assert anontls("route", *OUT).status == 2


def test_site_links_are_taken(anontls: Anontls, org: Path) -> None:
    assert anontls("route", "--org", org, *OUT, "--site-link", "A, B=10", "--site-link", "B,C=5").status == 0
