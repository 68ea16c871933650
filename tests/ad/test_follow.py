"""A node's view of a directory while that changes, goes away and comes back: slapd, and Samba as Active Directory."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

import pytest

from anontls.directory.ldap import LdapDirectory, LdapSettings, follow
from anontls.directory.ldap.follow import Follower
from anontls.facts import InternalTlsCert, Organization, Server, is_unknown
from lab.exchange import Exchange
from lab.samba import Samba
from lab.slapd import Slapd
from tests.ad.conftest import StartSlapd
from tests.support.make import common_name, make_der

ATTRIBUTE = "msExchServerInternalTLSCert"
NOTHING = Organization(schema="anontls/org/1")
AT = datetime(2030, 1, 1, tzinfo=UTC)
OTHER = make_der(common_name("other"))


def settings(directory: Slapd | Samba, *urls: str, timeout: float = 5.0) -> LdapSettings:
    bind = directory.bind_dn if isinstance(directory, Slapd) else directory.administrator
    return LdapSettings(
        urls=urls or (directory.ldaps_url,), bind=bind, password=directory.password, ca=directory.ca, timeout=timeout
    )


def attribute(organization: Organization, name: str = "MBX1") -> InternalTlsCert:
    server = organization.server(name)
    assert server is not None
    return server.internal_tls_cert


class Heard:
    """What a follower told."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.changes: list[Organization] = []
        self.said: list[str] = []

    async def until(self, met: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < end, (self.follower.status, self.said)
            await asyncio.sleep(0.01)

    async def names(self, der: bytes | None, seconds: float = 10.0) -> None:
        """Until the attribute of MBX1 is that certificate, or null."""

        def met() -> bool:
            found = attribute(self.follower.organization)
            return found.value is None if der is None else found.der == der

        await self.until(met, seconds)


@asynccontextmanager
async def following(follower: Follower) -> AsyncIterator[Heard]:
    heard = Heard(follower)
    follower.start(heard.changes.append, heard.said.append)
    try:
        yield heard
    finally:
        await follower.stop()
        assert not [each for each in threading.enumerate() if each.name == "directory"]


def make_follower(where: LdapSettings, base: Organization = NOTHING, **more: float) -> Follower:
    return Follower(where, base, now=lambda: AT, **{"interval": 30.0, **more})  # type: ignore[arg-type]


@pytest.fixture
def exchange(slapd: Slapd) -> Iterator[Exchange]:
    exchange = Exchange(slapd.configuration)
    slapd.add(*exchange.containers(), exchange.server("MBX1", make_der()))
    yield exchange
    slapd.delete(f"CN=Services,{slapd.configuration}")


@contextmanager
def mute() -> Iterator[str]:
    """The address of one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"ldaps://127.0.0.1:{listening.getsockname()[1]}"


def test_what_changes_is_known_before_the_next_poll(slapd: Slapd, exchange: Exchange) -> None:
    follower = make_follower(settings(slapd))
    assert attribute(follower.first()).der == make_der()

    async def change() -> None:
        async with following(follower) as heard:
            for der in (OTHER, None, make_der()):
                await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, der)
                await heard.names(der)
            assert follower.status.means == "syncrepl"
            await asyncio.to_thread(slapd.add, exchange.server("MBX2", OTHER))
            await heard.until(lambda: follower.organization.server("MBX2") is not None)
            await asyncio.to_thread(slapd.delete, exchange.server_dn("MBX2"))
            await heard.until(lambda: follower.organization.server("MBX2") is None)
            assert [len(each.servers) for each in heard.changes] == [1, 1, 1, 2, 1]

    asyncio.run(change())


def test_without_word_of_changes_it_is_asked_at_intervals(
    slapd: Slapd, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anontls.directory.ldap.notification.CONTENT_SYNCHRONIZATION", "1.2.3")
    reads: list[object] = []
    read = LdapDirectory.organization

    def counted(directory: LdapDirectory, *, collected: datetime, as_server: bool) -> Organization:
        reads.append(directory)
        return read(directory, collected=collected, as_server=as_server)

    monkeypatch.setattr(LdapDirectory, "organization", counted)
    follower = make_follower(settings(slapd), interval=0.05)
    follower.first()

    async def poll() -> None:
        async with following(follower) as heard:
            await heard.until(lambda: follower.status.reads == 5)
            assert follower.status.means == "polling"
            assert len(reads) == 1  # nothing has changed, so no more than that was asked
            await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER)
            assert len(heard.changes) == 1

    asyncio.run(poll())


def test_one_that_offers_word_of_changes_and_refuses_it_is_asked_at_intervals(
    slapd: Slapd, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    # slapd offers subentries (RFC 3672), and a value that is none of it is an error
    monkeypatch.setattr("anontls.directory.ldap.notification.CHANGE_NOTIFICATION", "1.3.6.1.4.1.4203.1.10.1")
    follower = make_follower(settings(slapd), interval=0.2)
    follower.first()
    assert follower.status.means == "notification"

    async def poll() -> None:
        async with following(follower) as heard:
            await heard.until(lambda: follower.status.means == "polling")
            await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER)
            assert follower.status.failures == 0

    asyncio.run(poll())


def test_all_is_read_from_time_to_time_whether_it_has_changed_or_not(
    slapd: Slapd, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "EVERYTHING", 2)
    monkeypatch.setattr(follow, "STAMPS", ("createTimestamp",))  # which no change touches
    follower = make_follower(settings(slapd), interval=0.05)
    follower.first()

    async def poll() -> None:
        async with following(follower) as heard:
            await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER)

    asyncio.run(poll())


def test_what_the_account_may_no_longer_read_cannot_be_read(start_slapd: StartSlapd) -> None:
    exchange = Exchange("CN=Configuration,DC=contoso,DC=com")
    reader = "CN=reader,DC=contoso,DC=com"
    account = (reader, {"objectClass": ["person"], "cn": ["reader"], "sn": ["r"], "userPassword": ["of the reader"]})
    rules = f"""
access to attrs={ATTRIBUTE} filter=(serialNumber=hidden) by * none
access to attrs=userPassword by * auth
access to * by users read by * none"""
    entries = [account, *exchange.containers(), exchange.server("MBX1", make_der())]
    with start_slapd(entries=entries, after=rules) as slapd:
        follower = make_follower(
            LdapSettings(urls=(slapd.ldaps_url,), bind=reader, password="of the reader", ca=slapd.ca)
        )
        assert attribute(follower.first()).der == make_der()

        async def hide() -> None:
            async with following(follower) as heard:
                await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), "serialNumber", b"hidden")
                await heard.until(lambda: "may not read it" in str(attribute(follower.organization).error))

        asyncio.run(hide())


def test_stopped_and_started_again_it_is_followed_as_before(slapd: Slapd, exchange: Exchange) -> None:
    follower = make_follower(settings(slapd))
    follower.first()

    async def restart() -> None:
        async with following(follower) as heard:
            await asyncio.to_thread(slapd.stop)
            try:
                await heard.until(lambda: follower.status.problem is not None)
                assert attribute(follower.organization).der == make_der()
                assert follower.status.readable
                assert follower.status.url is None
            finally:
                await asyncio.to_thread(slapd.start)
            await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER)
            assert follower.status.problem is None
            assert [each.partition(",")[0] for each in heard.said] == [
                "the directory does not answer",
                f"the directory is read from {slapd.ldaps_url}",
            ]

    asyncio.run(restart())


def test_after_the_grace_the_attribute_cannot_be_read_until_the_directory_is_back(
    slapd: Slapd, exchange: Exchange
) -> None:
    passed = 0.0
    follower = Follower(settings(slapd), NOTHING, now=lambda: AT, clock=lambda: passed, interval=0.05, grace=3600.0)
    follower.first()

    async def wait() -> None:
        nonlocal passed
        async with following(follower) as heard:
            await asyncio.to_thread(slapd.stop)
            try:
                await heard.until(lambda: follower.status.problem is not None)
                passed = 3600.0
                await asyncio.sleep(0.15)
                assert attribute(follower.organization).der == make_der()
                assert follower.age == 3600.0
                passed = 3601.0
                await heard.until(lambda: not follower.status.readable)
                error = str(attribute(follower.organization).error)
                assert error.startswith("the directory has not answered for more than 3600 s: ldaps://127.0.0.1")
                assert attribute(heard.changes[-1]).error == error
            finally:
                await asyncio.to_thread(slapd.start)
            await heard.names(make_der())  # unchanged, and told all the same
            assert attribute(heard.changes[-1]).der == make_der()
            assert follower.age == 0.0

    asyncio.run(wait())


def test_without_a_directory_at_the_start_it_goes_on_trying(slapd: Slapd, exchange: Exchange) -> None:
    base = Organization(
        schema="anontls/org/1",
        servers=(
            Server(
                name="MBX1",
                internal_tls_cert=InternalTlsCert(der=OTHER),
                internal_transport_certificate_thumbprint="AB" * 20,
                admin_display_version="Version 15.2 (Build 1.1)",
            ),
        ),
    )
    slapd.stop()
    try:
        follower = make_follower(settings(slapd), base)
        organization = follower.first()
        assert "Connection refused" in str(attribute(organization).error)  # and not what the file says
        assert is_unknown(organization.servers[0].internal_transport_certificate_thumbprint)
        assert follower.age is None
    finally:
        slapd.start()

    async def wait() -> None:
        async with following(follower) as heard:
            await heard.names(make_der())
            assert follower.as_of == AT

    asyncio.run(wait())


def test_the_next_domain_controller_takes_over(slapd: Slapd, exchange: Exchange, start_slapd: StartSlapd) -> None:
    entries = [*exchange.containers(), exchange.server("MBX1", OTHER)]
    with start_slapd(entries=entries) as second:
        # one authority for both
        both = second.folder / "both.pem"
        both.write_bytes(slapd.ca.read_bytes() + second.ca.read_bytes())
        where = LdapSettings(
            urls=(slapd.ldaps_url, second.ldaps_url), bind=slapd.bind_dn, password=slapd.password, ca=both
        )
        follower = make_follower(where)
        assert attribute(follower.first()).der == make_der()

        async def fail_over() -> None:
            async with following(follower) as heard:
                await asyncio.to_thread(slapd.stop)
                try:
                    await heard.names(OTHER)
                    assert follower.status.url == second.ldaps_url
                    assert follower.status.failures == 0
                finally:
                    await asyncio.to_thread(slapd.start)
                await asyncio.to_thread(second.stop)
                await heard.names(make_der())
                assert follower.status.url == slapd.ldaps_url

        asyncio.run(fail_over())


def test_one_that_says_nothing_blocks_neither_the_loop_nor_the_grace(slapd: Slapd, exchange: Exchange) -> None:
    passed, late = 0.0, 0.0
    follower = Follower(
        settings(slapd, timeout=1.0), NOTHING, now=lambda: AT, clock=lambda: passed, interval=0.05, grace=60.0
    )
    follower.first()

    async def freeze() -> None:
        nonlocal passed, late
        async with following(follower) as heard:
            with slapd.frozen():
                passed, began = 61.0, time.monotonic()
                while follower.status.readable:
                    asked = time.monotonic()
                    await asyncio.sleep(0.01)
                    late = max(late, time.monotonic() - asked)
                assert time.monotonic() - began < 0.9  # before the time-out
            await heard.names(make_der())

    asyncio.run(freeze())
    assert late < 0.5


def test_stopping_does_not_wait_for_one_that_says_nothing(slapd: Slapd) -> None:
    with mute() as url:
        follower = make_follower(settings(slapd, url, timeout=1.0))

        async def stop() -> float:
            follower.start(lambda _: None)
            await asyncio.sleep(0.1)
            began = time.monotonic()
            await follower.stop(0.1)
            return time.monotonic() - began

        assert asyncio.run(stop()) < 0.8
        thread = next(each for each in threading.enumerate() if each.name == "directory")
        assert thread.daemon
        thread.join(5)
        assert not thread.is_alive()


def test_an_account_that_is_refused_is_not_tried_again_and_again(slapd: Slapd) -> None:
    where = LdapSettings(urls=(slapd.ldaps_url,), bind=slapd.bind_dn, password="planted-secret", ca=slapd.ca)
    follower = make_follower(where, interval=0.05)
    assert follower._look() == follow.REFUSED_REST
    asyncio.run(follower.stop())
    assert "the account is refused" in str(follower.status.problem)
    assert "planted-secret" not in f"{follower.status}{follower.settings}"


def test_another_base_counts_at_once(slapd: Slapd, exchange: Exchange) -> None:
    follower = make_follower(settings(slapd))
    follower.first()

    async def rebase() -> None:
        async with following(follower) as heard:
            base = Organization(schema="anontls/org/1", servers=(Server(name="MBX9"), Server(name="mbx1")))
            organization = await asyncio.to_thread(follower.rebase, base)
            assert attribute(organization).der == make_der()
            assert "shows no such server" in str(attribute(organization, "MBX9").error)
            await heard.until(lambda: follower.organization == organization)
            await asyncio.to_thread(slapd.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER)
            assert [each.name for each in follower.organization.servers] == ["mbx1", "MBX9"]

    asyncio.run(rebase())


def test_active_directory_tells_of_changes_and_is_followed_over_a_restart(samba: Samba) -> None:
    exchange = Exchange(samba.configuration)
    samba.add(*exchange.containers(services=False), exchange.server("MBX1", make_der()))
    follower = make_follower(settings(samba), interval=600.0)
    assert attribute(follower.first()).der == make_der()

    async def change() -> None:
        async with following(follower) as heard:
            assert follower.status.means == "notification"
            await asyncio.to_thread(samba.set, exchange.server_dn("MBX1"), ATTRIBUTE, OTHER)
            await heard.names(OTHER, 20.0)  # Samba looks for changes every 5 s
            await asyncio.to_thread(samba.stop)
            try:
                await heard.until(lambda: follower.status.problem is not None)
                assert attribute(follower.organization).der == OTHER
            finally:
                await asyncio.to_thread(samba.start)
            await asyncio.to_thread(samba.set, exchange.server_dn("MBX1"), ATTRIBUTE, None)
            await heard.names(None, 20.0)
            assert follower.status.means == "notification"

    try:
        asyncio.run(change())
    finally:
        samba.delete(exchange.exchange)
