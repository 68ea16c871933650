"""``anontls demo``: the main job on a small export that the program makes itself."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from anontls.cli import Exit, options, run
from anontls.directory.demo_export import write_demo_export
from anontls.errors import UsageError
from anontls.report.language import Language


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep the export, the snapshot and the picture here; a temporary folder when not given.",
)
@options.language
def command(output: Path | None, language: Language) -> int:
    """Make a small export of three servers, import it, decide everything, explain one decision in full."""
    if output is not None and output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty")
    with tempfile.TemporaryDirectory(prefix="anontls-demo-") as temporary:
        folder = output or Path(temporary)
        export, snapshot, picture = folder / "export", folder / "org.json", folder / "decision.svg"
        write_demo_export(export, options.now())
        org, lang = str(snapshot), ["--lang", language]
        sender = ["outbound-anonymous", "--server", "MBX2", "--queue", r"MBX2\2"]
        status = max(
            _step(["org", "import", str(export), "-o", org]),
            _step(["select", "--org", org, *lang]),
            _step(["select", "--org", org, *sender, "--svg", str(picture), *lang]),
        )
        if output is not None:
            click.echo(f"\nkept in {folder}: export/, org.json, decision.svg", err=True)
    return status


def _step(arguments: Sequence[str]) -> int:
    click.echo(click.style(f"\n$ anontls {shlex.join(arguments)}", bold=True))
    status = run(list(arguments))
    # In the demo an unknown answer is something to see, not a failure.
    return Exit.DONE if status in (Exit.DONE, Exit.UNKNOWN) else status
