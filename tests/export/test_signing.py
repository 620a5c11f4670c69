"""Signed models: made by `distillery-export`, required by a service with `--public-key`."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from distillery import DistilleryError, main
from export.__main__ import COMMANDS
from export.publish import publish
from export.signing import SigningKey
from serving.__main__ import Serve
from serving.model.repository import load_repository
from serving.model.signature import PublicKeys, SignatureError
from serving.service import build
from tests.support.service import failed_start

SIGNATURE = "student/1/manifest.json.sig"
MANIFEST = "student/1/manifest.json"


def export(*arguments: object) -> int:
    return main("distillery-export", COMMANDS, default="export", arguments=[*map(str, arguments)])


@pytest.fixture
def folder(one_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a pair of keys in `signing.pem` and `public.pem`, and a signed model in `models`."""
    monkeypatch.chdir(tmp_path)
    copytree(one_model, "models")
    assert export("key") == 0
    assert export("sign", "--signing-key", "signing.pem") == 0
    return tmp_path


def test_the_private_key_is_readable_for_its_owner_alone_and_never_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("signing.pem").read_bytes()
    assert Path("signing.pem").stat().st_mode & 0o777 == 0o600
    assert export("key") == 1
    assert (
        "--signing-key: signing.pem exists and is left as it is; name a new file" in capsys.readouterr().err
    )
    assert Path("signing.pem").read_bytes() == before
    assert Path("public.pem").read_bytes().count(b"BEGIN PUBLIC KEY") == 1
    assert export("key", "--signing-key", "new.pem", "--public-key", folder / "no-folder/public.pem") == 1
    assert not Path("new.pem").exists()


def test_a_signed_model_is_served(folder: Path) -> None:
    service = build(Serve(models_dir=folder / "models", public_key=folder / "public.pem"))
    assert list(service.models.deployment.snapshot.latest) == ["student"]


def test_an_export_signs_what_it_publishes(folder: Path, model_repository: Path) -> None:
    key, keys = SigningKey.read(Path("signing.pem")), PublicKeys.read(Path("public.pem"))
    entry = load_repository(model_repository)["teacher"]
    publish(Path("models"), entry.manifest, entry.content, folder / "checkpoint", key)
    assert list(load_repository(Path("models"), keys)) == ["student", "teacher"]
    publish(Path("models"), entry.manifest, entry.content, folder / "checkpoint")
    with pytest.raises(SignatureError, match=r"teacher/1/manifest.json is not signed"):
        load_repository(Path("models"), keys)


@pytest.mark.usefixtures("folder")
def test_a_model_that_is_signed_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("models", SIGNATURE).stat().st_ino  # a file that is written again is another one
    assert export("sign", "--signing-key", "signing.pem") == 0
    assert "unchanged  student/1" in capsys.readouterr().out
    assert Path("models", SIGNATURE).stat().st_ino == before


@pytest.mark.usefixtures("folder")
def test_openssl_verifies_and_makes_signatures() -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl (make system)")
    models, other = Path("models"), Path("by-openssl")
    verify = f"-verify -pubin -inkey public.pem -rawin -in models/{MANIFEST} -sigfile models/{SIGNATURE}"
    sign = f"-sign -inkey signing.pem -rawin -in models/{MANIFEST} -out {other}"
    for arguments in (verify, sign):
        subprocess.run([openssl, "pkeyutl", *arguments.split()], check=True, stdout=subprocess.DEVNULL)
    assert other.read_bytes() == (models / SIGNATURE).read_bytes()


def test_a_key_is_replaced_step_by_step(folder: Path) -> None:
    """Services accept both keys, then models are signed with the new one, then services accept that one alone."""
    models, old, both, new = (
        folder / name for name in ("models", "public.pem", "both.pem", "new-public.pem")
    )
    assert export("key", "--signing-key", "new.pem", "--public-key", new) == 0
    both.write_bytes(old.read_bytes() + b"comment\n" + new.read_bytes())
    load_repository(models, PublicKeys.read(both))
    with pytest.raises(SignatureError, match=r"does not hold for manifest.json with any of the 1 keys"):
        load_repository(models, PublicKeys.read(new))
    assert export("sign", "--signing-key", "new.pem") == 0
    load_repository(models, PublicKeys.read(both))
    load_repository(models, PublicKeys.read(new))
    with pytest.raises(SignatureError, match="or signed with another key"):
        load_repository(models, PublicKeys.read(old))


def copy(source: str, target: str) -> None:
    copytree(Path("models", source), Path("models", target))


def append(path: str, content: bytes) -> None:
    with Path("models", path).open("ab") as file:
        file.write(content)


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "no signature": (Path("models", SIGNATURE).unlink, f"{MANIFEST} is not signed: there is no manifest.json.sig"),
    "half a signature": (lambda: Path("models", SIGNATURE).write_bytes(b"x" * 32), f"{SIGNATURE} does not hold for"),
    "a longer signature": (lambda: append(SIGNATURE, b"\n"), f"{SIGNATURE} does not hold for manifest.json"),
    "another manifest": (lambda: append(MANIFEST, b" "), f"{SIGNATURE} does not hold for manifest.json"),
    "no manifest at all": (lambda: Path("models", MANIFEST).write_bytes(b"{"), f"{SIGNATURE} does not hold for"),
    "another graph": (lambda: append("student/1/model.onnx", b" "), "student/1/model.onnx has SHA-256"),
    "another name": (lambda: copy("student", "fast"), "fast/1/manifest.json describes student/1, but is in fast/1"),
    "another version": (
        lambda: copy("student/1", "student/2"),
        "student/2/manifest.json describes student/1, but is in student/2",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_differs_from_what_was_signed_is_rejected(change: Callable[[], object], message: str) -> None:
    keys = PublicKeys.read(Path("public.pem"))
    change()
    with pytest.raises(DistilleryError, match=message):
        load_repository(Path("models"), keys)


@pytest.mark.usefixtures("folder")
def test_what_a_service_would_reject_is_not_signed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("models", SIGNATURE).unlink()
    append("student/1/model.onnx", b" ")
    assert export("sign", "--signing-key", "signing.pem") == 1
    assert "student/1/model.onnx has SHA-256" in capsys.readouterr().err
    assert not Path("models", SIGNATURE).exists()


def test_a_service_with_an_unsigned_model_does_not_start(folder: Path, one_model: Path) -> None:
    error = failed_start(one_model, "--public-key", str(folder / "public.pem"))
    assert error == (
        f"distillery-serve: {one_model}/{MANIFEST} is not signed: there is no manifest.json.sig, which --public-key "
        f"{folder}/public.pem requires; sign the model with `distillery-export sign`, if it is yours\n"
    )


@pytest.mark.usefixtures("folder")
def test_unusable_keys_are_rejected_with_the_fix(tmp_path: Path) -> None:
    private, public = Path("signing.pem").read_bytes(), Path("public.pem").read_bytes()
    rsa = generate_private_key(65537, 1024)  # noqa: S505 - only its kind matters
    rsa_private = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    rsa_public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    read: dict[str, Callable[[Path], object]] = {"public": PublicKeys.read, "signing": SigningKey.read}
    cases = [
        ("public", b"", "contains no key in PEM format; `distillery-export key` makes a pair"),
        ("public", public[:40], "contains no key in PEM format"),
        ("public", private, "contains a PRIVATE KEY, expected Ed25519 public keys alone"),
        ("public", public + private, "contains a PRIVATE KEY, expected Ed25519 public keys alone"),
        ("public", rsa_public, "contains a PUBLIC KEY of another kind, expected Ed25519 public keys"),
        ("public", public.replace(b"MC", b"MD"), "contains an invalid key: "),
        ("signing", b"", "contains no key in PEM format; `distillery-export key` makes a pair"),
        ("signing", public, "contains a PUBLIC KEY, expected one Ed25519 private key without a password"),
        ("signing", private + private, "contains several keys, expected one Ed25519 private key"),
        ("signing", rsa_private, "contains a private key of another kind, expected one Ed25519"),
        ("signing", private.replace(b"MC", b"MD"), "contains an invalid key: "),
    ]
    for kind, content, message in cases:
        path = tmp_path / "key.pem"
        path.write_bytes(content)
        with pytest.raises(DistilleryError, match=rf"^--{kind}-key: {path} {message}"):
            read[kind](path)
        for unreadable in (tmp_path / "nothing", tmp_path):
            with pytest.raises(SignatureError, match=rf"^--{kind}-key: cannot read {unreadable}: "):
                read[kind](unreadable)


def test_a_missing_package_is_named_with_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        SignatureError, match=r"--public-key needs cryptography: pip install '.\[serving,signed\]'"
    ):
        PublicKeys.read(folder / "public.pem")
