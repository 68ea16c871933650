import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.directory.exchange_export.json_output import read_json
from anontls.errors import MalformedInput
from anontls.facts import Unknown


def read(text: str) -> list[CmdletObject]:
    return list(read_json(text, "x.json"))


def value(text: str, name: str = "P") -> Value:
    """What a property is read as; ``text`` is JSON."""
    (found,) = read(f'{{"{name}": {text}}}')
    return found.properties[name]


def test_one_object_and_an_array_of_objects() -> None:
    (found,) = read('{"Name": "MBX1", "PSComputerName": "mbx1.example.org"}')
    assert (found.file, found.where, found.format, found.types) == ("x.json", "line 1", "json", ())
    assert found.computer == "mbx1.example.org"
    objects = read('[\n  {"Name": "MBX1"},\n  {"Name": "MBX2"\n}, {"Name": "MBX3"}\n]\n')
    assert [(o.where, o.properties) for o in objects] == [
        ("line 2", {"Name": "MBX1"}),
        ("line 3", {"Name": "MBX2"}),
        ("line 4", {"Name": "MBX3"}),
    ]
    assert read("[]") == []


def test_the_array_that_windows_powershell_wraps() -> None:
    assert [o.properties for o in read('{"value": [{"Name": "A"}, {"Name": "B"}], "Count": 2}')] == [
        {"Name": "A"},
        {"Name": "B"},
    ]
    assert value('{"value": ["a", "b"], "Count": 2}') == ("a", "b")
    assert value('{"value": "text", "PSComputerName": "m", "RunspaceId": "r", "PSShowComputerName": false}') == "text"
    assert value('{"value": 1, "Other": 2}') == {"value": 1, "Other": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", None),
        ("true", True),
        ("17", 17),
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("0.5", 0.5),
        ('"a\\u00e9"', "a\u00e9"),
        ('["a", null]', ("a", None)),
        ("[1, 2]", (1, 2)),
        ('{"Domain": "mbx1.example.org"}', {"Domain": "mbx1.example.org"}),
        ('"\\/Date(1575413252000)\\/"', datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC)),
        ('"\\/Date(1575413252000+0100)\\/"', datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC)),
        ('"\\/Date(-62135596800000)\\/"', datetime(1, 1, 1, tzinfo=UTC)),
        (
            '{"value": "\\/Date(1575413252000)\\/", "DisplayHint": 2, "DateTime": "Dienstag, 3. Dezember 2019 23:47:32"}',
            datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC),
        ),
        ('"2019-12-03T22:47:32Z"', datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC)),
        ('"2019-12-03T23:47:32.1234567+01:00"', datetime(2019, 12, 3, 23, 47, 32, 123456, tzinfo=timezone(timedelta(hours=1)))),
        ('"2019-12-03T22:47:32"', LocalTime("2019-12-03T22:47:32", datetime.fromisoformat("2019-12-03T22:47:32"))),
        ('"2019-13-03T22:47:32"', "2019-13-03T22:47:32"),
        ('{"unknown": "no source"}', Unknown("no source")),
        ('{"unknown": 5}', {"unknown": 5}),
        ('"\\ud800 alone"', "\ufffd alone"),
    ],
)  # fmt: skip
def test_a_value_has_its_type(text: str, expected: Value) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["[48, 130, 255]", '"MIL/"', '"48 130 255"', '{"value": [48, 130, 255], "Count": 3}'])
@pytest.mark.parametrize("name", ["RawData", "SerializationData"])
def test_bytes_are_lists_of_numbers_base64_or_numbers_between_blanks(text: str, name: str) -> None:
    assert value(text, name) == b"0\x82\xff"


@pytest.mark.parametrize("text", ["[48, 256]", "[48, true]", '["48"]'])
def test_other_lists_stay_lists(text: str) -> None:
    assert isinstance(value(text, "RawData"), tuple)
    assert value("[25, 587]", "Ports") == (25, 587)


@pytest.mark.parametrize(
    "text",
    [
        '"@{Domain=mbx1.example.org; Length=5}"',
        '"System.Collections.Hashtable"',
        '"System.Byte[]"',
        '"Microsoft.Exchange.Data.MultiValuedProperty`1[Microsoft.Exchange.Data.IPRange]"',
    ],
)
@pytest.mark.parametrize("name", ["P", "RawData"])
def test_what_the_depth_limit_cut_off_is_unknown_and_says_so(text: str, name: str) -> None:
    found = value(text, name)
    assert isinstance(found, Unknown)
    assert "depth limit of ConvertTo-Json" in found.because


@pytest.mark.parametrize(
    ("text", "line", "match"),
    [
        ("", 1, "not JSON"),
        ("{", 1, "not JSON"),
        ('[{"a": 1},\n{"b": }]', 2, "not JSON"),
        ('[{"a": 1}\n{"b": 2}]', 2, "complete"),
        ('[{"a": 1},\n{"b": 2}', 2, "complete"),
        ('[{"a": 1},\n]', 2, "not JSON"),
        ('{"a": 1}\n{"b": 2}', 2, "more text"),
        ('[{"a": 1},\n{"b": 2, "b": 3}]', 2, "'b' stands twice"),
        ('{"a": NaN}', 1, "NaN"),
        ('{"a": -Infinity}', 1, "Infinity"),
        ('{"a": 1e999}', 1, "too large"),
        ('{"a": ' + "9" * 5000 + "}", 1, "not JSON"),
        ('[{"a": 1},\n2]', 2, "not an object"),
        ("[[1]]", 1, "not an object"),
        ("null", 1, "not an object"),
        ("[" * 100_000, 1, "deeper"),
        ('[{"a":' * 100_000, 1, "deeper"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", 1, "deeper"),
        ('{"a": 1}\0', 1, "more text"),
    ],
)
def test_a_fault_names_its_line(text: str, line: int, match: str) -> None:
    with pytest.raises(MalformedInput, match=match) as caught:
        read(text)
    assert caught.value.where == f"x.json: line {line}"


def test_objects_before_the_fault_have_been_given() -> None:
    objects = read_json('[{"a": 1}, {"a": 2}, {"a": ]', "x.json")
    assert [next(objects).properties, next(objects).properties] == [{"a": 1}, {"a": 2}]
    with pytest.raises(MalformedInput):
        next(objects)


def no_other_error(text: str) -> None:
    try:
        for found in read_json(text, "x.json"):
            assert isinstance(found, CmdletObject)
            repr(found).encode()
    except MalformedInput as fault:
        assert fault.where.startswith("x.json: line ")  # noqa: PT017


@given(st.text())
def test_any_text_gives_objects_or_malformed_input(text: str) -> None:
    no_other_error(text)


TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"a"',
    '"value"',
    '"unknown"',
    '"RawData"',
    "1",
    "-",
    "1e5",
    "null",
    "NaN",
    '"\\ud800"',
    "\n",
]


@given(st.lists(st.sampled_from([*TOKENS, '"\\/Date(99999999999999999)\\/"', '"0001-01-01T00:00:00Z"']), max_size=40))
def test_any_tokens_give_objects_or_malformed_input(tokens: list[str]) -> None:
    no_other_error("".join(tokens))


json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), json_values), st.data())
def test_a_changed_file_gives_objects_or_malformed_input(properties: dict[str, object], data: st.DataObject) -> None:
    text = json.dumps([properties, properties], ensure_ascii=data.draw(st.booleans()))
    objects = [o.properties for o in read(text)]
    assert len(objects) == 2
    assert list(objects[0]) == list(properties)
    at = data.draw(st.integers(0, len(text)))
    no_other_error(text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 5)) :])
