"""Options that name a certificate store, and the one certificate in it that is meant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from anontls.certstore.files import Passphrase
from anontls.certstore.folder import FolderStore
from anontls.errors import UsageError
from anontls.facts import Certificate, normal_thumbprint, same_name
from anontls.facts.names import common_names
from anontls.facts.own_certificate import OwnCertificateRefused
from anontls.report.language import show

F = TypeVar("F", bound=Callable[..., Any])


def store(function: F) -> F:
    """``--store`` and where the passphrase of the keys in it is."""
    for option in (
        click.option(
            "--store-password-env",
            metavar="VAR",
            help="Environment variable with the passphrase of the keys in the store.",
        ),
        click.option(
            "--store-password-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File (0600) with the passphrase of the keys in the store.",
        ),
        click.option(
            "--store",
            "folder",
            required=True,
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Folder of the certificate store.",
        ),
    ):
        function = option(function)
    return function


def open_store(folder: Path, password_file: Path | None, password_env: str | None, now: datetime) -> FolderStore:
    """The store that the options name.

    Raises:
        UsageError: two places for one passphrase.
        Unusable: the folder cannot be read.
    """
    return FolderStore(folder, now=now, passphrase=store_passphrase(password_file, password_env))


def store_passphrase(file: Path | None, variable: str | None) -> Passphrase | None:
    """Where the passphrase of the keys in the store is.

    Raises:
        UsageError: two places for one passphrase.
    """
    return passphrase(file, variable, "store-password")


def passphrase(file: Path | None, variable: str | None, name: str) -> Passphrase | None:
    """Where the passphrase is that the options ``--NAME-file`` and ``--NAME-env`` name.

    Raises:
        UsageError: two places for one passphrase.
    """
    if file is not None and variable is not None:
        raise UsageError(f"--{name}-file and --{name}-env exclude each other")
    return None if file is None and variable is None else Passphrase(file=file, variable=variable)


def chosen(store: FolderStore, wanted: str) -> Certificate:
    """The certificate with that thumbprint, or the one whose Subject, or name in it, is ``wanted``.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = store.store().find(normal_thumbprint(wanted))
    if found is not None:
        return found
    matching = [c for c in store if isinstance(c.subject, str) and _is_subject(c.subject, wanted)]
    if len(matching) == 1:
        return matching[0]
    several = "; ".join(f"{c.thumbprint} until {show('en', c.not_after)}" for c in matching[:10])
    raise UsageError(
        f"{len(matching) or 'no'} certificate{'s' if matching else ''} in {store.folder} for {wanted!r}",
        hint=f"name one of them by its thumbprint: {several}" if matching else "`anontls cert list` shows them",
    )


def _is_subject(subject: str, wanted: str) -> bool:
    return same_name(subject, wanted) or any(same_name(name, wanted) for name in common_names(subject))


def not_fit(store: FolderStore, certificate: Certificate, now: datetime) -> list[str]:
    """Why no service could work with the certificate; empty when it could."""
    faults = []
    try:
        if store.find(str(certificate.thumbprint)) is None:
            faults.append("its private key is not in the store")
    except OwnCertificateRefused as e:
        faults.append(e.reason)
    before, after = certificate.not_before, certificate.not_after
    if not isinstance(before, datetime) or not isinstance(after, datetime):
        faults.append("its dates cannot be read")
    elif now > after:
        faults.append(f"it expired on {show('en', after)}")
    elif now < before:
        faults.append(f"it is not valid before {show('en', before)}")
    return faults


def require_fit(store: FolderStore, certificate: Certificate, now: datetime, *, force: bool) -> None:
    """Refuse a certificate that no service could work with; with ``force`` say so and go on.

    Raises:
        UsageError: it is one, and there is no ``force``.
    """
    faults = not_fit(store, certificate, now)
    if not faults:
        return
    text = f"{certificate.thumbprint}: {', and '.join(faults)}"
    if not force:
        raise UsageError(text, hint="--force does it all the same")
    click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
