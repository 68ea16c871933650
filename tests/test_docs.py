"""The documentation says what the code does: generated pages, command lines, configurations, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from anontls import config
from anontls.cli import anontls
from docs import generate

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"]
LINE = re.compile(r"^\s*\$ anontls (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_as_the_code_is(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generate.PAGES[name](), "run `make docs`"


def test_every_command_and_every_key_is_documented() -> None:
    commands = generate.commands()
    assert all(f"\n## anontls {name}\n" in commands for name in anontls.list_commands(click.Context(anontls)))
    assert "\n## anontls cert new\n" in commands
    configuration = generate.configuration()
    assert all(f"`[{name}]`" in configuration or f"`[[{name}]]`" in configuration for name in _tables())


def _tables() -> list[str]:
    return list(config.Config.__struct_encode_fields__)


def command_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [(page.name, match[1]) for match in LINE.finditer(text)]
    return found


def fault(line: str) -> str | None:
    """What the program would not understand in a command line of a page."""
    words = shlex.split(re.split(r"\s(?:[|>&]|2>)", line)[0], comments=True)
    command: click.Command = anontls
    context = click.Context(anontls, info_name="anontls")
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            return None
        inner = command.get_command(context, words.pop(0))
        if inner is None:
            return "no such command"
        command, context = inner, click.Context(inner, parent=context)
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    unknown = [word for word in words if word.startswith("-") and word != "-" and word not in known]
    return f"unknown: {unknown}" if unknown else None


def test_command_lines_in_the_pages_are_understood() -> None:
    lines = command_lines()
    assert len(lines) > 25
    assert [(page, line, why) for page, line in lines if (why := fault(line))] == []


@pytest.mark.parametrize("line", ["nonsense", "probe host --nonsense", "cert nonsense --store x", "serve -x c.toml"])
def test_lines_that_are_not_understood_are_found(line: str) -> None:
    assert fault(line)


def test_configurations_in_the_pages_are_valid(tmp_path: Path) -> None:
    count = 0
    for page in PAGES:
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if "[node]" in block:
                path = tmp_path / "node.toml"
                path.write_text(block, encoding="utf-8")
                config.load(path)
                count += 1
    assert count


def test_links_lead_somewhere() -> None:
    missing = [
        (page.name, link[1])
        for page in PAGES
        for link in LINK.finditer(page.read_text(encoding="utf-8"))
        if not (page.parent / link[1]).exists()
    ]
    assert missing == []
