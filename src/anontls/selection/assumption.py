"""The same facts with one of them changed: what if the certificate were another, or gone?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from anontls.facts import Certificate, InternalTlsCert, SessionFacts, Store, is_unknown, normal_thumbprint

ATTRIBUTE = "msExchServerInternalTLSCert"
OBJECTS: Mapping[str, str] = {
    "server": "server",
    "queue": "queue",
    "send_connector": "send_connector",
    "receive_connector": "receive_connector",
}
THUMBPRINT = re.compile("[0-9A-F]{40}")
STORE_PATH = re.compile(r"store\[([^\]]+)\]\.(.+)", re.IGNORECASE)


class Assumption(msgspec.Struct, frozen=True):
    """A fact to assume: ``path`` is ``itc``, ``msExchServerInternalTLSCert``, ``object.Property``,
    ``store[THUMBPRINT].Property``, or ``without``; see :func:`parse`.
    """

    path: str
    value: object


def parse(text: str) -> Assumption:
    """Read ``PATH=VALUE``; the value is JSON where it reads as JSON, else text.

    Raises:
        ValueError: there is no ``=``, the path names nothing that can be assumed, or ``itc`` is no thumbprint.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ValueError(f"{text!r} is not PATH=VALUE")
    known = (
        path.lower() in ("itc", ATTRIBUTE.lower())
        or STORE_PATH.fullmatch(path)
        or path.partition(".")[0].lower() in OBJECTS
    )
    if not known or (path.partition(".")[0].lower() in OBJECTS and not path.partition(".")[2]):
        raise ValueError(
            f"{path!r} names no fact; a path is itc, {ATTRIBUTE}, {', '.join(f'{o}.Property' for o in OBJECTS)}, or store[THUMBPRINT].Property"
        )
    if path.lower() == "itc" and value != "null" and not THUMBPRINT.fullmatch(normal_thumbprint(value)):
        raise ValueError(f"itc={value}: a thumbprint has 40 hexadecimal digits; null is none")
    try:
        return Assumption(path, msgspec.json.decode(value))
    except msgspec.DecodeError:
        return Assumption(path, value)


def without(thumbprint: str) -> Assumption:
    """Assume that no store holds the certificate."""
    return Assumption("without", normal_thumbprint(thumbprint))


def assume(facts: SessionFacts, assumption: Assumption) -> SessionFacts:
    """``facts`` under ``assumption``; unchanged where it speaks of an object that this session does not have.

    Raises:
        ValueError: the property does not exist, or the value is of the wrong type.
    """
    path, value = assumption.path, assumption.value
    if path == "without":
        return _store(facts, lambda c: None if c.thumbprint == value else c)
    if path.lower() == "itc":
        thumbprint = None if value is None else normal_thumbprint(str(value))
        facts = _property(facts, "server", "InternalTransportCertificateThumbprint", thumbprint)
        return msgspec.structs.replace(facts, internal_tls_cert=_attribute(thumbprint))
    if path.lower() == ATTRIBUTE.lower():
        return msgspec.structs.replace(facts, internal_tls_cert=_attribute(value))
    entry = STORE_PATH.fullmatch(path)
    if entry:
        thumbprint, key = normal_thumbprint(entry.group(1)), entry.group(2)
        return _store(facts, lambda c: _changed(c, key, value, "store") if c.thumbprint == thumbprint else c)
    name, _, key = path.partition(".")
    return _property(facts, OBJECTS[name.lower()], key, value)


def _attribute(value: object) -> InternalTlsCert:
    if value is None:
        return InternalTlsCert(value=None)
    if isinstance(value, dict):
        try:
            return msgspec.convert(value, InternalTlsCert)
        except msgspec.ValidationError as e:
            raise ValueError(f"{ATTRIBUTE}: {e}") from None
    return InternalTlsCert(thumbprint=str(value))


def _store(facts: SessionFacts, change: Callable[[Certificate], Certificate | None]) -> SessionFacts:
    if is_unknown(facts.store):
        return facts
    changed = (change(certificate) for certificate in facts.store)
    return msgspec.structs.replace(facts, store=Store(c for c in changed if c is not None))


def _property(facts: SessionFacts, name: str, key: str, value: object) -> SessionFacts:
    changed = getattr(facts, name)
    if changed is None:
        return facts
    return msgspec.structs.replace(facts, **{name: _changed(changed, key, value, name)})


def _changed(thing: Any, key: str, value: object, where: str) -> Any:
    names = {field.encode_name.lower(): field for field in msgspec.structs.fields(thing)}
    field = names.get(key.strip().lower())
    if field is None:
        raise ValueError(f"{where} has no property {key!r}; it has {', '.join(f.encode_name for f in names.values())}")
    fault: Exception | None = None
    for candidate in (value, [value], str(value)):  # a list may be written as its only element
        try:
            converted = msgspec.convert(candidate, field.type)
        except msgspec.ValidationError as e:
            fault = e
            continue
        new = msgspec.structs.replace(thing, **{field.name: converted})
        if isinstance(new, Certificate) and new.der is not None:
            # the bytes would say again what was just assumed away
            msgspec.structs.force_setattr(new, field.name, converted)
        return new
    raise ValueError(f"{where}.{field.encode_name}: {fault}")
