from datetime import UTC, datetime
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.directory.exchange_export.format_list import read_format_list
from anontls.errors import MalformedInput
from anontls.facts import Unknown

CONNECTORS = dedent(
    r"""
    [PS] C:\Windows\system32>Get-ReceiveConnector | Format-List


    RunspaceId                : 4f1d6ed3-81ee-4120
    AuthMechanism             : Tls, Integrated, B
                                asicAuth, Exchange
                                Server
    Banner                    :
    Bindings                  : {[::]:2525, 0.0.0.
                                0:2525}
    Comment                   : the wide one, kept
                                here
    MaxHopCount               : 60
    SuppressXAnonymousTls     : False
    TlsDomainCapabilities     : {}
    Identity                  : MBX1\Default MBX1



    WARNING: By default, only the first 1000 items are returned.
    Identity                  : MBX1\Client Proxy
    PSComputerName            : mbx1.example.org


    [PS] C:\Windows\system32>
    """
)


def read(text: str) -> list[CmdletObject]:
    return list(read_format_list(text, "x.txt"))


def value(text: str, name: str = "P") -> Value:
    (found,) = read(f"{name} : {text}\n")
    return found.properties[name]


def test_pasted_output_reads_as_its_objects() -> None:
    first, second = read(CONNECTORS)
    assert (first.file, first.where, first.format, first.types) == ("x.txt", "line 5", "format-list", ())
    assert first.properties == {
        "RunspaceId": "4f1d6ed3-81ee-4120",
        "AuthMechanism": "Tls, Integrated, BasicAuth, ExchangeServer",
        "Banner": None,
        "Bindings": ("[::]:2525", "0.0.0.0:2525"),
        "Comment": "the wide one, kepthere",
        "MaxHopCount": 60,
        "SuppressXAnonymousTls": False,
        "TlsDomainCapabilities": (),
        "Identity": "MBX1\\Default MBX1",
    }
    assert second.where == "line 22"
    assert second.computer == "mbx1.example.org"


def test_a_line_shorter_than_the_console_was_broken_at_a_blank() -> None:
    (found,) = read("Long : 12345678901234567890\nText : by default the\n       rest\n")
    assert found.properties["Text"] == "by default the rest"


def test_windows_line_ends_and_trailing_blanks_do_not_matter() -> None:
    assert [o.properties for o in read(CONNECTORS.replace("\n", "   \r\n"))] == [o.properties for o in read(CONNECTORS)]


def test_a_blank_line_inside_a_value_does_not_end_the_object() -> None:
    (found,) = read("Text : first\n\n       second\nName : x\n")
    assert found.properties == {"Text": "first second", "Name": "x"}


def test_a_property_that_stands_already_begins_a_new_object() -> None:
    assert [o.properties for o in read("A : 1\nB : 2\nA : 3\n")] == [{"A": 1, "B": 2}, {"A": 3}]


@pytest.mark.parametrize(
    "prompt", ["PS C:\\>", "PS C:\\Users\\a b> fl", "[PS] C:\\x>", "[mbx1]: PS C:\\>", "PS /home/a> x | fl", "PS>"]
)
def test_a_prompt_ends_an_object(prompt: str) -> None:
    assert [o.properties for o in read(f"A : 1\n{prompt}\nB : 2\n")] == [{"A": 1}, {"B": 2}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("True", True),
        ("False", False),
        ("25", 25),
        ("-1", -1),
        ("0", 0),
        ("007", "007"),
        ("1" * 40, "1" * 40),
        ("Unlimited", "Unlimited"),
        ("36 MB (37,748,736 bytes)", "36 MB (37,748,736 bytes)"),
        ("<I>CN=A, O=B<S>CN=C", "<I>CN=A, O=B<S>CN=C"),
        ("a : b", "a : b"),
        ("{a}", ("a",)),
        ("{a, b}", ("a", "b")),
        ("{CN=a}", ("CN=a",)),
    ],
)  # fmt: skip
def test_a_value_has_its_type(text: str, expected: Value) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["{a, b, c, d...}", "{a, b, c, d\u2026}", "CN=very long...", "CN=very long\u2026"])
def test_what_the_console_cut_off_is_unknown_and_says_the_cure(text: str) -> None:
    found = value(text)
    assert isinstance(found, Unknown)
    assert "$FormatEnumerationLimit = -1" in found.because


def test_values_that_hold_commas_are_not_guessed_apart() -> None:
    found = value("{CN=a, DC=example, CN=b, DC=example}")
    assert isinstance(found, Unknown)
    assert "commas" in found.because


def test_a_type_name_is_no_value() -> None:
    assert isinstance(value("System.Security.AccessControl.CryptoKeyAccessRule"), Unknown)


def test_bytes_are_bytes_when_they_are_all_there() -> None:
    assert value("{48, 130, 255}", "RawData") == b"0\x82\xff"
    assert value("{48, 256}", "RawData") == ("48", "256")
    assert isinstance(value("{48, 130, 3, 41...}", "RawData"), Unknown)


@pytest.mark.parametrize(
    ("text", "naive"),
    [
        ("03.12.2024 22:45:58", datetime.fromisoformat("2024-12-03T22:45:58")),
        ("3.12.2024 9:05:58", datetime.fromisoformat("2024-12-03T09:05:58")),
        ("2024-12-03 22:45:58", datetime.fromisoformat("2024-12-03T22:45:58")),
        ("2024-12-03T22:45:58", datetime.fromisoformat("2024-12-03T22:45:58")),
        ("2024/12/03 22:45", datetime.fromisoformat("2024-12-03T22:45:00")),
        ("12/30/2022 2:39:08 PM", datetime.fromisoformat("2022-12-30T14:39:08")),
        ("30/12/2022 12:39:08 AM", datetime.fromisoformat("2022-12-30T00:39:08")),
        ("30-12-2022 14:39:08", datetime.fromisoformat("2022-12-30T14:39:08")),
        ("11/11/2022 14:39:08", datetime.fromisoformat("2022-11-11T14:39:08")),
        ("10/6/2021 3:24:05 PM", None),
        ("06/10/2021 15:24:05", None),
        ("31.02.2024 22:45:58", None),
        ("2567-12-03 22:45:58", None),
        ("2024-12-03 25:45:58", None),
        ("\u0661\u0662/\u0663\u0660/\u0662\u0660\u0662\u0662 2:39", None),
        ("Dienstag, 3. Dezember 2019", None),
    ],
)
def test_a_time_without_a_zone_is_local_and_naive_when_it_reads_in_one_way(text: str, naive: datetime | None) -> None:
    for name in ("NotAfter", "WhenChanged", "ValidTo", "StartDate", "LastRetryTime"):
        assert value(text, name) == LocalTime(text, naive)


def test_a_time_with_a_zone_is_a_time() -> None:
    assert value("2019-12-03T22:47:32Z", "NotAfter") == datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC)
    assert value("2019-12-03 23:47:32+01:00", "NotAfter") == datetime(2019, 12, 3, 22, 47, 32, tzinfo=UTC)


def test_only_properties_that_hold_times_are_read_as_times() -> None:
    assert value("03.12.2024 22:45:58", "Comment") == "03.12.2024 22:45:58"
    assert value("Never", "NotAfter") == "Never"


@pytest.mark.parametrize(
    "text", ["", "\n\n", "hello", "Name Fqdn\n---- ----\nMBX1 x", '"Name","Fqdn"\n"MBX1","x"', "WARNING: x"]
)
def test_what_holds_no_property_is_an_error_with_advice(text: str) -> None:
    with pytest.raises(MalformedInput, match="no line like") as caught:
        read(text)
    assert caught.value.hint
    assert "Export-Clixml" in caught.value.hint


@pytest.mark.parametrize(
    "line", [" " * 3_000_000 + "x", "a" + " " * 3_000_000 + "b", "[" * 3_000_000, "PS C:\\" * 500_000]
)
def test_hostile_lines_take_no_time(line: str) -> None:
    assert [o.properties for o in read(f"A : 1\n\n{line}\nB : 2")][-1]["B"] == 2


def test_a_value_of_many_lines_takes_no_time() -> None:
    (found,) = read("A : 1\n" + "    x\n" * 300_000)
    assert len(str(found.properties["A"])) == 600_001 - 300_000


def test_an_object_has_a_limit_of_properties() -> None:
    with pytest.raises(MalformedInput, match="line 10001: more than 10,000 properties"):
        read("".join(f"P{n} : 1\n" for n in range(10_001)))


def no_other_error(text: str) -> None:
    try:
        for found in read_format_list(text, "x.txt"):
            assert isinstance(found, CmdletObject)
    except MalformedInput as fault:
        assert fault.where.startswith("x.txt")  # noqa: PT017


@given(st.text())
def test_any_text_gives_objects_or_malformed_input(text: str) -> None:
    no_other_error(text)


PIECES = [
    "Name",
    " : ",
    " :",
    "\n",
    "      ",
    "{",
    "}",
    ", ",
    "...",
    "NotAfter : ",
    "1/2/2000 1:2",
    "9" * 5000,
    "RawData : {",
    "=",
    "PS C:\\>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_pieces_give_objects_or_malformed_input(pieces: list[str]) -> None:
    no_other_error("".join(pieces))


@given(st.integers(0, len(CONNECTORS)), st.integers(0, 20), st.text(max_size=4))
def test_a_changed_text_gives_objects_or_malformed_input(at: int, removed: int, put: str) -> None:
    no_other_error(CONNECTORS[:at] + put + CONNECTORS[at + removed :])
