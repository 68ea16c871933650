"""One object that a cmdlet printed, whatever the format of the file it came in."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

import msgspec

from anontls.facts import Unknown

#: What a property may hold.  An enumeration is its text where the file has it, else its integer; a multi-valued
#: property is a tuple; an object without a text of its own is a dict; a time without a zone is :class:`LocalTime`;
#: what the file cut off is :class:`Unknown`.
Value: TypeAlias = (
    "None | bool | int | float | str | bytes | datetime | LocalTime | Unknown | tuple[Value, ...] | dict[str, Value]"
)


class LocalTime(msgspec.Struct, frozen=True):
    """A time as the file prints it, without a zone: a fact only together with the zone of the computer.

    ``naive`` is the reading; ``None`` when the text does not tell which number is the day and which the month.
    """

    text: str
    naive: datetime | None


class CmdletObject(msgspec.Struct, frozen=True, kw_only=True):
    """``file`` is the name as the user gave it (``export.zip/Get-Queue.xml`` inside an archive), ``where`` the place of
    the object in it (``object 3``, ``line 120``), ``types`` its .NET type names, most derived first, without the
    prefixes ``Deserialized.`` and ``Selected.``; empty where the format has none.
    """

    file: str
    where: str
    format: str  # "clixml", "json", "format-list", "certificate"
    properties: dict[str, Value]
    types: tuple[str, ...] = ()
    text: str | None = None  # ToString
    computer: str | None = None  # PSComputerName: where the cmdlet ran, not whose object it is
