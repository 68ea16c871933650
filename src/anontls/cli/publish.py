"""``anontls cert publish``: name a certificate of a store in the directory."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from anontls.cli import Exit, certificates, directory, options
from anontls.errors import MalformedInput, Unreachable
from anontls.facts import Certificate, is_unknown
from anontls.report import json
from anontls.report.language import show
from anontls.report.printable import printable


@click.command("publish")
@click.argument("wanted", metavar="THUMBPRINT|SUBJECT")
@click.option("--ldap", "urls", required=True, metavar="URL", help="The directory: ldap://dc1.contoso.com")
@click.option("--server", required=True, metavar="NAME", help="Short name of the server whose object is written.")
@certificates.store
@directory.account("ldap", "the directory")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Also a certificate that is expired, not yet valid or without its key.")
@options.as_json
def command(
    wanted: str,
    urls: str,
    server: str,
    folder: Path,
    store_password_file: Path | None,
    store_password_env: str | None,
    ldap_ca: Path | None,
    ldap_bind: str | None,
    ldap_password_file: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Write a certificate of the store into the server's object: msExchServerInternalTLSCert.

    The value that was read is asserted in the write, so that nobody else's change is lost, and what was written is read
    back.  The account needs the right to write that attribute.  Other domain controllers have it after replication.

    \b
    anontls cert publish --ldap ldap://dc1.contoso.com --server MBX1 --store certs CN=MBX1 --dry-run
    """
    from anontls.directory.ldap import Connection, LdapDirectory, ldap_settings
    from anontls.directory.ldap.publish import ServerObject, publish, server_object

    now = options.now()
    store = certificates.open_store(folder, store_password_file, store_password_env, now)
    certificate = certificates.chosen(store, wanted)
    certificates.require_fit(store, certificate, now, force=force)
    der = certificate.der
    if der is None or certificate.x509 is None:
        raise MalformedInput(str(folder), f"{certificate.thumbprint} cannot be read as a certificate")
    settings = ldap_settings(urls, bind=ldap_bind, password_file=ldap_password_file, ca=ldap_ca, ask=directory.ask)

    def write(connection: Connection) -> tuple[ServerObject, str]:
        there = server_object(connection, server)
        if there.value == der:
            return there, "unchanged"
        if not dry_run:
            publish(connection, there, der)
        return there, "would write" if dry_run else "written"

    with LdapDirectory(settings) as opened:
        there, done = opened.call(write)
        url = opened.url or urls
    before = _before(there)
    if as_json:
        document = {
            "schema": "anontls/cert-publish/1",
            "result": done.replace(" ", "-"),
            "directory": url,
            "object": there.entry.dn,
            "server": there.name,
            "before": before if before is None or isinstance(before, str) else json.certificate(before),
            "after": json.certificate(certificate),
        }
        click.echo(json.encode(document))
        return Exit.DONE
    click.echo(click.style(printable(there.entry.dn), bold=True))
    click.echo(f"  before  {_line(before, now)}")
    click.echo(f"  after   {_line(certificate, now)}")
    said = {
        "unchanged": "unchanged: the directory has this certificate already",
        "would write": "nothing was written (--dry-run)",
        "written": f"written to {url}, and read back",
    }
    click.echo(said[done])
    if not _names(certificate, there):
        warning = click.style("warning:", fg="yellow")
        click.echo(f"{warning} the certificate does not name {there.name}", err=True)
    return Exit.DONE


def _before(there: Any) -> Certificate | str | None:
    """What the object had: a certificate, what there was instead, or nothing that is shown."""
    try:
        der = there.certificate
    except (ValueError, Unreachable) as e:
        return str(e)
    return None if der is None else Certificate(der=der)


def _line(certificate: Certificate | str | None, now: Any) -> str:
    if not isinstance(certificate, Certificate):
        return printable(certificate or "not set, or this account may not read it")
    until = certificate.not_after
    left = "" if is_unknown(until) or until is None else f" ({(until - now) // timedelta(days=1)} days)"
    return printable(f"{certificate.thumbprint}  {show('en', certificate.subject)}  until {show('en', until)}{left}")


def _names(certificate: Certificate, there: Any) -> bool:
    names = [there.name, there.server.fqdn]
    return any(isinstance(name, str) and certificate.named(name) is not False for name in names)
