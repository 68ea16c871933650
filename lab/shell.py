"""What the lab does, on the screen: each step, the commands as one types them, what they print, and how long it took."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

WIDTH = 110
COLUMNS = "160"  # for what commands print: LastError in a line or two
PATIENCE = 60.0  # seconds; a command takes two at most, but machines can be busy
HERE_DOCUMENT = 6  # lines of standard input that are shown; more become a file
ANONTLS = Path(sys.executable).with_name("anontls")
PLAIN = re.compile(r"[\w@%+=:,./$-]+")


class CommandFailed(Exception):
    """A command of the lab ended as it should not; with what it printed."""


class Shell:
    """Runs commands in ``folder``, and shows them.

    ``names`` are variables of a shell with their values: where a value stands in a command, the name is shown.
    ``environment`` is what all of them run with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, str] = {"LAB": str(folder)}
        self.environment: dict[str, str] = {}
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._files = 0

    # --- what is said -------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """What follows is one step; at its end, how long it took."""
        self.say()
        self.say(self._styled("1", title))
        began = time.monotonic()
        yield
        self.say(self._styled("2", f"    {time.monotonic() - began:.1f} s"))

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def good(self, text: str) -> None:
        """What was expected, and is so."""
        self.say(f"{self._styled('32', '  ok')}  {text}")

    def bad(self, text: str) -> None:
        self.say(f"{self._styled('31', '  not as expected')}  {text}")

    def quote(self, text: str, *, only: str = "") -> None:
        """What a program printed; with ``only``, the lines in which that is found."""
        for line in text.splitlines():
            if line.strip() and re.search(only, line):
                self.say(self._styled("2", f"    {line.rstrip()}"))

    def show(self, *words: object, stdin: str = "", background: bool = False, into: str = "") -> None:
        """A command, as one types it in the folder of the lab; ``into`` is a file that takes what it prints."""
        lines, line = [], "  $"
        program = str(words[0]).rpartition("/")[2]
        for word in map(self._typed, (program, *words[1:])):
            if len(line) + len(word) > WIDTH:
                lines.append(f"{line} \\")
                line = "     "
            line += f" {word}"
        text = "\n".join([*lines, line]) + (f" >{into}" if into else "") + (" &" if background else "")
        if stdin.count("\n") > HERE_DOCUMENT:
            self._files += 1
            file = f"input-{self._files}.ldif"
            (self.folder / file).write_text(stdin)
            text += f" <{file}"
        elif stdin:
            text += f" <<END\n{stdin.rstrip()}\nEND"  # not indented: that would be another LDIF
        self.say(self._styled("36", text))

    def _typed(self, word: object) -> str:
        text = str(word)
        for name, value in sorted(self.names.items(), key=lambda item: -len(item[1])):
            text = text.replace(value, f"${name}")
        text = text.replace("$LAB/", "") if text.startswith("$LAB/") else text
        if PLAIN.fullmatch(text):
            return text
        return (
            f'"{text}"' if "$" in text.replace("$'", "") and "'" not in text else "'" + text.replace("'", "'\\''") + "'"
        )

    def _styled(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours else text

    # --- what is run --------------------------------------------------------------------------------------------------

    def __call__(self, *words: object, environment: Mapping[str, str] | None = None, stdin: str = "") -> str:
        """Show a command and run it; what it printed."""
        return self.run(*words, environment=environment, stdin=stdin)

    def run(
        self,
        *words: object,
        environment: Mapping[str, str] | None = None,
        stdin: str = "",
        statuses: Collection[int] = (0,),
    ) -> str:
        """The same; ``statuses`` are those that it may end with.

        Raises:
            CommandFailed: it ended with another one.
        """
        self.show(*words, stdin=stdin)
        if words[0] == "anontls":
            words = (ANONTLS, *words[1:])
        try:
            ran = subprocess.run(
                [str(word) for word in words],
                input=stdin.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "COLUMNS": COLUMNS, **self.environment, **(environment or {})},
                timeout=PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise CommandFailed(f"{words[0]}: {e}") from None
        printed = ran.stdout.decode("utf-8", "replace")
        if ran.returncode not in statuses:
            raise CommandFailed(f"it ended with {ran.returncode}:\n{printed[-4000:].rstrip()}")
        return printed

    def anontls(self, *words: object, only: str = "", statuses: Collection[int] = (0,)) -> str:
        """A command of the program; what it printed is shown, too."""
        printed = self.run("anontls", *words, statuses=statuses)
        self.quote(printed, only=only)
        return printed

    def write_environment(self) -> None:
        """A file for people who want to try for themselves: ``. ./environment``."""
        lines = [f"export {name}='{value}'" for name, value in {**self.names, **self.environment}.items()]
        lines.append(f"export PATH='{Path(sys.executable).parent}':\"$PATH\":/usr/sbin")
        (self.folder / "environment").write_text("\n".join(lines) + "\n")
