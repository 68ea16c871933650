"""Options that name a directory which is written: Active Directory, or AD LDS of an Edge server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from anontls.certstore.files import Passphrase, Unusable
from anontls.errors import UsageError
from anontls.report.printable import printable

if TYPE_CHECKING:
    from anontls.directory.ldap import LdapSettings

F = TypeVar("F", bound=Callable[..., Any])


def account(prefix: str, of: str) -> Callable[[F], F]:
    """``--PREFIX-ca``, ``--PREFIX-bind``, ``--PREFIX-password-file``, each also as ``ANONTLS_PREFIX_...``."""
    variable = f"ANONTLS_{prefix.upper()}"

    def add(function: F) -> F:
        for option in (
            click.option(
                f"--{prefix}-password-file",
                type=click.Path(dir_okay=False, path_type=Path),
                envvar=f"{variable}_PASSWORD_FILE",
                metavar="FILE",
                help=f"Holds the password; asked for when not given (or set {variable}_PASSWORD_FILE).",
            ),
            click.option(
                f"--{prefix}-bind",
                envvar=f"{variable}_BIND",
                metavar="NAME",
                help=f"Log on to {of} by name and password instead of Kerberos (or set {variable}_BIND).",
            ),
            click.option(
                f"--{prefix}-ca",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                envvar=f"{variable}_CA",
                metavar="FILE",
                help=f"The authorities (PEM) that the certificate of {of} may come from (or set {variable}_CA).",
            ),
        ):
            function = option(function)
        return function

    return add


def ask(name: str) -> str | None:
    """The password of ``name`` from the terminal; ``None`` without one."""
    if not sys.stdin.isatty():
        return None
    return str(click.prompt(f"Password of {printable(name)}", hide_input=True, err=True))


def adlds_settings(url: str, bind: str | None, password_file: Path | None, ca: Path | None) -> LdapSettings:
    """Settings for AD LDS of an Edge server, which stands in the perimeter network.

    So nothing here falls back to the account of Active Directory.

    Raises:
        UsageError: there is a name to bind with and no password, or others may read its file.
    """
    from anontls.directory.ldap import LdapSettings

    password = None
    if bind:
        try:
            password = Passphrase(file=password_file).read().decode() if password_file else ask(bind)
        except (Unusable, UnicodeDecodeError) as e:
            raise UsageError(str(e), hint=e.cure if isinstance(e, Unusable) else None) from None
        if not password:
            raise UsageError(f"no password for {bind}", hint="--adlds-password-file")
    return LdapSettings(urls=(url,), bind=bind or None, password=password or "", ca=ca)
