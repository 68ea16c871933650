"""``bindings.toml``: which services a certificate is enabled for, as ``Enable-ExchangeCertificate`` says it.

::

    [0123456789ABCDEF0123456789ABCDEF01234567]
    services = ["SMTP", "IIS"]
    friendly_name = "Microsoft Exchange"
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import msgspec

from anontls.certstore import Problem
from anontls.facts import normal_thumbprint

FILE = "bindings.toml"
#: What Enable-ExchangeCertificate takes, in the order in which they are printed [FACT D 7.2].
SERVICES = ("IMAP", "POP", "UM", "IIS", "SMTP", "Federation", "UMCallRouter")
KEYS = ("services", "friendly_name")
THUMBPRINT = re.compile(r"[0-9A-F]{40}")
MAX_FRIENDLY_NAME = 64  #: fewer than 64 characters [FACT D 7.2]
HEADER = "# Services that each certificate is enabled for, by SHA-1 thumbprint.\n"


class Binding(msgspec.Struct, frozen=True):
    """What is bound to one certificate."""

    services: tuple[str, ...] = ()
    friendly_name: str = ""

    @property
    def text(self) -> str:
        """As ``Get-ExchangeCertificate`` prints ``Services``."""
        return ", ".join(self.services) or "None"


def service(name: str) -> str | None:
    """The service of that name, compared without case."""
    return next((known for known in SERVICES if known.lower() == name.strip().lower()), None)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order of Exchange."""
    wanted = set(names)
    return tuple(name for name in SERVICES if name in wanted)


def parse(data: bytes, file: str = FILE) -> tuple[dict[str, Binding], list[Problem]]:
    """All that can be used of it, and all that is wrong with the rest.

    Raises:
        ValueError: it is not TOML at all.
    """
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"it is not TOML: {e}") from None
    bindings: dict[str, Binding] = {}
    problems: list[Problem] = []
    for name, table in document.items():
        thumbprint = normal_thumbprint(name)
        if not THUMBPRINT.fullmatch(thumbprint):
            problems.append(Problem(file, f"{name!r} is not a thumbprint", "a thumbprint has 40 hexadecimal digits"))
        elif not isinstance(table, dict):
            problems.append(Problem(file, f"{name} is not a table", f'write [{name}] and below it services = ["SMTP"]'))
        else:
            binding = _binding(thumbprint, table, file, problems)
            if thumbprint in bindings:
                problems.append(Problem(file, f"{thumbprint} is there twice", "join the two"))
                binding = merged(bindings[thumbprint], binding)
            bindings[thumbprint] = binding
    return bindings, problems


def _binding(thumbprint: str, table: Mapping[str, object], file: str, problems: list[Problem]) -> Binding:
    for key in table.keys() - set(KEYS):
        near = get_close_matches(key, KEYS, 1)
        cure = f"did you mean {near[0]}?" if near else "known: " + ", ".join(KEYS)
        problems.append(Problem(file, f"{thumbprint}: no key {key!r} is known", cure))
    listed = table.get("services", [])
    if not isinstance(listed, list):
        problems.append(Problem(file, f"{thumbprint}: services is not a list", 'write services = ["SMTP"]'))
        listed = []
    found = set()
    for name in listed:
        known = service(name) if isinstance(name, str) else None
        if known is not None:
            found.add(known)
        elif str(name).strip().lower() != "none":
            near = get_close_matches(str(name).upper(), SERVICES, 1)
            cure = f"did you mean {near[0]}?" if near else "known: " + ", ".join(SERVICES)
            problems.append(Problem(file, f"{thumbprint}: no service {str(name)[:40]!r} is known", cure))
    friendly = table.get("friendly_name", "")
    if not isinstance(friendly, str) or len(friendly) >= MAX_FRIENDLY_NAME:
        problems.append(Problem(file, f"{thumbprint}: friendly_name is not a text below 64 characters", "shorten it"))
        friendly = ""
    return Binding(in_order(found), friendly)


def merged(old: Binding, new: Binding) -> Binding:
    """Services are additive [FACT D 7.2]; a new friendly name goes before the old one."""
    return Binding(in_order((*old.services, *new.services)), new.friendly_name or old.friendly_name)


def dump(bindings: Mapping[str, Binding]) -> bytes:
    """The file that says this."""
    return (HEADER + "".join(block(thumbprint, binding) for thumbprint, binding in bindings.items())).encode(
        errors="replace"
    )


def block(thumbprint: str, binding: Binding) -> str:
    """One certificate's part of the file."""
    lines = ["", f"[{thumbprint}]", f"services = {json.dumps(list(binding.services))}"]
    if binding.friendly_name:
        # A JSON string is a TOML string, but for DEL.
        text = json.dumps(binding.friendly_name, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"friendly_name = {text}")
    return "\n".join(lines) + "\n"
