"""Real directories and realms: Samba as an Active Directory domain controller, slapd, an MIT KDC, all on loopback.

Each is started when the first test asks for it, once a session (with pytest-xdist: once a worker, at an address or port
of its own), and stopped by its pid.  A test that stops one starts it again.  Where a program is missing the tests are
skipped; in CI that is a failure.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import pytest

from lab.kdc import Kdc, running_kdc
from lab.samba import Samba, running_samba
from lab.slapd import Slapd, running_slapd
from tests.peers.conftest import Peer, absent, peer

__all__ = ["peer"]


@pytest.fixture(autouse=True, scope="session")
def _extra() -> None:
    for module in ("ldap", "gssapi"):
        if importlib.util.find_spec(module) is None:
            absent(f"{module} is not installed: pip install 'anontls[ad]'")


@pytest.fixture(scope="session")
def kdc(peer: Peer) -> Iterator[Kdc]:
    """The realm FABRIKAM.COM."""
    peer("kinit")
    with running_kdc(
        "FABRIKAM.COM", kdb5_util=peer("kdb5_util"), kadmin_local=peer("kadmin.local"), krb5kdc=peer("krb5kdc")
    ) as running:
        yield running


@pytest.fixture(scope="session")
def samba(peer: Peer) -> Iterator[Samba]:
    """A domain controller of contoso.com with the part of Exchange's schema that we read, and no Exchange objects."""
    peer("kinit")
    peer("ldbmodify")
    with running_samba(samba=peer("samba", root=True), samba_tool=peer("samba-tool")) as running:
        yield running


class StartSlapd(Protocol):
    """Starts an slapd of its own, with settings of :class:`~lab.slapd.Slapd`."""

    def __call__(self, **settings: Any) -> AbstractContextManager[Slapd]: ...


@pytest.fixture(scope="session")
def start_slapd(peer: Peer) -> StartSlapd:
    """For a test that needs one with settings or objects of its own."""
    peer("ldapmodify")
    return partial(running_slapd, slapd=peer("slapd"), slapadd=peer("slapadd"))


@pytest.fixture(scope="session")
def slapd(start_slapd: StartSlapd) -> Iterator[Slapd]:
    """An OpenLDAP server with the same schema and no objects but the naming contexts."""
    with start_slapd() as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--dist loadgroup`` one worker runs all the tests with Samba, which takes seconds to start."""
    for item in items:
        if "samba" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("samba"))
