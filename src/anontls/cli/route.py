"""``anontls route``: the whole way of a message."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import click

from anontls.cli import Exit, options
from anontls.delivery import SiteLink, route
from anontls.directory import open_organization
from anontls.errors import UsageError
from anontls.facts import Organization, Server
from anontls.report import json
from anontls.report import route as report
from anontls.report.language import Language
from anontls.selection.rules import VALUES


@click.command("route")
@click.option(
    "--org",
    metavar="ORG",
    envvar="ANONTLS_ORG",
    required=True,
    help="Snapshot, folder or .zip of exports (or set ANONTLS_ORG).",
)
@click.option("--from", "source", metavar="SERVER", required=True, help="The server that has the message.")
@click.option("--recipient", metavar="ADDRESS", required=True, help="Where it is to go.")
@click.option("--mailbox-server", metavar="SERVER", help="The server with the recipient's mailbox; no export tells.")
@click.option(
    "--site-link",
    "site_links",
    multiple=True,
    metavar="SITE,SITE=COST",
    help="A link between Active Directory sites; give all of them. No export tells.",
)
@options.as_of
@click.option(
    "--rules",
    multiple=True,
    metavar="NAME=VALUE",
    help="Decide under another rule: " + ", ".join(f"{n}={v[1]}" for n, v in VALUES.items()),
)
@click.option(
    "--svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="Draw the way; `-`: to standard output, in place of the text.",
)
@click.option("-v", "--verbose", is_flag=True, help="Explain every receiver in full, with the cmdlet of each step.")
@options.language
@options.as_json
def command(
    org: str,
    source: str,
    recipient: str,
    mailbox_server: str | None,
    site_links: tuple[str, ...],
    as_of: datetime | None,
    rules: tuple[str, ...],
    svg: Path | None,
    verbose: bool,
    language: Language,
    as_json: bool,
) -> int:
    """Send connector, next hop and DeliveryType at each hop, and the certificates of both its ends.

    \b
    anontls route --org org.json --from MBX1 --recipient user@example.net
    anontls route --org org.json --from EDGE1 --recipient user@contoso.com --mailbox-server MBX2
    """
    drawn = options.to_standard_output(svg, as_json=as_json)
    organization = open_organization(org)
    holder = None if mailbox_server is None else _server(organization, mailbox_server, "--mailbox-server")
    if holder is not None and holder.role == "Edge":
        raise UsageError(f"--mailbox-server {holder.name}: an Edge server has no mailboxes")
    sender = _server(organization, source, "--from")
    links = [_site_link(given) for given in site_links]
    try:
        found = route(organization, sender, recipient, mailbox_server=holder, site_links=links or None)
    except ValueError as e:
        raise UsageError(f"--recipient: {e}") from None
    way = report.way(found, as_of or options.now(), options.rules_in_force(rules))
    if as_json:
        click.echo(json.encode(report.route_json(way, language)))
    elif not drawn:
        width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
        click.echo(report.text(way, language, width=width, details=verbose))
    if svg is not None:
        options.draw(svg, report.route_svg(way, language))
    return Exit.UNKNOWN if way.unknown else Exit.DONE


def _server(organization: Organization, name: str, option: str) -> Server:
    found = organization.server(name)
    if found is None:
        known = ", ".join(sorted(server.name for server in organization.servers))
        raise UsageError(
            f"{option}: no server {name}",
            hint=f"known: {known}" if known else "`anontls org check` says which cmdlets are missing",
        )
    return found


def _site_link(given: str) -> SiteLink:
    sites, _, cost = given.rpartition("=")
    one, comma, other = (part.strip() for part in sites.partition(","))
    if not (one and comma and other) or not (cost.isascii() and cost.isdecimal() and 0 < int(cost) < 1 << 31):
        raise UsageError(f"--site-link {given}: not of the form SITE,SITE=COST")
    return SiteLink(one, other, int(cost))
