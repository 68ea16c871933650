"""``ConvertTo-Json`` output of Windows PowerShell 5.1 and PowerShell 7: text to :class:`CmdletObject`.

One object or one array of objects [PS-CONVERTTO-JSON].  The elements of the array are read one by one, so that memory
holds one at a time and an error can name its line.  The reader is Python's own: unlike faster ones it tells when a key
stands twice, and which numbers are none.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from anontls.directory.exchange_export.clixml import is_type_name
from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.errors import MalformedInput
from anontls.facts import Unknown

MAX_DEPTH: Final = 64  # ConvertTo-Json goes 2 deep unless told otherwise, and 100 at most

CUT_OFF: Final = Unknown("cut off at the depth limit of ConvertTo-Json; `ConvertTo-Json -Depth 4` writes more")

#: Properties that hold bytes; their lists of numbers and base64 texts become ``bytes``.
BYTE_PROPERTIES: Final = frozenset(
    {"RawData", "SerializationData", "CertData", "InternalTransportCertificate", "TLSCertificate"}
)


def read_json(text: str, file: str) -> Iterator[CmdletObject]:
    """The objects of the text, each with the line where it begins.

    Raises:
        MalformedInput: not JSON, a key that stands twice in one object, ``NaN``, nested deeper than the limit, or
            something that is not an object; says where.  Objects before that place have been given.
    """
    for line, found in _elements(text, file):
        try:
            objects = _value("", found)
        except _TooDeepError:
            raise MalformedInput(f"{file}: line {line}", f"nested deeper than {MAX_DEPTH}") from None
        for properties in objects if isinstance(objects, tuple) else (objects,):
            if not isinstance(properties, dict):
                raise MalformedInput(f"{file}: line {line}", "not an object with properties")
            computer = properties.get("PSComputerName")
            yield CmdletObject(
                file=file,
                where=f"line {line}",
                format="json",
                properties=properties,
                computer=computer if isinstance(computer, str) else None,
            )


class _TooDeepError(Exception):
    pass


# --- the text ---------------------------------------------------------------------------------------------------------

_BLANK = re.compile(r"[ \t\r\n]*")


def _elements(text: str, file: str) -> Iterator[tuple[int, Any]]:
    """The elements of the outermost array, or the one value, each with its line number."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_float)
    line, counted = 1, 0

    def at(position: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, position), position
        return line

    def error(position: int, message: str) -> MalformedInput:
        return MalformedInput(f"{file}: line {at(max(position, counted))}", message)

    def read(position: int) -> tuple[Any, int]:
        try:
            return decoder.raw_decode(text, position)
        except json.JSONDecodeError as e:
            raise error(e.pos, f"not JSON: {e.msg}") from None
        except RecursionError:
            raise error(position, f"nested deeper than {MAX_DEPTH}") from None
        except ValueError as e:  # our own, and numbers of thousands of digits
            raise error(position, f"not JSON: {e}") from None

    def skip(position: int) -> int:
        match = _BLANK.match(text, position)
        return match.end() if match else position

    position = skip(0)
    if text[position : position + 1] == "[":
        position = skip(position + 1)
        more = text[position : position + 1] != "]"
        while more:
            started = at(position)
            found, position = read(position)
            position = skip(position)
            yield started, found
            more = text[position : position + 1] == ","
            if more:
                position = skip(position + 1)
            elif text[position : position + 1] != "]":
                raise error(position, "not JSON: `,` or `]` expected; is the file complete?")
        position += 1
    else:
        started = at(position)
        found, position = read(position)
        yield started, found
    if skip(position) != len(text):
        raise error(skip(position), "not JSON: more text behind the end; put several objects into one array")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


# --- the values -------------------------------------------------------------------------------------------------------

_MICROSOFT_DATE = re.compile(r"/Date\((-?\d{1,17})(?:[+-]\d{4})?\)/")
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: What Windows PowerShell writes beside ``value`` when it takes a plain value for an object.
_WRAPPING = frozenset(
    {"value", "Count", "DateTime", "DisplayHint", "PSComputerName", "PSShowComputerName", "RunspaceId"}
)


def _value(name: str, found: Any, depth: int = 0) -> Value:
    if depth > MAX_DEPTH:
        raise _TooDeepError
    match found:
        case str():
            return _text(name, found)
        case dict():
            if len(found) > 1 and "value" in found and _WRAPPING.issuperset(found):
                return _value(name, found["value"], depth + 1)
            if len(found) == 1 and isinstance(why := found.get("unknown"), str):
                return Unknown(_clean(why))
            return {_clean(key): _value(key, value, depth + 1) for key, value in found.items()}
        case list():
            if name in BYTE_PROPERTIES and all(type(byte) is int and 0 <= byte <= 255 for byte in found):
                return bytes(found)
            return tuple([_value(name, value, depth + 1) for value in found])
    plain: None | bool | int | float = found
    return plain


def _text(name: str, text: str) -> Value:
    if name in BYTE_PROPERTIES and (data := _bytes(text)) is not None:
        return data
    # beyond the depth limit values are turned into text: hash tables and objects like this, others to their type's name
    if (text.startswith("@{") and text.endswith("}")) or is_type_name(text):
        return CUT_OFF
    if match := _MICROSOFT_DATE.fullmatch(text):
        try:
            return _EPOCH + timedelta(milliseconds=int(match[1]))  # UTC; the offset only says where it was written
        except OverflowError:
            return Unknown(f"a date beyond the calendar: {text}")
    if _ISO_DATE.fullmatch(text):
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            return text
        return time if time.tzinfo else LocalTime(text, time)
    return _clean(text)


def _bytes(text: str) -> bytes | None:
    """Bytes written as base64, or, beyond the depth limit, as decimal numbers."""
    try:
        if " " in text:
            return bytes(map(int, text.split()))
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None


def _clean(text: str) -> str:
    # half a surrogate pair is no character, and would be no text to anyone who writes it on
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
