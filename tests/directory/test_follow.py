"""What a file and a directory that is followed say together, and what a look that fails does; with no directory at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import pytest

from anontls.directory.ldap import FIRST_REST, LdapDirectory, LdapSettings
from anontls.directory.ldap.connection import DomainControllerFailed
from anontls.directory.ldap.follow import Follower
from anontls.facts import (
    ABSENT,
    AcceptedDomain,
    DirectoryWord,
    InternalTlsCert,
    Organization,
    Phase,
    Scenario,
    Server,
    Source,
)
from anontls.selection import select
from anontls.selection.sessions import session_facts
from tests.support.make import common_name, make_der

T = TypeVar("T")

AT = datetime(2030, 1, 1, tzinfo=UTC)
OLD, NEW = make_der(common_name("old")), make_der(common_name("new"))
WHERE = LdapSettings(urls=("ldaps://dc1.contoso.com",))
BASE = Organization(
    schema="anontls/org/1",
    accepted_domains=(AcceptedDomain(domain_name="contoso.com"),),
    servers=(
        Server(name="MBX1", server_role="Mailbox", internal_tls_cert=InternalTlsCert(der=OLD)),
        Server(name="EDGE1", server_role="Edge", internal_tls_cert_adlds=InternalTlsCert(der=OLD)),
    ),
)


def directory(*servers: Server) -> Organization:
    return Organization(schema="anontls/org/1", sources=(Source(kind="ldap", file=WHERE.urls[0]),), servers=servers)


class FakeConnection:
    """One that nothing can be searched on: each look reads all."""


class Answers:
    """What a directory says; an exception is raised."""

    def __init__(self) -> None:
        self.says: Organization | Exception = directory()
        self.connection = FakeConnection()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()

    def call(of: LdapDirectory, operation: Callable[[Any], T]) -> T:
        return operation(answers.connection)

    def organization(of: LdapDirectory, **_: object) -> Organization:
        if isinstance(answers.says, Exception):
            raise answers.says
        return answers.says

    def changes(of: Follower, _: object) -> None:
        of._connection = answers.connection  # type: ignore[assignment]

    monkeypatch.setattr(LdapDirectory, "call", call)
    monkeypatch.setattr(LdapDirectory, "organization", organization)
    monkeypatch.setattr(Follower, "_changes", changes)
    return answers


def follower(**more: Any) -> Follower:
    return Follower(WHERE, BASE, now=lambda: AT, **more)


def attributes(organization: Organization, name: str) -> tuple[InternalTlsCert, InternalTlsCert]:
    server = organization.server(name)
    assert server is not None
    return server.internal_tls_cert, server.internal_tls_cert_adlds


def closed(follower: Follower) -> None:
    asyncio.run(follower.stop())


def test_the_attribute_is_the_word_of_the_directory_alone(answers: Answers) -> None:
    answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=NEW)))
    following = follower()
    organization = following.first()
    closed(following)
    assert attributes(organization, "MBX1")[0].der == NEW
    own, adlds = attributes(organization, "EDGE1")  # removed from the directory: the file's copy proves nothing
    assert own.error == "the directory shows no such server"
    assert adlds.unknown == ABSENT.because
    assert organization.accepted_domains == BASE.accepted_domains


def test_a_start_without_the_directory_is_event_12012(answers: Answers) -> None:
    answers.says = DomainControllerFailed("ldaps://dc1.contoso.com: Connection refused")
    following = follower()
    organization = following.first()
    closed(following)
    for name in ("MBX1", "EDGE1"):
        server = organization.server(name)
        assert server is not None
        for phase, events in ((Phase.STARTUP, [12012]), (Phase.SESSION, [])):
            facts = session_facts(server, Scenario.INBOUND_ANONYMOUS, AT, phase=phase)
            decision = select(msgspec.structs.replace(facts, store=()))
            assert decision.verb is None and decision.certificate is None
            assert [event.id for event in decision.events] == events


def test_a_problem_keeps_its_cure(answers: Answers) -> None:
    answers.says = DomainControllerFailed("ldap://dc1.contoso.com: no Kerberos", hint="`kinit`")
    following = follower()
    following.first()
    closed(following)
    assert following.status.problem == "ldap://dc1.contoso.com: no Kerberos (`kinit`)"


def test_how_fresh_it_is_what_serves(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LdapDirectory, "url", WHERE.urls[0])
    answers.says = DomainControllerFailed("ldaps://dc1.contoso.com: Connection refused")
    passed = 0.0
    following = follower(clock=lambda: passed, grace=60.0)
    following.first()
    words = [following.word]
    answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=OLD)))
    following._look()
    passed = 12.5
    words.append(following.word)
    answers.says = DomainControllerFailed("ldaps://dc1.contoso.com: Connection refused")
    passed = 61.0
    following._look()
    assert not following.status.readable
    assert following.status.url is None
    words.append(following.word)
    answered = DirectoryWord(url=WHERE.urls[0], as_of=AT, age=12.5)
    assert words == [None, answered, msgspec.structs.replace(answered, age=61.0)], "it is still who answered last"
    closed(following)


def test_a_look_that_fails_in_an_unforeseen_way_is_followed_by_another(answers: Answers) -> None:
    answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=OLD)))
    following = follower(interval=0.01)
    following.first()

    async def go_on() -> None:
        following.start(lambda _: None)
        try:
            answers.says = ZeroDivisionError("planted")
            async with asyncio.timeout(5):
                while following.status.problem is None:  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0.005)
                assert following.status.problem == "ZeroDivisionError: planted"
                assert attributes(following.organization, "MBX1")[0].der == OLD
                answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=NEW)))
                while attributes(following.organization, "MBX1")[0].der != NEW:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        finally:
            await following.stop()

    asyncio.run(go_on())


def test_what_is_read_again_and_is_the_same_is_told_once_and_is_fresh(answers: Answers) -> None:
    passed, changes = 0.0, list[Organization]()
    following = follower(interval=0.01, clock=lambda: passed)
    following.first()
    passed = 50.0
    assert following.age == 50.0

    async def read_again() -> None:
        following.start(changes.append)
        try:
            async with asyncio.timeout(5):
                while following.status.reads < 4:  # noqa: ASYNC110 nothing tells
                    await asyncio.sleep(0.005)
        finally:
            await following.stop()

    asyncio.run(read_again())
    assert changes == []
    assert following.age == 0.0


def test_a_grace_of_nothing_ends_with_the_first_look_that_fails_and_not_before(answers: Answers) -> None:
    answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=OLD)))
    passed = 0.0
    following = follower(interval=60.0, grace=0.0, clock=lambda: passed)
    following.first()
    passed = 119.0
    following._end_grace()
    assert attributes(following.organization, "MBX1")[0].der == OLD
    answers.says = DomainControllerFailed("ldaps://dc1.contoso.com: Connection refused")
    following._look()
    assert not following.status.readable
    assert attributes(following.organization, "MBX1")[0].error == (
        "the directory has not answered for more than 0 s: ldaps://dc1.contoso.com: Connection refused"
    )
    closed(following)


def test_a_domain_controller_that_goes_while_it_is_read_is_left_altogether(answers: Answers) -> None:
    following = follower()

    def changes(_: object) -> dict[str, bytes]:
        following._connection = answers.connection  # type: ignore[assignment]
        answers.connection = FakeConnection()  # the next one answers what is asked now
        return {"CN=MBX1": b"1"}

    following._changes = changes  # type: ignore[method-assign, assignment]
    answers.says = directory(Server(name="MBX1", internal_tls_cert=InternalTlsCert(der=NEW)))
    assert following._look() == FIRST_REST
    assert attributes(following.organization, "MBX1")[0].der == NEW
    assert following._stamps is None  # they are another's
    closed(following)
