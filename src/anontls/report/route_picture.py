"""The way of a message as a picture: a box for each server, between them what the queue shows and the certificates.

Drawn with the type and colours of the picture of a decision; names from the facts are hostile input here too.
"""

from __future__ import annotations

from html import escape

from anontls.delivery import End
from anontls.facts import is_unknown
from anontls.report.language import Language, say, texts
from anontls.report.route import Passage, Way, headline, in_short, next_hops
from anontls.report.svg import COLOURS, Block, clean

WIDTH, MARGIN, PAD = 760, 24, 12
ARROW = MARGIN + 40  # x of the arrows
INSIDE = WIDTH - 2 * MARGIN - 2 * PAD
BESIDE = WIDTH - MARGIN - ARROW - 24
END_COLOUR = {End.MAILBOX: "passed", End.OUTSIDE: "passed", End.UNKNOWN: "unknown"}

_RULES = """
text{fill:INK;font:13px system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
text.title{font-size:20px;font-weight:600}
text.question,text.end{font-weight:600}
text.value{font:12px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
text.small{font-size:12px;fill:MUTED}
.paper{fill:PAPER}
.box{fill:BOX;stroke:WAY;stroke-width:2}
.way{fill:none;stroke:WAY;stroke-width:3}
.head{fill:WAY}
"""


def _style() -> str:
    rules = _RULES.strip() + "".join(
        f"\n.{name} .box{{fill:{name.upper()}-GROUND;stroke:{name.upper()}}}"
        for name in ("passed", "stopped", "unknown")
    )
    light, dark = rules, rules
    for name, (bright, dim) in sorted(COLOURS.items(), key=lambda item: -len(item[0])):
        light, dark = light.replace(f":{name.upper()}", f":{bright}"), dark.replace(f":{name.upper()}", f":{dim}")
    return f"<style>{_scoped(light)}\n@media (prefers-color-scheme: dark){{{_scoped(dark)}}}</style>"


def _scoped(rules: str) -> str:
    return "\n".join(f".anontls-route {line}" for line in rules.splitlines())


def picture(way: Way, language: Language) -> str:
    """The document."""
    words = texts(language)
    title = words["route.picture.title"]
    parts: list[str] = []
    y = MARGIN
    head = Block(WIDTH - 2 * MARGIN).add(title, "title").add(headline(way, language), "headline", space=4)
    head.add(say(language, "word.as-of", {"as_of": way.as_of}), "small", space=2)
    parts.append(head.svg(MARGIN, y))
    y += head.height + 20
    others = ""
    for passage in way.passages:
        server = Block(INSIDE).add(passage.hop.server.name, "question")
        if others:
            server.add(say(language, "route.picture.one-of", {"servers": others}), "small", space=2)
        y = _box(parts, server, y, "server")
        y = _arrow(parts, _between(passage, language), y)
        others = next_hops(passage.hop, language) if len(passage.hop.receivers) > 1 else ""
    last = way.passages[-1].hop
    colour = END_COLOUR.get(way.route.end, "stopped")
    end = Block(INSIDE).add(_end(way, language), "end")
    if last.receivers and way.route.end is End.MAILBOX:
        end.add(", ".join(server.name for server in last.receivers), "value", space=2)
    y = _box(parts, end, y, colour, f' data-end="{way.route.end.value}"') + MARGIN
    described = escape(clean(headline(way, language)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" class="anontls-route" role="img"'
        f' viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" xml:lang="{language}"'
        f' data-end="{way.route.end.value}">\n<title>{escape(title)}</title>\n<desc>{described}</desc>\n{_style()}\n'
        f'<path class="paper" d="M0,0H{WIDTH}V{y}H0z"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _end(way: Way, language: Language) -> str:
    if way.route.end is End.MAILBOX:
        return say(language, "route.picture.mailbox")
    hops = next_hops(way.route.hops[-1], language)
    return f"{say(language, 'route.picture.outside')}: {hops}" if way.route.end is End.OUTSIDE else hops


def _between(passage: Passage, language: Language) -> Block:
    """What stands beside an arrow."""
    hop = passage.hop
    unknown = texts(language)["word.unknown"]
    block = Block(BESIDE)
    block.add(unknown if is_unknown(hop.delivery_type) else hop.delivery_type.value, "question")
    if not is_unknown(hop.next_hop_domain):
        block.add(f"NextHopDomain {hop.next_hop_domain}", "small")
    for kind in dict.fromkeys(kind.delivery_type.value for kind in hop.kinds):
        block.add(kind, "small")
    for decision in passage.sends[:1]:
        block.add(say(language, "route.picture.sender", {"what": in_short(decision, language)}), "value", space=4)
    for arrival in passage.arrivals:
        if is_unknown(arrival.connector):
            what = [unknown]
        else:
            what = [in_short(decision, language) for decision in arrival.decisions]
        for each in dict.fromkeys(what):
            values = {"server": arrival.server.name, "what": each}
            block.add(say(language, "route.picture.receiver", values), "value", space=4)
    return block


def _box(parts: list[str], text: Block, y: int, name: str, more: str = "") -> int:
    height = text.height + 2 * PAD
    width = WIDTH - 2 * MARGIN
    parts.append(
        f'<g class="{name}"{more}><rect class="box" x="{MARGIN}" y="{y}" width="{width}" height="{height}" rx="12"/>'
        f"{text.svg(MARGIN + PAD, y + PAD)}</g>"
    )
    return y + height


def _arrow(parts: list[str], text: Block, y: int) -> int:
    end = y + text.height + 3 * PAD
    parts.append(
        f'<g class="hop"><path class="way" d="M{ARROW},{y}V{end - 6}"/>'
        f'<polygon class="head" points="{ARROW},{end} {ARROW - 6},{end - 10} {ARROW + 6},{end - 10}"/>'
        f"{text.svg(ARROW + 24, y + PAD)}</g>"
    )
    return end
