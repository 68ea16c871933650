"""Address spaces, their choice and its ties, against tables that people can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from anontls.delivery.address_space import address_space, closeness, domain_of, normal_domain
from tests.delivery.world import LINKS, shown, way, world

CASES = Path(__file__).parent / "cases"


def read(table: str) -> list[dict[str, str]]:
    lines = [
        line.split()
        for line in (CASES / f"{table}.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("case", read("closeness"), ids=lambda c: f"{c['pattern']}, {c['domain']}")
def test_closeness(case: dict[str, str]) -> None:
    found = closeness(case["pattern"], normal_domain(case["domain"]))
    assert (found.kind.name.lower() if found else "-") == case["closeness"]


@pytest.mark.parametrize("case", read("routes"), ids=lambda c: " ".join(c.values()))
def test_one_hop(case: dict[str, str]) -> None:
    connectors = [] if case["connectors"] == "-" else case["connectors"].split("|")
    found = way(world(*connectors), case["from"], f"user@{case['domain']}", site_links=LINKS[case["links"]])
    hop = found.hops[0]
    answer = (hop.connector.identity if hop.connector else "-", shown(hop.delivery_type), shown(hop.next_hop_domain))
    assert answer == (case["connector"], case["type"], case["next"].replace("_", " "))


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("SMTP:*;1", ("SMTP", "*", 1)),
        ("smtp:Contoso.com;100", ("SMTP", "Contoso.com", 100)),
        ("contoso.com;5", ("SMTP", "contoso.com", 5)),
        ("contoso.com", ("SMTP", "contoso.com", 1)),
        ("SMTP:--;1", ("SMTP", "--", 1)),
        ("X400:c=US;a= ;p=Contoso;1", ("X400", "c=US;a= ;p=Contoso;1", 1)),
    ],
)
def test_address_spaces_are_read(text: str, read_as: tuple[str, str, int]) -> None:
    assert address_space(text) == read_as


@pytest.mark.parametrize("text", ["", "SMTP:", "SMTP:;1", "SMTP:*;0", "SMTP:*;101", "*;x", "*;1;2", "Local:SMTP:*;1"])
def test_what_is_no_address_space_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="address space"):
        address_space(text)


@pytest.mark.parametrize(
    "address", ["", "user", "@contoso.com", "user@", "user@[192.0.2.1]", "user@a..b", "a b@contoso.com", "u@-x.com"]
)
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        domain_of(address)


def test_domains_are_compared_in_ascii_and_small_letters() -> None:
    assert domain_of("User@MÜNCHEN.de") == "xn--mnchen-3ya.de"
    assert domain_of('"a@b"@Contoso.COM') == "contoso.com"
