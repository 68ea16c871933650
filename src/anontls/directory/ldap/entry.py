"""An object of a directory as it came over the wire: its name, and attributes of hostile bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from anontls.facts import Unknown, is_unknown

MAX_VALUE: Final = 1 << 20  # bytes of one value
MAX_VALUES: Final = 10_000  # of one attribute
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_SHOWN: Final = 120  # characters of a name or value in a reason


def rdn_values(dn: str) -> list[str]:
    r"""The values of a distinguished name, first its own: ``CN=A\, B,CN=C`` gives ``["A, B", "C"]`` (RFC 4514)."""
    if "\\" not in dn:
        return [part.partition("=")[2] for part in dn.split(",")]
    parts = re.findall(r"(?:\\.|[^\\,])+", dn, re.DOTALL)
    return [_unescaped(part.partition("=")[2]) for part in parts]


def _unescaped(value: str) -> str:
    octets = re.sub(
        rb"\\(?:([0-9A-Fa-f]{2})|(.))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else found[2],
        value.encode("utf-8", "surrogatepass"),
        flags=re.DOTALL,
    )
    return octets.decode("utf-8", "replace")


def name_in(container: str, parts: Sequence[str]) -> str | None:
    """Of the values of a distinguished name the first whose object lies in ``CN=container`` [FACT C 5.1]."""
    wanted = container.lower()
    for name, above in pairwise(parts):
        if above.lower() == wanted:
            return None if CONTROL.search(name) else name
    return None


class Entry:
    """An object of a directory; attribute names compare without case."""

    __slots__ = ("_values", "dn", "parts", "size")

    def __init__(self, dn: str, attributes: Mapping[str, Sequence[bytes]]) -> None:
        self.dn = dn
        self.parts = rdn_values(dn)
        self.size = len(dn)  #: bytes, about
        self._values: dict[str, Sequence[bytes] | Unknown] = {}
        for given, values in attributes.items():
            name, _, options = given.partition(";")
            key, lengths = name.lower(), [len(value) for value in values]
            # Active Directory cuts long lists into ranges, and shows the attribute itself empty beside the first
            # (MS-ADTS, Range Retrieval of Attribute Values).
            if len(values) > MAX_VALUES or options.lower().startswith("range="):
                because = f"more than the {MAX_VALUES:,} values that are read, or a part of them only"
                self._values[key] = self.unknown(name, because)
            elif max(lengths, default=0) > MAX_VALUE:
                because = f"a value of {max(lengths):,} bytes, more than the {MAX_VALUE:,} that are read"
                self._values[key] = self.unknown(name, because)
            else:
                self._values.setdefault(key, values)
                self.size += sum(lengths)

    def unknown(self, attribute: str, because: str) -> Unknown:
        """Why ``attribute`` is not known, with its place."""
        return Unknown(f"{attribute} of {self.dn.partition(',')[0][:MAX_SHOWN]}: {because}")

    def octets(self, attribute: str) -> Sequence[bytes] | Unknown:
        """The values; none when the directory shows none."""
        return self._values.get(attribute.lower(), ())

    def texts(self, attribute: str) -> tuple[str, ...] | Unknown:
        """The values as text."""
        values = self.octets(attribute)
        if is_unknown(values):
            return values
        try:
            return tuple(value.decode() for value in values)
        except UnicodeDecodeError:
            return self.unknown(attribute, "not UTF-8")

    def one_of(self, names: Iterable[str]) -> str | None:
        """The first of the classes ``names`` that the object has."""
        classes = self.texts("objectClass")
        have = set() if is_unknown(classes) else {each.lower() for each in classes}
        return next((name for name in names if name.lower() in have), None)

    @property
    def name(self) -> str | None:
        """Its own name; ``None`` for one that nothing can have.

        The loser of a replication conflict is called ``MBX1``, line feed, ``CNF:`` and a GUID.
        """
        name = self.parts[0] if self.parts else ""
        return None if not name or CONTROL.search(name) else name

    def shown(self, attribute: str) -> str:
        """The values for a message, and not more of them than helps."""
        values = self.octets(attribute)
        if is_unknown(values):
            return values.because
        text = ", ".join(value[:MAX_SHOWN].decode("utf-8", "backslashreplace") for value in values[:MAX_SHOWN])
        return (text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...") or "nothing"
