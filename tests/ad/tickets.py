"""Two servers of a realm, MBX1 that initiates and MBX2 that accepts, and tickets that are not as they should be."""

from __future__ import annotations

import struct
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from anontls.kerberos import Acceptor, Initiator, Kerberos, computer_account
from lab.kdc import Kdc

BINDING = b"tls-server-end-point:" + b"\1" * 32
HOSTS = ("mbx2.contoso.com", "MBX2")


class Tickets:
    """The principals have their keys for as long as the KDC runs: tickets of an earlier test may lie in a cache."""

    def __init__(self, kdc: Kdc) -> None:
        self.kdc = kdc
        self.realm = kdc.realm
        self.account = computer_account("mbx1", kdc.realm)
        self.target = f"SMTPSVC/mbx2.contoso.com@{kdc.realm}"
        self.keytab = kdc.add_principal("MBX1$")
        self.service_keytab = kdc.add_principal("SMTPSVC/mbx2.contoso.com")

    def initiator(self, *, target: str = "", binding: bytes = BINDING, cache: str | None = None) -> Initiator:
        keytab = self.keytab if cache is None else None
        return Kerberos(self.account, keytab=keytab, credential_cache=cache).initiator(target or self.target, binding)

    def acceptor(self, *, keytab: Path | None = None, binding: bytes | None = BINDING) -> Acceptor:
        return Kerberos("unused", keytab=keytab or self.service_keytab).acceptor(HOSTS, binding)

    def lax(self, *flags: str, binding: bytes | None = None, cache: str = "", target: str = "") -> Any:
        """An initiator that is less strict than ours."""
        import gssapi

        principal = gssapi.NameType.kerberos_principal
        store = {"ccache": cache} if cache else {"ccache": "MEMORY:lax", "client_keytab": f"FILE:{self.keytab}"}
        return gssapi.SecurityContext(
            name=gssapi.Name(target or self.target, principal),
            creds=gssapi.Credentials(name=gssapi.Name(self.account, principal), usage="initiate", store=store),
            usage="initiate",
            mech=gssapi.MechType.kerberos,
            flags=[getattr(gssapi.RequirementFlag, flag) for flag in flags or ("mutual_authentication",)],
            channel_bindings=None if binding is None else gssapi.raw.ChannelBindings(application_data=binding),
        )

    def fill(self, cache: Path, target: str = "") -> None:
        """A cache with a ticket for the target, so that the KDC is not asked again."""
        name = self.kdc.kinit(self.account, keytab=self.keytab, ccache=cache.name)
        assert self.initiator(cache=name, target=target).step()
        (self.kdc.folder / cache.name).rename(cache)

    def skewed(self, cache: Path, target: str = "") -> str:
        """A cache whose tokens are ten minutes ahead."""
        self.fill(cache, target)
        change_cache(cache, ahead=600)
        return f"FILE:{cache}"

    def expired(self, cache: Path, service: str) -> tuple[str, Path]:
        """A cache with a ticket for a new service that has expired, which this side does not believe; its keytab.

        It is refused where ``clockskew`` is 1 second; otherwise for five minutes more it is not.
        """
        keytab = self.kdc.add_principal(service, '-maxlife "1 sec"')
        self.fill(cache, f"{service}@{self.realm}")
        time.sleep(2.05)
        change_cache(cache, later=3600)
        return f"FILE:{cache}", keytab


@lru_cache(maxsize=1)
def tickets_of(kdc: Kdc) -> Tickets:
    return Tickets(kdc)


def change_cache(path: Path, *, ahead: int = 0, later: int = 0) -> None:
    """Make a cache believe that the KDC's clock is ``ahead``, and that its tickets are good for ``later`` seconds more.

    A FILE cache (version 4) begins with a header of tags, the first of them the offset of the clock; each ticket has its
    four times before a byte and its flags.
    """
    data = bytearray(path.read_bytes())
    assert struct.unpack_from(">HHHH", data) == (0x0504, 12, 1, 8)
    struct.pack_into(">iI", data, 8, ahead, 0)
    now = int(time.time())
    for at in range(len(data) - 16) if later else ():
        authenticated, starts, ends, renewable = struct.unpack_from(">IIII", data, at)
        if all(abs(moment - now) < 100_000 for moment in (authenticated, starts, ends)) and renewable in {0, ends}:
            struct.pack_into(">I", data, at + 8, ends + later)
    path.write_bytes(data)
