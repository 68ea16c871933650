"""Format-List text: any bytes are objects or :class:`MalformedInput`."""

import contextlib

from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.format_list import read_format_list
from anontls.directory.exchange_export.sources import decode
from anontls.errors import MalformedInput

SEEDS = [
    (
        b"[PS] C:\\>Get-ReceiveConnector | fl\n\nName : MBX1\nBindings : {[::]:25, 0.0.0.0:25}\nText : first line\n       next\n\n"
        b"Name : B\nNotAfter : 03.12.2024 22:45:58\nRawData : {48, 130}\nLast : {a, b...}\n"
    ),
]
TOKENS = [
    b" : ",
    b"\n",
    b"       ",
    b"{",
    b"}",
    b", ",
    b"...",
    b"WhenChanged : ",
    b"PS C:\\>",
    b"9" * 400,
    b"2019-12-03T22:47:32Z",
]


def one_input(data: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        for found in read_format_list(decode(data, "fuzz"), "fuzz"):
            if not isinstance(found, CmdletObject):
                raise TypeError(found)
            repr(found).encode()
