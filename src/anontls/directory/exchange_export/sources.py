"""The files that a user names: single files, folders, zip archives, each read as it is asked for.

Nothing of an archive is written to disk, and no number in its header is believed: entries are counted before
:mod:`zipfile` makes objects of them, and what comes out is measured while it comes out.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

from anontls.errors import MalformedInput, UsageError

MAX_FILE_BYTES: Final = 512 << 20  # of one file, and of one entry unpacked
MAX_ARCHIVE_BYTES: Final = 2 << 30  # of all entries of one archive, unpacked
MAX_ARCHIVE_ENTRIES: Final = 10_000
MAX_ARCHIVE_RATIO: Final = 250  # all entries unpacked to the archive; real exports have 2 to 6
RATIO_MATTERS_FROM: Final = 16 << 20  # a small file of blanks harms nobody

_PIECE = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file as the user gave it: ``dir/file.xml``, or ``export.zip/Get-Queue.xml`` inside an archive.

    ``modified`` is when it was last written; ``None`` inside an archive, whose times have no zone.
    """

    name: str
    data: bytes = field(repr=False)
    modified: datetime | None = None


def open_sources(paths: Iterable[str | Path]) -> Iterator[SourceFile]:
    """Every file of ``paths``, in the order given and sorted by name inside a folder or an archive, one at a time.

    Hidden files are skipped, links to folders not followed.  An archive is one by its content, whatever its name.

    Raises:
        UsageError: a path that does not exist or may not be read.
        MalformedInput: a file or an archive beyond the limits above; an archive that is damaged, encrypted, or has
            archives in it.
    """
    for path in map(Path, paths):
        for file in _files(path):
            source = _read(file)
            if source.data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                yield from _unpack(source)
            else:
                yield source


def _files(path: Path) -> Iterator[Path]:
    try:
        if not path.is_dir():
            yield path
            return
    except OSError as e:  # such as a name that is too long
        _refuse(e)
    for parent, folders, files in os.walk(path, onerror=_refuse):  # does not follow links
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file():  # a pipe or a device would make us wait
                yield file


def _refuse(error: OSError) -> NoReturn:
    raise UsageError(
        f"{error.filename}: {error.strerror or error}", hint="Give files, folders or zip archives that exist."
    ) from error


def _read(path: Path) -> SourceFile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
            modified = os.fstat(file.fileno()).st_mtime
    except OSError as e:
        _refuse(e)
    except ValueError as e:  # a NUL in the name
        raise UsageError(f"{str(path)!r}: {e}") from e
    if len(data) > MAX_FILE_BYTES:
        raise MalformedInput(str(path), f"larger than {MAX_FILE_BYTES >> 20} MiB", hint="Export in several files.")
    return SourceFile(str(path), data, datetime.fromtimestamp(modified, UTC))


def _unpack(archive: SourceFile) -> Iterator[SourceFile]:
    # each entry has this signature in the directory at the end; chance puts one more into 4 GiB of packed data
    if archive.data.count(b"PK\x01\x02") > MAX_ARCHIVE_ENTRIES:
        raise MalformedInput(archive.name, f"more than {MAX_ARCHIVE_ENTRIES:,} files in the archive")
    allowed = min(MAX_ARCHIVE_BYTES, max(RATIO_MATTERS_FROM, MAX_ARCHIVE_RATIO * len(archive.data)))
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(archive.data)) as packed:
            for entry in sorted(packed.infolist(), key=lambda entry: entry.filename):
                parts = entry.filename.split("/")
                if entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
                    continue
                name = f"{archive.name}/" + "".join(c if c.isprintable() else "?" for c in entry.filename)
                data = _unpack_entry(packed, entry, name, allowed - total)
                total += len(data)
                yield SourceFile(name, data)
    except MalformedInput:
        raise
    except Exception as e:  # hostile bytes: zipfile raises whatever its parts do
        raise MalformedInput(archive.name, f"the archive cannot be unpacked: {str(e) or type(e).__name__}") from e


def _unpack_entry(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, left: int) -> bytes:
    if entry.flag_bits & 0x1:
        raise MalformedInput(name, "encrypted", hint="Unpack the archive, and give the folder.")
    data = bytearray()
    with packed.open(entry) as stream:
        while piece := stream.read(_PIECE):
            data += piece
            if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                raise MalformedInput(name, "an archive inside an archive", hint="Unpack the outer one first.")
            if len(data) > MAX_FILE_BYTES:
                raise MalformedInput(name, f"unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
            if len(data) > left:
                raise MalformedInput(
                    name,
                    f"the archive unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GiB, or {MAX_ARCHIVE_RATIO} times its size",
                )
    return bytes(data)


def encoding_of(data: bytes) -> tuple[str, int]:
    """The encoding of a text, and the byte behind its mark.

    Where there is no mark, UTF-16 shows by a NUL in every other byte; anything else is taken for UTF-8.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16-LE" if data[0] == 0xFF else "UTF-16-BE", 2
    if data.startswith(b"\xef\xbb\xbf"):
        return "UTF-8", 3
    head = data[:4096]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    # text is mostly ASCII: one of its two bytes is mostly 0, and the other hardly ever
    if max(even, odd) > max(len(head) // 4, 10 * min(even, odd)):
        return "UTF-16-LE" if odd > even else "UTF-16-BE", 0
    return "UTF-8", 0


def decode(data: bytes, name: str) -> str:
    """The text of a file that PowerShell wrote: UTF-8 or UTF-16, with a byte order mark or without.

    Windows PowerShell redirects to UTF-16, ``Export-Clixml`` writes UTF-16 or UTF-8 by version [PS-EXPORT-CLIXML].
    ANSI code pages are not guessed.

    Raises:
        MalformedInput: neither; says at which byte.
    """
    encoding, start = encoding_of(data)
    try:
        return str(memoryview(data)[start:], encoding)
    except UnicodeDecodeError as e:
        raise MalformedInput(
            name,
            f"byte {start + e.start}: not {encoding} text ({e.reason})",
            hint="Save it again as UTF-8 or UTF-16 (in PowerShell: -Encoding UTF8).",
        ) from None
