"""``anontls org``: from exports to one snapshot; what it holds, and what is still missing."""

from __future__ import annotations

import sys
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import click

from anontls.cli import Exit, options
from anontls.directory import is_ldap_url, open_organization, snapshot
from anontls.directory.completeness import Missing, missing
from anontls.directory.exchange_export import read_export
from anontls.errors import UsageError
from anontls.facts import (
    Certificate,
    Organization,
    Queue,
    ReceiveConnector,
    SendConnector,
    Server,
    Unknown,
    Unplaced,
    is_unknown,
)
from anontls.report import json
from anontls.report.language import Language, say, show, texts
from anontls.report.printable import printable
from anontls.selection.internal_certificate import ATTRIBUTE, THUMBPRINT

#: Shown unless an export has them.  [FACT R 5.4]
NOT_IN_A_DIRECTORY = (
    "a directory holds no certificate stores and no queues, and what most attributes of connectors mean is not verified:"
    " `anontls org check` names the cmdlets that tell"
)


@click.group("org")
def command() -> None:
    """Read exports into one snapshot; show it; say what is missing."""


@command.command("import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(), metavar="SOURCE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the snapshot here; standard output when not given.",
)
@click.option("--server", metavar="NAME", help="Objects that do not say whose they are belong to this server.")
@click.option("--time-zone", metavar="ZONE", help="Zone of times that were printed without one, such as Europe/Berlin.")
@click.option(
    "--ldap-ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The authorities (PEM) that a directory's certificate may come from (or set ANONTLS_LDAP_CA).",
)
@click.option(
    "--ldap-bind",
    metavar="NAME",
    help="Log on to a directory by name and password instead of Kerberos (or set ANONTLS_LDAP_BIND).",
)
@click.option(
    "--ldap-password-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Holds the password; asked for when not given (or set ANONTLS_LDAP_PASSWORD_FILE).",
)
def import_(
    sources: tuple[str, ...],
    output: Path | None,
    server: str | None,
    time_zone: str | None,
    ldap_ca: Path | None,
    ldap_bind: str | None,
    ldap_password_file: Path | None,
) -> int:
    """Read SOURCEs (files, folders, .zip archives, snapshots, directories) into one snapshot.

    \b
    anontls org import exports/ -o org.json
    anontls org import org.json Get-Queue.txt --server MBX1 -o org.json
    anontls org import ldap://dc1.contoso.com exports/ -o org.json
    """
    zone = None
    if time_zone is not None:
        try:
            zone = zoneinfo.ZoneInfo(time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise UsageError(
                f"--time-zone {time_zone}: no such zone", hint="for example Europe/Berlin or UTC"
            ) from None
    progress = _progress if sys.stderr.isatty() else None
    directories = []
    for url in filter(is_ldap_url, sources):
        if progress:
            progress(url)
        directories.append(_directory(url, ldap_bind, ldap_password_file, ldap_ca))
    files = [Path(source) for source in sources if not is_ldap_url(source)]
    organization = read_export(files, server=server, zone=zone, progress=progress, also=directories)
    data = snapshot.dump(organization)
    if output is None:
        click.echo("\n".join(map(json.printable_json, data.decode().rstrip().split("\n"))))
    else:
        try:
            output.write_bytes(data)
        except OSError as e:
            raise UsageError(f"{output}: {e.strerror}") from None
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)
    click.echo(_imported(organization), err=True)
    return Exit.DONE


def _directory(url: str, bind: str | None, password_file: Path | None, ca: Path | None) -> Organization:
    from anontls.directory.ldap import LdapDirectory, ldap_settings

    def ask(name: str) -> str | None:
        if not sys.stdin.isatty():
            return None
        return str(click.prompt(f"Password of {printable(name)}", hide_input=True, err=True))

    with LdapDirectory(ldap_settings(url, bind=bind, password_file=password_file, ca=ca, ask=ask)) as directory:
        return directory.organization(collected=options.now())


def _progress(message: str) -> None:
    click.echo(f"\r\x1b[K{printable(message[:100])}", nl=False, err=True)


def _imported(organization: Organization) -> str:
    lines = [_contents(organization)]
    for source in organization.sources:
        computers = f", collected on {', '.join(source.computers)}" if source.computers else ""
        note = f" ({source.note})" if source.note else ""
        lines.append(printable(f"  {source.file}: {source.objects} objects{computers}{note}"))
    unseen = any(is_unknown(server.certificates) for server in organization.servers)
    if unseen and any(source.kind == "ldap" for source in organization.sources):
        lines.append(NOT_IN_A_DIRECTORY)
    origins = {computer.lower() for source in organization.sources for computer in source.computers}
    if len(origins) > 1:
        lines.append(
            click.style(
                printable(f"mixed origins: the files were collected on {', '.join(sorted(origins))}"), fg="yellow"
            )
        )
    if organization.unplaced:
        lines.append(click.style(f"unplaced: {len(organization.unplaced)} objects", fg="yellow"))
        lines += [printable(f"  {_unplaced(u)}") for u in organization.unplaced]
    return "\n".join(lines)


def _contents(organization: Organization) -> str:
    servers = organization.servers
    counts = {
        "servers": len(servers),
        "Receive connectors": sum(_count(server.receive_connectors) for server in servers),
        "Send connectors": _count(organization.send_connectors),
        "queues": sum(_count(server.queues) for server in servers),
        "certificates": sum(_count(server.certificates) for server in servers),
    }
    return ", ".join(f"{what}: {count}" for what, count in counts.items())


def _count(value: object) -> int:
    return len(value) if isinstance(value, tuple) else 0


@command.command("show")
@click.argument("org", type=click.Path(), metavar="ORG")
@click.option("--server", metavar="NAME", help="Only this server.")
@click.option("--expiry", is_flag=True, help="The certificates only, the first to expire first.")
@options.as_of
@options.language
@options.as_json
def show_(org: str, server: str | None, expiry: bool, as_of: datetime | None, language: Language, as_json: bool) -> int:
    """What ORG holds, with what is not known."""
    organization = open_organization(org)
    now = as_of or options.now()
    servers = organization.servers
    if server is not None:
        found = organization.server(server)
        if found is None:
            raise UsageError(f"no server {server}", hint="known: " + ", ".join(s.name for s in servers))
        servers = (found,)
    if expiry:
        _show_expiry(servers, now, language, as_json=as_json)
    elif as_json:
        click.echo(json.encode(snapshot.builtins(organization)))
    else:
        click.echo("\n".join(_described(organization, servers, language)))
    return Exit.DONE


def _show_expiry(servers: Sequence[Server], now: datetime, language: Language, *, as_json: bool) -> None:
    rows = [(server, c) for server in servers if not is_unknown(server.certificates) for c in server.certificates]
    rows.sort(key=lambda row: (not isinstance(row[1].not_after, datetime), -row[1].sort_key[1], row[0].name))
    for server, certificate in rows:
        days = (
            (certificate.not_after - now) // timedelta(days=1) if isinstance(certificate.not_after, datetime) else None
        )
        if as_json:
            document = {"schema": "anontls/expiry/1", "server": server.name, "days_left": days}
            click.echo(
                json.encode({**document, **(json.certificate(certificate) or {}), "uses": _uses(server, certificate)})
            )
            continue
        colour = None if days is None else "red" if days < 0 else "yellow" if days < 60 else "green"
        left = show(language, certificate.not_after) if days is None else f"{days:>6} days"
        uses = printable(", ".join(_uses(server, certificate)))
        click.echo(
            f"{click.style(left, fg=colour)}  {_line(certificate, language)}  {printable(server.name)}  {uses}".rstrip()
        )


def _uses(server: Server, certificate: Certificate) -> list[str]:
    flags = certificate.service_flags
    uses = [] if is_unknown(flags) else sorted(name.upper() for name in flags.names)
    if certificate.thumbprint in (server.internal_transport_certificate_thumbprint, server.internal_tls_cert.names):
        uses.insert(0, "internal transport certificate")
    return uses


def _line(certificate: Certificate, language: Language) -> str:
    until = certificate.not_after
    day = f"{until:%Y-%m-%d}" if isinstance(until, datetime) else show(language, until)
    return f"{show(language, certificate.thumbprint)}  {show(language, certificate.subject)}  {day}"


def _described(organization: Organization, servers: Sequence[Server], language: Language) -> Iterator[str]:
    if organization.name:
        yield click.style(printable(organization.name), bold=True)
    yield _contents(organization)
    for server in servers:
        yield from ("", *_server(server, language))
    yield ""
    yield from _listed("Send connectors", organization.send_connectors, partial(_send_connector, language), language)
    if organization.unplaced:
        yield from _listed("unplaced", organization.unplaced, _unplaced, language)


def _server(server: Server, language: Language) -> Iterator[str]:
    about = (server.fqdn, server.server_role, server.admin_display_version, server.site)
    attribute = server.internal_tls_cert
    value = attribute.names or attribute.error or (None if not attribute.unknown else Unknown(str(attribute.unknown)))
    yield click.style(printable(server.name), bold=True) + "  " + ", ".join(show(language, each) for each in about)
    yield f"  {THUMBPRINT}  {show(language, server.internal_transport_certificate_thumbprint)}"
    yield f"  {ATTRIBUTE:<{len(THUMBPRINT)}}  {show(language, value)}"
    yield from _listed("certificates", server.certificates, partial(_certificate, language, server), language)
    yield from _listed("Receive connectors", server.receive_connectors, partial(_receive_connector, language), language)
    yield from _listed("queues", server.queues, partial(_queue, language), language)


T = TypeVar("T")


def _listed(title: str, values: tuple[T, ...] | Unknown, line: Callable[[T], str], language: Language) -> Iterator[str]:
    if is_unknown(values):
        yield f"  {title}: {show(language, values)}"
        return
    yield f"  {title}"
    yield from (printable(f"    {line(value)}").rstrip() for value in values)


def _certificate(language: Language, server: Server, c: Certificate) -> str:
    return f"{_line(c, language)}  {show(language, c.key)}  {printable(', '.join(_uses(server, c)))}"


def _receive_connector(language: Language, c: ReceiveConnector) -> str:
    return f"{c.identity}  {show(language, c.bindings)}  {show(language, c.auth_mechanism)}{_implicit(c)}"


def _send_connector(language: Language, c: SendConnector) -> str:
    mechanism = show(language, c.smart_host_auth_mechanism)
    return f"{c.identity}  {show(language, c.address_spaces)}  {mechanism}{_implicit(c)}"


def _implicit(connector: ReceiveConnector | SendConnector) -> str:
    return "  (implicit)" if connector.implicit else ""


def _queue(language: Language, q: Queue) -> str:
    return f"{q.identity}  {show(language, q.delivery_type)}  {show(language, q.next_hop_domain)}"


def _unplaced(u: Unplaced) -> str:
    return f"{u.type} {u.identity} ({u.file}): {u.because}"


@command.command("check")
@click.argument("org", type=click.Path(), metavar="ORG")
@options.language
@options.as_json
def check(org: str, language: Language, as_json: bool) -> int:
    """Which cmdlet is still missing for which question.  Exit 1 when there is one."""
    organization = open_organization(org)
    found = missing(organization)
    for item in found:
        text = say(language, item.key, item.values)
        if as_json:
            document = {
                "schema": "anontls/missing/1",
                "server": item.server,
                "finding": item.key,
                "text": text,
                "cmdlet": item.cmdlet,
            }
            click.echo(json.encode(document))
        else:
            click.echo(_finding(item, text))
    if not found and not as_json:
        click.echo(texts(language)["check.complete"])
    return Exit.NOT_MET if found else Exit.DONE


def _finding(item: Missing, text: str) -> str:
    head = click.style(f"{printable(item.server)}: ", bold=True) if item.server else ""
    return f"{head}{text}" + (f"\n    {printable(item.cmdlet)}" if item.cmdlet else "")


@command.command("schema")
def schema() -> None:
    """The JSON Schema of the snapshot (anontls/org/1)."""
    click.echo(json.encode(snapshot.json_schema()))
