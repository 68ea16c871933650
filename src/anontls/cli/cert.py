"""``anontls cert``: make, list and import the certificates of a store in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from anontls.certstore import Problem, files, write
from anontls.certstore.bindings import MAX_FRIENDLY_NAME, SERVICES, Binding, in_order, service
from anontls.certstore.chain import Picked, pick
from anontls.certstore.files import Passphrase, Unusable
from anontls.certstore.folder import Entry, FolderStore
from anontls.certstore.new import KEY_SIZES, new_internal_certificate
from anontls.cli import Exit, certificates, options, publish
from anontls.errors import MalformedInput, UsageError
from anontls.facts import Certificate, is_unknown, same_name
from anontls.facts.names import common_names
from anontls.facts.own_certificate import OwnCertificate
from anontls.report import json
from anontls.report.language import show
from anontls.tls import TAKEN, refusal


class Services(click.ParamType[tuple[str, ...]]):
    """Services separated by commas, compared without case."""

    name = "services"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Read them."""
        if isinstance(value, tuple):
            return value
        found = []
        for name in str(value).split(","):
            if name.strip().lower() in {"", "none"}:
                continue
            known = service(name)
            if known is None:
                self.fail(f"no service {name.strip()!r}; known: {', '.join(SERVICES)}", param, ctx)
            found.append(known)
        return in_order(found)


@click.group("cert")
def command() -> None:
    """The certificates of a store: new, list, import, publish."""


command.add_command(publish.command)


@command.command("new")
@certificates.store
@click.option("--server", required=True, metavar="NAME", help="Short name of the server: the Subject.")
@click.option("--fqdn", required=True, metavar="FQDN", help="Its full name.")
@click.option(
    "--services",
    type=Services(),
    default="IMAP,POP,SMTP",
    show_default=True,
    metavar="LIST",
    help="Services that it is enabled for.",
)
@click.option("--friendly-name", default="Microsoft Exchange", show_default=True, metavar="TEXT")
@click.option("--key-size", type=click.Choice([str(size) for size in KEY_SIZES]), default="2048", show_default=True)
@click.option("--force", is_flag=True, help="Also when the server has a certificate for SMTP; that one stays.")
def new(
    folder: Path,
    store_password_file: Path | None,
    store_password_env: str | None,
    server: str,
    fqdn: str,
    services: tuple[str, ...],
    friendly_name: str,
    key_size: str,
    force: bool,
) -> int:
    """Make a self-signed certificate as Exchange does, for five years.

    It is published nowhere: the directory still names the certificate that it named before.

    \b
    anontls cert new --store certs --server MBX1 --fqdn mbx1.contoso.com
    """
    if len(friendly_name) >= MAX_FRIENDLY_NAME:
        raise UsageError(f"--friendly-name has {MAX_FRIENDLY_NAME} characters or more")
    passphrase = certificates.store_passphrase(store_password_file, store_password_env)
    now = options.now()
    own = new_internal_certificate(server, fqdn, now=now, key_size=int(key_size))
    write.prepare(folder)
    present = next((c for c in FolderStore(folder, now=now, passphrase=passphrase) if _internal_of(c, server)), None)
    if present is not None and "SMTP" in services and not force:
        raise UsageError(
            f"{server} already has the certificate {present.thumbprint} for SMTP, valid until {show('en', present.not_after)}",
            hint="--force makes another one; a new certificate has a new thumbprint, which the directory has to learn",
        )
    path = write.add(folder, own.certificate, own.key, passphrase=passphrase)
    bound = write.bind(folder, own.thumbprint, Binding(services, friendly_name))
    click.echo(own.thumbprint)
    click.echo(
        f"{path}: {own.certificate.subject}, services {bound.text}, until {show('en', own.certificate.not_after)}",
        err=True,
    )
    return Exit.DONE


def _internal_of(certificate: Certificate, server: str) -> bool:
    subject = certificate.subject
    return (
        isinstance(subject, str)
        and any(same_name(name, server) for name in common_names(subject))
        and certificate.is_self_signed is True
        and certificate.serves_smtp() is True
    )


@command.command("list")
@certificates.store
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="File or folder of trusted CA certificates; DIR/ca when it exists.",
)
@options.as_of
@options.as_json
def list_(
    folder: Path,
    store_password_file: Path | None,
    store_password_env: str | None,
    ca: Path | None,
    as_of: Any,
    as_json: bool,
) -> int:
    """What the store holds.  Exit 1 when something in it cannot be used, as a key that is too small for TLS."""
    passphrase = certificates.store_passphrase(store_password_file, store_password_env)
    store = FolderStore(folder, now=as_of or options.now(), ca=ca, passphrase=passphrase)
    for entry in store.entries:
        click.echo(json.encode(document(entry)) if as_json else _line(entry))
    problems = [*store.problems, *(problem for entry in store.entries for problem in _refused(entry))]
    for problem in problems:
        if as_json:
            said = {"file": problem.file, "message": problem.message, "cure": problem.cure}
            click.echo(json.encode({"schema": "anontls/cert-problem/1", **said}))
        else:
            click.echo(f"{click.style(problem.file, fg='yellow')}: {problem.message}\n    {problem.cure}", err=True)
    return Exit.NOT_MET if problems else Exit.DONE


def _refused(entry: Entry) -> Iterator[Problem]:
    """A certificate that has its key, and that no session can show."""
    why = refusal(entry.certificate) if entry.picked.key is not None else None
    if why is not None:
        yield Problem(entry.file, why, TAKEN)


def document(entry: Entry) -> dict[str, Any]:
    """A certificate of a store as JSON, ``anontls/cert/1``."""
    certificate = entry.certificate
    return {
        "schema": "anontls/cert/1",
        **(json.certificate(certificate) or {}),
        "names": json.fact(certificate.certificate_domains),
        "services": list(entry.binding.services),
        "status": json.fact(certificate.status),
        "friendly_name": entry.binding.friendly_name,
        "has_private_key": json.fact(certificate.has_private_key),
        "key": json.fact(certificate.key),
        "encrypted": entry.picked.key is not None and entry.picked.key.encrypted,
        "file": entry.file,
    }


def _line(entry: Entry) -> str:
    certificate = entry.certificate
    key = show("en", certificate.key) if entry.picked.key else "no private key"
    status = "Unknown" if is_unknown(certificate.status) else str(certificate.status)
    until = certificate.not_after
    day = show("en", until) if is_unknown(until) or until is None else f"{until:%Y-%m-%d}"
    colour = {"Valid": "green", "Unknown": "yellow"}.get(status, "red")
    return (
        f"{certificate.thumbprint}  {show('en', certificate.subject)}  {day}"
        f"  {entry.binding.text}  {key}  {click.style(status, fg=colour)}  {entry.file}"
    )


@command.command("import")
@certificates.store
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--password-file", type=click.Path(path_type=Path), metavar="FILE", help="File (0600) with the passphrase of FILE."
)
@click.option("--password-env", metavar="VAR", help="Environment variable with the passphrase of FILE.")
@click.option(
    "--services",
    type=Services(),
    default="",
    metavar="LIST",
    help="Services that it is enabled for; none when not given.",
)
@click.option("--friendly-name", default="", metavar="TEXT")
def import_(
    folder: Path,
    store_password_file: Path | None,
    store_password_env: str | None,
    source: Path,
    password_file: Path | None,
    password_env: str | None,
    services: tuple[str, ...],
    friendly_name: str,
) -> int:
    """Copy the certificate in FILE (PEM, DER or PKCS#12), its chain and its private key into the store.

    The key may also be in a file beside it that has the same name and ends in .key.

    \b
    PFX_PASSWORD=… anontls cert import --store certs mbx1.pfx --password-env PFX_PASSWORD --services SMTP
    """
    if len(friendly_name) >= MAX_FRIENDLY_NAME:
        raise UsageError(f"--friendly-name has {MAX_FRIENDLY_NAME} characters or more")
    store_passphrase = certificates.store_passphrase(store_password_file, store_password_env)
    passphrase = certificates.passphrase(password_file, password_env, "password")
    try:
        picked = _picked(source, passphrase)
        key = picked.key.open(passphrase) if picked.key else None
    except Unusable as e:
        raise MalformedInput(str(source), e.message, hint=e.cure) from None
    certificate = Certificate(der=picked.leaf, has_private_key=key is not None)
    if key is not None and not OwnCertificate(certificate, key).fits():
        raise MalformedInput(
            str(source), "the private key is not the key of the certificate", hint="import the two that belong together"
        )
    write.prepare(folder)
    now = options.now()
    thumbprint = str(certificate.thumbprint)
    present = next(
        (
            e
            for e in FolderStore(folder, now=now, passphrase=store_passphrase).entries
            if e.certificate.thumbprint == thumbprint
        ),
        None,
    )
    if present is not None:
        raise UsageError(
            f"the certificate {thumbprint} is in the store already ({present.file})",
            hint="bindings.toml says which services it is enabled for",
        )
    path = write.add(folder, certificate, key, picked.chain, store_passphrase)
    binding = Binding(services, friendly_name)
    if services or friendly_name:
        binding = write.bind(folder, thumbprint, binding)
    click.echo(thumbprint)
    click.echo(
        f"{path}: {show('en', certificate.subject)}, services {binding.text}"
        + ("" if key else ", without a private key"),
        err=True,
    )
    why = refusal(certificate) if key else None
    if why is not None:
        click.echo(click.style("warning: ", fg="yellow") + f"{why}\n    {TAKEN}", err=True)
    return Exit.DONE


def _picked(source: Path, passphrase: Passphrase | None) -> Picked:
    found = files.contents(files.read(source)[0], source.suffix, passphrase)
    keys = found.keys
    beside = source.with_suffix(files.KEY_SUFFIX)
    if not keys and beside != source and beside.exists():
        keys = files.contents(files.read(beside)[0], files.KEY_SUFFIX).keys
    if not found.certificates:
        raise Unusable("it holds no certificate", "name the certificate's file; its key may be beside it")
    return pick(found.certificates, keys)
