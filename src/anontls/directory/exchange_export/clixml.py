"""``Export-Clixml`` files: CLIXML text to :class:`CmdletObject`, one at a time [MS-PSRP 2.2.5], [PS-EXPORT-CLIXML].

The parser is expat itself, driven by callbacks: it is twice as fast here as trees of elements, and what is not needed
(the properties of a value that has a text, the serialized copies of nested objects) is passed over without a look.

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
MAX_ELEMENTS: Final = 1_000_000  # of one object, what it refers to included; a real Receive connector has 300

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
    reader = _Reader(file, set(re.findall(r"""<Ref\s[^>]*?RefId\s*=\s*["'](\d+)""", text)))
    try:
        for at in range(max(start, 0), len(text), _PIECE):
            reader.parser.Parse(text[at : at + _PIECE], False)
            yield from reader.done
            reader.done.clear()
        reader.parser.Parse("", True)
    except expat.ExpatError as e:
        line = text.count("\n", 0, max(start, 0)) + e.lineno
        reason = expat.ErrorString(e.code)
        raise reader.error(f"line {line}, column {e.offset + 1}: {reason}; is the file complete?") from None
    yield from reader.done


class _Object:
    """An ``Obj`` element that is not closed yet."""

    __slots__ = ("cut", "first", "is_top", "items", "key", "name", "properties", "ref", "scalar", "skipped", "text", "types")

    def __init__(self, name: str, ref: str | None, is_top: bool, first: int, skipped: int) -> None:
        self.name = name
        self.ref = ref
        self.is_top = is_top  # one of those that the cmdlet gave
        self.first = first  # number of its first element
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
        if self.properties:
            return self.properties
        return CUT_OFF if self.cut else self.properties or {}


class _Reader:
    """The callbacks; finished objects gather in ``done``."""

    def __init__(self, file: str, wanted: set[str]) -> None:
        self.file = file
        self.wanted = wanted
        self.done: list[CmdletObject] = []
        self.number = 1  # of the object being read
        self.elements = 0  # of it so far
        self.stack: list[tuple[str, _Object]] = []  # open elements that hold others, each with its object
        self.primitive: Callable[[str], Value] | None = None  # how to read the open element that holds text
        self.name = ""  # N of that element
        self.pieces: list[str] = []  # its text
        self.skipped = 0  # open elements that are being passed over
        self.types: dict[str, tuple[str, ...]] = {}  # TN by RefId
        self.values: dict[str, tuple[Value, int]] = {}  # Obj by RefId, with the number of its elements
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.read_on()

    def read_on(self) -> None:
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.pieces.append

    def pass_over(self, open_elements: int) -> None:
        self.skipped = open_elements
        self.parser.StartElementHandler = self.start_skipped
        self.parser.EndElementHandler = self.end_skipped
        self.parser.CharacterDataHandler = None

    def error(self, message: str) -> MalformedInput:
        names = [owner.name for tag, owner in self.stack if tag == "Obj" and owner.name]
        if self.primitive is not None and self.name:
            names.append(self.name)
        where = f"{self.file}: object {self.number}"
        return MalformedInput(f"{where}, {'.'.join(names)}" if names else where, message)

    # --- elements that count ------------------------------------------------------------------------------------------

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        if self.primitive is not None or self.elements > MAX_ELEMENTS:
            raise self.error(f"<{tag}> inside a plain value, or more than {MAX_ELEMENTS:,} elements")
        if (primitive := _PRIMITIVES.get(tag)) is not None:
            self.primitive = primitive
            self.name = attributes.get("N", "")
            self.pieces.clear()
            return
        if not self.stack:
            if tag != "Objs":
                raise self.error(f"the root is <{tag}>, not <Objs>: not written by Export-Clixml")
            self.stack.append((tag, _Object("", None, False, 0, 0)))
            return
        parent, owner = self.stack[-1]
        if tag == "Obj":
            is_top = parent == "Objs" or (parent == "LST" and owner.is_top and self.stack[-3][0] == "Objs")
            self.open_object(attributes, is_top)
        elif tag == "Ref":
            self.add(_name(attributes.get("N", "")), self.refer(attributes.get("RefId", "")))
            self.stack.append((tag, owner))
        elif parent != _PARENTS.get(tag):
            if tag in _PARENTS:
                raise self.error(f"<{tag}> inside <{parent}>")
            self.add(_name(attributes.get("N", "")), Unknown(f"<{tag}> is not an element of CLIXML that is read here"))
            self.pass_over(1)
        elif tag in _MEMBERS and not owner.is_top and (owner.text is not None or owner.items is not None):
            self.pass_over(1)  # the value is known already
        else:
            self.stack.append((tag, owner))
            if tag in _MEMBERS or tag == "DCT":
                owner.properties = owner.properties or {}
            elif tag in _LISTS:
                owner.items = []
            elif tag == "TN":
                self.types[attributes.get("RefId", "")] = ()
                owner.key = attributes.get("RefId", "")
            elif tag == "TNRef":
                owner.types = self.types.get(attributes.get("RefId", ""), ())

    def open_object(self, attributes: dict[str, str], is_top: bool, skipped: int = 0) -> None:
        if len(self.stack) > 3 * MAX_DEPTH:
            raise self.error(f"objects nested deeper than {MAX_DEPTH}")
        name = _name(attributes.get("N", ""))
        self.stack.append(("Obj", _Object(name, attributes.get("RefId"), is_top, self.elements, skipped)))

    def refer(self, ref: str) -> Value:
        if ref in self.values:
            value, elements = self.values[ref]
            self.elements += elements  # so that references to references cannot multiply
            return value
        return Unknown("a reference to an object that is not in the file before this place, or holds this one")

    def end(self, tag: str) -> None:
        if self.primitive is not None:
            self.end_primitive(tag)
            return
        _, owner = self.stack.pop()
        if tag == "Obj":
            self.end_object(owner)
        elif tag == "TN":
            self.types[owner.key] = owner.types

    def end_primitive(self, tag: str) -> None:
        pieces = self.pieces
        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
        parent, owner = self.stack[-1] if self.stack else ("", None)
        name = self.name
        if name == "SerializationData" and owner is not None and not owner.is_top:
            self.primitive = None
            return
        try:
            value = self.primitive(text) if self.primitive is not None else None
        except (ValueError, KeyError, OverflowError):
            raise self.error(f"<{tag}> holds {text[:60]!r}, which it cannot") from None
        self.primitive = None
        if parent == "Props" and owner is not None and owner.properties is not None:  # first, because most are this
            owner.properties[_name(name) if "_x" in name else name] = value
        else:
            self.add(_name(name), value, tag)

    def add(self, name: str, value: Value, tag: str = "") -> None:
        """Put ``value`` into the object or list that is open."""
        parent, owner = self.stack[-1] if self.stack else ("", None)
        if owner is None or (tag == "ToString" and parent != "Obj") or (tag == "T") != (parent == "TN"):
            raise self.error(f"<{tag}> inside <{parent or 'nothing'}>")
        if tag == "ToString":
            owner.cut = isinstance(value, str) and _is_type_name(value)
            owner.text = None if owner.cut and not owner.is_top else str(value)
        elif tag == "T":
            owner.types += (_PREFIXES.sub("", str(value)),)
        elif parent == "Props" and owner.properties is not None:
            owner.properties[name] = value
        elif parent == "MS" and owner.properties is not None:
            owner.properties.setdefault(name, value)
        elif parent in _LISTS and owner.items is not None:
            owner.items.append(value)
        elif parent == "En" and owner.properties is not None:
            if name == "Key":
                owner.key = str(value)
            else:
                owner.properties[owner.key] = value
        elif parent == "Obj":
            owner.scalar = value
        elif parent == "Objs" and isinstance(value, str):  # `"text" | Export-Clixml`
            self.give(CmdletObject(file=self.file, where="", format="clixml", properties={}, text=value))

    def end_object(self, owner: _Object) -> None:
        if owner.ref in self.wanted and owner.ref is not None:
            # of an object of its own only the text is remembered, or memory would hold the whole file
            value = (owner.text or Unknown("a reference to another object, without a text")) if owner.is_top else owner.value
            self.values[owner.ref] = value, self.elements - owner.first
        if owner.is_top:
            self.end_top_object(owner)
        elif owner.skipped:
            self.pass_over(owner.skipped)
        else:
            self.add(owner.name, owner.value)

    def end_top_object(self, owner: _Object) -> None:
        if owner.items is not None and self.stack[-1][0] == "Objs":
            return  # a list: its elements have been given
        properties = owner.properties or {}
        computer = properties.get("PSComputerName")
        self.give(
            CmdletObject(
                file=self.file,
                where=f"object {self.number}",
                format="clixml",
                properties=properties,
                types=owner.types,
                text=owner.text,
                computer=computer if isinstance(computer, str) else None,
            )
        )

    def give(self, found: CmdletObject) -> None:
        self.done.append(found)
        self.number += 1
        self.elements = 0

    # --- elements that are passed over ------------------------------------------------------------------------------

    def start_skipped(self, tag: str, attributes: dict[str, str]) -> None:
        # other objects may refer to one in here, and to its types
        if tag == "TN" or (tag == "Obj" and attributes.get("RefId") in self.wanted):
            skipped = self.skipped
            self.read_on()
            self.open_object(attributes, False, skipped)
        else:
            self.skipped += 1

    def end_skipped(self, _: str) -> None:
        self.skipped -= 1
        if not self.skipped:
            self.read_on()
