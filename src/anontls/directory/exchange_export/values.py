"""One value of a cmdlet's property, in any of the forms that a file format leaves of it.

A reader is given what the property holds, never null and never :class:`~anontls.facts.Unknown`; it raises
:class:`Unfit` for what cannot be such a value.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec

from anontls.directory.exchange_export.cmdlet_object import LocalTime
from anontls.facts import Unknown, is_unknown

Reader = Callable[[Any], Any]


class Unfit(ValueError):
    """The value cannot be one of this property; the message says what could."""


class NotThere(ValueError):
    """The file does not hold the whole value; the message is the reason why the property is unknown."""


def text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Unfit("text")


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else None
    if known is None:
        raise Unfit("true or false")
    return known


def number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII):
        return int(value)
    raise Unfit("a whole number")


def size(value: Any) -> int:
    """Octets: a number, or text with them such as ``36 MB (37,748,736 bytes)``, as ByteQuantifiedSize prints it."""
    if isinstance(value, str):
        # What separates thousands is a matter of language: commas, points, blanks of all kinds.
        written = re.search(r"\(([0-9.,\s]{1,30}) bytes\)\Z", value.strip())
        digits = re.sub(r"[^0-9]", "", written[1]) if written else ""
        if digits:
            return int(digits)
    try:
        return number(value)
    except Unfit:
        raise Unfit("a number of octets, or text such as 36 MB (37,748,736 bytes)") from None


def enumeration(value: Any) -> str | int:
    """Text or the bare integer, as the file has it; what the integer stands for is for the facts to say."""
    match value:
        case bool():
            pass
        case str():
            if len(value) <= 1000:
                return value
        case int():
            if abs(value) < 1 << 63:  # what JSON programs read alike
                return value
        case {"Value": str(name)}:  # ConvertTo-Json of an object that came over remoting [PS-CONVERTTO-JSON]
            return name
        case {"value": int(integer)} if not isinstance(integer, bool):
            return integer
        case list() | tuple() if value and all(isinstance(part, str) for part in value):
            return ", ".join(value)
    raise Unfit("the name of a value (or several, by comma), or its number")


def domain(value: Any) -> str:
    """An SmtpDomain; one with subdomains prints its wildcard in ``Address``."""
    match value:
        case str():
            return value
        case {"Address": str(name)} | {"Domain": str(name)}:
            return name
    raise Unfit("a domain name")


def address(value: Any) -> str:
    match value:
        case str():
            return value
        case {"IPAddressToString": str(written)}:
            return written
    raise Unfit("an IP address")


def binding(value: Any) -> str:
    match value:
        case str():
            return value
        case {"Address": host, "Port": int(port)}:
            host = address(host)
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    raise Unfit("an address and port such as 0.0.0.0:25")


def ip_range(value: Any) -> str:
    match value:
        case str():
            return value
        case {"Expression": str(written)}:
            return written
        case {"LowerBound": low, "UpperBound": high}:
            return f"{address(low)}-{address(high)}"
    raise Unfit("a range of IP addresses")


def address_space(value: Any) -> str:
    match value:
        case str():
            return value
        case {"Address": str(space)}:
            return f"{value.get('Type') or 'SMTP'}:{space};{value.get('Cost', 1)}"
    raise Unfit("an address space such as SMTP:*;1")


def smart_host(value: Any) -> str:
    match value:
        case str():
            return value
        case {"IsIPAddress": True, "Address": host}:
            return f"[{address(host)}]"
        case {"Domain": host} if host:
            return domain(host)
    raise Unfit("a host name, [address] or --")


def certificate_name(value: Any) -> str:
    match value:
        case str():
            return value
        case {"CertificateIssuer": str(issuer), "CertificateSubject": str(subject)}:
            return f"<I>{issuer}<S>{subject}"
    raise Unfit("text of the form <I>issuer<S>subject")


def version(value: Any) -> str:
    match value:
        case str():
            return value
        case {"Major": int(a), "Minor": int(b), "Build": int(c), "Revision": int(d)}:
            return f"Version {a}.{b} (Build {c}.{d})"
    raise Unfit("text such as Version 15.2 (Build 1544.4)")


def last_part(value: Any) -> str:
    """The own name of a directory object, given as name, canonical name, distinguished name, or object."""
    match value:
        case str():
            parts = dn_parts(value)
            return parts[0] if parts else value.rsplit("/", 1)[-1]
        case {"Name": str(name)} | {"DistinguishedName": str(name)} | {"Rdn": str(name)}:
            return last_part(name)
    raise Unfit("the name of a directory object")


def dn_parts(value: str) -> list[str]:
    """The values of a distinguished name, without ``CN=``; empty for any other text."""
    if not re.match(r"(CN|OU|DC)=", value, re.IGNORECASE):
        return []
    parts = re.split(r"(?<!\\),", value)
    return [part.partition("=")[2].replace("\\", "") for part in parts]


def guid(value: Any) -> str:
    """A connector or database, of which only the printed form is kept."""
    match value:
        case str():
            return value
        case {"Guid": str(printed)} | {"ObjectGuid": str(printed)}:
            return printed
    raise Unfit("text or a GUID")


def several(read: Callable[[Any], str]) -> Reader:
    """A multi-valued property: a list, or one text with blanks or commas between its elements.

    No element of those that are read this way may hold a blank or a comma.  ``ConvertTo-Json`` joins by blanks below
    its depth [PS-CONVERTTO-JSON].
    """

    def read_several(value: Any) -> tuple[str, ...]:
        match value:
            case str():
                value = [part for part in re.split(r"[\s,]+", value.strip().strip("{}")) if part]
            case {"value": list() | tuple() as elements, "Count": int()}:
                value = elements
            case list() | tuple():
                pass
            case _:
                value = [value]
        for element in value:
            if is_unknown(element):
                raise NotThere(element.because)
        return tuple(read(element) for element in value)

    return read_several


def names(value: Any) -> tuple[str, ...]:
    """Names of directory objects, which may hold blanks."""
    if isinstance(value, str):
        value = (
            [part.strip() for part in value.strip().strip("{}").split(",") if part.strip()]
            if not dn_parts(value)
            else [value]
        )
    return tuple(several(last_part)(value))


def time(value: Any) -> datetime:
    if isinstance(value, datetime) and value.tzinfo:
        return value
    if isinstance(value, str):
        if milliseconds := re.fullmatch(r"/Date\((-?\d{1,15})\)/", value, re.ASCII):  # [PS-CONVERTTO-JSON]
            try:
                return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(milliseconds[1]))
            except OverflowError:
                pass
        try:
            read = datetime.fromisoformat(value)
            if read.utcoffset() is not None:
                return read.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise Unfit("a time with its zone, such as 2029-01-01T00:00:00Z")


def octets(value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            try:
                return base64.b64decode("".join(value.split()), validate=True)
            except (ValueError, binascii.Error):
                pass
        case [bytes() | list() | tuple() as only]:  # a single value of a directory attribute
            return octets(only)
        case list() | tuple() if value and all(type(byte) is int and 0 <= byte < 256 for byte in value):
            return bytes(value)
    raise Unfit("bytes in base64")


def value_of(read: Reader, value: Any, zone: tzinfo | None = None) -> Any:
    """``value`` as ``read`` gives it; null stays null, and what is not known stays so."""
    match value:
        case {"unknown": str(because), **rest} if not rest:
            return Unknown(because)
        case LocalTime(text=printed, naive=naive):
            if naive is None:
                return Unknown(f"day and month cannot be told apart in {printed}")
            if zone is None:
                return Unknown(f"{printed} was printed without its zone")
            return naive.replace(tzinfo=zone)
    if value is None or is_unknown(value):
        return value
    try:
        return read(value)
    except NotThere as e:
        return Unknown(str(e))


def shown(value: object) -> str:
    """``value`` for a message: as JSON, and not more of it than helps."""
    try:
        written = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        written = repr(value)
    return written if len(written) <= 80 else written[:77] + "..."
