import base64
import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anontls.certstore import CertificateStore, MemoryStore, files
from anontls.certstore.chain import pick
from anontls.certstore.files import Passphrase, Unusable
from anontls.certstore.folder import FolderStore
from anontls.facts import Unknown, is_unknown
from anontls.facts.own_certificate import OwnCertificate, OwnCertificateRefused, PrivateKey
from tests.certstore.make import NOW, Kind, key_of, key_pem, make, pem, pfx

posix = pytest.mark.skipif(os.name != "posix", reason="modes say nothing here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


def put(path: Path, *parts: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(b"".join(parts))
    path.chmod(mode)
    return path


def opened(folder: Path, passphrase: Passphrase | None = None, ca: Path | None = None) -> FolderStore:
    return FolderStore(folder, now=NOW, passphrase=passphrase, ca=ca)


def said(store: FolderStore) -> str:
    return "\n".join(map(str, store.problems))


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rsa", "ec", "ed25519"])
@pytest.mark.parametrize("layout", ["combined", "key first", "beside", "beside DER", "pfx", "SEC1 or PKCS#1"])
def test_layouts(folder: Path, layout: str, kind: Kind) -> None:
    own = make(kind)
    match layout:
        case "combined":
            put(folder / "mbx1.pem", b"# mbx1\r\n", pem(own.der), key_pem(own.key))
        case "key first":
            put(folder / "mbx1.CRT", key_pem(own.key), pem(own.der))
        case "beside":
            put(folder / "mbx1.crt", pem(own.der), mode=0o644)
            put(folder / "mbx1.key", key_pem(own.key))
        case "beside DER":
            put(folder / "mbx1.cer", own.der, mode=0o644)
            put(folder / "mbx1.key", _der(own))
        case "pfx":
            put(folder / "mbx1.pfx", pfx(own))
        case _:
            form = PrivateFormat.PKCS8 if kind == "ed25519" else PrivateFormat.TraditionalOpenSSL
            put(folder / "mbx1.pem", pem(own.der), key_pem(own.key, form=form))
    store = opened(folder)
    assert store.problems == ()
    (certificate,) = store
    assert certificate.der == own.der
    assert certificate.has_private_key is True
    assert certificate.services == "None"
    assert certificate.status == "Valid"
    found = store.find(own.thumbprint.lower())
    assert found is not None
    assert found == own
    assert found.fits()
    assert store.find(own.thumbprint) is found
    assert store.find("00" * 20) is None
    assert store.named("MBX1.contoso.com") == (certificate,)
    assert store.named("other") == ()


def _der(own: OwnCertificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption

    return own.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def test_services_and_friendly_name_come_from_the_bindings(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    (folder / "bindings.toml").write_text(
        f'[{own.thumbprint.lower()}]\nservices = ["smtp", "IMAP"]\nfriendly_name = "Microsoft Exchange"\n'
    )
    store = opened(folder)
    (certificate,) = store
    assert certificate.services == "IMAP, SMTP"
    assert certificate.serves_smtp() is True
    assert store.entries[0].binding.friendly_name == "Microsoft Exchange"
    assert store.problems == ()


def test_the_chain_goes_with_the_certificate(folder: Path) -> None:
    root = make(name="root", ca=True, number=1)
    middle = make(name="middle", ca=True, number=2, issuer=root)
    leaf = make(issuer=middle)
    put(folder / "mbx1.pem", pem(root.der, middle.der, leaf.der), key_pem(leaf.key))  # in the wrong order
    found = opened(folder).find(leaf.thumbprint)
    assert found is not None
    assert found.der == leaf.der
    assert found.chain == (middle.der, root.der)
    put(folder / "mbx1.pem", pfx(leaf))
    (folder / "mbx1.pem").rename(folder / "mbx1.p12")
    found = opened(folder).find(leaf.thumbprint)
    assert found is not None
    assert found.chain == (middle.der, root.der)


def test_other_files_are_not_looked_at(folder: Path) -> None:
    for name in ("README.txt", ".mbx1.pem.abc", ".hidden.pem", "mbx1.pem.bak", "noext"):
        put(folder / name, b"rubbish")
    (folder / "old").mkdir()
    store = opened(folder)
    assert list(store) == []
    assert store.problems == ()


# --- keys -------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o601])
def test_a_key_that_others_can_read_is_not_used(folder: Path, mode: int) -> None:
    own = make()
    path = put(folder / "mbx1.pem", pem(own.der), key_pem(own.key), mode=mode)
    store = opened(folder)
    (certificate,) = store
    assert certificate.has_private_key is False
    assert store.find(own.thumbprint) is None
    assert f"mode 0{mode:o}" in said(store)
    assert f"chmod 600 {path}" in said(store)
    path.chmod(0o400)  # cured: the contents and their time have not changed
    store.reload(NOW)
    assert store.problems == ()
    assert store.find(own.thumbprint) is not None


@posix
def test_a_key_beside_that_others_can_read_is_not_used(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.crt", pem(own.der), mode=0o644)
    put(folder / "mbx1.key", key_pem(own.key), mode=0o640)
    store = opened(folder)
    assert store.find(own.thumbprint) is None
    assert "mbx1.key" in said(store)


@posix
def test_a_folder_that_others_can_enter_has_no_keys(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    folder.chmod(0o755)
    store = opened(folder)
    assert store.find(own.thumbprint) is None
    assert len(store.store()) == 1
    assert f"chmod 700 {folder}" in said(store)
    folder.chmod(0o700)
    store.reload(NOW)
    assert store.find(own.thumbprint) is not None


@pytest.mark.parametrize("other", ["ec", "rsa", "ed25519"])
def test_a_key_of_another_certificate_is_not_used(folder: Path, other: Kind) -> None:
    own = make()
    put(folder / "mbx1.crt", pem(own.der))
    put(folder / "mbx1.key", key_pem(key_of(other, 7)))
    store = opened(folder)
    (certificate,) = store
    assert certificate.has_private_key is False
    assert store.find(own.thumbprint) is None
    assert "not the key of the certificate" in said(store)


def test_a_key_without_a_certificate_is_a_problem_until_it_has_one(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.key", key_pem(own.key))
    store = opened(folder)
    assert "mbx1.key" in said(store)
    put(folder / "mbx1.crt", pem(own.der))
    store.reload(NOW)
    assert store.problems == ()
    assert store.find(own.thumbprint) is not None


@pytest.mark.parametrize("how", ["pem", "traditional", "der", "pfx"])
def test_encrypted_keys(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make("rsa")
    match how:
        case "pem":
            put(folder / "mbx1.pem", pem(own.der), key_pem(own.key, b"secret"))
        case "traditional":
            put(folder / "mbx1.pem", pem(own.der), key_pem(own.key, b"secret", PrivateFormat.TraditionalOpenSSL))
        case "der":
            from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding

            sealed = own.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
            put(folder / "mbx1.crt", pem(own.der))
            put(folder / "mbx1.key", sealed)
        case _:
            put(folder / "mbx1.pfx", pfx(own, b"secret"))
    store = opened(folder)
    assert store.find(own.thumbprint) is None
    assert "passphrase" in said(store)

    monkeypatch.setenv("MBX_KEY", "secret")
    store = opened(folder, Passphrase(variable="MBX_KEY"))
    assert store.problems == ()
    found = store.find(own.thumbprint)
    assert found is not None
    assert found.fits()

    secret = put(folder.parent / "passphrase", b"secret\n")
    assert opened(folder, Passphrase(file=secret)).find(own.thumbprint) is not None

    monkeypatch.setenv("MBX_KEY", "wrong-horse")
    store = opened(folder, Passphrase(variable="MBX_KEY"))
    if how == "pfx":
        assert "does not open" in said(store)
    else:
        with pytest.raises(OwnCertificateRefused, match="does not open with the passphrase") as caught:
            store.find(own.thumbprint)
        assert "wrong-horse" not in str(caught.value)
    monkeypatch.setenv("MBX_KEY", "secret")
    store.reload(NOW)
    assert store.find(own.thumbprint) is not None


def test_an_encrypted_key_of_another_certificate_is_found_out_when_it_is_used(folder: Path, tmp_path: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(key_of("ec", 7), b"secret"))
    store = opened(folder, Passphrase(file=put(tmp_path / "p", b"secret")))
    with pytest.raises(OwnCertificateRefused, match="not its own"):
        store.find(own.thumbprint)


def test_passphrase_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MBX_KEY", raising=False)
    for source, words in (
        (Passphrase(variable="MBX_KEY"), "not set"),
        (Passphrase(file=tmp_path / "none"), "cannot be read"),
        (Passphrase(file=put(tmp_path / "empty", b"\n")), "is empty"),
        (Passphrase(file=put(tmp_path / "long", b"x" * 5000)), "more than"),
    ):
        with pytest.raises(Unusable, match=words):
            source.read()
    if os.name == "posix":
        with pytest.raises(Unusable, match="not safe"):
            Passphrase(file=put(tmp_path / "open", b"secret", mode=0o644)).read()
    assert Passphrase(file=put(tmp_path / "crlf", b" secret \r\n")).read() == b" secret "
    monkeypatch.setenv("MBX_KEY", "secret")
    assert "secret" not in repr(Passphrase(variable="MBX_KEY"))
    with pytest.raises(ValueError, match="file or in an environment variable"):
        Passphrase()


def test_keys_show_in_no_repr(folder: Path) -> None:
    own = make("rsa")
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    found = store.find(own.thumbprint)
    shown = "".join(map(repr, (store, store.entries, store.entries[0].picked, found, store._state, list(store))))
    for line in key_pem(own.key).decode().splitlines()[1:-1]:
        assert line not in shown


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_of_self_signed_certificates(folder: Path) -> None:
    own = make(days=60)
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    first = next(iter(store))
    assert first.status == "Valid"
    store.reload(NOW + timedelta(days=10))
    assert next(iter(store)) is first
    store.reload(NOW + timedelta(days=31))
    assert next(iter(store)).status == "DateInvalid"
    found = store.find(own.thumbprint)
    assert found is not None  # it is still loaded
    assert found.certificate.status == "DateInvalid"
    assert first.status == "Valid"  # whoever holds the old facts keeps them


def test_status_of_issued_certificates(folder: Path) -> None:
    root = make(name="root", ca=True, number=1)
    middle = make(name="middle", ca=True, number=2, issuer=root)
    for name, issuer, days in (
        ("good", middle, 365),
        ("late", middle, 10),
        ("stranger", make(name="unknown root", ca=True, number=3), 365),
    ):
        own = make(name=name, issuer=issuer, days=days)
        put(folder / f"{name}.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    assert all(is_unknown(c.status) for c in store)
    assert "no CA certificates" in str(next(iter(store)).status)

    (folder / "ca").mkdir()
    put(folder / "ca" / "root.crt", pem(root.der))
    put(folder / "ca" / "middle.cer", middle.der)
    store.reload(NOW)
    assert [c.status for c in store] == ["Valid", "DateInvalid", "Untrusted"]
    assert store.problems == ()
    store.reload(NOW + timedelta(days=400))
    assert [c.status for c in store] == ["DateInvalid", "DateInvalid", "Untrusted"]

    bundle = put(folder.parent / "bundle.pem", pem(root.der, middle.der))
    assert [c.status for c in opened(folder, ca=bundle)] == ["Valid", "DateInvalid", "Untrusted"]
    assert [c.status for c in opened(folder, ca=put(folder.parent / "middle.pem", pem(middle.der)))] == [
        "Untrusted"
    ] * 3
    store = opened(folder, ca=folder.parent / "none.pem")
    assert "none.pem" in said(store)
    assert isinstance(next(iter(store)).status, Unknown)
    store = opened(
        folder, ca=put(folder.parent / "rubbish.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    )
    assert "rubbish.pem" in said(store)
    assert [c.status for c in store] == ["Untrusted"] * 3


# --- reload -----------------------------------------------------------------------------------------------------------


def test_only_changed_files_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owns = [make(name=f"mbx{number}", number=number) for number in range(3)]
    for number, own in enumerate(owns):
        put(folder / f"mbx{number}.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    held = store.store()
    before = {c.thumbprint: c for c in held}
    found = store.find(owns[0].thumbprint)

    opened_files: list[str] = []
    real = files.read

    def counted(path: Path | str, limit: int = files.MAX_FILE) -> tuple[bytes, files.Version]:
        opened_files.append(Path(path).name)
        return real(path, limit)

    monkeypatch.setattr(files, "read", counted)
    new = make(name="mbx1", number=1)
    put(folder / "mbx1.pem", pem(new.der), key_pem(new.key))
    (folder / "mbx2.pem").unlink()
    store.reload(NOW)
    assert opened_files == ["mbx1.pem"]
    assert {c.thumbprint for c in store} == {owns[0].thumbprint, new.thumbprint}
    assert before[owns[0].thumbprint] in list(store)
    assert store.find(owns[0].thumbprint) is found
    assert store.find(owns[2].thumbprint) is None
    assert len(held) == 3  # the old value has not changed

    (folder / "bindings.toml").write_text(f'[{new.thumbprint}]\nservices = ["SMTP"]\n')
    opened_files.clear()
    store.reload(NOW)
    assert opened_files == ["bindings.toml"]
    changed = store.find(new.thumbprint)
    assert changed is not None
    assert changed.certificate.services == "SMTP"
    opened_files.clear()
    store.reload(NOW)
    assert opened_files == []


def test_a_folder_that_is_gone_leaves_the_store_as_it_was(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    shutil.rmtree(folder)
    with pytest.raises(Unusable, match="cannot be read"):
        store.reload(NOW)
    assert store.find(own.thumbprint) is not None
    with pytest.raises(Unusable, match="cannot be read") as caught:
        opened(folder)
    assert caught.value.cure == "put it there, or see to its name"
    folder.symlink_to(folder.parent / "nothing")
    with pytest.raises(Unusable, match="cannot be read") as caught:
        opened(folder)
    assert "symbolic link" in caught.value.cure


def test_broken_bindings_leave_the_last_ones(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    path = folder / "bindings.toml"
    path.write_text(f'[{own.thumbprint}]\nservices = ["SMTP"]\n')
    store = opened(folder)
    path.write_text("[half")
    store.reload(NOW)
    assert next(iter(store)).services == "SMTP"
    assert "the last bindings stay" in said(store)
    path.unlink()
    store.reload(NOW)
    assert next(iter(store)).services == "None"
    assert store.problems == ()


def test_faults_in_the_bindings_are_told_all_at_once(folder: Path) -> None:
    own = make()
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    (folder / "bindings.toml").write_text(
        f'[{own.thumbprint}]\nservices = ["SMTTP", "SMTP"]\nfriendlyname = "x"\nfriendly_name = "{"x" * 64}"\n'
        f'[{"AB" * 20}]\nservices = "SMTP"\n[short]\n'
    )
    store = opened(folder)
    assert next(iter(store)).services == "SMTP"
    for words in (
        "did you mean SMTP?",
        "did you mean friendly_name?",
        "below 64",
        "services is not a list",
        "'short'",
        "not in the store",
    ):
        assert words in said(store)


# --- hostile files ----------------------------------------------------------------------------------------------------


@posix
def test_nothing_hostile_takes_down_the_rest(folder: Path) -> None:
    own = make()
    put(folder / "good.pem", pem(own.der), key_pem(own.key))
    put(folder / "garbage.pem", b"\x00\xff" * 500)
    put(folder / "garbage.pfx", b"\x30\x82" + b"\xff" * 500)
    put(folder / "garbage.key", b"\x30\x82" + b"\xff" * 500)
    put(folder / "half.pem", pem(own.der)[:300])
    put(folder / "empty.crt")
    put(folder / "notbase64.crt", b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n")
    put(
        folder / "badkey.pem",
        pem(make(name="badkey").der),
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    )
    put(folder / "many.pem", pem(own.der) * 100)
    put(folder / "der.cer", b"\x30\x03\x02\x01\x01")
    with (folder / "huge.pem").open("wb") as huge:
        huge.truncate(100 * 1024 * 1024)
    (folder / "folder.pem").mkdir()
    (folder / "loop.pem").symlink_to(folder / "loop.pem")
    (folder / "nowhere.crt").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.pem")
    (folder / "device.crt").symlink_to("/dev/zero")
    put(folder / os.fsdecode(b"latin\xe9.pem"), b"rubbish")
    store = opened(folder)
    assert store.find(own.thumbprint) is not None
    assert {c.thumbprint for c in store} - {own.thumbprint} == {store.entries[0].certificate.thumbprint}
    faulty = {problem.file for problem in store.problems}
    assert len(faulty) == 16
    assert all(problem.message and problem.cure for problem in store.problems)
    assert "it is a folder" in said(store)
    assert "more than 1048576 bytes" in said(store)
    store.reload(NOW)
    assert {problem.file for problem in store.problems} == faulty
    said(store).encode()


def test_a_link_to_a_file_is_followed(folder: Path, tmp_path: Path) -> None:
    own = make()
    target = put(tmp_path / "mounted", pem(own.der), key_pem(own.key))
    (folder / "mbx1.pem").symlink_to(target)
    assert opened(folder).find(own.thumbprint) is not None


def test_the_same_certificate_twice_counts_once_and_with_its_key(folder: Path) -> None:
    own = make()
    put(folder / "a.crt", pem(own.der))
    put(folder / "b.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    assert len(store.store()) == 1
    assert store.find(own.thumbprint) is not None
    assert "a.crt: the same certificate is in b.pem" in said(store)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=400),
    st.sampled_from([".pem", ".key", ".pfx", ".crt"]),
    st.sampled_from([b"", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN RSA PRIVATE KEY-----\n", b"\x30\x82"]),
)
def test_any_bytes_are_unusable_at_worst(data: bytes, suffix: str, start: bytes) -> None:
    try:
        found = files.contents(start + data, suffix)
        if found.certificates:
            pick(found.certificates, found.keys)
    except Unusable as e:
        assert e.cure  # noqa: PT017 raising is one of two good ends


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_damaged_certificate_is_unusable_at_worst(place: int, change: int) -> None:
    own = make("ec")
    data = bytearray(own.der)
    data[place % len(data)] ^= change
    try:
        found = files.contents(bytes(data), ".cer")
        pick(found.certificates, [files.SealedKey(key_pem(own.key), pem=True, encrypted=False)])
    except Unusable as e:
        assert e.cure  # noqa: PT017 as above


# --- size, and the store in memory ------------------------------------------------------------------------------------


def test_an_rsa_key_is_matched_by_its_modulus_and_another_one_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make("rsa")
    other = make("rsa", name="other", number=1)
    put(folder / "mbx1.pem", pem(own.der), key_pem(own.key))
    put(folder / "other.pem", pem(other.der), key_pem(own.key))
    parsed: list[object] = []
    opening = files.SealedKey.open

    def counted(key: files.SealedKey, *passphrase: Passphrase | None, checked: bool = True) -> PrivateKey:
        parsed.append(key)
        return opening(key, *passphrase, checked=checked)

    monkeypatch.setattr(files.SealedKey, "open", counted)
    store = opened(folder)
    assert len(parsed) == 1, "of the key that does not fit"
    assert [problem.file for problem in store.problems] == ["other.pem"]
    assert store.find(own.thumbprint) is not None
    assert store.find(other.thumbprint) is None


def test_a_key_with_the_right_modulus_and_nothing_else_is_refused_when_it_is_used(folder: Path) -> None:
    own = make("rsa")
    der = own.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    broken = der[:400] + bytes(len(der) - 400)
    body = base64.encodebytes(broken)
    put(folder / "mbx1.pem", pem(own.der), b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n")
    with pytest.raises(OwnCertificateRefused, match="cannot be read"):
        opened(folder).find(own.thumbprint)


def test_a_key_that_is_not_base64_takes_nothing_from_its_certificate(folder: Path) -> None:
    own = make("rsa")
    put(folder / "mbx1.pem", pem(own.der), b"-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----\n")
    store = opened(folder)
    assert [certificate.has_private_key for certificate in store] == [False]
    assert "the private key cannot be read" in said(store)


def test_many_certificates(folder: Path) -> None:
    owns = [make(name=f"mbx{number}", number=number % 5) for number in range(500)]
    for number, own in enumerate(owns):
        put(folder / f"mbx{number}.pem", pem(own.der), key_pem(own.key))
    store = opened(folder)
    assert len(store.store()) == 500
    assert store.problems == ()
    assert all(store.find(own.thumbprint) is not None for own in owns[::50])


def test_the_memory_store() -> None:
    own, other = make(), make(name="other")
    store: CertificateStore = MemoryStore([own], [other.certificate])
    assert store.find(own.thumbprint.lower()) is own
    assert store.find(other.thumbprint) is None
    assert list(store) == [own.certificate, other.certificate] == list(store.store())
    assert store.named("OTHER") == (other.certificate,)


def test_the_folder_is_a_certificate_store(folder: Path) -> None:
    store: CertificateStore = opened(folder)
    assert store.find("00") is None
