"""The decision tables in ``cases/``: how they are read, and what their words stand for.

A table is a text file: comments, a line of column names, a line a case.  Columns stand apart by blanks.  In an input
column ``*`` stands for every value and ``a|b`` for either, and the test tries all that a line stands for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from anontls.facts import InternalTlsCert, SessionFacts, Store, Unknown
from anontls.selection import DEFAULT, Decision, Rules, select
from anontls.selection.rules import with_value
from tests.support.make import (
    ALL_MECHANISMS,
    AS_OF,
    ITC,
    OTHER,
    UNKNOWN,
    make_certificate,
    make_facts,
    make_queue,
    make_receive_connector,
    make_send_connector,
    make_server,
    year,
)

CASES = Path(__file__).parent / "cases"
ANSWER = ("result", "verb", "certificate", "last", "outcome", "events")


class Line(NamedTuple):
    """A line of a table."""

    table: str
    number: int
    cells: Mapping[str, str]

    @property
    def expected(self) -> tuple[str, ...]:
        return tuple(self.cells[column] for column in ANSWER)

    def __str__(self) -> str:
        return f"{self.table}:{self.number}"


def read(table: str) -> list[Line]:
    """The lines of ``cases/<table>.txt``."""
    columns: list[str] = []
    lines = []
    for number, text in enumerate((CASES / f"{table}.txt").read_text(encoding="utf-8").splitlines(), 1):
        cells = text.split()
        if not cells or text.startswith("#"):
            continue
        if not columns:
            columns = cells
            continue
        assert len(cells) == len(columns), f"{table}.txt, line {number}: {len(columns)} columns wanted: {text!r}"
        lines.append(Line(table, number, dict(zip(columns, cells, strict=True))))
    return lines


def answer(decision: Decision) -> tuple[str, ...]:
    """A decision in the words of the tables' last columns."""
    certificate = "ephemeral" if decision.ephemeral else "-"
    if decision.certificate is not None:
        certificate = "itc" if decision.certificate.thumbprint == ITC else str(decision.certificate.thumbprint)
    return (
        decision.result.value,
        decision.verb or "-",
        certificate,
        decision.last.step,
        decision.last.outcome.value,
        ",".join(str(event.id) for event in decision.events) or "-",
    )


def rules_of(text: str) -> Rules:
    """``-``, or ``name=value`` joined by commas."""
    rules = DEFAULT
    for each in text.split(",") if text != "-" else ():
        name, _, value = each.partition("=")
        rules = with_value(rules, name, value)
    return rules


# --- tables of every combination --------------------------------------------------------------------------------------

SHOWN: Mapping[str, object] = {"value": ITC, "other": OTHER, "null": None, "unknown": UNKNOWN}
ATTRIBUTE = {
    "named": InternalTlsCert(thumbprint=ITC),
    "null": InternalTlsCert(value=None),
    "error": InternalTlsCert(error="the domain controller does not answer"),
    "unknown": InternalTlsCert(unknown="not looked at"),
}
DELIVERY: Mapping[str, object] = {
    "to-edge": "SmtpRelayWithinAdSiteToEdge",
    "to-mailbox": "SmtpDeliveryToMailbox",
    "elsewhere": "DnsConnectorDelivery",
    "unknown": UNKNOWN,
}
MECHANISM: Mapping[str, object] = {
    "exchange-server": "ExchangeServer",
    "other": "BasicAuthRequireTLS",
    "unknown": UNKNOWN,
}
DASHES: Mapping[str, dict[str, object]] = {
    "smart-host": {"SmartHosts": ("--",), "AddressSpaces": ()},
    "address-space": {"SmartHosts": (), "AddressSpaces": ("SMTP:--;1",)},
    "neither": {"SmartHosts": ("mbx1.contoso.com",), "AddressSpaces": ("SMTP:*;1",)},
    "unknown": {"SmartHosts": UNKNOWN, "AddressSpaces": ("SMTP:*;1",)},
}
VALID_TO: Mapping[str, object] = {"ahead": year(2029), "now": AS_OF, "past": year(2025), "unknown": UNKNOWN}
KEPT: Mapping[str, dict[str, object] | None] = {
    "found": {},
    "absent": {"Thumbprint": "AA" * 20},
    "no-key": {"HasPrivateKey": False},
    "key-unknown": {"HasPrivateKey": UNKNOWN},
    "request": {"Status": "PendingRequest"},
    "unknown": None,
}
RECEIVE_AUTH: Mapping[str, object] = {
    "all": ALL_MECHANISMS,
    "exchange-server": "ExchangeServer",
    "tls": "Tls",
    "unknown": UNKNOWN,
}
SUPPRESS: Mapping[str, object] = {"false": False, "null": None, "true": True, "unknown": UNKNOWN}
ROLE: Mapping[str, object] = {"Mailbox": "Mailbox", "Edge": "Edge", "unknown": UNKNOWN}
YES_NO: Mapping[str, object] = {"yes": True, "no": False, "unknown": UNKNOWN}
VERSION: Mapping[str, object] = {"3": 3, "1": 1, "unknown": UNKNOWN}
SERVICES: Mapping[str, object] = {"yes": "IIS, SMTP", "no": "IIS", "unknown": UNKNOWN}
KIND: Mapping[str, dict[str, object]] = {
    "pki": {"IsSelfSigned": False, "Status": "Valid"},
    "self-signed": {"IsSelfSigned": True, "Status": "Untrusted"},
    "bad-chain": {"IsSelfSigned": False, "Status": "Untrusted"},
    "?chain": {"IsSelfSigned": False, "Status": UNKNOWN},
    "?self-valid": {"IsSelfSigned": UNKNOWN, "Status": "Valid"},
    "?self-bad": {"IsSelfSigned": UNKNOWN, "Status": "Untrusted"},
}
NAME: Mapping[str, dict[str, object]] = {
    "pair": {"TlsCertificateName": "<I>CN=CA<S>CN=mail.contoso.com", "Fqdn": "other.contoso.com"},
    "connector": {"TlsCertificateName": None, "Fqdn": "mail.contoso.com"},
    "server": {"TlsCertificateName": None, "Fqdn": None},
    "unknown": {"TlsCertificateName": UNKNOWN, "Fqdn": "mail.contoso.com"},
}
MATCH: Mapping[str, dict[str, object]] = {
    "yes": {"Issuer": "CN=CA", "Subject": "CN=mail.contoso.com", "CertificateDomains": ("mail.contoso.com",)},
    "no": {"Issuer": "CN=CA", "Subject": "CN=www.contoso.com", "CertificateDomains": ("www.contoso.com",)},
    "unknown": {"Issuer": "CN=CA", "Subject": UNKNOWN, "CertificateDomains": ("www.contoso.com",)},
}


def _store(cells: Mapping[str, str]) -> Store | Unknown:
    kept = KEPT[cells["store"]]
    return UNKNOWN if kept is None else Store([make_certificate(NotAfter=VALID_TO[cells["valid_to"]], **kept)])


def _anonymous(cells: Mapping[str, str], scenario: str, **more: Any) -> SessionFacts:
    server = make_server(
        ServerRole=ROLE[cells.get("role", "Mailbox")], InternalTransportCertificateThumbprint=SHOWN[cells["shown"]]
    )
    return make_facts(
        scenario, **{"server": server, "attribute": ATTRIBUTE[cells["attribute"]], "store": _store(cells), **more}
    )


def outbound_mailbox(cells: Mapping[str, str]) -> SessionFacts:
    return _anonymous(cells, "outbound-anonymous", queue=make_queue(DeliveryType=DELIVERY[cells["delivery"]]))


def outbound_edge(cells: Mapping[str, str]) -> SessionFacts:
    connector = make_send_connector(SmartHostAuthMechanism=MECHANISM[cells["auth"]], **DASHES[cells["dashes"]])
    return _anonymous({**cells, "role": "Edge"}, "outbound-anonymous", send_connector=connector)


def inbound_anonymous(cells: Mapping[str, str]) -> SessionFacts:
    connector = make_receive_connector(
        AuthMechanism=RECEIVE_AUTH[cells["auth"]], SuppressXAnonymousTls=SUPPRESS[cells["suppress"]]
    )
    return _anonymous(cells, "inbound-anonymous", receive_connector=connector)


def startup(cells: Mapping[str, str]) -> SessionFacts:
    nothing = {"queue": None, "send_connector": None, "receive_connector": None}
    return _anonymous(cells, f"{cells['scenario']}-anonymous", phase="startup", **nothing)


def inbound_starttls(cells: Mapping[str, str]) -> SessionFacts:
    certificate = make_certificate(
        Version=VERSION[cells["version"]],
        HasPrivateKey=YES_NO[cells["key"]],
        Services=SERVICES[cells["smtp"]],
        NotAfter=VALID_TO[cells["valid_to"]],
        **KIND[cells["kind"]],
        **MATCH[cells["match"]],
    )
    connector = make_receive_connector(AuthMechanism=RECEIVE_AUTH[cells["auth"]], **NAME[cells["name"]])
    server = make_server(Fqdn="mail.contoso.com")
    return make_facts("inbound-starttls", server=server, receive_connector=connector, store=Store([certificate]))


class Table(NamedTuple):
    """A table of every combination: the values of each input, and the facts that a combination stands for."""

    inputs: Mapping[str, tuple[str, ...]]
    facts: Callable[[Mapping[str, str]], SessionFacts]

    def combinations(self, line: Line) -> Iterator[dict[str, str]]:
        """All that a line stands for."""
        choices = []
        for column, values in self.inputs.items():
            cell = line.cells[column]
            chosen = values if cell == "*" else tuple(cell.split("|"))
            assert set(chosen) <= set(values), f"{line}: {column} is one of {', '.join(values)}, not {cell}"
            choices.append(chosen)
        for values in itertools.product(*choices):
            yield dict(zip(self.inputs, values, strict=True))


TABLES: Mapping[str, Table] = {
    "outbound_mailbox": Table(
        {
            "shown": tuple(SHOWN),
            "delivery": tuple(DELIVERY),
            "attribute": tuple(ATTRIBUTE),
            "store": tuple(KEPT),
            "valid_to": tuple(VALID_TO),
        },
        outbound_mailbox,
    ),
    "outbound_edge": Table(
        {
            "shown": ("value", "null", "unknown"),
            "auth": tuple(MECHANISM),
            "dashes": tuple(DASHES),
            "attribute": tuple(ATTRIBUTE),
            "store": ("found", "absent", "no-key", "unknown"),
            "valid_to": ("ahead", "past", "unknown"),
        },
        outbound_edge,
    ),
    "inbound_anonymous": Table(
        {
            "auth": tuple(RECEIVE_AUTH),
            "suppress": tuple(SUPPRESS),
            "shown": ("value", "null", "unknown"),
            "attribute": tuple(ATTRIBUTE),
            "store": ("found", "absent", "no-key", "unknown"),
            "valid_to": ("ahead", "past", "unknown"),
        },
        inbound_anonymous,
    ),
    "startup": Table(
        {
            "scenario": ("outbound", "inbound"),
            "role": tuple(ROLE),
            "shown": ("value", "null", "unknown"),
            "attribute": tuple(ATTRIBUTE),
            "store": tuple(KEPT),
            "valid_to": tuple(VALID_TO),
        },
        startup,
    ),
    "inbound_starttls": Table(
        {
            "auth": ("tls", "exchange-server", "unknown"),
            "name": tuple(NAME),
            "match": tuple(MATCH),
            "version": tuple(VERSION),
            "key": tuple(YES_NO),
            "smtp": tuple(SERVICES),
            "kind": tuple(KIND),
            "valid_to": ("ahead", "past", "unknown"),
        },
        inbound_starttls,
    ),
}


OTHER_RULES = Rules(
    mailbox_to_mailbox="verb-without-certificate",
    expired_starttls="withdrawn",
    smtp_service="chosen-anyway",
    store_miss="ephemeral",
)


@lru_cache
def decisions() -> tuple[Decision, ...]:
    """From many combinations, under both values of every rule, a decision for each way that a procedure can take."""
    ways: dict[object, Decision] = {}
    for name, table in TABLES.items():
        for line in read(name):
            for cells in itertools.islice(table.combinations(line), 0, None, 7):  # prime to the numbers of values
                facts = table.facts(cells)
                for rules in (DEFAULT, OTHER_RULES):
                    decision = select(facts, rules)
                    way = (name, rules, *(step.because for step in decision.steps))
                    ways.setdefault(way, decision)
    return tuple(ways.values())
