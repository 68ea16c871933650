"""Where facts come from: snapshots, exports of cmdlets, a directory, facts written by hand."""

from __future__ import annotations

from pathlib import Path

from anontls.errors import UsageError
from anontls.facts import Organization

__all__ = ["is_ldap_url", "open_organization"]

ZIP = b"PK"


def is_ldap_url(text: str) -> bool:
    """Whether ``text`` is meant as the address of a directory."""
    return text.lower().startswith(("ldap://", "ldaps://"))


def open_organization(org: str) -> Organization:
    """The organisation that the argument ORG names: a snapshot, a folder, archive or file of exports, or a directory.

    Raises:
        UsageError: there is nothing of that name.
        MalformedInput: it cannot be read.
        Unreachable: the directory cannot be.
    """
    # Imported here: what reads no organisation needs none of the readers.
    from anontls.directory import snapshot
    from anontls.directory.exchange_export import read_export
    from anontls.directory.exchange_export.formats import recognise

    if is_ldap_url(org):
        from anontls.directory.ldap import LdapDirectory, ldap_settings

        with LdapDirectory(ldap_settings(org)) as directory:
            return directory.organization()
    if not org:  # Path("") is the folder that one is in
        raise UsageError("ORG is empty")
    path = Path(org)
    try:
        data = path.read_bytes() if path.is_file() and path.stat().st_size <= snapshot.MAX_BYTES else ZIP
    except OSError as e:
        raise UsageError(f"{org}: {e.strerror}") from None
    if not data.startswith(ZIP) and recognise(data, org) == "snapshot":
        return snapshot.load(data, org)  # as it is: what is decoded is decided on
    return read_export([path])
