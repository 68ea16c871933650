import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.exchange_export import nrbf
from anontls.directory.exchange_export.nrbf import NrbfError, read_members
from anontls.facts import Unknown
from tests.support.clixml import END, HEADER, LIBRARY, certificate_blob, class_record, int32, string

PRIMITIVE, STRING, OBJECT, SYSTEM_CLASS, CLASS = 0, 1, 2, 3, 4
BYTE, INT32 = b"\2", b"\x08"
NULL = b"\x0a"


def one_member(kind: int, more: bytes, record: bytes) -> bytes:
    return HEADER + LIBRARY + class_record(1, "T", {"m": (kind, more)}) + record + END


def member(record: bytes) -> object:
    return read_members(one_member(OBJECT, b"", record))["m"]


def test_a_certificate_tells_services_status_and_server() -> None:
    blob = certificate_blob(
        services=27,
        status=1,
        root_ca_type=3,
        identity="MBX1.example.org\\ABCD",
        exportable=True,
        certificate=b"\x30\x82\x03\x29",
        sites=("IIS://MBX1/W3SVC/1", "IIS://MBX1/W3SVC/2"),
    )
    assert read_members(blob) == {
        "CertData": b"\x30\x82\x03\x29",
        "SelfSigned": True,
        "Status": 1,
        "RootCAType": 3,
        "Services": 27,
        "IISServices": (
            {"serviceName": "IIS://MBX1/W3SVC/1", "internalUrl": None},
            {"serviceName": "IIS://MBX1/W3SVC/2", "internalUrl": None},
        ),
        "PrivateKeyExportable": True,
        "Identity": "MBX1.example.org\\ABCD",
    }
    assert read_members(certificate_blob())["IISServices"] == ()


@pytest.mark.parametrize(
    ("primitive", "data", "expected"),
    [
        (1, b"\1", True),
        (2, b"\xff", 255),
        (3, "\u20ac".encode(), "\u20ac"),
        (5, string("1.5"), "1.5"),
        (6, struct.pack("<d", 0.5), 0.5),
        (7, b"\xff\xff", -1),
        (8, int32(-5), -5),
        (9, struct.pack("<q", -(1 << 60)), -(1 << 60)),
        (10, b"\xff", -1),
        (11, struct.pack("<f", 0.5), 0.5),
        (12, struct.pack("<q", 6_000_000_000), 6_000_000_000),
        (13, struct.pack("<Q", 1 << 62), 1 << 62),
        (14, b"\xff\xff", 65535),
        (15, b"\xff" * 4, 0xFFFFFFFF),
        (16, b"\xff" * 8, 0xFFFFFFFFFFFFFFFF),
    ],
)
def test_primitive_members_have_their_type(primitive: int, data: bytes, expected: object) -> None:
    found = read_members(one_member(PRIMITIVE, bytes([primitive]), data))["m"]
    assert found == expected
    assert type(found) is type(expected)
    assert member(b"\x08" + bytes([primitive]) + data) == expected  # MemberPrimitiveTyped


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (NULL, None),
        (b"\x06" + int32(5) + string("x" * 300), "x" * 300),
        (b"\x0f" + int32(5, 3) + BYTE + b"abc", b"abc"),
        (b"\x0f" + int32(5, 2) + INT32 + int32(1, 2), (1, 2)),
        (b"\x11" + int32(5, 3) + b"\x06" + int32(6) + string("a") + b"\x0d\x02", ("a", None, None)),
        (b"\x10" + int32(5, 4) + b"\x0e" + int32(4), (None,) * 4),
        (b"\x07" + int32(5) + b"\1" + int32(1, 1) + b"\1" + NULL, (None,)),
        (LIBRARY + class_record(5, "U", {"a": (STRING, b"")}) + NULL, {"a": None}),
        (class_record(5, "E", {"value__": (PRIMITIVE, INT32)}) + int32(27), 27),
        (b"\x09" + int32(99), Unknown("a reference to an object that is not there")),
        (b"\x09" + int32(1), {"m": Unknown("an object that refers back to itself")}),
    ],
)
def test_other_members_are_values(record: bytes, expected: object) -> None:
    assert member(record) == expected


REFUSED = {
    "empty": b"",
    "no header": b"\1" + HEADER[1:] + END,
    "version 2": HEADER[:9] + int32(2, 0) + END,
    "no root": HEADER + END,
    "no end": certificate_blob()[:-1],
    "the root is a string": HEADER + b"\x06" + int32(1) + string("x") + END,
    "a remoting call": HEADER + b"\x15" + END,
    "a class without types": HEADER + b"\x03" + int32(1) + string("T") + int32(0) + int32(2) + END,
    "an unknown class": HEADER + b"\x01" + int32(1, 7) + END,
    "an unknown type": one_member(9, b"", NULL),
    "an unknown primitive type": one_member(PRIMITIVE, b"\x63", b"\0" * 20),
    "two dimensions": one_member(OBJECT, b"", b"\x07" + int32(5) + b"\2" + int32(2, 1, 1) + b"\2" + NULL),
    "too many members": HEADER + b"\x05" + int32(1) + string("T") + int32(2**31 - 1) + END,
    "negative members": HEADER + b"\x05" + int32(1) + string("T") + int32(-1) + END,
    "an array longer than the bytes": one_member(OBJECT, b"", b"\x0f" + int32(5, 2**31 - 1) + BYTE),
    "a huge array of objects": one_member(OBJECT, b"", b"\x10" + int32(5, 2**31 - 1) + b"\x0e" + int32(2**31 - 1)),
    "a negative array": one_member(OBJECT, b"", b"\x10" + int32(5, -1)),
    "more nulls than elements": one_member(OBJECT, b"", b"\x10" + int32(5, 2) + b"\x0d\x03"),
    "no nulls": one_member(OBJECT, b"", b"\x10" + int32(5, 2) + b"\x0d\x00"),
    "negative nulls": one_member(OBJECT, b"", b"\x10" + int32(5, 2) + b"\x0e" + int32(-1)),
    "nulls for a member": one_member(OBJECT, b"", b"\x0d\x01"),
    "a string longer than the bytes": one_member(OBJECT, b"", b"\x06" + int32(5) + b"\xff\xff\xff\xff\x07"),
    "a length that does not end": one_member(OBJECT, b"", b"\x06" + int32(5) + b"\xff" * 10),
    "no UTF-8": one_member(OBJECT, b"", b"\x06" + int32(5) + b"\1\xff"),
    "deep libraries": one_member(OBJECT, b"", LIBRARY * 1_000 + NULL),
    "deep objects": HEADER
    + LIBRARY
    + class_record(1, "T", {"m": (OBJECT, b"")})
    + (b"\x01" + int32(5, 1)) * 1_000
    + END,
    "too many records": HEADER + LIBRARY * (nrbf.MAX_RECORDS + 1) + END,
    "too many bytes": HEADER + b"\0" * nrbf.MAX_BYTES,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_malformed_or_beyond_a_limit_is_refused(data: bytes) -> None:
    with pytest.raises(NrbfError):
        read_members(data)


def test_shared_references_do_not_multiply() -> None:
    levels = [b"\x10" + int32(n, 2) + b"\x09" + int32(n + 1) + b"\x09" + int32(n + 1) for n in range(5, 40)]
    data = HEADER + LIBRARY + class_record(1, "T", {"m": (OBJECT, b"")}) + b"\x09" + int32(5) + b"".join(levels) + END
    with pytest.raises(NrbfError, match="values"):
        read_members(data)


def test_a_long_chain_of_references_is_refused() -> None:
    links = [b"\x10" + int32(n, 1) + b"\x09" + int32(n + 1) for n in range(5, 5_000)]
    data = HEADER + LIBRARY + class_record(1, "T", {"m": (OBJECT, b"")}) + b"\x09" + int32(5) + b"".join(links) + END
    with pytest.raises(NrbfError, match="deeper"):
        read_members(data)


def test_every_cut_is_refused() -> None:
    blob = certificate_blob(sites=("a", "b"))
    for length in range(len(blob)):
        with pytest.raises(NrbfError):
            read_members(blob[:length])


def no_other_error(data: bytes) -> None:
    try:
        assert isinstance(read_members(data), dict)
    except NrbfError as fault:
        assert str(fault)  # noqa: PT017


@given(st.binary(max_size=200))
def test_any_bytes_give_members_or_nrbf_error(data: bytes) -> None:
    no_other_error(data)
    no_other_error(HEADER + data)
    no_other_error(HEADER + LIBRARY + class_record(1, "T", {"m": (OBJECT, b"")}) + data)


BLOB = certificate_blob(sites=("IIS://MBX1/W3SVC/1",))
INTERESTING = st.sampled_from([0, 1, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16, 17, 127, 128, 255])


@given(st.lists(st.tuples(st.integers(0, len(BLOB) - 1), INTERESTING), min_size=1, max_size=6))
def test_a_changed_blob_gives_members_or_nrbf_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(BLOB)
    for at, byte in changes:
        data[at] = byte
    no_other_error(bytes(data))
