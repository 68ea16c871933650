"""A VFS for the SQLite that Python uses: records what is written to each file, and fails when told to.

It is the default one with three functions put in front, so the locks, the shared memory and the system calls are those
of a real node.  (apsw has a SQLite of its own, and its files cannot do shared memory.)
"""

from __future__ import annotations

import ctypes
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import pytest

READ_ONLY, IO_ERROR, FULL = 8, 10, 13  # SQLITE_READONLY, SQLITE_IOERR, SQLITE_FULL
OK = 0


class Write(NamedTuple):
    path: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    path: str
    size: int


class Sync(NamedTuple):
    path: str
    folder: bool  # as well: at the first time after a journal has been opened (UNIXFILE_DIRSYNC)


class Delete(NamedTuple):
    path: str
    durable: bool  # the folder was synced too


class Mark(NamedTuple):
    """Something a test did at this point."""

    what: Any


Record = Write | Truncate | Sync | Delete | Mark


class _Methods(Structure):  # sqlite3_io_methods
    pass


class _File(Structure):  # sqlite3_file
    _fields_ = [("methods", POINTER(_Methods))]


class _Vfs(Structure):  # sqlite3_vfs
    pass


_Open = CFUNCTYPE(c_int, POINTER(_Vfs), c_void_p, POINTER(_File), c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, POINTER(_Vfs), c_char_p, c_int)
_Write = CFUNCTYPE(c_int, POINTER(_File), c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, POINTER(_File), c_int64)
_Sync = CFUNCTYPE(c_int, POINTER(_File), c_int)


def _rest(names: str) -> list[tuple[str, type[c_void_p]]]:
    return [(name, c_void_p) for name in names.split()]


_Methods._fields_ = [
    ("version", c_int),
    *_rest("close read"),
    ("write", _Write),
    ("truncate", _Truncate),
    ("sync", _Sync),
    *_rest("size lock unlock check_reserved_lock control sector_size characteristics"),
    *_rest("shm_map shm_lock shm_barrier shm_unmap fetch unfetch"),
]
_Vfs._fields_ = [
    ("version", c_int),
    ("file_size", c_int),
    ("max_pathname", c_int),
    ("next", c_void_p),
    ("name", c_char_p),
    ("data", c_void_p),
    ("open", _Open),
    ("delete", _Delete),
    *_rest("access full_pathname dl_open dl_error dl_sym dl_close randomness sleep time last_error time64"),
    *_rest("set_system_call get_system_call next_system_call"),
]


def _library() -> ctypes.CDLL:
    """The SQLite that the module sqlite3 has loaded."""
    sqlite3.connect(":memory:").close()
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else []:
        if "libsqlite3" in line:
            return ctypes.CDLL(line.split()[-1])
    pytest.skip("this Python's SQLite is no shared library that can be found")


class RecordingVfs:
    """What was done to files, in order; ``fail`` is the code that writing answers with from now on."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.fail = OK
        self._paths: dict[int, str] = {}  # by the address of sqlite3_file
        self._fresh: set[int] = set()  # journals that have not been synced yet
        self._methods: dict[int, tuple[_Methods, _Methods]] = {}  # by the address of the original: before, after

    def mark(self, what: object) -> None:
        self.records.append(Mark(what))

    @contextmanager
    def installed(self) -> Iterator[RecordingVfs]:
        """Every connection that is opened uses it."""
        library = _library()
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        original = library.sqlite3_vfs_find(None)

        def open_(_: Any, name: int | None, file: Any, flags: int, out: Any) -> int:
            code = int(original.contents.open(original, name, file, flags, out))
            if code == OK and name is not None:  # None: a temporary file
                address = ctypes.addressof(file.contents)
                self._paths[address] = ctypes.string_at(name).decode()
                if self._paths[address].endswith(("-journal", "-wal")):
                    self._fresh.add(address)
                file.contents.methods = ctypes.pointer(self._wrapped(file.contents.methods.contents))
            return code

        def delete(_: Any, name: bytes, sync: int) -> int:
            code = int(original.contents.delete(original, name, sync))
            if code == OK:
                self.records.append(Delete(name.decode(), bool(sync)))
            return code

        vfs = _Vfs.from_buffer_copy(original.contents)
        vfs.name = b"recording"
        vfs.open = _Open(open_)
        vfs.delete = _Delete(delete)
        assert library.sqlite3_vfs_register(ctypes.byref(vfs), 1) == OK
        try:
            yield self
        finally:
            library.sqlite3_vfs_unregister(ctypes.byref(vfs))

    def _wrapped(self, methods: _Methods) -> _Methods:
        """Files with and without locks have tables of their own."""
        key = ctypes.addressof(methods)
        if key in self._methods:
            return self._methods[key][1]

        def path(file: Any) -> str:
            return self._paths[ctypes.addressof(file.contents)]

        def write(file: Any, data: int, size: int, offset: int) -> int:
            if self.fail:
                return self.fail
            self.records.append(Write(path(file), offset, ctypes.string_at(data, size)))
            return int(methods.write(file, data, size, offset))

        def truncate(file: Any, size: int) -> int:
            self.records.append(Truncate(path(file), size))
            return int(methods.truncate(file, size))

        def sync(file: Any, flags: int) -> int:
            if self.fail:
                return self.fail
            code = int(methods.sync(file, flags))
            address = ctypes.addressof(file.contents)
            self.records.append(Sync(path(file), address in self._fresh))
            self._fresh.discard(address)
            return code

        changed = _Methods.from_buffer_copy(methods)
        changed.write, changed.truncate, changed.sync = _Write(write), _Truncate(truncate), _Sync(sync)
        self._methods[key] = methods, changed
        return changed
