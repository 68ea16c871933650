"""The facts of one decision, written by hand: what is taken, what is ignored, and what each fault is called."""

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.facts_file import SCHEMA, FaultyCase, read_facts
from anontls.errors import AnontlsError, MalformedInput, UsageError
from anontls.facts import ABSENT, ATTRIBUTE_ABSENT, InternalTlsCert, Phase, SessionFacts, Store, Unknown, is_unknown

NOW = datetime(2026, 11, 24, tzinfo=UTC)
THUMBPRINT = "0123456789ABCDEF0123456789ABCDEF01234567"
ENTRY = {
    "Thumbprint": THUMBPRINT,
    "Subject": "CN=MBX1",
    "Issuer": "CN=MBX1",
    "CertificateDomains": ["MBX1", "mbx1.contoso.com"],
    "NotBefore": "2024-01-01T00:00:00Z",
    "NotAfter": "2029-01-01T00:00:00Z",
    "Services": "IMAP, POP, IIS, SMTP",
    "Status": "Valid",
}
CASE: dict[str, Any] = {
    "schema": SCHEMA,
    "scenario": "outbound-anonymous",
    "as_of": "2026-11-24T12:00:00Z",
    "server": {"Name": "MBX1", "Fqdn": "mbx1.contoso.com", "ServerRole": "Mailbox"},
    "msExchServerInternalTLSCert": {"thumbprint": THUMBPRINT},
    "queue": {"DeliveryType": "SmtpRelayWithinAdSiteToEdge"},
    "send_connector": {"Name": "To Internet", "SmartHostAuthMechanism": "ExchangeServer", "SmartHosts": ["--"]},
    "receive_connector": {"Identity": "MBX1\\Default MBX1", "AuthMechanism": "Tls, ExchangeServer"},
    "store": [ENTRY],
}
EDGE = {"server": {"Name": "EDGE1", "ServerRole": "Edge"}}
INBOUND = {"scenario": "inbound-anonymous"}


def case(**changes: Any) -> dict[str, Any]:
    """The case above with other values; ``...`` takes a key away."""
    changed = copy.deepcopy(CASE) | changes
    return {key: value for key, value in changed.items() if value is not ...}


def read(**changes: Any) -> SessionFacts:
    (facts,) = read_facts(json.dumps(case(**changes)).encode(), "facts.json", default_as_of=NOW)
    assert isinstance(facts, SessionFacts)
    return facts


def test_a_mailbox_sender_has_its_queue_and_nothing_else() -> None:
    facts = read()
    assert facts.queue is not None
    assert facts.queue.delivery_type == "SmtpRelayWithinAdSiteToEdge"
    assert (facts.send_connector, facts.receive_connector, facts.phase) == (None, None, Phase.SESSION)
    assert facts.internal_tls_cert == InternalTlsCert(thumbprint=THUMBPRINT)
    assert isinstance(facts.store, Store)
    (entry,) = facts.store
    assert (entry.has_private_key, entry.is_self_signed, entry.version) == (True, True, ABSENT)


def test_an_edge_sender_has_its_send_connector() -> None:
    connector = read(**EDGE, queue=...).send_connector
    assert connector is not None
    assert (connector.identity, connector.tls_certificate_name, connector.fqdn) == ("To Internet", None, None)


def test_absent_properties_of_a_receive_connector_have_the_defaults() -> None:
    connector = read(**INBOUND, queue=...).receive_connector
    assert connector is not None
    assert (connector.suppress_x_anonymous_tls, connector.tls_certificate_name, connector.fqdn) == (False, None, None)


def test_what_the_scenario_does_not_need_is_not_even_looked_at() -> None:
    assert read(send_connector=5, receive_connector={"Autmechanism": 1}).queue
    assert read(**INBOUND, queue=..., send_connector=...).receive_connector
    assert read(**INBOUND, phase="startup", receive_connector=..., queue=[]).phase is Phase.STARTUP


def test_a_pasted_object_may_have_any_further_property() -> None:
    pasted = CASE["queue"] | {"NextHopCategory": "Internal", "MessageCount": 3, "Velocity": 0.5, "LastError": None}
    assert read(queue=pasted).queue == read().queue


def test_defaults() -> None:
    facts = read(as_of=..., msExchServerInternalTLSCert=...)
    assert (facts.as_of, facts.internal_tls_cert) == (NOW, ATTRIBUTE_ABSENT)
    own = read(
        msExchServerInternalTLSCert=..., server=CASE["server"] | {"msExchServerInternalTLSCert": {"value": None}}
    )
    assert own.internal_tls_cert == InternalTlsCert(value=None)


def test_any_property_may_be_unknown() -> None:
    facts = read(server=CASE["server"] | {"Fqdn": {"unknown": "not asked"}}, store={"unknown": "no access"})
    assert (facts.server.fqdn, facts.store) == (Unknown("not asked"), Unknown("no access"))
    # Neither Mailbox nor Edge: what is given comes along, nothing is demanded.
    facts = read(server={"Name": "A", "ServerRole": {"unknown": "why"}}, queue=...)
    assert is_unknown(facts.server.role)
    assert facts.queue is None
    assert facts.send_connector


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"quue": {}}, "quue", "unknown key; did you mean queue?"),
        ({"schema": ...}, "schema", 'expected "anontls/facts/1", found null'),
        ({"schema": "anontls/facts/2"}, "schema", 'expected "anontls/facts/1"'),
        ({"scenario": "outbound"}, "scenario", 'found "outbound"'),
        ({"phase": 1}, "phase", "expected session or startup, found 1"),
        ({"as_of": "2026-11-24"}, "as_of", "a time with its zone"),
        ({"server": ...}, "server", "is missing"),
        ({"server": []}, "server", "expected an object, found []"),
        ({"server": {"Fqdn": None}}, "server: Name", "is missing"),
        ({"server": {"Name": "A"}}, "server: ServerRole", "is missing"),
        ({"server": {"Name": "A", "Fqdn": 5, "ServerRole": "Edge"}}, "server: Fqdn", "expected a domain name, found 5"),
        ({"queue": ...}, "queue", "is missing"),
        ({"queue": {"deliverytype": "x"}}, "queue: deliverytype", "did you mean DeliveryType?"),
        (EDGE | {"send_connector": ...}, "send_connector", "is missing"),
        (INBOUND | {"receive_connector": ...}, "receive_connector", "is missing"),
        ({"store": ...}, "store", "is missing"),
        ({"store": {}}, "store", "expected a list of certificates, found {}"),
        ({"store": [ENTRY, 5]}, "store[1]", "expected an object, found 5"),
        ({"store": [{"der": "?"}]}, "store[0]: der", "expected bytes in base64"),
        ({"store": [ENTRY | {"NotAfter": 0}]}, "store[0]: NotAfter", "found 0"),
        ({"store": [{"NotAftr": 0}]}, "store[0]: NotAftr", "did you mean NotAfter?"),
        ({"msExchServerInternalTLSCert": {}}, "msExchServerInternalTLSCert", "one of thumbprint, der, value"),
        ({"msExchServerInternalTLSCert": {"der": "AAAA"}}, "msExchServerInternalTLSCert", "the bytes of a certificate"),
    ],
)
def test_each_fault_is_named_with_its_place(changes: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(MalformedInput) as error:
        read(**changes)
    assert error.value.where == f"facts.json: {where}"
    assert message in error.value.message


def test_starttls_has_no_service_start() -> None:
    with pytest.raises(UsageError, match="no inbound-starttls at the start of a service"):
        read(scenario="inbound-starttls", phase="startup")


# --- documents and lines ---------------------------------------------------------------------------------------------

LINE = json.dumps(CASE).encode()


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl", "-", "facts"])
def test_one_case_reads_the_same_under_every_name(name: str) -> None:
    assert len(list(read_facts(LINE + b"\n", name, default_as_of=NOW))) == 1


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf" + LINE, LINE.decode().encode("utf-16"), json.dumps(CASE, indent=1).encode()]
)
def test_encodings_and_layouts(text: bytes) -> None:
    assert isinstance(next(read_facts(text, "-", default_as_of=NOW)), SessionFacts)


@pytest.mark.parametrize("name", ["facts.jsonl", "-"])
def test_lines_are_answered_in_order_and_a_bad_one_in_its_place(name: str) -> None:
    lines = [LINE, b"", LINE.replace(b"store", b"stor"), b'{"schema": "\xff"}', LINE]
    got = list(read_facts(b"\r\n".join(lines), name, default_as_of=NOW))
    assert [type(each) for each in got] == [SessionFacts, FaultyCase, FaultyCase, SessionFacts]
    assert isinstance(got[1], FaultyCase)
    assert got[1].line == 3
    assert str(got[1].error) == f"{name}: line 3: stor: unknown key; did you mean store?"


@pytest.mark.parametrize(
    ("text", "name"),
    [(b"", "facts.json"), (b"", "-"), (b"{", "-"), (LINE + b"\n" + LINE, "facts.json"), (b"[" * 5000, "-")],
)
def test_what_is_no_json_is_said(text: bytes, name: str) -> None:
    with pytest.raises(MalformedInput, match=f"^{name}: "):
        list(read_facts(text, name, default_as_of=NOW))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_json_anywhere_gives_facts_or_one_located_error(data: st.DataObject) -> None:
    changed = case(scenario=data.draw(st.sampled_from(["outbound-anonymous", "inbound-anonymous", "inbound-starttls"])))
    key = data.draw(st.sampled_from(sorted(changed)))
    inner = changed[key] if isinstance(changed[key], dict) else ENTRY if key == "store" else {}
    if inner and data.draw(st.booleans()):
        inner = inner | {data.draw(st.sampled_from([*inner, "Bindings", "Version", "HasPrivateKey"])): data.draw(JSON)}
        changed[key] = [inner] if key == "store" else inner
    else:
        changed[key] = data.draw(JSON)
    try:
        list(read_facts(json.dumps(changed).encode(), "f.json", default_as_of=NOW))
    except AnontlsError as e:
        assert str(e).startswith("f.json: ")  # noqa: PT017


@given(st.binary(max_size=60))
def test_any_bytes_give_one_error(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        list(read_facts(text, "f.json", default_as_of=NOW))


def test_conformance_cases_are_read(shared: Path) -> None:
    paths = sorted((shared / "conformance/cases").glob("*.json"))
    assert paths
    text = b"\n".join(json.dumps(json.loads(path.read_bytes())["facts"]).encode() for path in paths)
    assert [type(facts) for facts in read_facts(text, "-", default_as_of=NOW)] == [SessionFacts] * len(paths)
