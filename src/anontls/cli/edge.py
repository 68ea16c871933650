"""``anontls edge``: direct trust between our own nodes without copying certificates by hand."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from anontls.cli import Exit, certificates, directory, options
from anontls.directory import edge_subscription
from anontls.directory.edge_subscription import Subscription
from anontls.errors import UsageError
from anontls.facts import Certificate
from anontls.report import json
from anontls.report.language import show
from anontls.report.printable import printable

if TYPE_CHECKING:
    from anontls.directory.ldap.edge_sync import EdgeSync, Report

COLOUR = {"written": "green", "created": "green", "reachable": "green", "unreachable": "red"}


@click.group("edge")
def command() -> None:
    """Direct trust between an Edge node and Mailbox nodes.

    It is not Microsoft's EdgeSync and does not take its part: it knows certificates only, and its subscription file is
    not the one of New-EdgeSubscription.
    """


@command.command("subscribe")
@certificates.store
@click.option("--server", required=True, metavar="NAME", help="Short name of the Edge server.")
@click.option("--fqdn", metavar="FQDN", help="Its full name; taken from the certificate when that has one only.")
@click.option(
    "--certificate",
    "wanted",
    metavar="THUMBPRINT|SUBJECT",
    help="The internal transport certificate; when not given, the newest for SMTP that names the server.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the subscription is written; a file that is there is replaced.",
)
@click.option("--force", is_flag=True, help="Also a certificate that is expired, not yet valid or without its key.")
def subscribe(
    folder: Path,
    store_password_file: Path | None,
    store_password_env: str | None,
    server: str,
    fqdn: str | None,
    wanted: str | None,
    output: Path,
    force: bool,
) -> int:
    """On the Edge: write its names and its public certificate into a file for `edge sync`.

    There is no secret in the file.  Compare the fingerprint that is shown with the one that `edge sync` shows, by
    another way than the one that the file takes.

    \b
    anontls edge subscribe --store certs --server EDGE1 -o edge1.subscription
    """
    now = options.now()
    store = certificates.open_store(folder, store_password_file, store_password_env, now)
    certificate = certificates.chosen(store, wanted) if wanted else _newest(store.named, server, fqdn)
    certificates.require_fit(store, certificate, now, force=force)
    subscription = edge_subscription.make(server, fqdn or _full_name(certificate, server), certificate)
    try:
        output.write_bytes(edge_subscription.dump(subscription))
    except OSError as e:
        raise UsageError(f"{output}: {e.strerror}") from None
    click.echo(_about(subscription), err=True)
    click.echo(subscription.fingerprint)
    return Exit.DONE


def _newest(named: Callable[[str], Sequence[Certificate]], server: str, fqdn: str | None) -> Certificate:
    for name in filter(None, (fqdn, server)):
        for certificate in named(name):
            if certificate.serves_smtp() is True:
                return certificate
    raise UsageError(
        f"no certificate for SMTP in the store names {fqdn or server}",
        hint="`anontls cert new` makes one; --certificate names another one",
    )


def _full_name(certificate: Certificate, server: str) -> str:
    names = certificate.certificate_domains
    prefix = f"{server}.".lower()
    found = {name.lower() for name in names if name.lower().startswith(prefix)} if isinstance(names, tuple) else set()
    if len(found) != 1:
        raise UsageError(f"the certificate has {len(found) or 'no'} full names of {server}", hint="--fqdn names it")
    return found.pop()


def _about(subscription: Subscription) -> str:
    certificate = Certificate(der=subscription.certificate)
    return printable(
        f"{subscription.server} ({subscription.fqdn}): {certificate.thumbprint}, {show('en', certificate.subject)},"
        f" until {show('en', certificate.not_after)}, SHA-256 {subscription.fingerprint}"
    )


@command.command("sync")
@click.option("--ldap", "urls", required=True, metavar="URL", help="Active Directory: ldap://dc1.contoso.com")
@directory.account("ldap", "Active Directory")
@click.option(
    "--adlds",
    required=True,
    multiple=True,
    metavar="URL",
    help="AD LDS of the Edge, ldaps://edge1.contoso.com:50636; one for each subscription, in the same order.",
)
@directory.account("adlds", "AD LDS")
@click.option(
    "--subscription",
    "files",
    required=True,
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What `edge subscribe` wrote; may be given several times.",
)
@click.option(
    "--interval",
    type=options.Seconds(1, 86_400),
    default=180.0,
    show_default=True,
    metavar="SECONDS",
    help="From the end of one round to the next.",
)
@click.option("--once", is_flag=True, help="One round. Exit 1 when something was not done, 3 when a directory is down.")
@options.as_json
def sync(
    urls: str,
    ldap_ca: Path | None,
    ldap_bind: str | None,
    ldap_password_file: Path | None,
    adlds: tuple[str, ...],
    adlds_ca: Path | None,
    adlds_bind: str | None,
    adlds_password_file: Path | None,
    files: tuple[Path, ...],
    interval: float,
    once: bool,
    as_json: bool,
) -> int:
    """Keep certificates alike: Mailbox servers' in the Edge's AD LDS, the Edge's in Active Directory.

    Runs until SIGTERM or SIGINT, which let a round that has begun finish.  Only differences are written and told.  A
    directory that is down is tried again, after 5 seconds and then ever less often up to the interval.

    \b
    anontls edge sync --ldap ldap://dc1.contoso.com --adlds ldaps://edge1.contoso.com:50636 --adlds-bind CN=sync,CN=Users \\
        --subscription edge1.subscription
    """
    from anontls.directory.ldap import LdapDirectory, ldap_settings
    from anontls.directory.ldap.edge_sync import Edge, EdgeSync

    if len(adlds) != len(files):
        raise UsageError(f"{len(adlds)} --adlds and {len(files)} --subscription: each Edge needs one of both")
    subscriptions = [edge_subscription.load(file) for file in files]
    names = [subscription.server.lower() for subscription in subscriptions]
    if len(set(names)) != len(names):
        raise UsageError("two subscriptions are of one Edge server")
    settings = ldap_settings(urls, bind=ldap_bind, password_file=ldap_password_file, ca=ldap_ca, ask=directory.ask)
    with ExitStack() as stack:
        edges = []
        for file, subscription, url in zip(files, subscriptions, adlds, strict=True):
            click.echo(_about(subscription), err=True)
            of_edge = directory.adlds_settings(url, adlds_bind, adlds_password_file, adlds_ca)
            edges.append(Edge(subscription, stack.enter_context(LdapDirectory(of_edge)), str(file)))
        syncing = EdgeSync(stack.enter_context(LdapDirectory(settings)), edges)

        def tell(reports: Sequence[Report]) -> None:
            for report in reports:
                click.echo(_json(report, options.now()) if as_json else _line(report))

        if once:
            tell(syncing.round())
            return Exit.UNKNOWN if syncing.down else Exit.NOT_MET if syncing.failed else Exit.DONE
        asyncio.run(_rounds(syncing, interval, tell))
    return Exit.DONE


async def _rounds(syncing: EdgeSync, interval: float, tell: Callable[[Sequence[Report]], None]) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with ThreadPoolExecutor(1) as thread:  # a connection is for one thread
        while not stop.is_set():
            tell(await loop.run_in_executor(thread, syncing.round))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), syncing.next_round(interval))


def _json(report: Report, now: datetime) -> str:
    return json.encode({"schema": "anontls/edge-sync/1", "time": json.time(now), **msgspec.to_builtins(report)})


def _line(report: Report) -> str:
    what = click.style(f"{report.what:<11}", fg=COLOUR.get(report.what, "yellow"))
    change = f"{report.before or 'none'} -> {report.after}" if report.after else ""
    parts = (report.server and f"{report.server}:", change, report.because, report.hint and f"({report.hint})")
    return f"{what}  {printable(report.directory)}  {printable(' '.join(filter(None, parts)))}".rstrip()
