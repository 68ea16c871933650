"""A running node whose certificate is named by the directory, while that changes, goes away and comes back."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anontls import config
from anontls.errors import AnontlsError
from anontls.facts import Scenario
from anontls.report.json import decision_json
from anontls.selection import Result
from anontls.transport.check import Finding, findings
from anontls.transport.lab import EDGE, MAILBOX
from anontls.transport.service import Service, system_now
from lab.exchange import Exchange
from lab.slapd import Slapd
from tests.certstore.make import make
from tests.transport.world import Running, World, connected, copy_world, eventually, make_world, run

ATTRIBUTE = "msExchServerInternalTLSCert"


@pytest.fixture
def world(tmp_path: Path, slapd: Slapd) -> World:
    """MBX1 and EDGE1 follow the directory; what their file says of the attribute does not count."""
    world = copy_world(make_world(tmp_path / "made"), tmp_path / "world")
    (world.folder / "password").write_text(slapd.password + "\n")
    (world.folder / "password").chmod(0o600)
    (world.folder / "password").chmod(0o600)
    for name in (MAILBOX, EDGE):
        world.configure(
            name,
            "[store]",
            f'[directory]\nurls = ["{slapd.ldaps_url}"]\nbind = "{slapd.bind_dn}"\npassword-file = "password"\n'
            f'ca = "{slapd.ca}"\ninterval = 0.2\ngrace = 0.5\n\n[store]',
        )
    return world


async def offers(node: Running) -> bool:
    async with connected(node.port) as client:
        return "X-ANONYMOUSTLS" in await client.ask("EHLO mbx2.contoso.com")


async def until(node: Running, offered: bool) -> None:
    for _ in range(400):
        if await offers(node) is offered:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(node.console.getvalue())


async def decisions(address: str) -> dict[tuple[str, str], Any]:
    """What a node shows of its last decisions, by scenario and step."""
    with await asyncio.to_thread(urllib.request.urlopen, f"{address}/decisions", timeout=10) as page:
        documents = [msgspec.json.decode(line) for line in page.read().splitlines()]
    return {(each["scenario"], each["steps"][-1]["step"]): each for each in documents}


async def figures(address: str) -> dict[str, float]:
    with await asyncio.to_thread(urllib.request.urlopen, f"{address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_each_decision_shows_how_old_the_word_of_the_directory_is(world: World, slapd: Slapd) -> None:
    """While it answers, while the last known value serves, and when that is over: in the steps and as figures."""
    exchange = Exchange(slapd.configuration)
    slapd.add(*exchange.containers(), exchange.server(MAILBOX, world.certificates[MAILBOX].der))
    world.configure(MAILBOX, "[store]", '[metrics]\nlisten = "127.0.0.1:0"\n\n[store]')
    answered = f"; the directory ({slapd.ldaps_url}) last answered "

    async def session() -> None:
        async with world.node(MAILBOX) as node:
            said = node.console.getvalue()
            assert f"the directory is read from {slapd.ldaps_url}\n" in said
            address = said.partition("metrics and health at ")[2].splitlines()[0]
            started = decision_json(node.service.startup())
            assert started["directory"]["url"] == slapd.ldaps_url
            assert answered in started["steps"][0]["because"]
            assert await offers(node)
            shown = await decisions(address)
            for document in (shown["inbound-anonymous", "4"], shown["inbound-starttls", "6"]):
                assert document["directory"]["url"] == slapd.ldaps_url
                assert 0 <= document["directory"]["age"] < 5
            before = await figures(address)
            assert before['anontls_directory_looks_total{result="answered"}'] >= 1
            assert before['anontls_directory_looks_total{result="failed"}'] == 0
            assert before[f'anontls_directory_info{{means="syncrepl",url="{slapd.ldaps_url}"}}'] == 1

            await asyncio.to_thread(slapd.stop)
            try:
                await until(node, offered=False)
                shown = await decisions(address)
                document = shown["inbound-anonymous", "2"]
                assert document["directory"]["age"] > 0.5, "older than the grace"
                because = document["steps"][-1]["because"]
                assert because.startswith("it could not be read: the directory has not answered for more than 0.5 s")
                assert answered in because
                assert shown["inbound-starttls", "6"]["directory"]["age"] > 0.5
                after = await figures(address)
                assert after['anontls_directory_looks_total{result="failed"}'] >= 1
                assert not [name for name in after if name.startswith("anontls_directory_info")]
                assert after["anontls_directory_readable"] == 0
            finally:
                await asyncio.to_thread(slapd.start)
            await until(node, offered=True)
            document = (await decisions(address))["inbound-anonymous", "4"]
            assert document["directory"]["as_of"] > shown["inbound-anonymous", "2"]["directory"]["as_of"]

    try:
        run(session())
    finally:
        slapd.delete(f"CN=Services,{slapd.configuration}")


def test_what_the_directory_says_holds_at_once(world: World, slapd: Slapd) -> None:
    exchange = Exchange(slapd.configuration)
    mine, other = world.certificates[MAILBOX], make("ec", name="mbx1", number=5)
    world.add_certificate(MAILBOX, other)
    slapd.add(*exchange.containers(), exchange.server(MAILBOX, mine.der))
    there = exchange.server_dn(MAILBOX)

    async def session() -> None:
        async with world.node(MAILBOX) as node:
            decision = node.service.startup()
            assert decision.certificate is not None and decision.certificate.thumbprint == mine.thumbprint
            assert await offers(node)

            await asyncio.to_thread(slapd.set, there, ATTRIBUTE, other.der)
            await eventually(lambda: node.service.node.server.internal_tls_cert.der == other.der)
            assert node.service.startup().certificate is not None

            await asyncio.to_thread(slapd.set, there, ATTRIBUTE, None)
            await until(node, offered=False)
            await asyncio.to_thread(slapd.set, there, ATTRIBUTE, mine.der)
            await until(node, offered=True)

            await asyncio.to_thread(slapd.stop)
            try:
                assert await offers(node), "the last known value serves for the grace"
                await until(node, offered=False)
                assert node.service.startup().result is Result.NONE
            finally:
                await asyncio.to_thread(slapd.start)
            await until(node, offered=True)
            assert "the directory does not answer" in node.console.getvalue()

    try:
        run(session())
    finally:
        slapd.delete(f"CN=Services,{slapd.configuration}")


def test_a_start_without_the_directory_is_12012_and_recovers(world: World, slapd: Slapd) -> None:
    exchange = Exchange(slapd.configuration)
    slapd.add(*exchange.containers(), exchange.server(MAILBOX, world.certificates[MAILBOX].der))

    async def session() -> None:
        await asyncio.to_thread(slapd.stop)
        try:
            node_at = world.node(MAILBOX)
            node = await node_at.__aenter__()
            assert not await offers(node)
            assert world.event_ids(MAILBOX)[0] == 12012
        finally:
            await asyncio.to_thread(slapd.start)
        try:
            await until(node, offered=True)
        finally:
            await node_at.__aexit__(None, None, None)

    try:
        run(session())
    finally:
        slapd.delete(f"CN=Services,{slapd.configuration}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('folder = "mbx1-certificates"', 'folder = "nowhere"', "nowhere"),
        ('server = "MBX1"', 'server = "MBX9"', "no server MBX9"),
        ('ca = "', 'ca = "/nowhere', "/nowhere"),
    ],
)
def test_what_cannot_be_built_leaves_the_directory(world: World, slapd: Slapd, old: str, new: str, said: str) -> None:
    world.configure(MAILBOX, old, new)
    settings = config.load(world.config(MAILBOX))
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(AnontlsError) as raised:
        Service(settings, world.folder, now=system_now)
    assert set(Path("/proc/self/fd").iterdir()) == before, "though the traceback still holds it"
    assert said in str(raised.value)


# --- looked at before it starts ---------------------------------------------------------------------------------------


def found(world: World, name: str = EDGE, **how: bool) -> dict[str, list[Finding]]:
    """What ``anontls config check`` finds, by place."""
    path = world.config(name)
    places: dict[str, list[Finding]] = {}
    for one in findings(config.load(path), path, system_now(), bind=False, **how):
        if not one.text.startswith("checked as root"):
            places.setdefault(one.place, []).append(one)
    return places


def steps(one: list[Finding]) -> list[str]:
    return [each.decision.last.step for each in one if each.decision is not None]


@pytest.fixture
def published(world: World, slapd: Slapd) -> Iterator[Exchange]:
    """The directory names the certificates of both, and the file names others."""
    exchange = Exchange(slapd.configuration)
    mailbox, edge = (world.certificates[name].der for name in (MAILBOX, EDGE))
    slapd.add(*exchange.containers(), exchange.server(MAILBOX, mailbox), exchange.server(EDGE, edge, roles=64))
    for name in (MAILBOX, EDGE):
        world.publish(name, make(name="gone"))
    yield exchange
    slapd.delete(f"CN=Services,{slapd.configuration}")


def test_config_check_goes_by_what_the_directory_says(world: World, slapd: Slapd, published: Exchange) -> None:
    places = found(world)
    (told,) = places["directory"]
    assert (told.severity, told.text) == ("note", f"it is read from {slapd.ldaps_url}")
    assert {one.severity for each in places.values() for one in each} == {"note"}
    decisions = [places[place][0].decision for place in ("node.server", "listen[0]", "delivery.next-hop-server")]
    for decision in decisions:
        assert decision is not None and decision.certificate is not None
        assert decision.certificate.thumbprint == world.certificates[EDGE].thumbprint
        word = decision.facts.directory
        assert word is not None and word.url == slapd.ldaps_url

    slapd.set(published.server_dn(MAILBOX), ATTRIBUTE, None)
    slapd.set(published.server_dn(EDGE), ATTRIBUTE, make("ec", name="edge1").der)
    places = found(world)
    assert places["node.server"][0].severity == "error" and steps(places["node.server"]) == ["3"]
    last = places["delivery.next-hop-server"][-1]
    assert (last.severity, last.decision) == ("error", None) and f"holds no certificate of {MAILBOX}" in last.text


def test_config_check_when_no_domain_controller_answers(world: World, slapd: Slapd, published: Exchange) -> None:
    """What the start would be, and nothing that the directory was not asked about."""
    slapd.stop()
    try:
        places = found(world)
    finally:
        slapd.start()
    (told,) = places["directory"]
    assert told.severity == "error"
    assert told.text.startswith(
        "no domain controller answers, so a start would be without a certificate (event 12012): "
    )
    assert slapd.ldaps_url in told.text
    (start,) = places["node.server"]
    assert start.decision is not None
    assert [(step.step, step.because) for step in start.decision.steps] == [("2", "2.error")]
    assert [event.id for event in start.decision.events] == [12012]
    assert not [one.text for one in places["delivery.next-hop-server"] if one.text], "nobody knows whether it holds one"


@pytest.mark.parametrize("how", ["offline", "a password file that is not there"])
def test_config_check_without_the_directory_decides_nothing_on_it(
    world: World, slapd: Slapd, published: Exchange, how: str
) -> None:
    slapd.stop()
    try:
        if how == "offline":
            places = found(world, offline=True)
            (told,) = places.pop("directory")
            assert told.severity == "warning" and "what depends on it is not checked" in told.text
        else:
            world.configure(EDGE, 'password-file = "password"', 'password-file = "none"')
            places = found(world)
            (told,) = places.pop("directory")
            assert told.severity == "error" and told.text.endswith("none: No such file or directory")
        assert {one.severity for each in places.values() for one in each} <= {"note"}
        assert [one.decision and one.decision.facts.scenario for one in places["listen[0]"]] == [
            Scenario.INBOUND_STARTTLS
        ]
        assert "node.server" not in places and "delivery.next-hop-server" not in places
        world.configure(EDGE, 'server = "EDGE1"', 'server = "EDGE2"')
        (nobody,) = found(world, offline=True)["node.server"]
        assert nobody.severity == "warning", "the directory may know it"
    finally:
        slapd.start()
