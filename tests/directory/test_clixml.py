import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.exchange_export import clixml as reader
from anontls.directory.exchange_export.clixml import read_clixml
from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.directory.exchange_export.formats import read_objects
from anontls.directory.exchange_export.nrbf import read_members
from anontls.directory.exchange_export.sources import open_sources
from anontls.errors import MalformedInput
from anontls.facts import Unknown, is_unknown
from tests.support.clixml import (
    Obj,
    Xml,
    certificate_blob,
    clixml,
    enumeration,
    exchange_certificate,
    exchange_server,
    multi_valued,
    parsed,
    receive_connector,
)


def read(text: str) -> list[CmdletObject]:
    return list(read_clixml(text, "x.xml"))


def value(element: str | Obj, **others: object) -> Value:
    """What property P of an object is read as."""
    inside = Xml(element) if isinstance(element, str) else element
    (found,) = read(clixml(Obj(("T",), "an object", {"P": inside, **others})))
    return found.properties["P"]


# --- objects ----------------------------------------------------------------------------------------------------------


def test_an_exported_connector_reads_as_its_properties() -> None:
    (found,) = read(clixml(receive_connector("MBX1", "Default MBX1", Comment="a\r\nb")))
    assert (found.file, found.where, found.format) == ("x.xml", "object 1", "clixml")
    assert found.types == ("Microsoft.Exchange.Data.Directory.SystemConfiguration.ReceiveConnector", "System.Object")
    assert found.text == "MBX1\\Default MBX1"
    assert found.computer == "mbx1.example.org"
    assert found.properties["AuthMechanism"] == "Tls, ExchangeServer"
    assert found.properties["Bindings"] == ("0.0.0.0:25",)
    assert found.properties["Enabled"] is True
    assert found.properties["TlsCertificateName"] is None
    assert found.properties["MaxHopCount"] == 60
    assert found.properties["Comment"] == "a\r\nb"
    assert found.properties["Server"] == "MBX1"
    assert found.properties["WhenChangedUTC"] == datetime(2024, 10, 6, 19, 24, 5, tzinfo=UTC)


def test_every_object_is_given_with_its_number_and_types() -> None:
    found = read(clixml(exchange_server("MBX1"), receive_connector("MBX1", "A"), receive_connector("MBX1", "B")))
    assert [(o.where, o.text) for o in found] == [
        ("object 1", "MBX1"),
        ("object 2", "MBX1\\A"),
        ("object 3", "MBX1\\B"),
    ]
    assert found[1].types == found[2].types != found[0].types


def test_a_list_exported_as_one_object_gives_its_elements() -> None:
    found = read(clixml(Obj(("System.Object[]",), items=[exchange_server("MBX1"), exchange_server("MBX2")])))
    assert [(o.where, o.text) for o in found] == [("object 1", "MBX1"), ("object 2", "MBX2")]


def test_a_hash_table_is_an_object_with_its_entries() -> None:
    (found,) = read(clixml(Obj(("System.Collections.Hashtable",), entries={"Name": "MBX1", "Port": 25})))
    assert found.properties == {"Name": "MBX1", "Port": 25}


def test_exported_text_is_an_object_with_only_a_text() -> None:
    assert [(o.properties, o.text) for o in read(clixml("hello", "world"))] == [({}, "hello"), ({}, "world")]


@pytest.mark.parametrize("prefix", ["Deserialized.", "Selected.", "Deserialized.Selected.", "Selected.Deserialized."])
def test_types_lose_the_prefixes_of_remoting_and_select_object(prefix: str) -> None:
    (found,) = read(clixml(Obj((f"{prefix}Microsoft.Exchange.Data.X", f"{prefix}System.Enum"), "x")))
    assert found.types == ("Microsoft.Exchange.Data.X", "System.Enum", "System.Object")


def test_types_first_seen_inside_a_value_that_is_passed_over_are_known_later() -> None:
    inner = Obj(("Inner",), "inner", {"A": 1})
    outer = Obj(("Outer",), "outer", {"Value": Obj(("Middle",), "text", {"Hidden": inner})})
    found = read(clixml(outer, inner))
    assert found[0].properties == {"Value": "text"}
    assert found[1].types == ("Inner", "System.Object")
    assert found[1].properties == {"A": 1}


def test_members_of_remoting_join_the_properties_without_replacing_them() -> None:
    (found,) = read(clixml(Obj(("T",), "x", {"Name": "own"}, {"Name": "other", "PSComputerName": "mbx1"})))
    assert found.properties == {"Name": "own", "PSComputerName": "mbx1"}
    assert found.computer == "mbx1"


def test_only_top_objects_keep_their_serialized_copy() -> None:
    nested = Obj(("T",), None, {"A": 1}, {"SerializationData": b"inner", "B": 2})
    (found,) = read(clixml(Obj(("T",), "x", {"Nested": nested}, {"SerializationData": b"outer"})))
    assert found.properties == {"Nested": {"A": 1, "B": 2}, "SerializationData": b"outer"}


def test_a_certificate_keeps_its_bytes() -> None:
    blob = certificate_blob(services=27)
    (found,) = read(clixml(exchange_certificate(b"\x30\x82\0\xff", blob)))
    assert found.properties["RawData"] == b"\x30\x82\0\xff"
    assert found.properties["SerializationData"] == blob


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ("<S{name}>a &lt;I&gt; &amp; b</S>", "a <I> & b"),
        ("<S{name}></S>", ""),
        ("<S{name} />", ""),
        ("<S{name}>a_x000D__x000A_b</S>", "a\r\nb"),
        ("<S{name}>_x005F_x000D_</S>", "_x000D_"),
        ("<S{name}>_xD83D__xDE00_</S>", "\U0001f600"),
        ("<S{name}>_xD83D_ alone</S>", "\ufffd alone"),
        ("<S{name}>_x12_ _xyz_</S>", "_x12_ _xyz_"),
        ("<C{name}>97</C>", "a"),
        ("<B{name}>true</B>", True),
        ("<I32{name}>-5</I32>", -5),
        ("<U64{name}>18446744073709551615</U64>", 18446744073709551615),
        ("<Db{name}>0.5</Db>", 0.5),
        ("<Db{name}>INF</Db>", float("inf")),
        ("<D{name}>12</D>", 12),
        ("<D{name}>1.5</D>", 1.5),
        ("<DT{name}>2021-10-06T15:24:05-04:00</DT>", datetime(2021, 10, 6, 15, 24, 5, tzinfo=timezone(timedelta(hours=-4)))),
        ("<DT{name}>2021-10-06T19:24:05.1234567Z</DT>", datetime(2021, 10, 6, 19, 24, 5, 123456, tzinfo=UTC)),
        ("<DT{name}>2021-10-06T19:24:05</DT>", LocalTime("2021-10-06T19:24:05", datetime.fromisoformat("2021-10-06T19:24:05"))),
        ("<TS{name}>PT10M</TS>", "PT10M"),
        ("<BA{name}>MII=\r\n</BA>", b"0\x82"),
        ("<BA{name}></BA>", b""),
        ("<G{name}>49ef970b-7f97-475c-a415-91e2b7744875</G>", "49ef970b-7f97-475c-a415-91e2b7744875"),
        ("<URI{name}>http://x/</URI>", "http://x/"),
        ("<Version{name}>15.2</Version>", "15.2"),
        ("<XD{name}>&lt;a/&gt;</XD>", "<a/>"),
        ("<Nil{name} />", None),
    ],
)  # fmt: skip
def test_a_plain_value_has_its_type(element: str, expected: Value) -> None:
    found = value(element)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (enumeration("Tls, ExchangeServer", 17), "Tls, ExchangeServer"),
        (enumeration("64", 64), 64),
        (multi_valued(["a", "b"]), ("a", "b")),
        (multi_valued([]), ()),
        (multi_valued([parsed("Microsoft.Exchange.Data.IPRange", "10.0.0.1", Size=1)]), ("10.0.0.1",)),
        (Obj(("T",), "only a text"), "only a text"),
        (Obj(("T",), "", {"A": 1}), ""),
        (Obj(("T",), "text", {"A": 1}), "text"),
        (Obj(("T",), None, {"A": Obj(("T",), None, {"B": 1})}), {"A": {"B": 1}}),
        (Obj(("Microsoft.Exchange.Data.Thing",), "Microsoft.Exchange.Data.Thing", {"A": 1}), {"A": 1}),
        (Obj(("System.Collections.Hashtable",), entries={"k": "v"}), {"k": "v"}),
        (Obj(("T",)), {}),
    ],
)  # fmt: skip
def test_an_object_inside_is_its_text_list_number_or_properties(found: Obj, expected: Value) -> None:
    assert value(found) == expected


def test_lists_queues_stacks_and_enumerables_are_tuples() -> None:
    for tag in ("LST", "IE", "QUE", "STK"):
        assert value(f'<Obj{{name}} RefId="90"><{tag}><I32>1</I32><Nil /></{tag}></Obj>') == (1, None)


@pytest.mark.parametrize(
    "text",
    [
        "Microsoft.Exchange.Data.MultiValuedProperty`1[[System.String, mscorlib, Version=4.0.0.0]]",
        "System.Object[]",
        "System.Collections.Hashtable",
        "Microsoft.Exchange.Data.Directory.SystemConfiguration.ReceiveConnector",
    ],
)
def test_what_the_depth_limit_cut_off_is_unknown_and_says_so(text: str) -> None:
    for element in (f"<S{{name}}>{text}</S>", f'<Obj{{name}} RefId="90"><ToString>{text}</ToString></Obj>'):
        found = value(element)
        assert isinstance(found, Unknown)
        assert "Export-Clixml" in found.because
        assert "depth" in found.because


@pytest.mark.parametrize("text", ["Microsoft Exchange", "system.example.org", "Microsoft.com", "System 5", "System"])
def test_names_that_only_look_like_types_stay(text: str) -> None:
    assert value(f"<S{{name}}>{text}</S>") == text


@pytest.mark.parametrize("element", ["<SS{name}>0100</SS>", "<XYZ{name}><S>1</S></XYZ>", '<Ref{name} RefId="999" />'])
def test_what_cannot_be_told_is_unknown(element: str) -> None:
    assert is_unknown(value(element, Q=Xml("<S{name}>after</S>")))


# --- references -------------------------------------------------------------------------------------------------------


def test_a_reference_is_the_value_of_the_object_it_names() -> None:
    text = clixml(Obj(("T",), "x", {"A": parsed("T", "here", B=1), "C": Xml('<Ref{name} RefId="1" />')}))
    assert read(text)[0].properties == {"A": "here", "C": "here"}


def test_a_reference_finds_an_object_inside_a_value_that_was_passed_over() -> None:
    inner = parsed("T", "0.0.0.0", Family=2)  # RefId 2
    text = clixml(Obj(("T",), "x", {"A": parsed("T", "host", Address=inner), "C": Xml('<Ref{name} RefId="2" />')}))
    assert read(text)[0].properties == {"A": "host", "C": "0.0.0.0"}


def test_a_reference_reaches_into_objects_before() -> None:
    first = Obj(("T",), "x", {"Org": parsed("T", "Contoso", A=1)})
    found = read(
        clixml(first, Obj(("T",), "y", {"Org": Xml('<Ref{name} RefId="1" />'), "X": Xml('<Ref{name} RefId="0" />')}))
    )
    assert found[1].properties == {"Org": "Contoso", "X": "x"}


def test_cyclic_and_forward_references_are_unknown() -> None:
    cyclic = Obj(("T",), None, {"Self": Xml('<Ref{name} RefId="1" />'), "Later": Xml('<Ref{name} RefId="2" />')})
    (found,) = read(clixml(Obj(("T",), "x", {"A": cyclic, "B": parsed("T", "later")})))
    inside = found.properties["A"]
    assert isinstance(inside, dict)
    assert is_unknown(inside["Self"])
    assert is_unknown(inside["Later"])


def test_references_to_references_do_not_multiply() -> None:
    doubling = [multi_valued(["x"])] + [multi_valued([Xml(f'<Ref RefId="{n}" />')] * 10) for n in range(1, 40)]
    (found,) = read(clixml(Obj(("T",), "x", {f"P{n}": level for n, level in enumerate(doubling)})))
    assert len(repr(found)) < 1_000_000


# --- encodings and forms of the file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", '<?xml version="1.0" encoding="utf-16"?>\r\n', "#< CLIXML\r\n", "\r\n  "])
def test_the_document_may_begin_with_a_declaration_or_the_mark_of_a_pipe(prefix: str) -> None:
    assert [o.text for o in read(prefix + clixml(exchange_server("MBX1")))] == ["MBX1"]


def test_other_whitespace_comments_and_quotes_read_the_same() -> None:
    plain = clixml(exchange_server("MBX1"), receive_connector("MBX1", "A"))
    other = re.sub(r">\s+<", "><", plain).replace('"', "'").replace("</Obj>", "</Obj><!-- here -->")
    assert read(other) == read(plain)


# --- damaged and hostile ----------------------------------------------------------------------------------------------


def refused(text: str, match: str) -> MalformedInput:
    with pytest.raises(MalformedInput, match=match) as caught:
        read(text)
    return caught.value


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE Objs [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>',
        '<!DOCTYPE Objs [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE Objs SYSTEM "http://127.0.0.1/x.dtd">',
    ],
)
def test_a_document_type_declaration_is_refused(declaration: str) -> None:
    for text in (declaration + clixml("x"), clixml("x").replace("<S>", declaration + "<S>")):
        refused(text, "document type declaration")


def test_a_fault_names_file_object_and_property() -> None:
    text = clixml(
        exchange_server("MBX1"), Obj(("T",), "x", {"Outer": Obj(("T",), None, {"Port": Xml("<I32{name}>x</I32>")})})
    )
    fault = refused(text, "'x'")
    assert fault.where == "x.xml: object 2, Outer.Port"


@pytest.mark.parametrize(
    "element",
    [
        "<B{name}>yes</B>",
        "<I32{name}>ten</I32>",
        "<I32{name}></I32>",
        "<I64{name}>" + "9" * 5000 + "</I64>",
        "<Db{name}>half</Db>",
        "<DT{name}>yesterday</DT>",
        "<BA{name}>%%%</BA>",
        "<BA{name}>MIIé</BA>",
        "<C{name}>99999999999</C>",
        "<S{name}><B>true</B></S>",
        "<S{name}><Obj></Obj></S>",
        "<Props><S N='a'>b</S></Props>",
        "<T>x</T>",
        "<ToString>x</ToString>",
        "<En><S N='Key'>a</S></En>",
    ],
)
def test_a_value_that_is_not_of_its_type_is_an_error(element: str) -> None:
    refused(clixml(Obj(("T",), "x", {"P": Xml(element)})), "x.xml: object 1")


@pytest.mark.parametrize(
    "text",
    [
        "<Objs>",
        "<S N='SerializationData'><B N='SerializationData' /></S>",
        "<S>x</S>",
        "<Objs></Obj>",
        "<Objs><Obj></Objs>",
        "<a></a>",
        "<Objs/><Objs/>",
        "<Objs>&x;</Objs>",
    ],
)
def test_what_is_no_clixml_is_an_error(text: str) -> None:
    refused(text, "x.xml")


@pytest.mark.parametrize(
    "opening", ["<Obj>", "<Obj><Props>", '<Obj RefId="1"><Props>', "<Obj><LST>", "<Obj><DCT><En>", "<X>"]
)
def test_a_hundred_thousand_levels_are_refused_or_passed_over(opening: str) -> None:
    refused("<Objs>" + opening * 100_000, "x.xml: object")
    refused('<Objs><Ref RefId="1" /><Obj><Props><Obj><ToString/><Props>' + opening * 100_000, "x.xml: object")


def test_an_object_larger_than_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OBJECT", 1 << 20)
    refused(clixml(Obj(("T",), "x", {"A": multi_valued("x" * 100 for _ in range(20_000))})), "larger than")
    assert len(read(clixml(*(exchange_server(f"MBX{n}") for n in range(2_000))))) == 2_000


@pytest.mark.parametrize(
    "text",
    [
        "<Ref " * 400_000,
        "<Objs><Obj><TN>" + "<T>a</T>" * 200_000,
        "<Objs><Obj><Props>" + '<S N="a">b</S>' * 200_000,
        '<Objs Version="1.1.0.1">' + "_x0041_" * 300_000,
        "<!-- " * 400_000,
    ],
    ids=["references", "types", "properties", "escapes", "comments"],
)
def test_hostile_repetition_takes_no_time(text: str) -> None:
    refused(text, "x.xml")


def test_a_file_cut_anywhere_gives_its_whole_objects_and_then_an_error() -> None:
    text = clixml(*(receive_connector("MBX1", f"C{n}") for n in range(20)))
    whole = read(text)
    for part in range(1, 50):
        given: list[CmdletObject] = []
        with pytest.raises(MalformedInput, match="is the file complete"):
            given.extend(read_clixml(text[: len(text) * part // 50], "x.xml"))
        assert given == whole[: len(given)]


def no_other_error(text: str) -> None:
    try:
        for found in read_clixml(text, "x.xml"):
            assert isinstance(found, CmdletObject)
    except MalformedInput as fault:
        assert fault.where.startswith("x.xml")  # noqa: PT017


@given(st.text())
def test_any_text_gives_objects_or_malformed_input(text: str) -> None:
    no_other_error(text)


VALID = clixml(
    exchange_server("MBX1"), receive_connector("MBX1", "Default"), exchange_certificate(b"\x30\x82", b"\0\1")
)
FRAGMENTS = [
    "<",
    ">",
    "</Obj>",
    "<Obj>",
    '<Obj N="x" RefId="1">',
    "<LST>",
    "<DCT>",
    '<Ref RefId="1" />',
    "<T>",
    "&#0;",
    "<!--",
    "]]>",
]


@given(st.data())
def test_a_changed_file_gives_objects_or_malformed_input(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(VALID)))
    removed = data.draw(st.integers(0, 40))
    put = data.draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)))
    no_other_error(VALID[:at] + put + VALID[at + removed :])


elements = re.findall(r"</?\w+[^>]*>[^<]*", VALID)


@given(st.lists(st.sampled_from([*elements, *FRAGMENTS]), max_size=30))
def test_shuffled_elements_give_objects_or_malformed_input(pieces: list[str]) -> None:
    no_other_error("<Objs>" + "".join(pieces) + "</Objs>")


values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1, max_size=10), values, max_size=5))
def test_what_is_written_is_read_back(properties: dict[str, object]) -> None:
    def as_read(written: object) -> object:
        return tuple(map(as_read, written)) if isinstance(written, list) else written

    try:
        text = clixml(Obj(("T",), "x", properties))
        text.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair
    (found,) = read(text)
    assert found.properties == {name: as_read(written) for name, written in properties.items()}


# --- real files -------------------------------------------------------------------------------------------------------


def test_real_exports_are_read_whole(shared: Path) -> None:
    objects = {
        Path(source.name).name: list(read_objects(source))
        for source in open_sources(
            [shared / "data" / "exports" / "solo-e19a", shared / "data" / "exports" / "variants"]
        )
    }
    assert {name: len(found) for name, found in objects.items()} == {
        "GetAcceptedDomain.xml": 3,
        "GetExchangeCertificate.xml": 3,
        "GetExchangeCertificateBroken.xml": 5,
        "GetExchangeServer.xml": 1,
        "GetHybridConfiguration.xml": 1,
        "GetInternalTransportCertificateFromServer.xml": 1,
        "GetMailboxServer.xml": 1,
        "GetReceiveConnector.xml": 5,
        "GetReceiveConnectorEmptyTlsCertificateName.xml": 5,
        "GetSendConnector.xml": 1,
    }
    everything = [found for group in objects.values() for found in group]
    assert [v for found in everything for v in found.properties.values() if is_unknown(v)] == []
    (connector,) = objects["GetSendConnector.xml"]
    assert connector.properties["SourceIPAddress"] == "0.0.0.0"  # refers to an object inside a smart host
    assert connector.properties["AddressSpaces"] == ("SMTP:*;1",)
    assert {c.types[0].rpartition(".")[2] for c in objects["GetReceiveConnector.xml"]} == {"ReceiveConnector"}


def test_real_certificates_tell_their_services_status_and_server(shared: Path) -> None:
    (source,) = open_sources([shared / "data" / "exports" / "solo-e19a" / "GetExchangeCertificate.xml"])
    blobs = [found.properties["SerializationData"] for found in read_objects(source)]
    members = [read_members(blob) for blob in blobs if isinstance(blob, bytes)]
    assert [(m["Services"], m["Status"], m["RootCAType"]) for m in members] == [(16, 1, 0), (27, 1, 3), (0, 1, 3)]
    assert all(str(m["Identity"]).startswith("Solo-E19A.Solo.com\\") for m in members)


def test_every_real_blob_is_read(shared: Path) -> None:
    read_blob: Callable[[bytes], object] = read_members
    blobs = 0
    for source in open_sources([shared / "data" / "exports" / "solo-e19a"]):
        for found in read_objects(source):
            blob = found.properties.get("SerializationData")
            if isinstance(blob, bytes):
                assert read_blob(blob)
                blobs += 1
    assert blobs >= 10
