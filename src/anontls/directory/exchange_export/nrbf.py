"""The members of the object in a ``SerializationData`` blob: .NET's binary format, read as plain values.

``Services``, ``Status``, ``RootCAType`` and the server of a certificate stand nowhere else in an export of
``Get-ExchangeCertificate`` [FACT C 7.2].  Only the records that a graph of classes with typed members needs are read;
remoting calls, classes without types and arrays of several dimensions are refused.  A record fills a dict, a list or a
plain value: no type is ever looked up, nothing is ever called.

Why not the package ``nrbf`` 0.1.2 from PyPI: it reads all real blobs, but it is not bounded.  Four bytes that say
"2,147,483,647 nulls" take all memory, an object that refers to itself ends in ``RecursionError``, shared references
multiply (a kilobyte becomes 2^30 values), and a changed byte raises ``IndexError``, ``KeyError`` or ``struct.error``
instead of its own error.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from anontls.directory.exchange_export.cmdlet_object import Value
from anontls.facts import Unknown

MAX_BYTES: Final = 4 << 20  # a real one has up to 70,000
MAX_RECORDS: Final = 100_000
MAX_ITEMS: Final = 100_000  # elements of all object arrays together, and values of the answer
MAX_MEMBERS: Final = 1_000  # of one class
MAX_DEPTH: Final = 64


class NrbfError(ValueError):
    """The bytes are not such a graph of objects, or one beyond the limits above; says at which byte."""


class _Class(NamedTuple):
    name: str
    members: list[str]
    primitives: list[int | None]  # the primitive type of a member that stands there without a record [MS-NRBF 2.3.1.2]


class _Instance(NamedTuple):
    class_name: str
    members: dict[str, _Raw]


class _Reference(NamedTuple):
    object_id: int


class _Nulls(NamedTuple):
    length: int


_Raw: TypeAlias = "None | bool | int | float | str | bytes | list[_Raw] | _Instance | _Reference | _Nulls"


class _Record:
    """RecordTypeEnumeration [MS-NRBF 2.1.2.1], as far as it is read."""

    HEADER = 0
    CLASS_WITH_ID = 1
    SYSTEM_CLASS = 4
    CLASS = 5
    STRING = 6
    BINARY_ARRAY = 7
    PRIMITIVE = 8
    REFERENCE = 9
    NULL = 10
    END = 11
    LIBRARY = 12
    NULLS_256 = 13
    NULLS = 14
    PRIMITIVES = 15
    OBJECTS = 16
    STRINGS = 17


# Primitive types [MS-NRBF 2.1.2.3]; TimeSpan and DateTime stay numbers of ticks.  Char, Decimal and String are text.
_BYTE = 2
_FORMATS = {
    1: "?",
    2: "B",
    6: "d",
    7: "h",
    8: "i",
    9: "q",
    10: "b",
    11: "f",
    12: "q",
    13: "Q",
    14: "H",
    15: "I",
    16: "Q",
}
_CHAR, _DECIMAL, _TEXT = 3, 5, 18

_LIST = "System.Collections.Generic.List`1"  # an array of which the first _size elements count


def read_members(data: bytes) -> dict[str, Value]:
    """The members of the root object.

    An enumeration is its integer, an array of bytes is ``bytes``, a ``List<T>`` and any other array is a tuple, another
    object is a dict; what refers back to itself is :class:`Unknown`.

    Raises:
        NrbfError: see there.
    """
    reader = _Reader(data)
    root = reader.read()
    if not isinstance(root, _Instance):
        raise NrbfError("the root object is not an instance of a class")
    answer = _Answer(reader.objects)
    return {name: answer.value(raw) for name, raw in root.members.items()}


class _Reader:
    """Reads records one after the other; ``objects`` fills with all that other records may refer to."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise NrbfError(f"{len(data):,} bytes are more than {MAX_BYTES:,}")
        self.data = data
        self.size = len(data)
        self.at = 0
        self.records = 0
        self.items = 0
        self.objects: dict[int, _Raw] = {}
        self.classes: dict[int, _Class] = {}

    def read(self) -> _Raw:
        """The root object [MS-NRBF 2.7]."""
        if self.byte() != _Record.HEADER:
            raise NrbfError("no SerializedStreamHeader [MS-NRBF 2.6.1] at byte 0")
        root, _, major, _ = (self.int32() for _ in range(4))
        if major != 1:
            raise self.error(f"major version {major}, not 1")
        while (kind := self.byte()) != _Record.END:
            self.record(kind, 0)
        if root not in self.objects:
            raise self.error(f"the root object {root} is missing")
        return self.objects[root]

    def record(self, kind: int, depth: int) -> _Raw:
        """One record whose type byte has been read."""
        self.records += 1
        if self.records > MAX_RECORDS or depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_RECORDS:,} records, or nested deeper than {MAX_DEPTH}")
        match kind:
            case _Record.CLASS_WITH_ID | _Record.SYSTEM_CLASS | _Record.CLASS:
                return self.instance(kind, depth)
            case _Record.STRING:
                object_id = self.int32()
                return self.keep(object_id, self.string())
            case _Record.BINARY_ARRAY | _Record.PRIMITIVES | _Record.OBJECTS | _Record.STRINGS:
                return self.array(kind, depth)
            case _Record.PRIMITIVE:
                return self.primitive(self.byte())
            case _Record.REFERENCE:
                return _Reference(self.int32())
            case _Record.NULL:
                return None
            case _Record.LIBRARY:  # stands before the record of a class that it holds; its name is not needed
                self.int32()
                self.string()
                return self.record(self.byte(), depth + 1) if depth else None
            case _Record.NULLS_256:
                return _Nulls(self.byte())
            case _Record.NULLS:
                return _Nulls(self.int32())
        raise self.error(f"a record of type {kind} is not read here")

    def instance(self, kind: int, depth: int) -> _Raw:
        """ClassWithId, SystemClassWithMembersAndTypes, ClassWithMembersAndTypes [MS-NRBF 2.3.2]."""
        object_id = self.int32()
        if kind == _Record.CLASS_WITH_ID:
            metadata_id = self.int32()
            if metadata_id not in self.classes:
                raise self.error(f"class {metadata_id} is not defined")
            definition = self.classes[metadata_id]
        else:
            definition = self.class_definition()
            if kind == _Record.CLASS:
                self.int32()  # library
        self.classes[object_id] = definition
        members: dict[str, _Raw] = {}
        for name, primitive in zip(definition.members, definition.primitives, strict=True):
            if primitive is not None:
                members[name] = self.primitive(primitive)
            elif isinstance(value := self.record(self.byte(), depth + 1), _Nulls):
                raise self.error(f"several nulls for the one member {name}")
            else:
                members[name] = value
        return self.keep(object_id, _Instance(definition.name, members))

    def class_definition(self) -> _Class:
        """ClassInfo and MemberTypeInfo [MS-NRBF 2.3.1.1], [MS-NRBF 2.3.1.2]."""
        name = self.string()
        count = self.int32()
        if not 0 <= count <= MAX_MEMBERS:
            raise self.error(f"a class with {count} members")
        members = [self.string() for _ in range(count)]
        return _Class(name, members, [self.member_type(kind) for kind in self.take(count)])

    def member_type(self, binary_type: int) -> int | None:
        """The primitive type of a BinaryTypeEnumeration value that is one, its additional data read past."""
        match binary_type:
            case 0:
                return self.byte()
            case 3:  # SystemClass: its name
                self.string()
            case 4:  # Class: its name and library
                self.string()
                self.int32()
            case 7:  # PrimitiveArray: the type of its elements
                self.byte()
            case 1 | 2 | 5 | 6:
                pass
            case _:
                raise self.error(f"no such type: {binary_type}")
        return None

    def array(self, kind: int, depth: int) -> _Raw:
        """BinaryArray of one dimension, ArraySinglePrimitive, ArraySingleObject, ArraySingleString [MS-NRBF 2.4.3]."""
        object_id = self.int32()
        primitive: int | None = None
        if kind == _Record.BINARY_ARRAY:
            if (shape := self.byte()) > 1 or self.int32() != 1:  # 0 single, 1 jagged
                raise self.error(f"an array of several dimensions or with an offset (shape {shape})")
            length = self.int32()
            primitive = self.member_type(self.byte())
        else:
            length = self.int32()
            if kind == _Record.PRIMITIVES:
                primitive = self.byte()
        if primitive == _BYTE:
            return self.keep(object_id, self.take(length))
        self.items += max(length, 0)
        if length < 0 or self.items > MAX_ITEMS:
            raise self.error(f"an array of {length:,} elements; at most {MAX_ITEMS:,} in all")
        if primitive is not None:
            return self.keep(object_id, [self.primitive(primitive) for _ in range(length)])
        items: list[_Raw] = []
        while len(items) < length:
            value = self.record(self.byte(), depth + 1)
            if isinstance(value, _Nulls):
                if not 0 < value.length <= length - len(items):
                    raise self.error(f"{value.length:,} nulls in an array of {length:,}")
                items += [None] * value.length
            else:
                items.append(value)
        return self.keep(object_id, items)

    def keep(self, object_id: int, value: _Raw) -> _Raw:
        self.objects[object_id] = value
        return value

    def primitive(self, kind: int) -> bool | int | float | str:
        if kind in _FORMATS:
            form = "<" + _FORMATS[kind]
            value: bool | int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
            return value
        if kind in {_DECIMAL, _TEXT}:
            return self.string()
        if kind == _CHAR:  # one character in UTF-8
            first = self.data[self.at : self.at + 1]
            return self.text(1 + sum(first >= limit for limit in (b"\xc0", b"\xe0", b"\xf0")))
        raise self.error(f"no such primitive type: {kind}")

    def string(self) -> str:
        """LengthPrefixedString [MS-NRBF 2.1.1.6]: the length in at most five groups of seven bits."""
        length = self.byte()
        if length < 0x80:
            return self.text(length)
        length &= 0x7F
        for shift in range(7, 35, 7):
            byte = self.byte()
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                return self.text(length)
        raise self.error("the length of a string does not end")

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as e:
            raise self.error(f"not UTF-8: {e.reason}") from None

    def byte(self) -> int:
        return self.take(1)[0]

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def take(self, count: int) -> bytes:
        at = self.at
        self.at = end = at + count
        if count < 0 or end > self.size:
            self.at = at
            raise self.error(f"{count:,} bytes wanted, {self.size - at:,} left")
        return self.data[at:end]

    def error(self, message: str) -> NrbfError:
        return NrbfError(f"byte {self.at}: {message}")


class _Answer:
    """Records to values: references followed, but no more values and no deeper than the limits allow."""

    def __init__(self, objects: dict[int, _Raw]) -> None:
        self.objects = objects
        self.open: set[int] = set()
        self.count = 0

    def value(self, raw: _Raw, depth: int = 0) -> Value:
        self.count += 1
        if self.count > MAX_ITEMS or depth > MAX_DEPTH:
            raise NrbfError(f"more than {MAX_ITEMS:,} values, or nested deeper than {MAX_DEPTH}")
        match raw:
            case _Reference(object_id):
                if object_id in self.open:
                    return Unknown("an object that refers back to itself")
                if object_id not in self.objects:
                    return Unknown("a reference to an object that is not there")
                self.open.add(object_id)
                value = self.value(self.objects[object_id], depth + 1)
                self.open.remove(object_id)
                return value
            case _Instance(_, {"value__": int(number)}):  # how an enumeration is written
                return number
            case _Instance(name, {"_items": items, "_size": int(size)}) if name.startswith(_LIST):
                elements = self.value(items, depth + 1)
                return elements[: max(size, 0)] if isinstance(elements, tuple) else elements
            case _Instance(_, members):
                return {name: self.value(member, depth + 1) for name, member in members.items()}
            case list():
                return tuple([self.value(item, depth + 1) for item in raw])
            case _Nulls():  # the reader spreads them out
                return None
        return raw
