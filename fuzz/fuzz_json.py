"""JSON: any bytes are objects or :class:`MalformedInput`."""

import contextlib

from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.json_output import read_json
from anontls.directory.exchange_export.sources import decode
from anontls.errors import MalformedInput

SEEDS = [
    b'[{"Name": "MBX1", "RawData": [48, 130], "NotAfter": "\\/Date(1575413252000)\\/", "Bindings": {"value": ["a"], "Count": 1}}]',
    b'{"When": {"value": "\\/Date(0)\\/", "DateTime": "x", "DisplayHint": 2}, "Fqdn": "@{Domain=x}", "At": "2019-12-03T22:47:32Z"}',
]
TOKENS = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"9" * 400,
    b"/Date(99999999999999999)/",
    b'"unknown":',
]


def one_input(data: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        for found in read_json(decode(data, "fuzz"), "fuzz"):
            if not isinstance(found, CmdletObject):
                raise TypeError(found)
            repr(found).encode()
