"""``Export-Clixml`` files: CLIXML text to :class:`CmdletObject`, one at a time [MS-PSRP 2.2.5], [PS-EXPORT-CLIXML].

The parser is expat itself, driven by callbacks: no tree is built, and what is not needed (the properties of a value that
has a text, the serialized copies of nested objects) is passed over.  Half of the time is expat's; regular expressions over
text that expat has checked were measured, and are no faster.

What makes XML dangerous needs a document type declaration, external and multiplying entities alike; PowerShell never
writes one, so a file that has one is refused before the parser sees it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final
from xml.parsers import expat

from anontls.directory.exchange_export.cmdlet_object import CmdletObject, LocalTime, Value
from anontls.errors import MalformedInput
from anontls.facts import Unknown

MAX_DEPTH: Final = 64  # objects in objects; Export-Clixml goes 2 deep unless told otherwise
MAX_OBJECT: Final = 64 << 20  # bytes of one object in UTF-8; a real Receive connector has 60,000
MAX_SHARED: Final = 1_000  # elements of a list that several places refer to

CUT_OFF: Final = Unknown("cut off at the depth limit of Export-Clixml; `Export-Clixml -Depth 4` writes more")

_PIECE = 1 << 18  # characters given to the parser at a time


def read_clixml(text: str, file: str) -> Iterator[CmdletObject]:
    """The objects of a CLIXML text; those of a list that was exported as one object are given one by one.

    Raises:
        MalformedInput: not well-formed, not CLIXML, a value that is not of its type, or beyond the limits above; says
            where.  Objects before that place have been given.
    """
    if "<!DOCTYPE" in text:
        raise MalformedInput(file, "a document type declaration, which PowerShell never writes, is refused")
    start = text.find("<")  # what powershell.exe writes to a pipe begins with the line `#< CLIXML`
    if text[start : start + 8] == "< CLIXML":
        start = text.find("<", start + 1)
    # only objects that something refers to are remembered
    reader = _Reader(file, set(re.findall(r"""<Ref\s[^<>]*?RefId\s*=\s*["'](\d+)""", text)))
    try:
        for at in range(max(start, 0), len(text), _PIECE):
            reader.parser.Parse(text[at : at + _PIECE], False)
            yield from reader.done
            reader.done.clear()
            if reader.parser.CurrentByteIndex - reader.began > MAX_OBJECT:
                raise reader.error(f"an object larger than {MAX_OBJECT >> 20} MiB")
        reader.parser.Parse("", True)
    except expat.ExpatError as e:
        line = text.count("\n", 0, max(start, 0)) + e.lineno
        reason = expat.ErrorString(e.code)
        raise reader.error(f"line {line}, column {e.offset + 1}: {reason}; is the file complete?") from None
    yield from reader.done


class _Object:
    """An ``Obj`` element that is not closed yet."""

    __slots__ = ("cut", "is_top", "items", "key", "name", "properties", "ref", "scalar", "skipped", "text", "types")

    def __init__(self, name: str, ref: str, is_top: bool = False, skipped: int = 0) -> None:
        self.name = name
        self.ref = ref
        self.is_top = is_top  # one of those that the cmdlet gave
        self.skipped = skipped  # open elements that were being passed over where it stands
        self.text: str | None = None  # ToString
        self.cut = False  # ToString is but the name of the type
        self.types: tuple[str, ...] = ()
        self.scalar: Value = None
        self.items: list[Value] | None = None
        self.properties: dict[str, Value] | None = None
        self.key = ""  # of the dictionary entry being read

    @property
    def value(self) -> Value:
        """As a property of another object."""
        if self.items is not None:
            return tuple(self.items)
        if self.text is not None:
            # an enumeration: its text, which is the number where the number has no name
            return self.scalar if isinstance(self.scalar, int) and self.text == str(self.scalar) else self.text
        if self.scalar is not None:
            return self.scalar
        return CUT_OFF if self.cut and not self.properties else self.properties or {}


class _Reader:
    """The callbacks of the parser; finished objects gather in ``done``."""

    def __init__(self, file: str, wanted: set[str]) -> None:
        self.file = file
        self.wanted = wanted  # RefId of the objects that others refer to
        self.done: list[CmdletObject] = []
        self.number = 1  # of the object being read
        self.began = 0  # where the one before it ended
        #: open elements that hold others, each with its object; the first stands for what the root is in
        self.stack: list[tuple[str, _Object]] = [("", _Object("", ""))]
        self.primitive: Callable[[str], Value] | None = None  # how to read the open element that holds text
        self.name = ""  # N of that element
        self.pieces: list[str] = []  # its text
        self.collect = self.pieces.append
        self.skipped = 0  # open elements that are being passed over
        self.types: dict[str, tuple[str, ...]] = {}  # TN by RefId
        self.values: dict[str, Value] = {}  # Obj by RefId
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.read_on()

    def read_on(self) -> None:
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end

    def pass_over(self, open_elements: int) -> None:
        self.skipped = open_elements
        self.parser.StartElementHandler = self.start_skipped
        self.parser.EndElementHandler = self.end_skipped

    def error(self, message: str) -> MalformedInput:
        names = [owner.name for tag, owner in self.stack if tag == "Obj" and owner.name]
        if self.primitive is not None and self.name:
            names.append(self.name)
        where = f"{self.file}: object {self.number}"
        return MalformedInput(f"{where}, {'.'.join(names)}" if names else where, message)

    # --- elements that count ------------------------------------------------------------------------------------------

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if (primitive := _PRIMITIVES.get(tag)) is not None:
            self.primitive = primitive
            self.name = attributes.get("N", "")
            self.pieces.clear()
            self.parser.CharacterDataHandler = self.collect
            return
        if self.primitive is not None:
            raise self.error(f"<{tag}> inside a plain value")
        parent, owner = self.stack[-1]
        if tag == "Obj" and parent in _HOLDERS:
            # the elements of a list that was exported as one object are what the cmdlet gave
            is_top = parent == "Objs" or (owner.is_top and parent in _LISTS and len(self.stack) == 4)
            self.open(tag, attributes, is_top)
        elif tag == "Ref" and parent in _HOLDERS:
            unknown = Unknown("a reference to an object that is not in the file before this place, or holds this one")
            self.add(_name(attributes.get("N", "")), self.values.get(attributes.get("RefId", ""), unknown))
            self.pass_over(1)
        elif parent == _PARENTS.get(tag):
            if tag in _MEMBERS and not owner.is_top and (owner.text is not None or owner.items is not None):
                self.pass_over(1)  # the value is known already
            elif tag == "TN":
                self.open(tag, attributes)
            else:
                self.enter(tag, attributes, owner)
        elif tag in _PARENTS or not parent:
            raise self.error(f"<{tag}> inside <{parent}>" if parent else f"the root is <{tag}>, not <Objs>")
        else:
            self.add(_name(attributes.get("N", "")), Unknown(f"<{tag}> is not an element of CLIXML that is read here"))
            self.pass_over(1)

    def enter(self, tag: str, attributes: dict[str, str], owner: _Object) -> None:
        self.stack.append((tag, owner))
        if tag in _MEMBERS or tag == "DCT":
            owner.properties = owner.properties or {}
        elif tag in _LISTS:
            owner.items = []
        elif tag == "TNRef":
            owner.types = self.types.get(attributes.get("RefId", ""), ())

    def open(self, tag: str, attributes: dict[str, str], is_top: bool = False, skipped: int = 0) -> None:
        if len(self.stack) > 3 * MAX_DEPTH + 1:
            raise self.error(f"objects nested deeper than {MAX_DEPTH}")
        opened = _Object(_name(attributes.get("N", "")), attributes.get("RefId", ""), is_top, skipped)
        self.stack.append((tag, opened))

    def end(self, tag: str) -> None:
        if self.primitive is not None:
            self.end_primitive(tag, self.primitive)
            return
        if self.stack[-1][0] != tag:
            raise self.error(f"<{tag}> holds elements, but is a plain value")
        _, owner = self.stack.pop()
        if tag == "Obj":
            self.end_object(owner)
        elif tag == "TN":
            self.types[owner.ref] = types = tuple(map(str, owner.items or ()))
            if owner.skipped:
                self.pass_over(owner.skipped)
            else:
                self.stack[-1][1].types = types

    def end_primitive(self, tag: str, read: Callable[[str], Value]) -> None:
        self.parser.CharacterDataHandler = None
        text = "".join(self.pieces)
        parent, owner = self.stack[-1]
        name = self.name
        if name != "SerializationData" or owner.is_top:  # that of a nested object repeats its properties
            try:
                value = read(text)
            except (ValueError, KeyError, OverflowError):
                raise self.error(f"<{tag}> holds {text[:60]!r}, which it cannot") from None
            if name and parent == "Props" and owner.properties is not None:  # first, because most are this
                owner.properties[_name(name) if "_x" in name else name] = value
            else:
                self.add(_name(name), value, tag)
        self.primitive = None

    def add(self, name: str, value: Value, tag: str = "") -> None:
        """Put ``value`` into what is open."""
        parent, owner = self.stack[-1]
        if (tag == "ToString") > (parent == "Obj") or (tag == "T") != (parent == "TN"):
            raise self.error(f"<{tag}> inside <{parent}>")
        if parent in _LISTS and owner.items is not None:
            owner.items.append(value)
        elif parent == "Props" and owner.properties is not None:
            owner.properties[name] = value
        elif parent == "MS" and owner.properties is not None:
            owner.properties.setdefault(name, value)
        elif parent == "En" and owner.properties is not None:
            if name == "Key":
                owner.key = str(value)
            else:
                owner.properties[owner.key] = value
        elif tag == "T":
            owner.items = owner.items or []
            owner.items.append(_PREFIXES.sub("", str(value)))
        elif tag == "ToString":
            owner.text = str(value)
            if is_type_name(owner.text) and not owner.is_top:
                owner.text, owner.cut = None, True
        elif parent == "Obj":
            owner.scalar = value
        elif parent == "Objs":
            if tag == "S":  # `"text" | Export-Clixml`
                self.give({}, text=str(value))
        else:
            raise self.error(f"<{tag}> inside <{parent}>")

    def end_object(self, owner: _Object) -> None:
        if owner.ref in self.wanted:
            # of one that the cmdlet gave only the text is remembered, or memory would hold the whole file
            self.values[owner.ref] = owner.text if owner.is_top else _shareable(owner.value)
        if owner.skipped:
            self.pass_over(owner.skipped)
        elif not owner.is_top:
            self.add(owner.name, owner.value)
        elif owner.items is None or self.stack[-1][0] != "Objs":  # the elements of a list have been given
            self.give(owner.properties or {}, owner.text, owner.types)

    def give(self, properties: dict[str, Value], text: str | None, types: tuple[str, ...] = ()) -> None:
        computer = properties.get("PSComputerName")
        self.done.append(
            CmdletObject(
                file=self.file,
                where=f"object {self.number}",
                format="clixml",
                properties=properties,
                types=types,
                text=text,
                computer=computer if isinstance(computer, str) else None,
            )
        )
        self.number += 1
        self.began = self.parser.CurrentByteIndex

    # --- elements that are passed over ------------------------------------------------------------------------------

    def start_skipped(self, tag: str, attributes: dict[str, str]) -> None:
        # others may refer to an object in here, and to its types
        if tag == "TN" or (tag == "Obj" and attributes.get("RefId") in self.wanted):
            self.open(tag, attributes, skipped=self.skipped)
            self.read_on()
        else:
            self.skipped += 1

    def end_skipped(self, _: str) -> None:
        self.skipped -= 1
        if not self.skipped:
            self.read_on()


# --- values -----------------------------------------------------------------------------------------------------------

_MEMBERS = frozenset({"Props", "MS"})
_LISTS = frozenset({"LST", "IE", "QUE", "STK"})
_HOLDERS = frozenset({"Objs", "Props", "MS", "En"}) | _LISTS
_PARENTS = {
    "Objs": "",
    "Props": "Obj",
    "MS": "Obj",
    "DCT": "Obj",
    "TN": "Obj",
    "TNRef": "Obj",
    "En": "DCT",
} | dict.fromkeys(_LISTS, "Obj")

_ESCAPES = re.compile("(?:_x[0-9A-Fa-f]{4}_)+")
_PREFIXES = re.compile(r"^(?:Deserialized\.|Selected\.)+")
_TYPE_NAME = re.compile(r"(?:System|Microsoft\.Exchange|Microsoft\.PowerShell)(?:\.[A-Z]\w*)+(?:[`+\[].*)?")


def _shareable(value: Value) -> Value:
    """``value`` as others may refer to it; not one that holds others, or references to references would multiply."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    if len(inside) > MAX_SHARED or any(isinstance(element, tuple | dict) for element in inside):
        return Unknown("a reference to an object that holds many others")
    return value


def _name(text: str) -> str:
    """``text`` without the escapes of CLIXML: UTF-16 code units as ``_xHHHH_`` [MS-PSRP 2.2.5.3.2]."""
    return _ESCAPES.sub(_unescape, text) if "_x" in text else text


def _unescape(match: re.Match[str]) -> str:
    units = bytes.fromhex("".join(match[0].replace("x", "").split("_")))
    # half a surrogate pair is no character, and would be no text to anyone who writes it on
    return units.decode("utf-16-be", "replace")


def is_type_name(text: str) -> bool:
    """Whether ``text`` is what .NET says for an object that has no text of its own: the name of its type."""
    return text.startswith(("System.", "Microsoft.")) and _TYPE_NAME.fullmatch(text) is not None


def _text(text: str) -> Value:
    # where the depth ends, the text of a value is written; for most objects that is the name of their type
    if "_x" in text:
        text = _name(text)
    return CUT_OFF if is_type_name(text) else text


def _time(text: str) -> datetime | LocalTime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else LocalTime(text, time)


def _number(text: str) -> int | float:
    return float(text) if "." in text or "E" in text.upper() else int(text)


_PRIMITIVES: Final[dict[str, Callable[[str], Value]]] = {  # [MS-PSRP 2.2.5.1]
    "S": _text,
    "ToString": _name,
    "T": _name,
    "B": {"true": True, "false": False}.__getitem__,
    "C": lambda text: chr(int(text)),
    "Nil": lambda _: None,
    **dict.fromkeys(("By", "SB", "U16", "I16", "U32", "I32", "U64", "I64"), int),
    **dict.fromkeys(("Sg", "Db"), float),
    "D": _number,
    "DT": _time,
    "TS": str,  # a duration such as PT10M
    "BA": lambda text: base64.b64decode("".join(text.split()), validate=True),
    **dict.fromkeys(("G", "Version"), str),
    **dict.fromkeys(("URI", "XD", "SBK"), _name),
    "SS": lambda _: Unknown("a secure string, which only the user who exported it can read"),
}
