"""A certificate store in a folder: PEM, DER and PKCS#12 files, ``bindings.toml``, and CA certificates in ``ca/``.

The key of ``mbx1.crt`` is in the same file or in ``mbx1.key`` beside it.  Keys count only in files that nobody else
can read, in such a folder.  What is wrong with one file is a problem with a cure, and never takes down the rest.

:meth:`FolderStore.reload` reads what has changed and then swaps all at once, so that a session sees the store of one
moment.  Keys are matched to their certificates when they are read; an RSA key is verified when it is first used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509

from anontls.certstore import Problem, bindings, files, named
from anontls.certstore.bindings import Binding
from anontls.certstore.chain import Picked, pick
from anontls.certstore.files import Contents, Passphrase, SealedKey, Unusable, Version
from anontls.certstore.status import Authorities, status
from anontls.facts import Certificate, Store, Unknown, is_unknown, normal_thumbprint
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused

CA_FOLDER = "ca"
MAX_FILES = 100_000  #: certificate and key files in a folder
MAX_AUTHORITIES = 10_000  #: CA certificates in one file


class _File:
    """A file as it was when it was read."""

    __slots__ = ("contents", "name", "problems", "unsafe", "version")

    def __init__(self, name: str, version: Version) -> None:
        self.name = name
        self.version = version
        self.contents = Contents()
        self.problems: tuple[Problem, ...] = ()
        self.unsafe: Unusable | None = None


class Entry:
    """One certificate of the folder, and what came of it."""

    __slots__ = ("binding", "certificate", "file", "own", "picked", "problems")

    def __init__(self, file: str, certificate: Certificate, picked: Picked, problems: tuple[Problem, ...]) -> None:
        self.file = file
        self.certificate = certificate
        self.picked = picked
        self.problems = problems
        self.binding = Binding()
        self.own: OwnCertificate | None = None


class _Bound(msgspec.Struct, frozen=True):
    """``bindings.toml`` as it was read."""

    version: Version | None = None
    bindings: dict[str, Binding] = {}
    problems: tuple[Problem, ...] = ()


class _State(msgspec.Struct, frozen=True):
    """The store of one moment."""

    files: dict[str, _File] = {}
    entries: dict[tuple[object, ...], Entry] = {}
    by_thumbprint: dict[str, Entry] = {}
    bound: _Bound = _Bound()
    authorities: Authorities | None = None
    authority_versions: tuple[object, ...] = ()
    store: Store = Store(())
    problems: tuple[Problem, ...] = ()


class FolderStore:
    """The store in ``folder``.

    Args:
        folder: mode 0700, and the files with private keys 0600; otherwise these keys are not used.
        now: the moment for which ``Status`` is told.
        ca: a file or folder of trusted CA certificates (PEM); ``folder/ca`` when it exists.  Without one the status of
            a certificate that is not self-signed is unknown.
        passphrase: where the passphrase of encrypted keys and PKCS#12 files is.

    Raises:
        Unusable: there is no such folder.
    """

    def __init__(
        self, folder: Path, *, now: datetime, ca: Path | None = None, passphrase: Passphrase | None = None
    ) -> None:
        self.folder = folder
        self._ca = ca
        self._passphrase = passphrase
        self._state = _State()
        self.reload(now)

    def store(self) -> Store:
        """All certificates as facts."""
        return self._state.store

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be used at the last :meth:`reload`."""
        return self._state.problems

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The certificates with their files, in the order of the files' names."""
        return tuple(self._state.by_thumbprint.values())

    def named(self, name: str) -> tuple[Certificate, ...]:
        """The certificates that stand for ``name``, newest first."""
        return named(self._state.store, name)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self._state.store)

    def find(self, thumbprint: str) -> OwnCertificate | None:
        """The certificate with its private key; ``None`` when there is no usable file of either.

        Raises:
            OwnCertificateRefused: the key does not open, or is not the certificate's.
        """
        entry = self._state.by_thumbprint.get(normal_thumbprint(thumbprint))
        if entry is None or entry.picked.key is None:
            return None
        if entry.own is None or entry.own.certificate is not entry.certificate:
            try:
                key = entry.own.key if entry.own else entry.picked.key.open(self._passphrase)
            except Unusable as e:
                raise OwnCertificateRefused(str(entry.certificate.thumbprint), e.message, hint=e.cure) from None
            own = OwnCertificate(entry.certificate, key, entry.picked.chain)
            if not own.fits():
                reason = f"the private key in {entry.file} is not its own"
                raise OwnCertificateRefused(own.thumbprint, reason, hint="put the certificate and its own key together")
            entry.own = own
        return entry.own

    def reload(self, now: datetime) -> None:
        """Read what has changed since the last time, then swap.

        Raises:
            Unusable: the folder itself cannot be read, or not safely any more; the store stays as it was.
        """
        old = self._state
        read, problems, unsafe = self._read(old.files)
        if unsafe is not None and any(entry.picked.key for entry in old.entries.values()):
            raise Unusable(f"the certificate store {self.folder} cannot be used: {unsafe.message}", unsafe.cure)
        entries = _entries(read.values(), old.entries, unsafe, self._passphrase)
        by_thumbprint: dict[str, Entry] = {}
        for file in read.values():
            problems += file.problems
        for entry in entries.values():
            problems += entry.problems
            thumbprint = str(entry.certificate.thumbprint)
            first = by_thumbprint.get(thumbprint)
            if first is not None:
                kept, dropped = (entry, first) if first.picked.key is None and entry.picked.key else (first, entry)
                problems.append(
                    Problem(dropped.file, f"the same certificate is in {kept.file}", "remove one of the files")
                )
                entry = kept  # the one with a key
            by_thumbprint[thumbprint] = entry
        bound = self._bindings(old.bound, by_thumbprint, problems)
        authorities, versions = self._authorities(old, problems)
        nothing = Binding()
        for thumbprint, entry in by_thumbprint.items():
            _tell(entry, bound.bindings.get(thumbprint, nothing), authorities, now)
        store = Store(entry.certificate for entry in by_thumbprint.values())
        self._state = _State(read, entries, by_thumbprint, bound, authorities, versions, store, tuple(problems))

    def _read(self, old: Mapping[str, _File]) -> tuple[dict[str, _File], list[Problem], Unusable | None]:
        problems: list[Problem] = []
        try:
            state = self.folder.stat()
            (self.folder / "..").stat()  # fails where the folder can be listed, and no file in it be opened
            with os.scandir(self.folder) as scan:
                found = sorted((e for e in scan if _suffix(e.name) in files.SUFFIXES), key=lambda e: e.name)
        except OSError as e:
            raise Unusable(
                f"the certificate store {self.folder} cannot be read: {e.strerror}", files.cure_of(e)
            ) from None
        unsafe = files.open_to_others(state.st_mode, state.st_uid, self.folder, folder=True)
        if unsafe is not None:
            problems.append(
                Problem(str(self.folder), f"{unsafe.message}, so no private key in it is used", unsafe.cure)
            )
        if len(found) > MAX_FILES:
            problems.append(Problem(str(self.folder), f"only {MAX_FILES} of {len(found)} files are read", "tidy up"))
        read: dict[str, _File] = {}
        for item in found[:MAX_FILES]:
            if item.name.startswith("."):
                continue  # being written
            known = old.get(item.name)
            try:
                # What cannot be read changes without its version: a passphrase may be there now.
                if known is not None and not known.problems and Version.of(item.stat()) == known.version:
                    read[item.name] = known
                    continue
            except OSError:
                pass  # the reading says what is wrong
            read[item.name] = self._file(item)
        return read, problems, unsafe

    def _file(self, item: os.DirEntry[str]) -> _File:
        shown = item.name.encode(errors="replace").decode()
        file = _File(shown, Version(0, 0, 0, 0, 0, 0, 0))
        try:
            if item.is_dir():
                raise Unusable("it is a folder", "rename it, or move its files up")
            data, file.version = files.read(item.path)
            file.contents = files.contents(data, _suffix(item.name), self._passphrase)
            if file.contents.keys:
                file.unsafe = files.open_to_others(file.version.mode, file.version.owner, item.path)
        except Unusable as e:
            file.problems = (Problem(shown, e.message, e.cure),)
        except OSError as e:
            file.problems = (Problem(shown, f"it cannot be read: {e.strerror}", files.cure_of(e)),)
        return file

    def _bindings(self, old: _Bound, present: Mapping[str, Entry], problems: list[Problem]) -> _Bound:
        path = self.folder / bindings.FILE
        bound = old
        try:
            if not os.path.lexists(path):
                bound = _Bound()
            elif old.version is None or Version.of(path.stat()) != old.version:
                data, version = files.read(path, files.MAX_BUNDLE)
                found, faults = bindings.parse(data)
                bound = _Bound(version, found, tuple(faults))
        except Unusable as e:
            problems.append(Problem(bindings.FILE, f"{e.message}; the last bindings stay", e.cure))
        except (ValueError, OSError) as e:
            problems.append(Problem(bindings.FILE, f"{e}; the last bindings stay", "mend it"))
        problems += bound.problems
        problems += (
            Problem(
                bindings.FILE, f"{thumbprint} is not in the store", "remove the binding, or put the certificate back"
            )
            for thumbprint in bound.bindings
            if thumbprint not in present
        )
        return bound

    def _authorities(self, old: _State, problems: list[Problem]) -> tuple[Authorities | None, tuple[object, ...]]:
        path = self._ca or self.folder / CA_FOLDER
        if self._ca is None and not path.is_dir():
            return None, ()
        try:
            paths = (
                sorted(p for p in path.iterdir() if _suffix(p.name) in files.PEM_SUFFIXES) if path.is_dir() else [path]
            )
            versions = tuple((p.name, Version.of(p.stat())) for p in paths)
        except OSError as e:
            problems.append(Problem(str(path), f"the CA certificates cannot be read: {e.strerror}", files.cure_of(e)))
            return None, ()
        if old.authorities is not None and versions == old.authority_versions:
            return old.authorities, versions
        found: list[x509.Certificate] = []
        faulty = False
        for one in paths:
            try:
                found += _authorities_in(files.read(one, files.MAX_BUNDLE)[0])
            except Unusable as e:
                faulty = True
                problems.append(Problem(f"{path.name}/{one.name}" if one != path else str(path), e.message, e.cure))
        return Authorities(found), () if faulty else versions


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _authorities_in(data: bytes) -> Iterator[x509.Certificate]:
    ders = files.pem_certificates(data, MAX_AUTHORITIES) if b"-----BEGIN " in data else (data,)
    for der in ders:
        try:
            yield x509.load_der_x509_certificate(der)
        except Exception as e:  # noqa: BLE001 hostile bytes raise anything
            raise Unusable(f"a CA certificate in it cannot be read: {str(e)[:120]}", "replace it") from None


def _entries(
    read: Iterable[_File],
    old: Mapping[tuple[object, ...], Entry],
    unsafe: Unusable | None,
    passphrase: Passphrase | None,
) -> dict[tuple[object, ...], Entry]:
    """A certificate for each file that holds one, with the keys in it and in the key files of the same stem."""
    beside: dict[str, list[_File]] = {}
    with_certificates = []
    for file in read:
        if file.contents.certificates:
            with_certificates.append(file)
        elif file.contents.keys:
            beside.setdefault(_stem(file.name), []).append(file)
    entries: dict[tuple[object, ...], Entry] = {}
    stems = set()
    for file in with_certificates:
        stem = _stem(file.name)
        stems.add(stem)
        sources = (file, *beside.get(stem, ()))
        key = (unsafe is None, *sources)  # the files themselves: one that has not changed is the same object
        entries[key] = old.get(key) or _entry(file, sources, unsafe, passphrase)
    for stem, lonely in beside.items():
        if stem not in stems:
            for file in lonely:
                message = "no certificate file has the name of this private key"
                file.problems = (Problem(file.name, message, f"name it like its certificate, or put {stem}.crt there"),)
    return entries


def _entry(file: _File, sources: tuple[_File, ...], unsafe: Unusable | None, passphrase: Passphrase | None) -> Entry:
    certificates = file.contents.certificates
    problems: list[Problem] = []
    keys: list[SealedKey] = []
    for source in sources:
        if source.unsafe is not None:
            problems.append(
                Problem(source.name, f"{source.unsafe.message}, so the key is not used", source.unsafe.cure)
            )
        elif unsafe is None:
            keys += source.contents.keys
    if passphrase is None and any(key.encrypted for key in keys):
        message = "the private key is encrypted, and no passphrase is configured"
        problems.append(Problem(file.name, message, "name the file or variable that holds the passphrase"))
        keys = [key for key in keys if not key.encrypted]
    try:
        picked = pick(certificates, keys)
    except Unusable as e:
        problems.append(Problem(file.name, e.message, e.cure))
        picked = pick(certificates, ())
    certificate = Certificate(der=picked.leaf, has_private_key=picked.key is not None)
    return Entry(file.name, certificate, picked, tuple(problems))


def _tell(entry: Entry, binding: Binding, authorities: Authorities | None, now: datetime) -> None:
    """Bring services and status of the certificate up to date; the same object when nothing has changed."""
    certificate = entry.certificate
    try:
        told: str | Unknown = status(certificate, entry.picked.chain, authorities, now)
    except Exception as e:  # noqa: BLE001 a certificate of the chain is hostile
        told = Unknown(f"the chain cannot be checked: {str(e)[:120] or type(e).__name__}")
    entry.binding = binding
    if is_unknown(certificate.services):  # a new one, which nobody has seen yet
        msgspec.structs.force_setattr(certificate, "services", binding.text)
        msgspec.structs.force_setattr(certificate, "status", told)
    elif certificate.services != binding.text or certificate.status != told:
        entry.certificate = msgspec.structs.replace(certificate, services=binding.text, status=told)
