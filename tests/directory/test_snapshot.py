"""The snapshot reads back as what was written, and every fault in one is said with its place."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory import open_organization, snapshot
from anontls.errors import MalformedInput, UsageError
from anontls.facts import (
    ABSENT,
    AcceptedDomain,
    Certificate,
    EdgeSubscription,
    InternalTlsCert,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Source,
    Unknown,
    Unplaced,
)
from tests.support.make import common_name, make_certificate, make_der, make_server

DERS = [make_der(), make_der(common_name("A"), common_name("B"), names=None), b"0\x82", b""]

# --- any organisation ------------------------------------------------------------------------------------------------

ABSENT_OR = st.builds(Unknown, st.text(max_size=5)) | st.just(ABSENT)
TEXT = st.text(max_size=8) | st.none() | ABSENT_OR
FLAG = st.booleans() | st.none() | ABSENT_OR
NUMBER = TEXT | st.integers(-(2**63) + 1, 2**63 - 1)
TEXTS = st.lists(st.text(max_size=8), max_size=3).map(tuple) | st.none() | ABSENT_OR
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
TIME = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=ZONES)  # noqa: DTZ001
BY_HINT: dict[str, st.SearchStrategy[Any]] = {"Text": TEXT, "Flag": FLAG, "Number": NUMBER, "Texts": TEXTS}


def every(struct: type[Any], **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of ``struct``; what the annotations do not tell is in ``known``."""
    hinted = {name: BY_HINT[hint] for name, hint in struct.__annotations__.items() if hint in BY_HINT}
    return st.builds(struct, **(hinted | known))


NAME = st.text(min_size=1, max_size=8)
CERTIFICATES = every(
    Certificate,
    certificate_domains=TEXTS,
    not_before=TIME | st.none() | ABSENT_OR,
    not_after=TIME | st.none() | ABSENT_OR,
    version=st.integers(1, 3) | st.none() | ABSENT_OR,
    services=NUMBER,
    status=NUMBER,
) | st.builds(
    Certificate,
    der=st.sampled_from(DERS),
    has_private_key=FLAG,
    is_self_signed=FLAG,
    services=NUMBER,
    status=NUMBER,
)
ATTRIBUTES = st.one_of(
    st.builds(InternalTlsCert, thumbprint=st.text(max_size=5)),
    st.builds(InternalTlsCert, der=st.binary(max_size=5)),
    st.just(InternalTlsCert(value=None)),
    st.builds(InternalTlsCert, error=st.text(max_size=5)),
    st.builds(InternalTlsCert, unknown=st.text(max_size=5)),
)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=2).map(tuple) | ABSENT_OR


RECEIVE = every(ReceiveConnector, identity=NAME, implicit=st.booleans())
SEND = every(SendConnector, identity=NAME, implicit=st.booleans())
QUEUES = every(Queue, identity=NAME | st.none(), hypothetical=st.booleans())
SERVERS = every(
    Server,
    name=NAME,
    internal_tls_cert=ATTRIBUTES,
    internal_tls_cert_adlds=ATTRIBUTES,
    certificates=some(CERTIFICATES),
    receive_connectors=some(RECEIVE),
    queues=some(QUEUES),
    addresses=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
ORGANIZATIONS = st.builds(
    Organization,
    schema=st.just(snapshot.SCHEMA),
    name=NAME | st.none(),
    sources=st.lists(
        st.builds(
            Source, kind=NAME, file=NAME, objects=st.integers(0, 9), collected=TIME | st.none(), note=st.none() | NAME
        ),
        max_size=2,
    ).map(tuple),
    accepted_domains=some(every(AcceptedDomain, domain_name=NAME)),
    servers=st.lists(SERVERS, max_size=3, unique_by=lambda server: server.name.lower()).map(tuple),
    send_connectors=some(SEND),
    edge_subscriptions=some(every(EdgeSubscription, name=NAME)),
    unplaced=st.lists(st.builds(Unplaced, file=NAME, type=NAME, identity=NAME, because=NAME), max_size=2).map(tuple),
)


@given(ORGANIZATIONS)
def test_what_is_written_is_read_back(organization: Organization) -> None:
    written = snapshot.dump(organization)
    assert snapshot.load(written, "org.json") == organization
    assert snapshot.dump(snapshot.load(written, "org.json")) == written


VALIDATOR = jsonschema.Draft202012Validator(snapshot.json_schema())


@given(ORGANIZATIONS)
def test_what_is_written_fits_the_published_schema(organization: Organization) -> None:
    VALIDATOR.validate(json.loads(snapshot.dump(organization)))


def test_the_schema_is_one_and_refuses_what_is_refused() -> None:
    jsonschema.Draft202012Validator.check_schema(snapshot.json_schema())
    assert snapshot.json_schema()["$id"] == "anontls/org/1"
    server = {"Name": "A", "Colour": "further properties are welcome"}
    assert VALIDATOR.is_valid({"schema": "anontls/org/1", "servers": [server]})
    for wrong in ({"Name": 5}, {}, {"Name": "A", "msExchServerInternalTLSCert": {}}, {"Name": "A", "Fqdn": 1}):
        assert not VALIDATOR.is_valid({"schema": "anontls/org/1", "servers": [wrong]}), wrong


# --- what is written -------------------------------------------------------------------------------------------------


def written_certificate(certificate: Certificate) -> dict[str, Any]:
    server = make_server(certificates=(certificate,))
    document = json.loads(snapshot.dump(Organization(schema=snapshot.SCHEMA, servers=(server,))))
    return dict(document["servers"][0]["certificates"][0])


def test_of_a_certificate_with_bytes_only_what_they_do_not_tell_is_written() -> None:
    listed = Certificate(der=DERS[0], has_private_key=True, services=27, status="Valid", is_self_signed=True)
    assert list(written_certificate(listed)) == ["der", "HasPrivateKey", "Services", "Status"]
    assert written_certificate(Certificate(der=DERS[0], is_self_signed=False))["IsSelfSigned"] is False
    assert "Subject" in written_certificate(make_certificate())


def test_the_text_is_for_readers_too() -> None:
    text = snapshot.dump(Organization(schema=snapshot.SCHEMA, servers=(make_server(Site="Süd"),))).decode()
    assert '\n      "Site": "Süd"' in text
    assert text.endswith("}\n")


# --- faults ----------------------------------------------------------------------------------------------------------


def in_servers(*servers: dict[str, Any]) -> bytes:
    return json.dumps({"schema": "anontls/org/1", "servers": servers}).encode()


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        (
            in_servers({"Name": "A"}, {"Name": "B"}, {"Name": "a"}),
            "$.servers[2].Name",
            "a is there already, as $.servers[0]",
        ),
        (in_servers({"Name": "A"}, {"Name": "B", "Fqdn": 5}), "$.servers[1].Fqdn", "got `int`"),
        (in_servers({"Fqdn": "a"}), "$.servers[0]", "`Name`"),
        (in_servers({"Name": "A", "msExchServerInternalTLSCert": {}}), "$.servers[0].msExch", "is one of thumbprint"),
        (in_servers({"Name": "A", "certificates": [{"der": "?"}]}), "$.servers[0].certificates[0].der", "base64"),
        (in_servers({"Name": "A", "certificates": [{"NotAfter": "2026-01-01T00:00:00"}]}), "$.servers[0]", "timezone"),
        (
            in_servers({"Name": "A", "certificates": [{"NotAfter": "9999-12-31T23:59:59-12:00"}]}),
            "$.servers[0].certificates[0]",
            "no time that there is in UTC",
        ),
        (b'{"schema": "anontls/org/2"}', "$.schema", "anontls/org/2"),
        (b"[]", "$", "Expected `object`"),
        (b"", "", "not JSON"),
        (b"\xff\xfe\x00", "", "byte 2: not UTF-16-LE text"),
        (b'{"schema": "anontls/org/1", "name": "\xff"}', "", "not JSON"),
        (b'{"x":' * 100_000, "", "not JSON"),
    ],
)
def test_each_fault_has_its_place(text: bytes, where: str, message: str) -> None:
    with pytest.raises(MalformedInput) as error:
        snapshot.load(text, "org.json")
    assert str(error.value).startswith(f"org.json: {where}")
    assert message in error.value.message


def test_too_large_is_said_before_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(snapshot, "MAX_BYTES", 10)
    (tmp_path / "org.json").write_bytes(in_servers())
    for source in (tmp_path / "org.json", in_servers()):
        with pytest.raises(MalformedInput, match=r"^org.json: \d+ bytes are more than the 10"):
            snapshot.load(source, "org.json")


@given(st.binary(max_size=80))
def test_any_bytes_give_one_error(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        snapshot.load(text, "org.json")


# --- the argument ORG ------------------------------------------------------------------------------------------------


def test_a_snapshot_is_taken_as_it_is(tmp_path: Path) -> None:
    organization = Organization(
        schema=snapshot.SCHEMA, servers=(make_server(Name="Z"), make_server(Name="A", Fqdn="a.b"))
    )
    file = tmp_path / "org.json"
    for text in (snapshot.dump(organization), b"\xef\xbb\xbf" + snapshot.dump(organization)):
        file.write_bytes(text)
        assert open_organization(str(file)) == organization
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):  # as `>` of Windows PowerShell writes it, or without the mark
        file.write_bytes(snapshot.dump(organization).decode().encode(encoding))
        assert open_organization(str(file)) == organization


@pytest.mark.parametrize(
    ("org", "message"),
    [
        ("ldap://", "not of the form ldaps://HOST"),
        ("LDAPS://dc1.contoso.com/DC=contoso", "not of the form ldaps://HOST"),
        ("nothing", "No such file"),
        ("", "ORG is empty"),
        ("x" * 300, "too long"),
    ],
)
def test_what_is_no_organisation(org: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"(?i){message}"):
        open_organization(org)
