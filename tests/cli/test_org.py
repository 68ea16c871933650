"""``anontls org``: import, show, check, schema."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest

from anontls.directory import snapshot
from tests.cli.conftest import Anontls


def test_import_writes_a_snapshot_and_tells_what_it_read(anontls: Anontls, demo_export: Path, tmp_path: Path) -> None:
    output = tmp_path / "org.json"
    ran = anontls("org", "import", demo_export, "-o", output)
    assert ran.status == 0 and not ran.out
    assert "servers: 3" in ran.err and "Get-ReceiveConnector.xml" in ran.err
    assert [s.name for s in snapshot.load(output, "o").servers] == ["EDGE1", "MBX1", "MBX2"]


def test_import_to_standard_output(anontls: Anontls, demo_export: Path) -> None:
    ran = anontls("org", "import", demo_export)
    assert json.loads(ran.out)["schema"] == "anontls/org/1"


def test_import_of_an_archive_and_of_a_snapshot_give_the_same(
    anontls: Anontls, demo_export: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in demo_export.iterdir():
            file.write(path, path.name)
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert anontls("org", "import", archive, "-o", first).status == 0
    assert anontls("org", "import", first, "-o", second).status == 0
    one, two = snapshot.load(first, "1"), snapshot.load(second, "2")
    assert one.servers == two.servers and one.send_connectors == two.send_connectors


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"<Objs", b"{", b"\xff\xfe<\x00"])
def test_a_file_that_is_nothing_is_one_located_error(anontls: Anontls, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "strange.bin"
    file.write_bytes(content)
    ran = anontls("org", "import", file, "-o", tmp_path / "org.json")
    assert ran.status == 2 and "strange.bin" in ran.err and "Traceback" not in ran.err


def test_import_that_cannot_be_written(anontls: Anontls, demo_export: Path, tmp_path: Path) -> None:
    ran = anontls("org", "import", demo_export, "-o", tmp_path / "no" / "org.json")
    assert ran.status == 2 and "no/org.json" in ran.err


def test_unknown_zone(anontls: Anontls, demo_export: Path) -> None:
    assert anontls("org", "import", demo_export, "--time-zone", "Mars/Olympus").status == 2


def test_show(anontls: Anontls, org: Path) -> None:
    ran = anontls("org", "show", org)
    assert ran.status == 0
    for expected in (
        "MBX1",
        "msExchServerInternalTLSCert",
        "(implicit)",
        "mail.contoso.com",
        "SmtpRelayWithinAdSiteToEdge",
    ):
        assert expected in ran.out
    assert anontls("org", "show", org, "--server", "MBX9").status == 2


def test_expiry_lists_the_first_to_expire_first(anontls: Anontls, org: Path) -> None:
    ran = anontls("org", "show", org, "--expiry", "--as-of", "2026-11-24", "--json")
    days = [d["days_left"] for d in ran.documents()]
    assert days == sorted(days, key=lambda d: int(str(d))) and int(str(days[0])) < 0
    assert "internal transport certificate" in ran.documents()[0]["uses"]  # type: ignore[operator]


def test_check_names_the_missing_cmdlet(anontls: Anontls, demo_export: Path, tmp_path: Path) -> None:
    ran = anontls("org", "check", demo_export / "Get-ExchangeServer.xml")
    assert ran.status == 1
    for cmdlet in ("Get-ExchangeCertificate -Server MBX1", "Get-TransportService", "Get-ReceiveConnector", "Get-Queue"):
        assert cmdlet in ran.out
    german = anontls("org", "check", demo_export / "Get-ExchangeServer.xml", "--lang", "de")
    assert german.out != ran.out and "Get-ExchangeCertificate -Server MBX1" in german.out
    documents = anontls("org", "check", demo_export / "Get-ExchangeServer.xml", "--json").documents()
    assert {d["schema"] for d in documents} == {"anontls/missing/1"}


def test_the_schema_accepts_what_import_writes(anontls: Anontls, org: Path) -> None:
    schema = json.loads(anontls("org", "schema").out)
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(org.read_text())
    assert not list(validator.iter_errors(document))
    document["servers"][0]["Fqdn"] = ["not", "a", "name"]
    assert list(validator.iter_errors(document))


def test_mixed_origins_of_a_real_export(anontls: Anontls, shared: Path, tmp_path: Path) -> None:
    ran = anontls("org", "import", shared / "data/exports/solo-e19a", "-o", tmp_path / "org.json")
    assert ran.status == 0
    for expected in (
        "mixed origins",
        "solo-e19a.solo.com",
        "win-ctd3l0rgen4.exlab.dom",
        "unplaced",
        "no server of that name",
    ):
        assert expected in ran.err


def test_an_empty_folder_is_no_organisation(anontls: Anontls, tmp_path: Path) -> None:
    ran = anontls("org", "import", tmp_path)
    assert ran.status == 2 and "no file" in ran.err
