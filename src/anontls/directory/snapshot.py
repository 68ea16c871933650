"""The organisation snapshot ``anontls/org/1``: an :class:`~anontls.facts.Organization` as one JSON file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from anontls.errors import MalformedInput
from anontls.facts import Certificate, Organization

SCHEMA: Final = "anontls/org/1"
MAX_BYTES: Final = 1 << 30  # 10,000 servers with ten certificates each take a quarter of it
#: What is written of a certificate whose bytes are there: the rest follows from the bytes.
NOT_IN_THE_BYTES: Final = ("der", "HasPrivateKey", "Services", "Status")

_DECODER = msgspec.json.Decoder(Organization)
_PLACE = re.compile(r"(?P<what>.*) - at `(?P<path>\$.*)`", re.DOTALL)


def load(source: Path | bytes, name: str) -> Organization:
    """The organisation in a snapshot; ``name`` is what messages call it.

    Raises:
        MalformedInput: it is not a snapshot; says at which place of it.
    """
    # Imported here: the readers of exports read snapshots too.
    from anontls.directory.exchange_export.sources import decode, encoding_of

    if isinstance(source, Path):
        size = source.stat().st_size
        text = source.read_bytes() if size <= MAX_BYTES else b""
    else:
        text, size = source, len(source)
    if size > MAX_BYTES:
        raise MalformedInput(name, f"{size:,} bytes are more than the {MAX_BYTES:,} that a snapshot may have")
    try:
        encoding, start = encoding_of(text)
        # Windows PowerShell redirects to UTF-16
        text = text[start:] if encoding == "UTF-8" else decode(text, name).encode()
        organization = _DECODER.decode(text)
    except msgspec.ValidationError as e:
        place = _PLACE.fullmatch(str(e))
        raise MalformedInput(f"{name}: {place['path'] if place else '$'}", place["what"] if place else str(e)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as e:
        raise MalformedInput(name, f"not JSON: {e}") from None
    seen: dict[str, int] = {}
    for at, server in enumerate(organization.servers):
        first = seen.setdefault(server.name.lower(), at)
        if first != at:
            raise MalformedInput(
                f"{name}: $.servers[{at}].Name", f"{server.name} is there already, as $.servers[{first}]"
            )
    return organization


def dump(organization: Organization) -> bytes:
    """``organization`` as a snapshot; the same organisation gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(builtins(organization)), indent=2) + b"\n"


def builtins(organization: Organization) -> dict[str, Any]:
    """What a snapshot holds, in plain values."""
    document: dict[str, Any] = msgspec.to_builtins(organization)
    for server, written in zip(organization.servers, document.get("servers", ()), strict=True):
        if "certificates" in written and isinstance(server.certificates, tuple):
            written["certificates"] = [certificate_builtins(certificate) for certificate in server.certificates]
    return document


def certificate_builtins(certificate: Certificate) -> dict[str, Any]:
    """``certificate`` in plain values, without what follows from its bytes."""
    written: dict[str, Any] = msgspec.to_builtins(certificate)
    if certificate.der is None:
        return written
    kept: dict[str, Any] = {key: written[key] for key in NOT_IN_THE_BYTES if key in written}
    if certificate.is_self_signed != Certificate(der=certificate.der).is_self_signed:
        kept["IsSelfSigned"] = written["IsSelfSigned"]
    return kept


def json_schema() -> dict[str, Any]:
    """JSON Schema of the snapshot; objects may hold any further property."""
    schema = msgspec.json.schema(Organization)
    schema["$defs"]["InternalTlsCert"] |= {"minProperties": 1, "maxProperties": 1}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA, **schema}
