"""Directory objects, and their LDIF."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

#: Attribute -> its values; text stands for its UTF-8.
Entry = Mapping[str, Sequence[str | bytes]]


def entry(dn: str, kind: str, **attributes: Sequence[str | bytes]) -> tuple[str, Entry]:
    """An object of that class; an attribute without values is left out."""
    name = dn.partition(",")[0].partition("=")[2]
    there = {attribute: values for attribute, values in attributes.items() if values}
    return dn, {"objectClass": [kind], "cn": [name], **there}


def ldif(entries: Iterable[tuple[str, Entry]], *, changetype: str = "") -> str:
    """Entries as LDIF."""
    lines: list[str] = []
    for dn, attributes in entries:
        lines.append(f"dn:: {_base64(dn)}" if dn else "dn:")
        if changetype:
            lines.append(f"changetype: {changetype}")
        lines += [
            f"{name}:: {_base64(value)}" if value else f"{name}:"
            for name, values in attributes.items()
            for value in values
        ]
        lines.append("")
    return "\n".join(lines) + "\n"


def _base64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
