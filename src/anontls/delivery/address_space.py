"""Address spaces and accepted domains: whether they hold a domain, and how closely."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

DASHES = "--"  # all accepted domains; on Edge connectors only [FACT D 6.2]
COSTS = range(1, 101)  # [FACT D 6.2]
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


class Kind(IntEnum):
    """How a pattern holds a domain, the closest last."""

    ANY = 0  # *
    SUBDOMAINS = 1  # *.contoso.com
    EXACT = 2  # contoso.com


class Closeness(NamedTuple):
    """The greater, the closer: of two wildcards the longer one."""

    kind: Kind
    labels: int


class AddressSpace(NamedTuple):
    """``type:space;cost``."""

    type: str
    space: str
    cost: int


def normal_domain(text: str) -> str:
    """A domain as it is compared: lower case, other scripts in their ASCII form.

    Raises:
        ValueError: ``text`` is no domain name.
    """
    try:
        name = text.strip().lower() if text.isascii() else text.strip().encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if len(name) > 253 or not name or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"not a domain name: {text[:200]!r}")
    return name


def domain_of(recipient: str) -> str:
    """The domain of an address, as it is compared.

    Raises:
        ValueError: there is none, or it is an address literal, which no address space speaks of.
    """
    local, at, domain = recipient.rpartition("@")
    if not at or not local or any(c.isspace() or not c.isprintable() for c in recipient):
        raise ValueError(f"not an address such as user@contoso.com: {recipient[:200]!r}")
    return normal_domain(domain)


def closeness(pattern: str, domain: str) -> Closeness | None:
    """How closely ``pattern`` holds ``domain``, ``None`` if not at all [FACT D 6.2].

    That ``*.contoso.com`` holds contoso.com itself is our reading.

    Raises:
        ValueError: ``pattern`` is none of the documented forms.
    """
    pattern = pattern.strip()
    if pattern == "*":
        return Closeness(Kind.ANY, 0)
    if pattern.startswith("*."):
        above = normal_domain(pattern[2:])
        return Closeness(Kind.SUBDOMAINS, above.count(".") + 1) if f".{domain}".endswith(f".{above}") else None
    name = normal_domain(pattern)
    return Closeness(Kind.EXACT, name.count(".") + 1) if name == domain else None


def holds_parent_only(pattern: str, domain: str) -> bool:
    """Whether ``pattern`` holds ``domain`` only by our reading of the wildcard."""
    return pattern.strip().lower() == f"*.{domain}"


def address_space(text: str) -> AddressSpace:
    """Read ``type:space;cost``; without a type it is SMTP [FACT R 6.2], without a cost that is 1.

    Raises:
        ValueError: it is none, or of a form that is not known here.
    """
    type_, colon, rest = text.strip().partition(":")
    if not colon:
        type_, rest = "SMTP", type_
    space, _, cost = rest.partition(";")
    if type_.strip().lower() != "smtp":
        # What stands before the type of a scoped connector's space is not documented where we looked.
        if type_.strip().lower() == "local":
            raise ValueError(f"an address space of an unknown form: {text[:200]!r}")
        return AddressSpace(type_.strip(), rest, 1)
    number = cost.strip() or "1"
    if not (number.isascii() and number.isdecimal() and int(number) in COSTS) or not space.strip():
        raise ValueError(f"not an address space such as SMTP:*;1: {text[:200]!r}")
    return AddressSpace("SMTP", space.strip(), int(number))
