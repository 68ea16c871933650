"""``anontls config``: what is wrong with the configuration of a node, before it is started."""

from __future__ import annotations

from pathlib import Path

import click

from anontls import config as settings
from anontls.cli import Exit, options
from anontls.report import json
from anontls.report.explain import Explanation
from anontls.report.printable import printable
from anontls.transport.check import Finding, findings

COLOURS = {"error": "red", "warning": "yellow", "note": None}


@click.group("config")
def command() -> None:
    """The configuration of a node."""


@command.command("check")
@click.argument("configuration", metavar="CONFIG", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--no-bind", is_flag=True, help="Do not try the addresses.")
@click.option("--offline", is_flag=True, help="Do not ask the directory that the node follows.")
@options.as_json
def check(configuration: Path, no_bind: bool, offline: bool, as_json: bool) -> int:
    """Whether a node can start with CONFIG on this machine, and mail would get on.

    Looks at the file itself, the organisation, the directory that is followed, connectors, certificates, the selections
    of a start, addresses, host names, folders, disk and limits, and changes nothing; a node may be running.  Do it as the
    user of the service.  Exit 1 when there is an error.
    """
    config = settings.load(configuration)
    failed = False
    for finding in findings(config, configuration, options.now(), bind=not no_bind, offline=offline):
        failed = failed or finding.severity == "error"
        document = _document(finding)
        click.echo(json.encode(document) if as_json else _line(document))
    return Exit.NOT_MET if failed else Exit.DONE


def _document(finding: Finding) -> dict[str, str | None]:
    """A finding as JSON, ``anontls/config-finding/1``; a selection in words."""
    text, cure, step = finding.text, finding.cure or None, None
    if finding.decision is not None:
        last = finding.decision.last
        explanation = Explanation(finding.decision)
        text, step = explanation.headline, last.step
        if finding.severity != "note" or finding.decision.verb is None:
            text, cure = f"{text}: {explanation.because(last)}", cure or explanation.remedy(last)
    return {
        "schema": "anontls/config-finding/1",
        "severity": finding.severity,
        "place": finding.place,
        "text": text,
        "step": step,
        "cure": cure,
    }


def _line(document: dict[str, str | None]) -> str:
    severity, place, text, cure = (document[key] or "" for key in ("severity", "place", "text", "cure"))
    said = f"{place}: {text}" if place else text
    line = f"{click.style(f'{severity:<7}', fg=COLOURS[severity])}  {printable(said)}"
    return f"{line}\n         {printable(cure)}" if cure else line
