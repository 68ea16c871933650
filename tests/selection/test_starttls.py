"""Inbound STARTTLS: which names match, and which of several certificates is chosen."""

from datetime import datetime

import pytest

from anontls.facts import Certificate, Store, Unknown
from anontls.selection import Rules, select
from tests.selection.tables import Line, answer, read, rules_of
from tests.support.make import (
    AS_OF,
    UNKNOWN,
    common_name,
    make_certificate,
    make_der,
    make_facts,
    make_receive_connector,
    make_server,
    make_v1_der,
    year,
)

KINDS: dict[str, tuple[object, object]] = {
    "pki": (False, "Valid"),
    "date-invalid": (False, "DateInvalid"),
    "revocation": (False, "RevocationCheckFailure"),
    "untrusted": (False, "Untrusted"),
    "invalid": (False, "Invalid"),
    "revoked": (False, "Revoked"),
    "no-status": (False, "Unknown"),
    "request": (True, "PendingRequest"),
    "self": (True, "Valid"),
    "self-bad": (True, "Untrusted"),
    "self-?status": (True, UNKNOWN),
    "?status": (False, UNKNOWN),
    "?self": (UNKNOWN, "Valid"),
    "?self-bad": (UNKNOWN, "Untrusted"),
}
FLAGS: dict[str, dict[str, object]] = {
    "-key": {"HasPrivateKey": False},
    "?key": {"HasPrivateKey": UNKNOWN},
    "-smtp": {"Services": "IIS"},
    "?smtp": {"Services": UNKNOWN},
    "-v3": {"Version": 1},
    "?v3": {"Version": UNKNOWN},
    "-name": {"Subject": "CN=other", "CertificateDomains": ("other.contoso.com",)},
    "?name": {"Subject": "CN=other", "CertificateDomains": UNKNOWN},
}


def moment(text: str) -> datetime | Unknown:
    return UNKNOWN if text == "?" else AS_OF if text == "now" else year(2000 + int(text))


def certificate(text: str) -> Certificate:
    """A certificate as the table's header explains it."""
    thumbprint, kind, rest = text.split(":")
    years, *flags = rest.split(",")
    first, _, last = years.partition("-")
    self_signed, status = KINDS[kind]
    changed: dict[str, object] = {
        "Thumbprint": thumbprint,
        "IsSelfSigned": self_signed,
        "Status": status,
        "NotBefore": moment(first),
        "NotAfter": moment(last),
    }
    for flag in flags:
        changed |= FLAGS[flag]
    return make_certificate(**changed)


@pytest.mark.parametrize("line", read("choice"), ids=str)
def test_choice(line: Line) -> None:
    store = [certificate(text) for text in line.cells["certificates"].split("+")]
    for order in (store, store[::-1]):
        decision = select(make_facts("inbound-starttls", store=Store(order)), rules_of(line.cells["rules"]))
        assert answer(decision) == line.expected


@pytest.mark.parametrize("line", read("names"), ids=str)
def test_names(line: Line) -> None:
    def value(column: str) -> str | None:
        text = line.cells[column].replace("_", " ")
        return None if text == "-" else text

    domains = value("CertificateDomains")
    one = make_certificate(
        Subject=value("Subject"), Issuer=value("Issuer"), CertificateDomains=domains and tuple(domains.split(","))
    )
    name = value("looked_for") or ""
    connector = (
        make_receive_connector(TlsCertificateName=name) if name.startswith("<I>") else make_receive_connector(Fqdn=name)
    )
    decision = select(make_facts("inbound-starttls", receive_connector=connector, store=Store([one])))
    matched = {"yes": ("6", "passed"), "no": ("3", "stopped")}[line.cells["match"]]
    assert (decision.last.step, decision.last.outcome.value) == matched


@pytest.mark.parametrize(
    ("connector", "server", "name"),
    [
        ({"TlsCertificateName": "<I>CN=a<S>CN=b", "Fqdn": "c.contoso.com"}, "d.contoso.com", "<I>CN=a<S>CN=b"),
        ({"Fqdn": "c.contoso.com"}, "d.contoso.com", "c.contoso.com"),
        ({"Fqdn": None}, "d.contoso.com", "d.contoso.com"),
        ({"Fqdn": "", "TlsCertificateName": ""}, "d.contoso.com", "d.contoso.com"),
    ],
)
def test_step_2_says_which_name(connector: dict[str, str | None], server: str, name: str) -> None:
    facts = make_facts(
        "inbound-starttls", receive_connector=make_receive_connector(**connector), server=make_server(Fqdn=server)
    )
    step = select(facts).steps[1]
    assert (step.step, step.outcome.value, step.values["name"]) == ("2", "passed", name)


def test_an_issued_certificate_is_chosen() -> None:
    der = make_der(names=("mbx1.contoso.com",), issuer=common_name("CA"))
    store = Store([make_certificate(der=der, HasPrivateKey=True, Services="SMTP", Status="Valid")])
    decision = select(make_facts("inbound-starttls", store=store))
    assert decision.certificate is store[0]


def test_a_certificate_of_version_1_is_not_eligible() -> None:
    store = Store([make_certificate(der=make_v1_der(), HasPrivateKey=True, Services="SMTP", Status="Valid")])
    decision = select(
        make_facts("inbound-starttls", receive_connector=make_receive_connector(Fqdn="MBX1"), store=store)
    )
    assert answer(decision) == ("none", "-", "-", "4", "stopped", "12014")


def test_the_rule_smtp_service_is_listed_where_only_it_leaves_a_choice() -> None:
    store = Store([certificate("A:pki:26-29,-smtp"), certificate("B:pki:25-29,?key")])
    facts = make_facts("inbound-starttls", store=store)
    anyway = select(facts, Rules(smtp_service="chosen-anyway"))
    assert answer(anyway) == ("certificate", "STARTTLS", "A", "6", "passed", "-")
    decision = select(facts)
    assert answer(decision) == ("unknown", "-", "-", "4", "unknown", "-")
    assert [(d.rule, d.value) for d in decision.differs_under] == [("smtp-service", "chosen-anyway")]
