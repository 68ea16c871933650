import base64
import contextlib
import io
import os
import struct
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs7, pkcs12
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.exchange_export import sources
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.formats import read_objects, recognise
from anontls.directory.exchange_export.sources import SourceFile, decode, open_sources
from anontls.errors import MalformedInput, UsageError
from tests.support.clixml import clixml, exchange_server


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def names(*paths: Path) -> list[str]:
    return [source.name for source in open_sources(paths)]


# --- files, folders, archives -----------------------------------------------------------------------------------------


def test_a_file_of_any_name_with_its_time(tmp_path: Path) -> None:
    file = tmp_path / "export"
    file.write_bytes(b"data")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    (source,) = open_sources([str(file)])
    assert (source.name, source.data) == (str(file), b"data")
    assert source.modified == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert "data" not in repr(source)


def test_a_folder_gives_its_files_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.xml", "b/10.xml", "a/x.json", "z.xml", ".hidden", ".git/config", "b/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [str(Path(name).relative_to(tmp_path)) for name in names(tmp_path)]
    assert found == ["z.xml", "a/x.json", "b/10.xml", "b/2.xml"]


def test_links_to_folders_and_things_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert names(tmp_path) == [str(tmp_path / "file")]


def test_an_archive_is_known_by_its_content(tmp_path: Path) -> None:
    archive = tmp_path / "export.dat"
    archive.write_bytes(zipped({"b.xml": b"B", "sub/a.xml": b"A", ".hidden": b"", "__MACOSX/._a": b"", "sub/": b""}))
    found = list(open_sources([archive]))
    assert [(source.name, source.data, source.modified) for source in found] == [
        (f"{archive}/b.xml", b"B", None),
        (f"{archive}/sub/a.xml", b"A", None),
    ]
    assert names(tmp_path) == [f"{archive}/b.xml", f"{archive}/sub/a.xml"]


def test_control_characters_in_the_names_of_an_archive_are_not_printed(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"a\x1b[31m.xml": b""}))
    assert names(tmp_path) == [f"{tmp_path}/x.zip/a?[31m.xml"]


def test_files_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    found = open_sources([tmp_path / "a", tmp_path / "missing"])
    assert next(found).data == b"x"
    with pytest.raises(UsageError):
        next(found)


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 300])
def test_a_path_that_does_not_exist_is_a_usage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        names(tmp_path / name)


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1000)
    (tmp_path / "x").write_bytes(b"x" * 1001)
    with pytest.raises(MalformedInput, match="larger than"):
        names(tmp_path / "x")


def refused_archive(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(MalformedInput, match=match) as caught:
        names(tmp_path / "x.zip")
    assert caught.value.where.startswith(str(tmp_path / "x.zip"))


def test_an_archive_inside_an_archive_is_refused(tmp_path: Path) -> None:
    refused_archive(tmp_path, zipped({"inner": zipped({"a": b""})}), "archive inside an archive")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({"a": b"secret"}))
    data[6] |= 1  # in the entry
    data[data.rindex(b"PK\1\2") + 8] |= 1  # in the directory
    refused_archive(tmp_path, bytes(data), "encrypted")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    refused_archive(tmp_path, zipped({"a": b"\0" * (32 << 20)}), "unpacks to more")
    refused_archive(tmp_path, zipped({str(n): b"\0" * (8 << 20) for n in range(4)}), "unpacks to more")


def test_an_archive_that_lies_about_a_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1 << 20)
    data = bytearray(zipped({"a": bytes(range(256)) * (8 << 10)}))
    directory = data.rindex(b"PK\1\2")
    data[directory + 24 : directory + 28] = struct.pack("<I", 10)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(MalformedInput):
        names(tmp_path / "x.zip")


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path) -> None:
    refused_archive(
        tmp_path, zipped({str(n): b"" for n in range(10_001)}, zipfile.ZIP_STORED), "more than 10,000 files"
    )


ARCHIVE = zipped({"a.xml": b"<Objs></Objs>" * 20, "b/c.json": b"{}"})


@given(st.integers(4, len(ARCHIVE) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_archive_gives_files_or_malformed_input(
    tmp_path_factory: pytest.TempPathFactory, at: int, put: bytes, removed: int
) -> None:
    file = tmp_path_factory.mktemp("zip") / "x"
    file.write_bytes(ARCHIVE[:at] + put + ARCHIVE[at + removed :])
    try:
        names(file)
    except MalformedInput as fault:
        assert fault.where.startswith(str(file))  # noqa: PT017


# --- text -------------------------------------------------------------------------------------------------------------

TEXT = "<Objs> gr\u00fc\u00df \U0001f600"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_is_decoded_with_and_without_a_mark(encoding: str) -> None:
    assert decode(TEXT.encode(encoding), "x") == TEXT
    assert decode("\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"), "x") == TEXT
    assert decode(b"", "x") == ""


@pytest.mark.parametrize(
    ("data", "byte"),
    [
        (b"ab\xffcd", 2),
        (b"\xef\xbb\xbfab\xff", 5),
        (b"\xff\xfea\0b", 4),
        (b"\xfe\xff\0a\xd8\x00\0a", 4),
        (b"M\xfcller", 1),
    ],
)
def test_what_is_no_unicode_is_an_error_with_its_byte(data: bytes, byte: int) -> None:
    with pytest.raises(MalformedInput, match=f"byte {byte}: not UTF-") as caught:
        decode(data, "x.xml")
    assert caught.value.where == "x.xml"


@given(st.binary())
def test_any_bytes_decode_or_are_malformed_input(data: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        assert isinstance(decode(data, "x"), str)


# --- formats ----------------------------------------------------------------------------------------------------------


def objects(data: bytes) -> list[CmdletObject]:
    return list(read_objects(SourceFile("x", data)))


EXPORT = clixml(exchange_server("MBX1"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("text", "form"),
    [
        (EXPORT, "clixml"),
        ('<?xml version="1.0" encoding="utf-16"?>\r\n' + EXPORT, "clixml"),
        ("#< CLIXML\r\n" + EXPORT, "clixml"),
        ("<!-- a -->" + EXPORT, "clixml"),
        ('{"Name": "MBX1"}', "json"),
        (' [\r\n {"Name": "MBX1"}]', "json"),
        ("Name : MBX1\r\nComment : Gr\u00fc\u00dfe\r\n", "format-list"),
        ("[PS] C:\\>Get-Queue | fl\r\nName : MBX1\r\n", "format-list"),
        ("[nyc-ex1]: PS C:\\> Get-Queue | fl\r\nName : MBX1\r\n", "format-list"),
    ],
)
def test_the_form_shows_in_the_content(text: str, form: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert recognise(data) == form
    (found,) = objects(data)
    assert found.format == form
    assert found.properties["Name"] == "MBX1"


@pytest.mark.parametrize("text", ['{"schema": "anontls/org/1"}', '{"name": "X",\n "schema" : "anontls/org/1"}'])
def test_a_snapshot_is_recognised_and_left_to_its_own_reader(text: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        assert recognise(text.encode(encoding)) == "snapshot"
    with pytest.raises(MalformedInput, match="snapshot"):
        objects(text.encode())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "neither text nor a certificate"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "neither text nor a certificate"),
        (b"\0\1\2\3", "neither"),
        (b"<html><body>", "not CLIXML"),
        (b"<?xml version='1.0'?><Objects></Objects>", "not CLIXML"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><Objs/>', "document type declaration"),
        (b"", "no line like"),
        (b"M\xfcller : x", "byte 1: not UTF-8"),
    ],
)
def test_other_files_are_refused(data: bytes, match: str) -> None:
    with pytest.raises(MalformedInput, match=match):
        objects(data)


@pytest.mark.parametrize(
    "data", [b"<!---->" * 1_000 + b"x", b"MII" + b" " * 8_000 + b"!", b'{"schema"' + b" " * 1_000_000]
)
def test_hostile_heads_take_no_time(data: bytes) -> None:
    with pytest.raises(MalformedInput):
        objects(data)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_give_objects_or_malformed_input(data: bytes) -> None:
    try:
        for found in objects(data):
            assert isinstance(found, CmdletObject)
    except MalformedInput as fault:
        assert fault.where.startswith("x")  # noqa: PT017


# --- certificates -----------------------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MBX1")])
SINCE = datetime(2024, 1, 1, tzinfo=UTC)
CERTIFICATE = (
    x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 1, SINCE, SINCE + timedelta(days=1))
).sign(KEY, hashes.SHA256())  # fmt: skip
DER = CERTIFICATE.public_bytes(Encoding.DER)
PEM = CERTIFICATE.public_bytes(Encoding.PEM)
REQUEST = x509.CertificateSigningRequestBuilder(NAME).sign(KEY, hashes.SHA256())
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
SERIALIZED = struct.pack("<III", 3, 1, 4) + b"hash" + struct.pack("<III", 32, 1, len(DER)) + DER


@pytest.mark.parametrize(
    "data",
    [
        DER,
        PEM,
        b"Bag Attributes\n    friendlyName: x\n" + PEM,
        PRIVATE + PEM,
        PEM.decode().encode("utf-16"),
        PEM.replace(b"\n", b"\r\n"),
        base64.b64encode(DER),
        base64.encodebytes(DER),
        SERIALIZED,
    ],
)
def test_a_certificate_file_is_an_object_with_its_bytes(data: bytes) -> None:
    assert recognise(data) == "certificate"
    (found,) = objects(data)
    assert (found.format, found.where, found.properties) == ("certificate", "certificate 1", {"RawData": DER})


def test_several_certificates_in_one_file() -> None:
    assert [(o.where, o.properties) for o in objects(PEM + b"\n" + PEM)] == [
        ("certificate 1", {"RawData": DER}),
        ("certificate 2", {"RawData": DER}),
    ]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (pkcs7.serialize_certificates([CERTIFICATE], Encoding.DER), "PKCS#7"),
        (pkcs7.serialize_certificates([CERTIFICATE], Encoding.PEM), "PKCS7"),
        (pkcs12.serialize_key_and_certificates(b"x", KEY, CERTIFICATE, None, NoEncryption()), "PKCS#12"),
        (REQUEST.public_bytes(Encoding.DER), "not a certificate"),
        (REQUEST.public_bytes(Encoding.PEM), "REQUEST"),
        (PRIVATE, "private key without a certificate"),
        (DER[:-1], "not a certificate that can be read"),
        (PEM[:-20], "does not end"),
        (PEM.replace(b"M", b"%"), "not base64"),
        (b"-----BEGIN -----", "does not end"),
        (b"\x30\x82\xff\xff", "not a certificate"),
        (b"-----BEGIN CERTIFICATE-----\n" * 100_000, "does not end"),
    ],
)
def test_what_is_no_certificate_is_refused_by_its_name(data: bytes, match: str) -> None:
    with pytest.raises(MalformedInput, match=match) as caught:
        objects(data)
    assert caught.value.where.startswith("x")
