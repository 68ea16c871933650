"""What Exchange's cmdlets print, read into an :class:`~anontls.facts.Organization`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import msgspec

from anontls.directory import snapshot
from anontls.directory.exchange_export.cmdlet_object import CmdletObject
from anontls.directory.exchange_export.cmdlets import recognise_kind
from anontls.directory.exchange_export.formats import read_objects, recognise
from anontls.directory.exchange_export.pieces import OF_THE_ORGANIZATION, Piece, piece_of, pieces_of
from anontls.directory.exchange_export.place import place_pieces
from anontls.directory.exchange_export.sources import SourceFile, open_sources
from anontls.errors import MalformedInput, UsageError
from anontls.facts import ABSENT, Organization, Source, Unplaced, is_unknown

__all__ = ["read_export"]

MAX_NOTES = 5  # of one file


def read_export(
    paths: Sequence[Path],
    *,
    server: str | None = None,
    zone: tzinfo | None = None,
    progress: Callable[[str], None] | None = None,
    also: Sequence[Organization] = (),
) -> Organization:
    """The organisation that files, folders and archives of exports hold together; snapshots among them take part.

    ``server`` is whose the objects are that do not say it; ``zone`` that of the computer which printed times without
    one; ``progress`` is told each file's name; ``also`` are what directories hold, and take part as snapshots do.

    Raises:
        MalformedInput: a file that is named in ``paths`` cannot be read.  One in a folder or archive is listed, with
            the reason, and nothing of it is used.
        UsageError: there is no file at all, or no such ``server`` in the sources.
    """
    named = {str(path) for path in paths}
    reading = _Reading(zone)
    for organization in also:
        reading.take(organization, organization.sources[0].file if organization.sources else "")
    for source in open_sources(paths) if paths else ():
        if progress:
            progress(source.name)
        try:
            reading.read(source)
        except MalformedInput as e:
            if source.name in named:
                raise
            reading.rows.append(_row(source, note=f"not read: {e.message}"))
    if not reading.rows:
        raise UsageError(
            f"{', '.join(map(str, paths))}: no file in it", hint="docs/export.md has the lines that make an export"
        )
    organization, notes = place_pieces(reading.pieces, server=server)
    fields: dict[str, Any] = {
        field: value for field, value in reading.lists.items() if is_unknown(getattr(organization, field))
    }
    return msgspec.structs.replace(organization, sources=_sources(reading.rows, notes), **fields)


#: Of one file; 10,000 servers with 20 connectors each.  What is read of a file is kept until all of it has been read.
MAX_OBJECTS = 200_000


def _row(source: SourceFile, *, kind: str = "export", **more: Any) -> Source:
    return Source(kind=kind, file=source.name, collected=_collected(source), **more)


def _collected(source: SourceFile) -> datetime | None:
    """When the file was written; for one in an archive, whose times have no zone, when the archive was."""
    if source.modified:
        return source.modified
    archive = next((parent for parent in Path(source.name).parents if parent.is_file()), None)
    return datetime.fromtimestamp(archive.stat().st_mtime, UTC) if archive else None


class _Reading:
    """What has been read so far."""

    def __init__(self, zone: tzinfo | None) -> None:
        self.zone = zone
        self.pieces: list[Piece | Unplaced] = []
        self.rows: list[Source] = []
        self.lists: dict[str, Any] = {}  # what a snapshot knows to be empty, or why it is not known

    def read(self, source: SourceFile) -> None:
        if recognise(source.data, source.name) == "snapshot":
            objects = self.take(snapshot.load(source.data, source.name), source.name)
            self.rows.append(_row(source, kind="snapshot", objects=objects))
            return
        collected = _collected(source)
        pieces, idle, computers, count = [], set[str](), set[str](), 0
        for found in read_objects(source):
            count += 1
            if count > MAX_OBJECTS:
                raise MalformedInput(source.name, f"more than {MAX_OBJECTS:,} objects")
            if found.computer:
                computers.add(found.computer)
            if kind := recognise_kind(found):
                pieces.append(piece_of(found, kind, collected=collected, zone=self.zone))
            else:
                idle.add(_class_of(found))
        self.pieces += pieces  # only now: of a file with a fault nothing is used
        note = f"holds {', '.join(sorted(idle))}, which no question needs" if idle else None
        self.rows.append(_row(source, objects=count, computers=tuple(sorted(computers)), note=note))

    def take(self, organization: Organization, name: str) -> int:
        """What is in order already; how many objects there are."""
        there = list(pieces_of(organization, name))
        self.rows += organization.sources
        self.pieces += there
        for field in OF_THE_ORGANIZATION.values():
            value = getattr(organization, field)
            if not is_unknown(value):
                self.lists[field] = ()
            elif value != ABSENT:
                self.lists.setdefault(field, value)
        return len(there)


def _class_of(found: CmdletObject) -> str:
    for name in found.types:
        if not name.startswith("System."):
            return name.rpartition(".")[2]
    return "objects of no known type"


def _sources(rows: Iterable[Source], notes: Any) -> tuple[Source, ...]:
    """One row a file, the newest; with what placing had to say about it."""
    newest: dict[tuple[str, str], Source] = {}
    for row in rows:
        there = newest.get((row.kind, row.file))
        if there is None or not (there.collected and row.collected and there.collected > row.collected):
            newest[row.kind, row.file] = row
    return tuple(_noted(row, notes.get(row.file, ())) for row in newest.values())


def _noted(row: Source, notes: Sequence[str]) -> Source:
    said = row.note.split("; ") if row.note else []
    new = [note for note in dict.fromkeys(notes) if note not in said]
    if len(new) > MAX_NOTES:
        new = [*new[:MAX_NOTES], f"and {len(new) - MAX_NOTES} more like this"]
    return msgspec.structs.replace(row, note="; ".join([*said, *new]) or None)
