"""A fact that is not known is a value with a reason, never a ``None`` that could mean "no"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # in `typing` from Python 3.13 on


class Unknown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """We looked and could not tell.  In JSON ``{"unknown": "why"}``."""

    because: str = msgspec.field(name="unknown")


#: The value of every property that no source mentions.  It is the default of all optional properties of the
#: facts, so that forgetting one can never read as "no".
ABSENT = Unknown("no source holds it")


def is_unknown(value: Any) -> TypeIs[Unknown]:
    """Whether ``value`` is not known."""
    return value.__class__ is Unknown


def is_null(value: object) -> bool:
    """Whether ``value`` is known to be unset; empty strings count as null [FACT I 1.7]."""
    return value is None or value == ""
