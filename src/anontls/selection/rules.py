"""Where documents and observation disagree: named rules, of which every decision lists the values it was taken under."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import msgspec


class Rules(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The rules and their defaults [FACT I 1.8]."""

    #: The article demands the delivery type to Edge; its introduction, and every field log, has Mailbox servers use
    #: anonymous TLS among themselves.
    mailbox_to_mailbox: Literal["as-written", "verb-without-certificate"] = "as-written"
    #: The article advertises STARTTLS with an expired certificate; scans of one 2010 server saw it withdrawn.
    expired_starttls: Literal["advertised", "withdrawn"] = "advertised"
    #: A note in the STARTTLS article has a match without the SMTP service chosen all the same.
    smtp_service: Literal["required", "chosen-anyway"] = "required"
    #: The 2010 event library knows a temporary certificate; the articles know none.
    store_miss: Literal["none", "ephemeral"] = "none"


DEFAULT = Rules()

#: Rule name -> its values, the default first.
VALUES: Mapping[str, tuple[str, str]] = {
    "mailbox-to-mailbox": ("as-written", "verb-without-certificate"),
    "expired-starttls": ("advertised", "withdrawn"),
    "smtp-service": ("required", "chosen-anyway"),
    "store-miss": ("none", "ephemeral"),
}


def value(rules: Rules, name: str) -> str:
    """The value of the rule called ``name``."""
    return str(getattr(rules, name.replace("-", "_")))


@cache
def with_value(rules: Rules, name: str, new: str) -> Rules:
    """``rules`` with one value changed.

    Raises:
        ValueError: no such rule or value; the message lists what there is.
    """
    if name not in VALUES:
        raise ValueError(f"no rule {name!r}; the rules are {', '.join(VALUES)}")
    if new not in VALUES[name]:
        raise ValueError(f"no value {new!r} of the rule {name}; its values are {' and '.join(VALUES[name])}")
    return msgspec.structs.replace(rules, **{name.replace("-", "_"): new})


def other_value(rules: Rules, name: str) -> str:
    """The value of ``name`` that is not in force."""
    first, second = VALUES[name]
    return second if value(rules, name) == first else first
