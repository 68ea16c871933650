"""CLIXML: any bytes are objects or :class:`MalformedInput`."""

import contextlib

from anontls.directory.exchange_export.clixml import read_clixml
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.sources import decode
from anontls.errors import MalformedInput
from tests.support.clixml import Obj, Xml, clixml, exchange_certificate, exchange_server, receive_connector

SEEDS = [
    clixml(exchange_server("MBX1"), receive_connector("MBX1", "Default")).encode(),
    clixml(exchange_certificate(b"\x30\x82", b"\0\1"), Obj((), "x", {"R": Xml('<Ref{name} RefId="0" />')})).encode(
        "utf-16"
    ),
    clixml(Obj(("System.Collections.Hashtable",), entries={"a": ["b", None]})).encode(),
]
TOKENS = [
    b"<Obj>",
    b"</Obj>",
    b"<LST>",
    b"<DCT>",
    b'<Ref RefId="1" />',
    b"<TN>",
    b"<T>",
    b"<![CDATA[",
    b"&#0;",
    b"_xD800_",
    b"\0",
]


def one_input(data: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        for found in read_clixml(decode(data, "fuzz"), "fuzz"):
            if not isinstance(found, CmdletObject):
                raise TypeError(found)
            repr(found).encode()
