"""Pasted ``Format-List`` output: text to :class:`CmdletObject`, one at a time.

The least that an administrator can give, and the least that can be told from it: values are printed for people, so
what the console cut off, and what reads in two ways, becomes :class:`Unknown` or stays text.  Property names are never
localised; dates are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from anontls.directory.exchange_export.clixml import is_type_name
from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.errors import MalformedInput
from anontls.facts import Unknown

MAX_PROPERTIES: Final = 10_000  # of one object
MAX_NAME: Final = 256

CUT_OFF: Final = Unknown(
    "cut off by the console (`$FormatEnumerationLimit = -1` and `Format-List | Out-String -Width 4096` avoid that)"
)

#: Where the prompts of Windows PowerShell, PowerShell 7 and the Exchange Management Shell stand, also in a remote session.
_PROMPT = re.compile(r"(?:\[[^\]]{1,256}\]:? ?)?(?:PS )?(?:[A-Za-z]:\\|/|~)[^>]{0,1024}>|PS>|>>")


def read_format_list(text: str, file: str) -> Iterator[CmdletObject]:
    """The objects of the text, each with the line where it begins.

    Objects are apart by blank lines; a property that stands already begins a new one too.  Lines that are neither
    property nor continuation (prompts, warnings, other output) are passed over.

    Raises:
        MalformedInput: no property in the whole text, or more in one object than the limit.
    """
    found = False
    for line, printed in _blocks(text, file):
        found = True
        properties = {name: _value(name, value) for name, value in printed.items()}
        computer = properties.get("PSComputerName")
        yield CmdletObject(
            file=file,
            where=f"line {line}",
            format="format-list",
            properties=properties,
            computer=computer if isinstance(computer, str) else None,
        )
    if not found:
        raise MalformedInput(
            file,
            "not CLIXML, JSON or a certificate, and no line like `Name : value`",
            hint="Write it with `Export-Clixml`; tables (Format-Table) and CSV lose what is needed.",
        )


def _blocks(text: str, file: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The properties of each object, unread, with the number of its first line.

    Format-List breaks a value where the console ends, and indents the rest to the column of the values.  Copying
    removes blanks at line ends, so a line as long as the longest was broken inside a word and is joined to the next
    without a blank; a shorter one was broken at a blank, or in the value itself, and is joined with one.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    starts = [_property(line) for line in lines]
    width = max((len(line) for line, start in zip(lines, starts, strict=True) if start or line[:1] == " "), default=0)
    properties: dict[str, list[str]] = {}
    first, name, column, previous, apart = 0, "", 0, 0, False
    for number, (line, start) in enumerate(zip(lines, starts, strict=True), 1):
        if not line:
            apart = True
        elif name and line[:column].isspace():  # even behind a blank line, which then belongs to the value
            properties[name].append(("" if previous >= width else " ") + line[column:])
            previous, apart = len(line), False
        elif start is None:
            name = ""
            apart = apart or _PROMPT.match(line) is not None
        else:
            if properties and (apart or start[0] in properties):
                yield first, _joined(properties)
                properties = {}
            first = first if properties else number
            name, column = start
            properties[name] = [line[column:]]
            previous, apart = len(line), False
            if len(properties) > MAX_PROPERTIES:
                raise MalformedInput(f"{file}: line {number}", f"more than {MAX_PROPERTIES:,} properties in one object")
    if properties:
        yield first, _joined(properties)


def _joined(properties: dict[str, list[str]]) -> dict[str, str]:
    return {name: "".join(pieces) for name, pieces in properties.items()}


def _property(line: str) -> tuple[str, int] | None:
    """The name that a line begins with, and the column of its value."""
    at = line.find(" :", 0, MAX_NAME)
    name = line[: max(at, 0)].rstrip()
    if not name or name[0] == " " or ":" in name or (">" in line and _PROMPT.match(line)):
        return None
    return name, at + 3


# --- values -----------------------------------------------------------------------------------------------------------

_BYTE = re.compile(r"1?\d?\d|2[0-4]\d|25[0-5]", re.ASCII)
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}", re.ASCII)
_DATED_NAME = re.compile(r"(?:NotBefore|NotAfter|Valid\w*|\w*Date|\w*Time|When\w*)(?:UTC|Utc)?")
_DATE = re.compile(
    r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})[ T](\d{1,2})[:.](\d\d)(?:[:.](\d\d)(?:\.\d+)?)? ?([AaPp]\.?[Mm]\.?)?(Z|[+-]\d\d:\d\d)?",
    re.ASCII,
)


def _value(name: str, text: str) -> Value:
    text = text.strip()
    if not text:
        return None
    if text.endswith(("...", "…", "...}", "…}")):
        return CUT_OFF
    if text.startswith("{") and text.endswith("}"):
        return _values(name, text[1:-1])
    if text in ("True", "False"):
        return text == "True"
    if is_type_name(text):
        return Unknown(f"printed only as {text}")
    if _DATED_NAME.fullmatch(name) and any(c.isdigit() for c in text):
        return _date(text)
    return int(text) if _INTEGER.fullmatch(text) else text


def _values(name: str, text: str) -> Value:
    elements = tuple(text.split(", ")) if text else ()
    if name in {"RawData", "SerializationData"} and all(_BYTE.fullmatch(e) for e in elements):
        return bytes(map(int, elements))
    if len(elements) > 1 and "=" in text:
        return Unknown(f"does not tell where its values end, because they hold commas: {{{text}}}")
    return elements


def _date(text: str) -> datetime | LocalTime:
    """A time as some culture prints it; a number above 12, or dots, tell which is the day."""
    match = _DATE.fullmatch(text)
    if not match:
        return LocalTime(text, None)
    first, separator, second, third = int(match[1]), match[2], int(match[3]), int(match[4])
    hour, half = int(match[5]), (match[8] or "").lower()[:1]
    if len(match[1]) == 4:
        year, month, day = first, second, third
    elif separator == "." or first > 12 or first == second:
        year, month, day = third, second, first
    elif second > 12:
        year, month, day = third, first, second
    else:
        return LocalTime(text, None)
    if not 1601 <= year < 2400 and year != 9999:  # other calendars count other years
        return LocalTime(text, None)
    if half and 1 <= hour <= 12:
        hour = hour % 12 + (12 if half == "p" else 0)
    try:
        naive = datetime(year, month, day, hour, int(match[6]), int(match[7] or 0))  # noqa: DTZ001
        zone = match[9] and datetime.fromisoformat(f"2000-01-01T00:00{match[9]}").tzinfo
    except ValueError:
        return LocalTime(text, None)
    return naive.replace(tzinfo=zone) if zone else LocalTime(text, naive)
