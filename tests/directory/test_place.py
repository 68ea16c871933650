"""Objects of several servers and files find the server that each says it belongs to; the rest is kept with a reason."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory import snapshot
from anontls.directory.demo_export import certificate_blob
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.cmdlets import recognise_kind
from anontls.directory.exchange_export.pieces import Piece, piece_of, pieces_of
from anontls.directory.exchange_export.place import INTRA_ORGANIZATION, NO_SUCH_SERVER, merge, place_pieces
from anontls.errors import UsageError
from anontls.facts import (
    ABSENT,
    Certificate,
    InternalTlsCert,
    Organization,
    Server,
    Unknown,
    Unplaced,
    is_unknown,
    thumbprint_of,
)
from tests.support.make import common_name, make_der, make_receive_connector, make_server

DAY = datetime(2026, 11, 1, tzinfo=UTC)
DER = make_der()
OTHER_DER = make_der(common_name("Other"), names=("other.example",))


def piece(properties: dict[str, Any], *, file: str = "f.xml", day: int = 0, computer: str | None = None) -> Piece:
    found = CmdletObject(file=file, where="object 1", format="json", properties=properties, computer=computer)
    kind = recognise_kind(found)
    assert kind is not None
    return piece_of(found, kind, collected=DAY + timedelta(days=day), zone=None)


def server(name: str = "MBX1", **more: Any) -> dict[str, Any]:
    return {"Name": name, "Fqdn": f"{name.lower()}.contoso.com", "ServerRole": "Mailbox", "Site": "A", **more}


def connector(identity: str = "MBX1\\Default MBX1", **more: Any) -> dict[str, Any]:
    return {"Identity": identity, "AuthMechanism": "Tls", "Bindings": ["[::]:25"], **more}


def certificate(owner: str | None = "mbx1.contoso.com", der: bytes = DER, **more: Any) -> dict[str, Any]:
    identity = f"{owner}\\{thumbprint_of(der)}"
    blob = {"SerializationData": certificate_blob(der, identity=identity, services=16)} if owner else {}
    return {"RawData": der, "CertificateDomains": [], **blob, **more}


def place(*pieces: Piece | Unplaced, server: str | None = None) -> Organization:
    return place_pieces(pieces, server=server)[0]


def names(organization: Organization) -> dict[str, list[str]]:
    """What each server got: its Receive connectors and thumbprints, without the implicit ones."""
    return {
        each.name: [
            *(
                c.identity
                for c in (each.receive_connectors if not is_unknown(each.receive_connectors) else ())
                if not c.implicit
            ),
            *(str(c.thumbprint) for c in (each.certificates if not is_unknown(each.certificates) else ())),
        ]
        for each in organization.servers
    }


@pytest.mark.parametrize("owner", ["MBX1", "mbx1", "mbx1.contoso.com", "MBX1.CONTOSO.COM"])
def test_names_compare_without_case_short_or_full(owner: str) -> None:
    placed = place(piece(certificate(owner)), piece(connector(f"{owner}\\Default")), piece(server()))
    assert names(placed) == {"MBX1": [f"{owner}\\Default", thumbprint_of(DER)]}
    assert placed.unplaced == ()


def test_a_first_label_finds_a_server_only_when_its_fqdn_is_not_known() -> None:
    other = piece(certificate("mbx1.fabrikam.com"))
    assert place(piece(server()), other).unplaced[0].because == NO_SUCH_SERVER
    assert place(piece(server(Fqdn=None)), other).unplaced == ()


def test_objects_of_another_server_are_kept_with_the_reason() -> None:
    (left,) = place(piece(server()), piece(connector("OTHER\\Default OTHER"), file="r.xml")).unplaced
    assert (left.file, left.type, left.identity) == ("r.xml", "ReceiveConnector", "OTHER\\Default OTHER")
    assert (left.because, left.object["AuthMechanism"]) == (NO_SUCH_SERVER, "Tls")


def test_a_server_is_what_all_cmdlets_say_of_it() -> None:
    placed = place(
        piece(server(AdminDisplayVersion="Version 15.2 (Build 986.5)")),
        piece({"Name": "mbx1", "InternalTransportCertificateThumbprint": thumbprint_of(DER)}),
        piece({"Name": "MBX1", "DatabaseAvailabilityGroup": "DAG1"}),
        piece({"Name": "mbx1.contoso.com", "msExchServerInternalTLSCert": DER}),
        piece({"Identity": "MBX1\\3", "DeliveryType": "MapiDelivery"}),
    )
    (found,) = placed.servers
    assert (found.name, found.fqdn, found.database_availability_group) == ("MBX1", "mbx1.contoso.com", "DAG1")
    assert found.internal_tls_cert == InternalTlsCert(der=DER)
    assert found.internal_transport_certificate_thumbprint == thumbprint_of(DER)
    assert not is_unknown(found.queues)
    assert [queue.identity for queue in found.queues] == ["MBX1\\3"]


def test_the_certificate_of_get_transportservice_is_the_attribute() -> None:
    placed = place(piece(server()), piece({"Name": "MBX1", "InternalTransportCertificate": DER}))
    assert placed.servers[0].internal_tls_cert.names == thumbprint_of(DER)


def test_both_copies_of_the_attribute() -> None:
    placed = place(piece(server("EDGE1")), piece({"Name": "EDGE1", "msExchServerInternalTLSCert_adlds": DER}))
    assert placed.servers[0].internal_tls_cert_adlds.names == thumbprint_of(DER)
    assert placed.servers[0].internal_tls_cert.unknown == ABSENT.because


def test_what_no_source_holds_is_unknown_not_empty() -> None:
    (found,) = place(piece(server())).servers
    assert (found.certificates, found.receive_connectors, found.queues) == (ABSENT, ABSENT, ABSENT)


def test_two_servers_of_one_name_are_not_mixed() -> None:
    placed = place(piece(server()), piece(server(Fqdn="mbx1.fabrikam.com"), file="g.xml"))
    assert [each.fqdn for each in placed.servers] == ["mbx1.contoso.com"]
    assert placed.unplaced[0].because == "another server of that name is there already: mbx1.contoso.com"


# --- objects that do not say whose they are --------------------------------------------------------------------------


def test_one_server_and_the_cmdlet_ran_there() -> None:
    pieces = [piece(server()), piece(certificate(None), computer="mbx1.contoso.com", file="c.xml")]
    placed, notes = place_pieces(pieces)
    assert names(placed) == {"MBX1": [thumbprint_of(DER)]}
    assert notes["c.xml"] == [
        "the certificates do not say whose they are; the cmdlet ran on mbx1.contoso.com, so they are its own"
    ]


@pytest.mark.parametrize(
    ("servers", "computer"), [(["MBX1"], "mbx2.contoso.com"), (["MBX1"], None), (["MBX1", "MBX2"], "mbx1.contoso.com")]
)
def test_else_a_certificate_without_identity_is_unplaced_with_the_cure(
    servers: list[str], computer: str | None
) -> None:
    nobody = piece(certificate(None), computer=computer, file="my certificates.xml")
    placed = place(*(piece(server(name)) for name in servers), nobody)
    assert placed.unplaced[0].because == ('it does not say whose it is: org import --server NAME "my certificates.xml"')
    assert names(place(*(piece(server(name)) for name in servers), nobody, server="mbx1"))["MBX1"] == [
        thumbprint_of(DER)
    ]


def test_server_must_be_there() -> None:
    with pytest.raises(UsageError, match="no server MBX9 in the sources") as error:
        place(piece(server()), server="MBX9")
    assert error.value.hint == "servers in the sources: MBX1"


def test_a_certificate_with_its_server_beside_it_is_of_its_store_but_may_have_no_key() -> None:
    (found,) = place(piece(server()), piece({"RawData": DER, "Server": "MBX1"})).servers
    assert not is_unknown(found.certificates)
    assert found.certificates == (Certificate(der=DER),)


def test_a_bare_certificate_is_the_attribute_of_every_server_with_its_thumbprint() -> None:
    shown = {"InternalTransportCertificateThumbprint": thumbprint_of(OTHER_DER)}
    placed = place(
        *(piece(server(name)) for name in ("MBX1", "MBX2", "MBX3")),
        *(piece({"Name": name, **shown}) for name in ("MBX1", "MBX2")),
        piece({"RawData": OTHER_DER}),
    )
    assert [each.internal_tls_cert.names for each in placed.servers] == [thumbprint_of(OTHER_DER)] * 2 + [None]
    assert all(is_unknown(each.certificates) for each in placed.servers)


def test_a_bare_certificate_that_names_the_only_server() -> None:
    assert place(piece(server()), piece({"RawData": DER})).servers[0].internal_tls_cert.names == thumbprint_of(DER)
    (left,) = place(piece(server()), piece({"RawData": OTHER_DER})).unplaced
    assert left.because.endswith("org import --server NAME f.xml")
    assert left.type == "X509Certificate2"
    (found,) = place(piece(server()), piece({"RawData": OTHER_DER}), server="MBX1").servers
    assert found.internal_tls_cert.names == thumbprint_of(OTHER_DER)


# --- the same object twice -------------------------------------------------------------------------------------------


def test_the_same_object_twice_is_there_once() -> None:
    placed, notes = place_pieces(
        [piece(server()), piece(connector()), piece(connector(), file="g.xml"), piece(server())]
    )
    assert names(placed) == {"MBX1": ["MBX1\\Default MBX1"]}
    assert set(map(tuple, notes.values())) == {()}


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_that_differ_the_later_is_kept_and_that_is_said(order: int) -> None:
    new, old = piece(connector(Enabled=False), file="new.xml", day=2), piece(connector(Enabled=True), file="old.xml")
    placed, notes = place_pieces([piece(server()), *[new, old][::order]])
    connectors = placed.servers[0].receive_connectors
    assert not is_unknown(connectors)
    assert connectors[0].enabled is False
    assert notes["new.xml"] == ["ReceiveConnector MBX1\\Default MBX1: Enabled differs from old.xml; the later is kept"]


def test_known_beats_unknown_and_text_beats_number() -> None:
    old, new = make_receive_connector(AuthMechanism="Tls"), make_receive_connector(AuthMechanism=1, Fqdn=Unknown("cut"))
    merged, differing = merge(old, new)
    assert (merged, differing) == (old, [])


def test_certificates_of_two_formats_are_one() -> None:
    by_text = Certificate(thumbprint=thumbprint_of(DER), services="SMTP", status="Valid", subject="CN=else")
    merged, differing = merge(by_text, Certificate(der=DER, has_private_key=True))
    assert merged == Certificate(der=DER, has_private_key=True, services="SMTP", status="Valid")
    assert differing == []


# --- what no export holds --------------------------------------------------------------------------------------------


def test_implicit_connectors() -> None:
    sends = piece({"Identity": "To Internet", "SmartHosts": [], "AddressSpaces": ["SMTP:*;1"]})
    placed = place(
        piece(server()),
        piece(connector()),
        piece(server("EDGE1", ServerRole="Edge")),
        piece(connector("EDGE1\\D")),
        sends,
    )
    edge, mailbox = placed.servers
    assert not is_unknown(edge.receive_connectors)
    assert not is_unknown(mailbox.receive_connectors)
    assert [c.implicit for c in edge.receive_connectors] == [False]
    assert mailbox.receive_connectors[1].identity == "MBX1\\Default Mailbox Delivery MBX1"
    assert mailbox.receive_connectors[1].implicit
    assert not is_unknown(placed.send_connectors)
    assert [c.identity for c in placed.send_connectors] == ["To Internet", INTRA_ORGANIZATION]
    assert place(*pieces_of(placed, "org.json")) == placed


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_an_unplaced_object_finds_its_place_later() -> None:
    before = place(
        piece(server()), piece(connector("MBX2\\Default")), piece(certificate("MBX2")), piece({"RawData": OTHER_DER})
    )
    assert len(before.unplaced) == 3
    before = snapshot.load(snapshot.dump(before), "org.json")
    shown = {"Name": "MBX2", "InternalTransportCertificateThumbprint": thumbprint_of(OTHER_DER)}
    after = place(*pieces_of(before, "org.json"), piece(server("MBX2")), piece(shown))
    assert after.unplaced == ()
    assert names(after)["MBX2"] == ["MBX2\\Default", thumbprint_of(DER)]
    assert after.servers[1].internal_tls_cert.names == thumbprint_of(OTHER_DER)
    connectors = after.servers[1].certificates
    assert not is_unknown(connectors)
    assert connectors[0].services == 16


def test_a_snapshot_knows_that_there_are_none() -> None:
    known = Organization(schema="anontls/org/1", servers=(make_server(certificates=(), queues=Unknown("no rights")),))
    for order in (1, -1):
        (found,) = place(*[*pieces_of(known, "org.json"), piece(server())][::order]).servers
        assert (found.certificates, found.queues) == ((), Unknown("no rights"))


def test_what_cannot_be_read_of_the_unplaced_stays() -> None:
    odd = Unplaced(file="f", type="Colour", identity="x", because="y", object={"a": 1})
    bad = Unplaced(file="f", type="Queue", identity="x", because="y", object={"DeliveryType": []})
    organization = Organization(schema="anontls/org/1", unplaced=(odd, bad))
    assert place(*pieces_of(organization, "org.json")).unplaced == (odd, bad)


OBJECTS = st.one_of(
    st.sampled_from(["MBX1", "mbx2", "EDGE1"]).map(server),
    st.tuples(st.sampled_from(["MBX1", "mbx2.contoso.com", "OTHER"]), st.sampled_from(["A", "B"]), st.booleans()).map(
        lambda drawn: connector(f"{drawn[0]}\\{drawn[1]}", Enabled=drawn[2])
    ),
    st.tuples(st.sampled_from(["MBX1", "MBX2.contoso.com", "OTHER", None]), st.sampled_from([DER, OTHER_DER])).map(
        lambda drawn: certificate(*drawn)
    ),
    st.sampled_from([DER, OTHER_DER]).map(lambda der: {"RawData": der}),
    st.sampled_from(["MBX1", "OTHER"]).map(lambda name: {"Name": name, "msExchServerInternalTLSCert": DER}),
)


def _mark(facts: Any) -> object:
    """What an object is known by, wherever it is."""
    if isinstance(facts, Server):
        return facts.name.upper()
    return facts.thumbprint if isinstance(facts, Certificate) else facts.identity


def _marks(placed: Organization) -> set[str]:
    every: list[Any] = [each.facts for each in pieces_of(placed, "org.json") if isinstance(each, Piece)]
    attributes = [each.internal_tls_cert.names for each in placed.servers]
    return {str(_mark(facts)) for facts in every} | {str(names) for names in attributes}


@given(st.lists(st.tuples(OBJECTS, st.integers(0, 3)), max_size=12))
def test_nothing_is_dropped_and_a_second_time_changes_nothing(drawn: list[tuple[dict[str, Any], int]]) -> None:
    pieces = [piece(properties, day=day) for properties, day in drawn]
    placed = place(*pieces)
    assert {str(_mark(each.facts)) for each in pieces} <= _marks(placed)
    again = snapshot.load(snapshot.dump(placed), "org.json")
    assert again == placed
    assert place(*pieces_of(again, "org.json")) == placed
    assert place(*pieces_of(again, "org.json"), *pieces) == placed
