"""Where facts come from: snapshots, exports of cmdlets, facts written by hand."""

from __future__ import annotations

from pathlib import Path

from anontls.errors import UsageError
from anontls.facts import Organization

__all__ = ["open_organization"]

ZIP = b"PK"


def open_organization(org: str) -> Organization:
    """The organisation that the argument ORG names: a snapshot, or a folder, archive or file of exports.

    Raises:
        UsageError: there is nothing of that name, or it is an address of a directory.
        MalformedInput: it cannot be read.
    """
    # Imported here: what reads no organisation needs none of the readers.
    from anontls.directory import snapshot
    from anontls.directory.exchange_export import read_export
    from anontls.directory.exchange_export.formats import recognise

    if org.lower().startswith(("ldap://", "ldaps://")):
        raise UsageError(
            f"{org}: reading a directory is not in this version",
            hint="give a snapshot, or a folder or archive of exports",
        )
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
