"""Whole exports: the one that the project makes, and real ones where they are at hand."""

import json
import os
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from anontls.directory import open_organization, snapshot
from anontls.directory.completeness import missing
from anontls.directory.demo_export import write_demo_export
from anontls.directory.exchange_export import read_export
from anontls.directory.exchange_export.cmdlets import recognise_kind
from anontls.directory.exchange_export.formats import read_objects, recognise
from anontls.directory.exchange_export.place import NO_SUCH_SERVER
from anontls.directory.exchange_export.sources import open_sources
from anontls.errors import MalformedInput
from anontls.facts import Certificate, Organization, Server, is_unknown
from anontls.selection import select
from anontls.selection.sessions import sessions

AS_OF = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_export(folder, AS_OF)
    return folder


def certificates(server: Server) -> tuple[Certificate, ...]:
    assert not is_unknown(server.certificates)
    return server.certificates


def without_sources(organization: Organization) -> Organization:
    return msgspec.structs.replace(organization, sources=())


# --- the demonstration export ----------------------------------------------------------------------------------------


def test_the_demo_shows_every_format(demo: Path) -> None:
    assert {recognise(source.data, source.name) for source in open_sources([demo])} == {"clixml", "json", "format-list"}


def test_everything_of_the_demo_has_its_place(demo: Path) -> None:
    organization = read_export([demo])
    assert (organization.name, organization.unplaced) == ("Contoso", ())
    assert [server.name for server in organization.servers] == ["EDGE1", "MBX1", "MBX2"]
    assert [len(certificates(server)) for server in organization.servers] == [1, 2, 2]
    assert [
        len(server.receive_connectors) for server in organization.servers if not is_unknown(server.receive_connectors)
    ] == [1, 6, 6]
    assert [len(server.queues) for server in organization.servers if not is_unknown(server.queues)] == [2, 2]
    assert missing(organization) == []
    assert all(source.collected and source.note is None for source in organization.sources)
    assert not any(source.objects == 0 for source in organization.sources)


def test_the_demo_has_something_to_tell(demo: Path) -> None:
    organization = open_organization(str(demo))
    told = {
        server.name: {
            step.event.id
            for facts in sessions(organization, server, AS_OF)
            for step in select(facts).steps
            if step.event
        }
        for server in organization.servers
    }
    assert told == {"EDGE1": set(), "MBX1": set(), "MBX2": {12015, 12016}}
    assert all(
        select(facts).result.value != "unknown"
        for s in organization.servers
        for facts in sessions(organization, s, AS_OF)
    )


def test_folder_archive_and_snapshot_say_the_same(demo: Path, tmp_path: Path) -> None:
    organization = read_export([demo])
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for file in demo.iterdir():
            archive.write(file, file.name)
    (tmp_path / "org.json").write_bytes(snapshot.dump(organization))
    for paths in ([tmp_path / "export.zip"], [tmp_path / "org.json"], [tmp_path / "org.json", demo], [demo, demo]):
        again = read_export(paths)
        assert without_sources(again) == without_sources(organization)
        assert [source.note for source in again.sources if source.note] == []
        assert all(source.collected for source in again.sources)
    assert read_export([tmp_path / "org.json"]).sources[:-1] == organization.sources
    assert open_organization(str(tmp_path / "org.json")) == organization


def test_files_may_come_one_after_the_other_in_any_order(demo: Path, tmp_path: Path) -> None:
    so_far = tmp_path / "org.json"
    so_far.write_bytes(snapshot.dump(Organization(schema="anontls/org/1")))
    for file in sorted(demo.iterdir(), reverse=True):
        so_far.write_bytes(snapshot.dump(read_export([so_far, file])))
    organization, whole = open_organization(str(so_far)), read_export([demo])
    assert without_sources(organization).unplaced == ()
    assert missing(organization) == []
    for one, other in zip(organization.servers, whole.servers, strict=True):
        assert sorted(map(str, certificates(one))) == sorted(map(str, certificates(other)))


def test_a_changed_object_is_taken_from_the_later_file(demo: Path, tmp_path: Path) -> None:
    service = {"Name": "MBX1", "InternalTransportCertificateThumbprint": "AB"}
    later = tmp_path / "later.json"
    later.write_text(json.dumps(service))
    os.utime(later, (4e9, 4e9))
    organization = read_export([later, demo])
    assert organization.servers[1].internal_transport_certificate_thumbprint == "AB"
    (row,) = [source for source in organization.sources if source.note]
    assert row.file == str(later)
    assert "InternalTransportCertificateThumbprint differs from" in str(row.note)


def test_a_file_with_a_fault_is_listed_in_a_folder_and_refused_by_name(demo: Path, tmp_path: Path) -> None:
    for file in demo.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "Get-Queue.txt"
    broken.write_bytes(b"<Objs")
    organization = read_export([tmp_path])
    (row,) = [source for source in organization.sources if source.note]
    assert (row.file, row.objects) == (str(broken), 0)
    assert str(row.note).startswith("not read: ")
    assert [item.key for item in missing(organization)] == ["missing.queues", "missing.queues", "finding.not-read"]
    with pytest.raises(MalformedInput):
        read_export([broken])


def test_of_a_file_with_a_fault_nothing_is_used(demo: Path, tmp_path: Path) -> None:
    text = (demo / "Get-ExchangeServer.xml").read_bytes().decode("utf-16")
    (tmp_path / "cut.xml").write_text(text[: len(text) * 2 // 3], encoding="utf-8")
    organization = read_export([tmp_path])
    assert organization.servers == ()
    assert "not read" in str(organization.sources[0].note)


def test_progress_names_each_file(demo: Path) -> None:
    told: list[str] = []
    read_export([demo], progress=told.append)
    assert told == sorted(str(file) for file in demo.iterdir())


def test_what_no_question_needs_is_counted(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"Colour": 1}, {"Colour": 2}]')
    organization = read_export([tmp_path])
    assert organization.unplaced == ()
    assert (organization.sources[0].objects, organization.sources[0].note) == (
        2,
        "holds objects of no known type, which no question needs",
    )


# --- a real export ---------------------------------------------------------------------------------------------------


@pytest.fixture
def solo(shared: Path) -> Path:
    return shared / "data/exports/solo-e19a"


def test_nothing_of_a_real_export_is_dropped(solo: Path) -> None:
    kinds: Counter[str] = Counter()
    for source in open_sources([solo]):
        kinds.update(kind.value for found in read_objects(source) if (kind := recognise_kind(found)))
    organization = read_export([solo])
    left = Counter(item.type for item in organization.unplaced)
    (server,) = organization.servers
    assert kinds["ExchangeCertificate"] == len(certificates(server)) + left["ExchangeCertificate"]
    assert kinds["ReceiveConnector"] == left["ReceiveConnector"] == 5
    assert kinds["X509Certificate2"] == left["X509Certificate2"] == 1
    assert not is_unknown(organization.accepted_domains)
    assert kinds["AcceptedDomain"] == len(organization.accepted_domains)
    assert not is_unknown(organization.send_connectors)
    assert kinds["SendConnector"] == len([c for c in organization.send_connectors if not c.implicit])
    assert sum(source.objects for source in organization.sources) == kinds.total() + 1  # HybridConfiguration


def test_a_real_export_of_several_computers(solo: Path) -> None:
    organization = read_export([solo])
    (server,) = organization.servers
    assert (organization.name, server.name, server.fqdn) == ("SoloORG", "SOLO-E19A", "Solo-E19A.Solo.com")
    assert (server.role, server.site) == ("Mailbox", "Default-First-Site-Name")
    told = {str(c.subject): (c.services, c.status, c.has_private_key, c.is_self_signed) for c in certificates(server)}
    assert told["CN=Solo-E19A"] == (27, 1, True, True)
    assert told["CN=Microsoft Exchange Server Auth Certificate"] == (16, 1, True, True)
    assert server.receive_connectors == server.queues
    assert is_unknown(server.queues)
    assert {item.because for item in organization.unplaced if item.type == "ReceiveConnector"} == {NO_SUCH_SERVER}
    (bare,) = [item for item in organization.unplaced if item.type == "X509Certificate2"]
    assert Certificate(der=msgspec.convert(bare.object["der"], bytes)).subject == "CN=E2k16-1"
    notes = {source.note for source in organization.sources}
    assert notes == {None, "holds HybridConfiguration, which no question needs"}
    computers = {computer for source in organization.sources for computer in source.computers}
    assert computers == {"solo-e19a.solo.com", "win-ctd3l0rgen4.exlab.dom", "ex-02.365labs.net"}
    assert "finding.mixed-origins" in {item.key for item in missing(organization)}
    assert snapshot.load(snapshot.dump(organization), "org.json") == organization


def test_certificates_without_a_blob_are_placed_by_hand(shared: Path, tmp_path: Path) -> None:
    server = {"Name": "E2K16-1", "Fqdn": "e2k16-1.contoso.lab", "ServerRole": "Mailbox"}
    (tmp_path / "org.json").write_text(json.dumps({"schema": "anontls/org/1", "servers": [server]}))
    broken = shared / "data/exports/variants/GetExchangeCertificateBroken.xml"
    itc = shared / "data/exports/solo-e19a/GetInternalTransportCertificateFromServer.xml"
    organization = read_export([tmp_path / "org.json", broken, itc])
    (found,) = organization.servers
    assert organization.unplaced == ()  # the only server, the cmdlet ran there, and the certificate names it
    assert len(certificates(found)) == 5
    assert all(is_unknown(c.services) and c.has_private_key for c in certificates(found))
    assert found.internal_tls_cert.names in {c.thumbprint for c in certificates(found)}
    assert [str(source.note)[:34] for source in organization.sources if source.note] == [
        "the certificates do not say whose "
    ]
