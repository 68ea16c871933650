"""The picture shows the whole table, and the way that the decision took through it."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from anontls.facts import (
    Certificate,
    InternalTlsCert,
    Phase,
    Queue,
    ReceiveConnector,
    Scenario,
    SendConnector,
    Server,
    SessionFacts,
    Store,
    Unknown,
)
from anontls.report.explain import Explanation
from anontls.report.language import LANGUAGES, Language, say
from anontls.report.svg import STYLES, decision_svg, text_width, wrap
from anontls.selection import Decision, Outcome, Rules, questions, select

SVG = "{http://www.w3.org/2000/svg}"
OWN = "0123456789ABCDEF0123456789ABCDEF01234567"
PUBLIC = "89ABCDEF0123456789ABCDEF0123456789ABCDEF"

CERTIFICATE = Certificate(
    thumbprint=OWN,
    subject="CN=MBX1",
    issuer="CN=MBX1",
    certificate_domains=("MBX1", "mbx1.contoso.com"),
    not_before=datetime(2024, 1, 1, tzinfo=UTC),
    not_after=datetime(2029, 1, 1, tzinfo=UTC),
    version=3,
    has_private_key=True,
    is_self_signed=True,
    services="IMAP, POP, IIS, SMTP",
    status="Valid",
)
EXPIRED = replace(CERTIFICATE, not_after=datetime(2026, 1, 1, tzinfo=UTC))
FROM_A_CA = replace(
    CERTIFICATE,
    thumbprint=PUBLIC,
    subject="CN=mbx1.contoso.com, O=Contoso, C=DE",
    issuer="CN=Contoso Issuing CA",
    is_self_signed=False,
    not_before=datetime(2026, 1, 1, tzinfo=UTC),
)
MAILBOX = SessionFacts(
    scenario=Scenario.OUTBOUND_ANONYMOUS,
    as_of=datetime(2026, 11, 24, 12, tzinfo=UTC),
    server=Server(
        name="MBX1", fqdn="mbx1.contoso.com", server_role="Mailbox", internal_transport_certificate_thumbprint=OWN
    ),
    internal_tls_cert=InternalTlsCert(thumbprint=OWN),
    store=Store([CERTIFICATE]),
    queue=Queue(delivery_type="SmtpRelayWithinAdSiteToEdge", next_hop_domain="EdgeSync - Site1 to Internet"),
)
TO_MAILBOX = replace(MAILBOX, queue=Queue(delivery_type="SmtpDeliveryToMailbox"))
EDGE = replace(
    MAILBOX,
    server=Server(name="EDGE1", server_role="Edge", internal_transport_certificate_thumbprint=OWN),
    queue=None,
    send_connector=SendConnector(
        identity="EdgeSync - Inbound to Site1",
        smart_host_auth_mechanism="ExchangeServer",
        smart_hosts=("mail.contoso.com",),
        address_spaces=("SMTP:*;1",),
    ),
)
RECEIVE = ReceiveConnector(
    identity="MBX1\\Default MBX1",
    auth_mechanism="Tls, Integrated, BasicAuth, BasicAuthRequireTLS, ExchangeServer",
    fqdn="mbx1.contoso.com",
    tls_certificate_name=None,
    suppress_x_anonymous_tls=False,
)
STARTTLS = replace(
    MAILBOX,
    scenario=Scenario.INBOUND_STARTTLS,
    receive_connector=RECEIVE,
    store=Store([CERTIFICATE, FROM_A_CA]),
)
NOT_KNOWN = Unknown("the export does not hold it")

#: name -> facts, rules, where the way ends, the events on it
CASES: dict[str, tuple[SessionFacts, Rules, str, list[int]]] = {
    "mailbox": (MAILBOX, Rules(), "certificate", []),
    "mailbox, expired": (replace(MAILBOX, store=Store([EXPIRED])), Rules(), "certificate", [12015]),
    "mailbox, not in the store": (replace(MAILBOX, store=Store([])), Rules(), "none", [12013]),
    "mailbox, temporary": (
        replace(MAILBOX, store=Store([])),
        Rules(store_miss="ephemeral"),
        "ephemeral",
        [12024],
    ),
    "mailbox, date not known": (
        replace(MAILBOX, store=Store([replace(CERTIFICATE, not_after=NOT_KNOWN)])),
        Rules(),
        "unknown",
        [],
    ),
    "to a mailbox server": (TO_MAILBOX, Rules(), "none", []),
    "to a mailbox server, verb only": (
        TO_MAILBOX,
        Rules(mailbox_to_mailbox="verb-without-certificate"),
        "verb-only",
        [],
    ),
    "session with null": (replace(MAILBOX, internal_tls_cert=InternalTlsCert(value=None)), Rules(), "none", []),
    "role not known": (
        replace(MAILBOX, server=replace(MAILBOX.server, server_role=NOT_KNOWN)),
        Rules(),
        "unknown",
        [],
    ),
    "edge stopped at 1.c": (EDGE, Rules(), "none", []),
    "inbound, not known at 1": (
        replace(
            MAILBOX,
            scenario=Scenario.INBOUND_ANONYMOUS,
            receive_connector=replace(RECEIVE, auth_mechanism=NOT_KNOWN),
        ),
        Rules(),
        "unknown",
        [],
    ),
    "starttls": (STARTTLS, Rules(), "certificate", []),
    "starttls, none to choose": (
        replace(STARTTLS, store=Store([replace(FROM_A_CA, status="Invalid")])),
        Rules(),
        "none",
        [12014],
    ),
    "starttls, withdrawn": (
        replace(STARTTLS, store=Store([EXPIRED])),
        Rules(expired_starttls="withdrawn"),
        "none",
        [12016],
    ),
    "start of the service": (replace(MAILBOX, phase=Phase.STARTUP), Rules(), "certificate", []),
    "start of the service with null": (
        replace(MAILBOX, phase=Phase.STARTUP, internal_tls_cert=InternalTlsCert(value=None)),
        Rules(),
        "none",
        [12012],
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
every_language = pytest.mark.parametrize("language", LANGUAGES)


def decided(case: str) -> Decision:
    facts, rules, _, _ = CASES[case]
    return select(facts, rules)


def drawn(decision: Decision, language: Language = "en") -> ElementTree.Element:
    return ElementTree.fromstring(decision_svg(decision, language))


def words(element: ElementTree.Element) -> str:
    """All that is written in ``element``, without the breaks between lines."""
    return "".join("".join(text.itertext()) for text in element.iter(f"{SVG}text")).replace(" ", "")


def of_step(picture: ElementTree.Element, step: str) -> ElementTree.Element:
    (found,) = picture.iterfind(f".//{SVG}g[@data-step='{step}']")
    return found


def classes(element: ElementTree.Element) -> set[str]:
    return set(element.get("class", "").split())


@every_language
@every_case
def test_every_step_of_the_table_stands_there_once_with_its_question_and_outcome(case: str, language: Language) -> None:
    decision = decided(case)
    picture = drawn(decision, language)
    explanation = Explanation(decision, language)
    table = questions(decision.facts)
    steps = [g.get("data-step") for g in picture.iter(f"{SVG}g") if g.get("data-step")]
    assert steps == [question.step for question in table]
    asked = {step.step: step for step in decision.steps}
    for question in table:
        group, step = of_step(picture, question.step), asked.get(question.step)
        assert explanation.question(question).replace(" ", "") in words(group)
        assert group.get("data-outcome") == (step.outcome.value if step else "not-asked")
        assert ("dashed" in classes(group)) is (step is None)
        word = say(language, f"outcome.{step.outcome.value}" if step else "picture.not-asked")
        assert word.replace(" ", "") in words(group)
        if step is not None:
            assert explanation.because(step).replace(" ", "") in words(group)


@every_case
def test_the_way_ends_in_one_place_that_says_so(case: str) -> None:
    _, _, end, _ = CASES[case]
    picture = drawn(decided(case))
    ended = [g for g in picture.iter(f"{SVG}g") if g.get("data-ended")]
    assert [g.get("data-ended") for g in ended] == [end]
    assert "ended" in classes(ended[0])
    if end != "certificate":
        assert ended[0].get("data-of") == decided(case).last.step


@every_case
def test_the_events_on_the_way_are_those_of_the_decision(case: str) -> None:
    decision = decided(case)
    on_the_way = [words(g) for g in drawn(decision).iter(f"{SVG}g") if "ended" in classes(g) and g.get("data-exit")]
    events = [int(number) for text in on_the_way for number in re.findall(r"event(\d+)", text)]
    assert events == CASES[case][3] == [event.id for event in decision.events]


@every_case
def test_the_way_taken_goes_unbroken_from_the_start_to_the_end(case: str) -> None:
    picture = drawn(decided(case))
    lines = [
        [(int(x), int(y)) for x, y in (point.split(",") for point in line.get("points", "").split())]
        for line in picture.iter(f"{SVG}polyline")
        if "taken" in classes(line)
    ]
    boxes = {}
    for group in picture.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        if rect is not None and classes(group) & {"asked", "ended"}:
            boxes[group] = tuple(int(rect.get(k, "")) for k in ("x", "y", "width", "height"))

    def near(point: tuple[int, int], box: tuple[int, ...]) -> bool:  # an arrow's line ends inside its head
        return -8 <= point[0] - box[0] <= box[2] + 8 and -8 <= point[1] - box[1] <= box[3] + 8

    places = [*boxes.values(), *((*line[0], 0, 0) for line in lines)]
    reached = [place for place in places if any(near(line[-1], place) for line in lines)]
    assert len(boxes) == 1 + len(decided(case).steps) + sum("ended" in classes(g) for g in boxes)
    assert set(list(boxes.values())[1:]) <= set(reached)  # all but the start
    for line in lines:
        assert any(near(line[0], box) for box in boxes.values()) or any(near(line[0], (*o[-1], 0, 0)) for o in lines)
        assert any(near(line[-1], place) for place in places)


@every_case
def test_event_12012_belongs_to_the_start_of_the_service(case: str) -> None:
    decision = decided(case)
    exits = [g for g in drawn(decision).iter(f"{SVG}g") if g.get("data-exit") == "none" and g.get("data-of") == "2"]
    starts = decision.facts.phase is Phase.STARTUP
    assert all(("12012" in words(g)) is starts for g in exits)


@every_language
@every_case
def test_boxes_stand_inside_the_picture_and_apart(case: str, language: Language) -> None:
    picture = drawn(decided(case), language)
    boxes = [tuple(int(r.get(k, "")) for k in ("x", "y", "width", "height")) for r in picture.iter(f"{SVG}rect")]
    assert len(boxes) > 4
    _, _, width, height = map(int, picture.get("viewBox", "").split())
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(boxes, 2):
        assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y


@every_language
@every_case
def test_it_refers_to_nothing_outside_itself_and_runs_nothing(case: str, language: Language) -> None:
    text = decision_svg(decided(case), language)
    assert "<script" not in text
    assert not re.search(r"href|url\(|@import|<image|<foreignObject|\son\w+=", text)
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


@every_language
def test_it_has_a_role_a_title_and_a_description(language: Language) -> None:
    decision = decided("edge stopped at 1.c")
    picture = drawn(decision, language)
    assert picture.get("role") == "img"
    assert picture[0].tag == f"{SVG}title"
    assert picture[0].text == say(language, "picture.title.outbound-anonymous")
    explanation = Explanation(decision, language)
    assert explanation.headline in str(picture.findtext(f"{SVG}desc"))
    for text in (explanation.headline, say(language, "word.as-of", {"as_of": decision.as_of})):
        assert text.replace(" ", "") in words(picture)


def test_thumbprints_are_never_broken() -> None:
    picture = drawn(decided("starttls"))
    lines = [str(text.text) for text in of_step(picture, "3").iter(f"{SVG}text")]
    assert any(OWN in line for line in lines)
    assert any(PUBLIC in line for line in lines)


def test_what_is_missing_and_how_to_learn_it_stand_where_the_way_ends() -> None:
    decision = decided("inbound, not known at 1")
    picture = drawn(decision)
    (end,) = picture.iterfind(f".//{SVG}g[@data-ended='unknown']")
    assert "AuthMechanism" in words(end)
    assert Explanation(decision).check(decision.last).replace(" ", "") in words(of_step(picture, "1"))


@every_case
def test_the_same_decision_gives_the_same_bytes(case: str) -> None:
    assert decision_svg(decided(case), "de") == decision_svg(decided(case), "de")
    assert decision_svg(decided(case), "de") != decision_svg(decided(case), "en")


def hostile(name: str) -> Iterator[Decision]:
    certificate = replace(EXPIRED, subject=f"CN={name}", certificate_domains=(name, "mbx1.contoso.com"))
    server = replace(MAILBOX.server, name=name)
    yield select(replace(MAILBOX, server=server, store=Store([certificate]), queue=Queue(delivery_type=name)))
    connector = replace(RECEIVE, identity=name, fqdn=name)
    yield select(replace(STARTTLS, server=server, receive_connector=connector, store=Store([certificate])))
    yield select(replace(STARTTLS, server=server, receive_connector=replace(connector, auth_mechanism=Unknown(name))))


@pytest.mark.parametrize(
    "name",
    [
        "</text><script>alert(1)</script>&amp;\"'",
        "]]><!--",
        "\0\x1b[31m\x7f\x85\ud800\uffff",
        "a\u202egpj.exe\u200b",
        "",
    ],
)
def test_hostile_names_stay_text(name: str) -> None:
    for decision in hostile(name):
        text = decision_svg(decision)
        picture = ElementTree.fromstring(text.encode())
        assert {e.tag.removeprefix(SVG) for e in picture.iter()} <= {
            *("svg", "title", "desc", "style", "g", "path", "rect", "text", "polyline", "polygon")
        }
        assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\ud800-\udfff\ufffe\uffff]", text)


@given(st.text(max_size=80))
def test_any_name_gives_well_formed_xml(name: str) -> None:
    for decision in hostile(name):
        ElementTree.fromstring(decision_svg(decision).encode())


@pytest.mark.parametrize("name", ["W" * 5000, "漢" * 5000, "a " * 5000, "," * 5000])
def test_a_very_long_name_is_cut_and_stands_whole_in_a_tool_tip(name: str) -> None:
    for decision in hostile(name):
        picture = drawn(decision)
        assert int(picture.get("height", "")) < 4000
        for text in picture.iter(f"{SVG}text"):
            style = STYLES.get(text.get("class", "").split()[0])
            if style is not None:
                assert text_width(str(text.text or ""), style) <= 960 - 48
        tips = [str(title.text) for g in picture.iter(f"{SVG}g") for title in g.findall(f"{SVG}title")]
        assert any(name.strip() in tip for tip in tips)


@given(st.text(), st.sampled_from(sorted(STYLES)), st.integers(60, 500))
def test_lines_fit_and_lose_nothing(text: str, name: str, width: int) -> None:
    style = STYLES[name]
    lines = wrap(text, width, style)
    assert all(text_width(line, style) <= width for line in lines)
    if len(lines) <= style.most:
        assert "".join("".join(lines).split()) == "".join(text.split())


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_in_light_and_dark() -> None:
    text = decision_svg(decided("mailbox"))
    themes = [dict(re.findall(r"--([\w-]+):(#\w{6})", rule)) for rule in re.findall(r"\{(--[^}]*)\}", text)]
    assert len(themes) == 2
    for theme in themes:
        for ground in ("paper", "box"):
            for ink in ("ink", "muted", "way", *(o.value for o in Outcome)):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
            assert contrast(theme["line"], theme[ground]) >= 3
        for outcome in (o.value for o in Outcome):
            for ink in ("ink", "muted", outcome):
                assert contrast(theme[ink], theme[f"{outcome}-ground"]) >= 4.5, (ink, outcome)


def test_each_outcome_has_its_own_shape_and_word() -> None:
    picture = drawn(decided("mailbox"))
    shapes: dict[str, set[str]] = {}
    for g in picture.iter(f"{SVG}g"):
        if "mark" in classes(g):
            shapes.setdefault(g.get("class", ""), set()).add(g[0].get("d", ""))
    assert len(shapes) == 5
    assert Counter(len(each) for each in shapes.values()) == {1: 5}
    assert len(set.union(*shapes.values())) == 5
