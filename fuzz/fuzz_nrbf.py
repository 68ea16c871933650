"""SerializationData: any bytes are members or :class:`NrbfError`."""

import contextlib

from anontls.directory.exchange_export.nrbf import NrbfError, read_members
from tests.support.clixml import certificate_blob

SEEDS = [certificate_blob(), certificate_blob(services=27, sites=("IIS://MBX1/W3SVC/1", "IIS://MBX1/W3SVC/2"))]
TOKENS = [bytes([record]) for record in range(18)] + [
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\1\0\0\0",
]


def one_input(data: bytes) -> None:
    with contextlib.suppress(NrbfError):
        repr(read_members(data))
