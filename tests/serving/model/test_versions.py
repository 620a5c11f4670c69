"""Which versions of a model are served: version policies, and what stays where a version is rejected."""

import json
import shutil
from pathlib import Path

import pytest

from serving.model.repository import RepositoryError
from serving.model.versions import Snapshot, VersionPolicy, load_snapshot
from tests.support.versions import publish, set_policy


@pytest.fixture
def root(two_versions: Path, tmp_path: Path) -> Path:
    """A copy that tests may change."""
    return Path(shutil.copytree(two_versions, tmp_path / "models"))


def versions(snapshot: Snapshot, name: str = "student") -> list[str]:
    return list(snapshot.versions.get(name, {}))


def damage(root: Path, version: int) -> None:
    (root / "student" / str(version) / "model.onnx").write_bytes(b"damaged")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("latest { }", ["10"]),
        ("latest { num_versions: 0 }", ["10"]),
        ("latest { num_versions: 2 }", ["2", "10"]),
        ("latest { num_versions: 9 }", ["1", "2", "10"]),
        ("all { }", ["1", "2", "10"]),
        ("specific { versions: [ 1, 10 ] }", ["1", "10"]),
        ("specific { versions: 2 }", ["2"]),
    ],
)
def test_the_policy_chooses_the_versions_in_the_order_of_their_numbers(
    root: Path, policy: str, expected: list[str]
) -> None:
    publish(root, root / "student" / "1", 10)
    set_policy(root, policy)
    assert versions(load_snapshot(root)) == expected


@pytest.mark.parametrize("policy", [VersionPolicy(), VersionPolicy("latest", 3), VersionPolicy("all")])
def test_a_policy_is_read_as_it_was_written(root: Path, policy: VersionPolicy) -> None:
    (root / "student" / "config.pbtxt").write_text(policy.text())
    assert VersionPolicy.read(root / "student") == policy


def test_a_policy_of_versions_is_read_as_it_was_written(root: Path) -> None:
    policy = VersionPolicy.parse("2,1,2")
    (root / "student" / "config.pbtxt").write_text(policy.text())
    assert VersionPolicy.read(root / "student") == policy == VersionPolicy("specific", versions=(1, 2))


def test_a_model_without_configuration_is_served_in_its_highest_version(root: Path) -> None:
    (root / "student" / "config.pbtxt").unlink()
    assert versions(load_snapshot(root)) == ["2"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("specific { versions: [ 1, 3 ] }", "names version 3, but .* has 1, 2"),
        ("specific { }", "names no version"),
        ("latest { num_versions: -1 }", "is not a model configuration of Triton: .*-1"),
        ("latest { num_versions: many }", "is not a model configuration of Triton: .*many"),
        ("newest { }", "has none of them; expected one of latest, all, specific"),
        ("all { } latest { }", "has latest and all; expected one of"),
    ],
)
def test_an_invalid_policy_is_an_error_with_the_value(root: Path, policy: str, message: str) -> None:
    set_policy(root, policy)
    with pytest.raises(RepositoryError, match=message):
        load_snapshot(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not a model configuration"), (b"#" * 70_000, "more than 65,536 bytes")],
)
def test_a_configuration_that_cannot_be_read_is_an_error(root: Path, content: bytes, message: str) -> None:
    (root / "student" / "config.pbtxt").write_bytes(content)
    with pytest.raises(RepositoryError, match=message):
        load_snapshot(root)


@pytest.mark.parametrize(
    "text", ["", "latest:", "latest:0", "latest:-1", "newest", "all:2", "1,", "1,x", "0", "1 3"]
)
def test_a_policy_of_the_command_line_is_one_of_three(text: str) -> None:
    with pytest.raises(ValueError, match="expected latest:2, all, or versions such as 1,3"):
        VersionPolicy.parse(text)


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        ("latest { }", ["2"], ["2"]),
        ("latest { num_versions: 2 }", ["1", "2"], ["1", "2"]),
        ("all { }", ["1", "2"], ["1", "2"]),
    ],
)
def test_a_damaged_new_version_displaces_none(
    root: Path, policy: str, before: list[str], after: list[str]
) -> None:
    set_policy(root, policy)
    previous = load_snapshot(root)
    assert versions(previous) == before
    publish(root, root / "student" / "1", 3)
    damage(root, 3)
    snapshot = load_snapshot(root, previous=previous)
    assert versions(snapshot) == after
    assert [*snapshot.rejected] == [("student", "3")]
    assert "has SHA-256" in snapshot.rejected["student", "3"]
    assert str(root) not in snapshot.rejected["student", "3"]
    with pytest.raises(RepositoryError, match="has SHA-256"):
        load_snapshot(root)  # a service does not start with it


@pytest.mark.parametrize("version", [1, 2])
def test_a_served_version_whose_files_are_damaged_stays(root: Path, version: int) -> None:
    set_policy(root, "all { }")
    previous = load_snapshot(root)
    damage(root, version)
    snapshot = load_snapshot(root, previous=previous)
    assert snapshot.versions["student"] == previous.versions["student"]
    assert [*snapshot.rejected] == [("student", str(version))]


def test_versions_that_a_later_check_rejects_are_replaced_by_what_was_served(root: Path) -> None:
    previous = load_snapshot(root)
    publish(root, root / "student" / "1", 3)
    found = load_snapshot(root, previous=previous)
    assert versions(found) == ["3"]
    snapshot = found.without({("student", "3"): "no"}, previous)
    assert (versions(snapshot), snapshot.rejected) == (["2"], {("student", "3"): "no"})


def test_an_invalid_policy_leaves_the_model_as_it_is(root: Path) -> None:
    previous = load_snapshot(root)
    set_policy(root, "specific { versions: 7 }")
    snapshot = load_snapshot(root, previous=previous)
    assert versions(snapshot) == ["2"]
    assert "names version 7" in snapshot.rejected["student", ""]


def test_a_new_model_that_is_invalid_harms_no_other(root: Path) -> None:
    previous = load_snapshot(root)
    (root / "new" / "1").mkdir(parents=True)
    snapshot = load_snapshot(root, previous=previous)
    assert snapshot.versions == previous.versions
    assert "manifest.json is missing" in snapshot.rejected["new", "1"]


def test_a_model_whose_folder_is_gone_is_no_longer_served_except_by_its_alias(root: Path) -> None:
    previous = load_snapshot(root)
    shutil.rmtree(root / "student")
    assert list(load_snapshot(root, previous=previous).versions) == ["teacher"]
    kept = load_snapshot(root, previous=previous, pinned={("student", "2")})
    assert versions(kept) == ["2"]
    assert "its files are gone" in kept.rejected["student", "2"]


def test_what_an_alias_names_is_loaded_in_addition_to_the_policy(root: Path) -> None:
    assert versions(load_snapshot(root, pinned={("student", "1")})) == ["1", "2"]


def test_only_one_model_is_read_again_if_it_is_named(root: Path) -> None:
    previous = load_snapshot(root)
    set_policy(root, "all { }")
    shutil.rmtree(root / "teacher")
    (root / "new" / "1").mkdir(parents=True)
    snapshot = load_snapshot(root, previous=previous, only="student")
    assert {name: versions(snapshot, name) for name in snapshot.versions} == {
        "student": ["1", "2"],
        "teacher": ["1"],
    }
    assert not snapshot.rejected


def test_unloaded_models_stay_unloaded(root: Path) -> None:
    previous = load_snapshot(root)
    snapshot = load_snapshot(root, previous=previous, unloaded={"teacher"})
    assert list(snapshot.versions) == ["student"]
    assert snapshot.unloaded == {"teacher"}
    assert load_snapshot(root, previous=snapshot, only="student").unloaded == {"teacher"}
    loaded = load_snapshot(root, previous=snapshot, unloaded=snapshot.unloaded, only="teacher")
    assert (versions(loaded, "teacher"), loaded.unloaded) == ([], {"teacher"})


def test_a_new_version_of_a_cascade_that_is_broken_displaces_none(
    cascade_repository: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(cascade_repository, tmp_path / "models"))
    previous = load_snapshot(root)
    folder = Path(shutil.copytree(root / "cascade" / "1", root / "cascade" / "2"))
    manifest = json.loads((folder / "manifest.json").read_text()) | {"version": "2"}
    manifest["cascade"]["student"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    snapshot = load_snapshot(root, previous=previous)
    assert versions(snapshot, "cascade") == ["1"]
    assert "has SHA-256" in snapshot.rejected["cascade", "2"]
