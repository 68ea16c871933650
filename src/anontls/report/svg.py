"""The decision as a picture: the procedure's whole table as boxes and arrows, with the way taken through it.

The picture is drawn from the table that decided.  It is one SVG 1.1 file that refers to nothing outside itself; names
from the facts are hostile input.  Widths of text cannot be measured here: lines are broken by widths that no usual
font exceeds.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import NamedTuple

from anontls.facts import Phase, Scenario
from anontls.report.explain import Explanation
from anontls.report.language import Language, say
from anontls.selection import Decision, Outcome, Question, Result, Step, questions

WIDTH, MARGIN = 960, 24
MAIN, EXIT = (MARGIN, 548), (672, 264)  # x and width of the two columns: questions, and where "no" leads
CENTRE = MAIN[0] + MAIN[1] // 2
PAD, BADGE, GAP = 12, 66, 38

# --- colours: name -> (light, dark); every text on every ground it stands on is WCAG AA or better
COLOURS = {
    "paper": ("#ffffff", "#12181f"),
    "ink": ("#1b2733", "#e6edf3"),
    "muted": ("#566270", "#a3afbb"),
    "line": ("#7c8896", "#75818d"),
    "box": ("#f5f7f9", "#1b232c"),
    "way": ("#0b5cad", "#6cb0ff"),
    "passed": ("#1a6b3c", "#6fd08c"),
    "passed-ground": ("#e8f5ec", "#15291d"),
    "noted": ("#8a5200", "#f0b849"),
    "noted-ground": ("#fff4dc", "#2e2510"),
    "stopped": ("#b3261e", "#ff8f85"),
    "stopped-ground": ("#fdecea", "#351a18"),
    "unknown": ("#6b3fa0", "#c9a6ff"),
    "unknown-ground": ("#f3ecfb", "#261c36"),
}
OUTCOMES = ("passed", "noted", "stopped", "unknown")
_RULES = """
text{fill:@ink;font:13px system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
text.title{font-size:20px;font-weight:600}
text.question,text.word,text.end,text.badge{font-weight:600}
text.value{font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
text.label,text.word,text.small{font-size:12px}
text.small,text.label,.dashed text,.open text{fill:@muted}
text.badge{font-size:12px;text-anchor:middle;fill:@paper}
text.middle{text-anchor:middle}
.paper{fill:@paper}
.box{fill:@box;stroke:@line;stroke-width:1}
.asked .box{stroke:@way;stroke-width:2}
.dashed .box{fill:@paper;stroke-dasharray:5 4}
.open .box{fill:@paper}
.badge-shape{fill:@way}
.dashed .badge-shape{fill:@muted}
.edge{fill:none;stroke:@line;stroke-width:1.25}
.edge.dashed{stroke-dasharray:5 4}
.edge.taken{stroke:@way;stroke-width:3}
.head{fill:@line}
.head.taken{fill:@way}
text.label.taken{fill:@way;font-weight:600}
.mark .sign{fill:none;stroke:@paper;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.mark.not-asked path{fill:none;stroke:@muted;stroke-width:1.5}
.mark.not-asked .shape{stroke-dasharray:3 2}
""" + "".join(
    f".mark.{name} .shape{{fill:@{name}}}\n.{name} text.word,.{name} text.end{{fill:@{name}}}\n"
    f".{name}.ended .box{{fill:@{name}-ground;stroke:@{name};stroke-width:3}}\n"
    for name in OUTCOMES
)


@cache
def _style() -> str:
    # Variables for who wants to change them, and before each the plain colour for viewers that know no variables.
    plain = re.sub(
        r"(fill|stroke):@([\w-]+)", lambda m: f"{m[1]}:{COLOURS[m[2]][0]};{m[1]}:var(--{m[2]})", _RULES.strip()
    )
    scoped = re.sub(r"(^|[},\n])(?=text|\.)", r"\1.anontls-decision ", plain)  # a page may hold the picture inline
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in COLOURS.items()) for i in (0, 1))
    by_theme = f".anontls-decision{{{light}}}\n@media (prefers-color-scheme: dark){{.anontls-decision{{{dark}}}}}"
    return f"<style>{by_theme}\n{scoped}</style>"


# --- text

# Not allowed in XML, or a means to make text look like another: controls, surrogates, invisible and bidi characters.
_UNFIT = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
#: Widths in em after DejaVu Sans, the widest of the usual fonts.
_EM = {
    c: em
    for chars, em in (
        ("ijlI.,' ", 0.32),
        ('|:;!frt()[]-/\\"`', 0.46),
        ("\u201e\u201c\u2013\u2019", 0.55),
        ("ckszvxy", 0.6),
        ("abdeghnopqu0123456789", 0.64),
        ("ABCDEFGHJKLNOPQRSTUVXYZ", 0.79),
        ("mwMW@%", 1.0),
    )
    for c in chars
}


class Style(NamedTuple):
    """How a piece of text is set; the class of the same name says it to the viewer."""

    size: int
    height: int
    most: int  # lines; what is longer is cut and stands whole in a tool tip
    bold: bool = False
    mono: bool = False


STYLES = {
    "title": Style(20, 28, 3, bold=True),
    "headline": Style(13, 19, 8),
    "question": Style(13, 18, 6, bold=True),
    "end": Style(13, 18, 6, bold=True),
    "word": Style(12, 20, 1, bold=True),
    "value": Style(12, 17, 24, mono=True),
    "small": Style(12, 17, 6),
    "label": Style(12, 14, 3, bold=True),
}


def clean(text: str) -> str:
    """``text`` with what must not stand in XML, or would not show, replaced."""
    return _UNFIT.sub("\ufffd", re.sub(r"[\t\r\n]", " ", text))


def text_width(text: str, style: Style) -> float:
    """No less than what ``text`` takes in any usual font."""
    return sum(_em(c, style.mono) for c in text) * style.size * (1.12 if style.bold else 1)


def _em(c: str, mono: bool) -> float:
    if c >= "\u2e80":
        return 1.0 if c < "\U0001f000" else 1.4  # ideographs, emoji
    if mono:
        return 0.61 if c < "\u2100" else 1.0
    return _EM.get(c) or (0.85 if c < "\u0250" else 1.0)


def wrap(text: str, width: int, style: Style) -> list[str]:
    """The lines of ``text``, broken at blanks and after commas; what is longer than a line is broken anywhere.

    No more lines are made than one more than the style allows.
    """
    lines = [""]
    for blank, piece in re.findall(r"(\s*)([^\s,]*,|[^\s,]+)", text):
        longer = lines[-1] + (" " if blank and lines[-1] else "") + piece
        if text_width(longer, style) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        room = float(width)
        for c in piece:
            room -= text_width(c, style)
            if room < 0 and lines[-1]:
                lines.append("")
                room = width - text_width(c, style)
            lines[-1] += c
            if len(lines) > style.most:
                return lines
    return lines


class Block:
    """Lines of text below each other."""

    def __init__(self, width: int) -> None:
        self.width, self.height = width, 0
        self._parts: list[tuple[str, list[tuple[int, str, str]]]] = []  # tool tip; baseline, style, line

    def add(self, text: str, name: str, *, space: int = 0) -> Block:
        style, text = STYLES[name], clean(text)
        lines, tip = wrap(text, self.width, style), ""
        if len(lines) > style.most:
            lines, tip = lines[: style.most], f"<title>{escape(text)}</title>"
            lines[-1] = lines[-1][:-4] + "\u2026"  # no wider than four of the narrowest
        first = self.height + space + (style.height + style.size) // 2 - 1
        self._parts.append((tip, [(first + i * style.height, name, line) for i, line in enumerate(lines)]))
        self.height += space + len(lines) * style.height
        return self

    def svg(self, x: int, y: int, more: str = "") -> str:
        parts = []
        for tip, lines in self._parts:
            texts = "".join(_text(x, y + dy, name, line, more) for dy, name, line in lines)
            parts.append(f"<g>{tip}{texts}</g>" if tip else texts)
        return "".join(parts)


def _text(x: int, y: int, name: str, line: str, more: str = "") -> str:
    # Scripts whose widths no table here knows are held to the width that was reckoned with.
    foreign = any(c > "\u058f" and not "\u2000" <= c < "\u2100" for c in line)
    width = f' textLength="{text_width(line, STYLES[name]):.0f}" lengthAdjust="spacingAndGlyphs"' if foreign else ""
    return f'<text class="{name}{more}" x="{x}" y="{y}"{width}>{escape(line)}</text>'


# --- shapes

_SIGNS = {  # each outcome has its own shape, not only its own colour
    "passed": ("M-8,0a8,8 0 1 1 16,0a8,8 0 1 1 -16,0z", "M-3.5,.3l2.5,2.7l4.7,-5.6"),
    "noted": ("M0,-9L9.5,7.5H-9.5z", "M0,-3V2M0,4.7v.1"),
    "stopped": ("M-3.5,-8.5h7l5,5v7l-5,5h-7l-5,-5v-7z", "M-3,-3L3,3M3,-3L-3,3"),
    "unknown": (
        "M-6,-8h12q2,0 2,2v12q0,2 -2,2h-12q-2,0 -2,-2v-12q0,-2 2,-2z",
        "M-2.5,-2.3a2.5,2.5 0 1 1 3.7,2.2q-1.2,.7 -1.2,1.7M0,4.7v.1",
    ),
    "not-asked": ("M-7,0a7,7 0 1 1 14,0a7,7 0 1 1 -14,0z", "M-2.5,0H2.5"),
}


def _mark(x: int, y: int, outcome: str) -> str:
    shape, sign = _SIGNS[outcome]
    paths = f'<path class="shape" d="{shape}"/><path class="sign" d="{sign}"/>'
    return f'<g class="mark {outcome}" transform="translate({x},{y})">{paths}</g>'


def _rect(x: int, y: int, width: int, height: int, radius: int) -> str:
    return f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}"/>'


class Exit(NamedTuple):
    """A way out of a question to the right."""

    label: str
    kind: str  # none, note, verb-only, ephemeral, unknown
    text: Block
    taken: bool


ROLE = "outbound.1.b.role"  # the question that has neither yes nor no
EXIT_COLOUR = {"none": "stopped", "unknown": "unknown"}  # the rest is noted


class Picture:
    """One decision being drawn, from top to bottom; ``y`` is how far it has come."""

    def __init__(self, decision: Decision, language: Language) -> None:
        self.decision, self.language = decision, language
        self.explanation = Explanation(decision, language)
        self.asked = {step.step: step for step in decision.steps}
        facts = decision.facts
        outbound = facts.scenario is Scenario.OUTBOUND_ANONYMOUS
        self.side = "startup" if facts.phase is Phase.STARTUP else "outbound" if outbound else "inbound"
        self.verb = "STARTTLS" if facts.scenario is Scenario.INBOUND_STARTTLS else "X-ANONYMOUSTLS"
        self.edges: dict[str, list[str]] = {"dashed": [], "open": [], "taken": []}  # the way taken lies on top
        self.boxes: list[str] = []
        self.y = MARGIN

    def say(self, key: str, **values: object) -> str:
        """The text ``key``."""
        return say(self.language, key, {"verb": self.verb, "server": self.decision.facts.server.name, **values})

    def _outcome(self, outcome: str) -> str:
        return self.say("picture.not-asked" if outcome == "not-asked" else f"outcome.{outcome}")

    def svg(self) -> str:
        """The document."""
        decision = self.decision
        title = self.say(f"picture.title.{decision.facts.scenario.value}")
        if self.side == "startup":
            title += f" ({self.say('scenario.startup')})"
        self._head(title)
        table = questions(decision.facts)
        self._start()
        for question in table:
            self._question(question)
        self._end(table[-1])
        self._legend()
        told = [f"{s.step} {self._outcome(s.outcome.value)}: {self.explanation.because(s)}." for s in decision.steps]
        described = escape(clean(" ".join([self.explanation.headline + ".", *told])))
        edges = "\n".join(line for lines in self.edges.values() for line in lines)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" class="anontls-decision" role="img"'
            f' viewBox="0 0 {WIDTH} {self.y}" width="{WIDTH}" height="{self.y}" xml:lang="{self.language}"'
            f' data-result="{decision.result.value}">\n'
            f"<title>{escape(title)}</title>\n<desc>{described}</desc>\n{_style()}\n"
            f'<path class="paper" d="M0,0H{WIDTH}V{self.y}H0z"/>\n{edges}\n' + "\n".join(self.boxes) + "\n</svg>\n"
        )

    def _head(self, title: str) -> None:
        head = Block(WIDTH - 2 * MARGIN).add(title, "title").add(self.explanation.headline, "headline", space=4)
        head.add(self.explanation.as_of, "small", space=2)
        self.boxes.append(head.svg(MARGIN, self.y))
        self.y += head.height + 20

    def _start(self) -> None:
        text = Block(MAIN[1] - 40).add(self.say(f"picture.start.{self.side}"), "end")
        height = text.height + 2 * PAD
        box = _rect(MAIN[0], self.y, MAIN[1], height, 21)
        self.boxes.append(f'<g class="asked">{box}{text.svg(CENTRE, self.y + PAD, " middle")}</g>')
        self.y += height
        self._edge("taken", (CENTRE, self.y), (CENTRE, self.y + GAP))
        self.y += GAP

    def _question(self, question: Question) -> None:
        step = self.asked.get(question.step)
        outcome = step.outcome.value if step else "not-asked"
        text = Block(MAIN[1] - BADGE - PAD).add(self.explanation.question(question), "question")
        word_at = text.height + 4
        text.height = word_at + STYLES["word"].height
        if step:
            text.add(self.explanation.because(step), "value")
        if step and step.outcome is Outcome.UNKNOWN:
            text.add(f"{self.say('word.check')}: {self.explanation.check(step)}", "value", space=4)
        exits = self._exits(question, step)
        aside = sum(e.text.height + 2 * PAD for e in exits) + PAD * (len(exits) - 1)
        top, height = self.y, max(text.height + 2 * PAD, aside)
        action = question.otherwise == "action"
        x, y, middle = MAIN[0] + BADGE, top + (height - text.height) // 2, top + height // 2
        badge = "M-20,-13H20V13H-20z" if action else "M0,-21L25,0L0,21L-25,0z"  # a diamond decides
        self.boxes.append(
            f'<g class="step {"asked" if step else "dashed"} {outcome}"'
            f' data-step="{question.step}" data-outcome="{outcome}">'
            f"{_rect(MAIN[0], top, MAIN[1], height, 4 if action else 12)}"
            f'<path class="badge-shape" transform="translate({MAIN[0] + 35},{middle})" d="{badge}"/>'
            f"{_text(MAIN[0] + 35, middle + 4, 'badge', question.step)}{text.svg(x, y)}"
            f"{_mark(x + 9, y + word_at + 10, outcome)}"
            f"{_text(x + 26, y + word_at + 14, 'word', self._outcome(outcome))}</g>"
        )
        self.y += height
        goes_on = step is not None and not any(e.taken for e in exits)
        state = "taken" if goes_on else "open" if step else "dashed"
        joins = next((e for e in exits if e.kind == "note"), None)
        self._edge(state, (CENTRE, self.y), (CENTRE, self.y + (34 if joins else GAP)), head=joins is None)
        if not action and question.key != ROLE:
            self.edges[state].append(_text(CENTRE + 10, self.y + 21, "label", self.say("picture.yes"), f" {state}"))
        y = top + (height - aside) // 2
        for each in exits:
            y = self._exit(question, step, each, y) + PAD
        self.y += GAP
        if joins:  # the way of the expired comes back
            beside, at = EXIT[0] + EXIT[1] // 2, self.y - 4
            state = "taken" if joins.taken else state if state == "dashed" else "open"
            self._edge(state, (beside, y - PAD), (beside, at), (CENTRE + 2, at))
            self._edge("taken" if joins.taken or goes_on else state, (CENTRE, at), (CENTRE, at + GAP))
            self.y = at + GAP

    def _exits(self, question: Question, step: Step | None) -> list[Exit]:
        rules, last = self.decision.rules, step is not None and step is self.decision.last
        outcome = step.outcome if step else None
        event = None if question.event == 12012 and self.side != "startup" else question.event
        exits = []
        if question.otherwise == "note" and not (question.event == 12016 and rules.expired_starttls == "withdrawn"):
            exits.append(self._way("picture.no", "note", "picture.expired-goes-on", event, outcome is Outcome.NOTED))
        elif question.event == 12013 and rules.store_miss == "ephemeral":
            taken = last and self.decision.ephemeral
            exits.append(self._way("picture.no", "ephemeral", f"picture.end.ephemeral.{self.side}", 12024, taken))
        elif question.key != ROLE and (question.otherwise != "action" or event is not None):
            label = "word.none" if question.otherwise == "action" else "picture.no"
            exits.append(self._way(label, "none", f"picture.no-none.{self.side}", event, outcome is Outcome.STOPPED))
        if question.key == "outbound.1.b.mailbox" and rules.mailbox_to_mailbox == "verb-without-certificate":
            taken = last and self.decision.result is Result.VERB_ONLY
            exits.append(self._way("picture.to-mailbox", "verb-only", "picture.end.verb-only", None, taken))
        if step is not None and outcome is Outcome.UNKNOWN:
            way = self._way("outcome.unknown", "unknown", "picture.end.unknown", None, True)
            way.text.add(self.say("picture.missing", fact=step.values.get("fact")), "small")
            exits.insert(0, way)  # the note, whose way goes on below, stays the lowest
        return exits

    def _way(self, label: str, kind: str, key: str, event: int | None, taken: bool) -> Exit:
        text = Block(EXIT[1] - (46 if taken else 2 * PAD)).add(self.say(key), "end")
        if event is not None:
            text.add(self.say("word.event", id=event), "small")
        return Exit(self.say(label), kind, text, taken)

    def _exit(self, question: Question, step: Step | None, way: Exit, y: int) -> int:
        """Draw a box of the right column and the arrow to it; returns where the box ends."""
        height = way.text.height + 2 * PAD
        colour = EXIT_COLOUR.get(way.kind, "noted")
        state = "taken" if way.taken else "open" if step else "dashed"
        ended = f' data-ended="{way.kind}"' if way.taken and way.kind != "note" else ""
        self._edge(state, (MAIN[0] + MAIN[1], y + height // 2), (EXIT[0], y + height // 2))
        label = Block(EXIT[0] - MAIN[0] - MAIN[1] - 18).add(way.label, "label")
        self.edges[state].append(label.svg(MAIN[0] + MAIN[1] + 8, y + height // 2 - 4 - label.height, f" {state}"))
        self.boxes.append(
            f'<g class="exit {f"{colour} ended" if way.taken else state}"'
            f' data-exit="{way.kind}" data-of="{question.step}"{ended}>'
            + _rect(EXIT[0], y, EXIT[1], height, 4)
            + way.text.svg(EXIT[0] + (36 if way.taken else PAD), y + PAD)
            + (_mark(EXIT[0] + 20, y + PAD + 9, colour) if way.taken else "")
            + "</g>"
        )
        return y + height

    def _end(self, last: Question) -> None:
        decision = self.decision
        reached = decision.result is Result.CERTIFICATE and not decision.ephemeral
        key = "picture.end.role" if last.key == ROLE else f"picture.end.{self.side}"
        text = Block(MAIN[1] - 100).add(self.say(key), "end")
        if reached and decision.certificate is not None:
            text.add(self.explanation.certificate(decision.certificate), "value", space=2)
        height = text.height + 2 * PAD
        self.boxes.append(
            ('<g class="end passed ended" data-ended="certificate">' if reached else '<g class="end dashed">')
            + _rect(MAIN[0], self.y, MAIN[1], height, 21)
            + text.svg(CENTRE, self.y + PAD, " middle")
            + (_mark(MAIN[0] + 26, self.y + height // 2, "passed") if reached else "")
            + "</g>"
        )
        self.y += height + 24

    def _legend(self) -> None:
        x = MARGIN + 9
        for outcome in (*OUTCOMES, "not-asked"):
            word = self._outcome(outcome)
            text = Block(200).add(word, "small")
            self.boxes.append(_mark(x, self.y + 9, outcome) + text.svg(x + 16, self.y))
            x += 44 + round(text_width(word, STYLES["small"]))
        text = Block(WIDTH - 2 * MARGIN).add(self.say("picture.legend"), "small")
        self.boxes.append(text.svg(MARGIN, self.y + 24))
        self.y += 24 + text.height + MARGIN

    def _edge(self, state: str, *points: tuple[int, int], head: bool = True) -> None:
        """A line through ``points``, all at right angles, with an arrow's head at the last."""
        line = list(points)
        if head:
            (x0, y0), (x, y) = points[-2:]
            dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
            line[-1] = (x - 6 * dx, y - 6 * dy)
            wings = " ".join(f"{x - 9 * dx + 5 * k * dy},{y - 9 * dy + 5 * k * dx}" for k in (1, -1))
            self.edges[state].append(f'<polygon class="head {state}" points="{x},{y} {wings}"/>')
        self.edges[state].append(f'<polyline class="edge {state}" points="{" ".join(f"{x},{y}" for x, y in line)}"/>')


def decision_svg(decision: Decision, language: Language = "en") -> str:
    """The procedure that took ``decision`` and the way through it, as one self-contained SVG document."""
    return Picture(decision, language).svg()
