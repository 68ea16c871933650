"""Writes the pages that are made from the code: ``make docs``.  A test fails when one of them is not as the code is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click

from anontls import config
from anontls.cli import anontls
from anontls.smtp import states

FOLDER = Path(__file__).resolve().parent
MADE = "<!-- Made by `make docs`; change the code instead. -->\n\n"
WIDTH = 100

STATES = """# States of a session

What may follow what in an SMTP session, as both sides of `anontls` have it. The tables are in `src/anontls/smtp/states.py`; what they do
not have is illegal. A refused command changes nothing, so no arrow shows it. Both TLS verbs lead to the same state, and behind it
everything that was learnt in clear is forgotten and EHLO has to come again.

The pictures are Mermaid; many viewers draw them.
"""

EXAMPLE = """A Mailbox server that delivers into a Maildir, talks to other Mailbox servers, and lacks nothing:

```toml
[node]
organization = "org.json"
server = "MBX1"

[store]
folder = "mbx1-certificates"

[[listen]]
connector = "Default MBX1"
address = "127.0.0.1:2526"

[listen.limits]  # of this connector; [limits] is for all
sessions-per-peer = 50

[delivery]
maildir = "mail"
create-mailboxes = true

[log]
events = "mbx1-events.jsonl"
protocol = "mbx1-log"

[rules]
# As written, the procedure denies anonymous TLS between Mailbox servers; see interoperability.md.
mailbox-to-mailbox = "verb-without-certificate"
```

SIGHUP makes a node read this file, the organisation and the certificate store again. Of this file it takes `[limits]`, `[listen.limits]` and
`[rules]` at once, and says which other tables have changed and need a restart. While anything of it is faulty, nothing changes.
"""

EXIT_STATUS = """## Exit status

| status | meaning | for example |
|---|---|---|
| 0 | done, decided, whatever the answer | `probe`: all that is offered works; with `--org`, the certificate is the directory's. `send`: every recipient was accepted. `serve`: stopped by SIGTERM or SIGINT |
| 1 | an expectation is not met, or something was found | `select --expect`; `org check`; `cert list`: a file that cannot be used; `probe --org`: another certificate than the directory's, or masked verbs |
| 2 | wrong usage, or a file that is not what it should be | an unknown option; a configuration with faults; no such server in the organisation |
| 3 | something that the answer needs is not known or not reachable | `select`: a fact that no source holds; `probe`: nobody listens, a verb that is offered does not work, the directory does not know the server; `send`: not sent, and the reply says why; the output cannot be written, as on a full disk |
| 4 | we failed | an exception that nobody caught; please report it |

Data goes to standard output, everything else to standard error.
"""


def configuration() -> str:
    """The configuration reference."""
    title, tables, rest = config.describe().partition("## `[node]`")
    return MADE + title + EXAMPLE + "\n" + tables + rest.rstrip() + "\n"


def sessions() -> str:
    """The pictures of the transition tables."""
    parts = [MADE + STATES]
    for title, drawn in (
        ("Receiving", states.draw(states.SERVER)),
        ("Sending", states.draw(states.CLIENT)),
        ("One message of a sending session", states.draw(states.MESSAGE)),
    ):
        parts.append(f"## {title}\n\n```mermaid\n{drawn}```\n")
    waits = "\n".join(
        f"| {kind} | `{state.name}` | {state.value} |"
        for kind, table in (
            ("receiving", states.ServerState),
            ("sending", states.ClientState),
            ("message", states.MessageState),
        )
        for state in table
    )
    parts.append(f"## What each state waits for\n\n| session | state | waits for |\n|---|---|---|\n{waits}\n")
    return "\n".join(parts)


def commands() -> str:
    """The help of every command."""
    parts = [MADE + "# Commands\n\nThe help of every command, as `--help` prints it.\n", EXIT_STATUS]
    parts += [f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in _helps("anontls", anontls, None)]
    return "\n".join(parts)


def _helps(name: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _helps(inner, found, context)


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "states.md": sessions,
    "commands.md": commands,
}


def main() -> None:
    """Write them all."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
