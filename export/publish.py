"""Write a model into the repository, whole or not at all, with the report that is next to its checkpoint."""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from distillery.files import file_errors, flush_folder, write_atomically
from export import ExportError
from export.signing import SigningKey
from serving.model.repository import MANIFEST_FILE, MODEL_FILE, Acceptance, Manifest, ModelEntry, load_model
from serving.model.signature import SIGNATURE_FILE
from serving.model.versions import CONFIG_FILE, VersionPolicy
from training.report.report import CARD, REPORT
from training.runs.lock import locked

STAGING = ".publish-"
_CURRENT, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""
TRITON_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
DOCUMENTS = (CARD, REPORT)
"""Written next to a checkpoint by `distillery-train report`; both, or neither."""
HEADLINE = TypeAdapter(dict[str, float])


def publish(
    root: Path,
    manifest: Manifest,
    content: bytes,
    checkpoint: Path,
    key: SigningKey | None = None,
    policy: VersionPolicy | None = None,
) -> ModelEntry:
    """Write `<name>/<version>/` below `root`: the graph, the manifest and the documents next to `checkpoint`.

    Raises `FileError`, `RepositoryError`.
    """
    return publish_files(
        root, manifest, {MODEL_FILE: content, **_documents(checkpoint, manifest)}, key, policy
    )


def publish_files(
    root: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    key: SigningKey | None = None,
    policy: VersionPolicy | None = None,
) -> ModelEntry:
    """Write `<name>/<version>/` below `root`: `files` by name, and the manifest.

    The folder is written and flushed to the disk under another name, then renamed or exchanged with the one it
    replaces: a reader never finds an incomplete model, whatever ends this process. `key` signs the manifest. `policy`
    says which versions of the model are served; by default as before. Raises `FileError`, `ExportError` for a policy
    that names a missing version, and `RepositoryError` for an invalid configuration of the model.
    """
    with locked(root, wait=True), file_errors(root):
        policy = _checked(policy or VersionPolicy.read(root / manifest.name), root / manifest.name, manifest)
        for leftover in root.glob(f"{STAGING}*"):  # of a process that was killed
            shutil.rmtree(leftover)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=root))
        try:
            staged = staging / manifest.name
            version = staged / manifest.version
            document = (manifest.model_dump_json(indent=2) + "\n").encode()
            signature = {SIGNATURE_FILE: key.sign(document)} if key else {}
            for name, content in {**files, MANIFEST_FILE: document, **signature}.items():
                write_atomically(version / name, content)
            load_model(version)  # what the service would reject at its start is rejected here
            config = triton_config(manifest, policy).encode()
            target = root / manifest.name
            if target.exists():
                _put(version, target / manifest.version)
                write_atomically(target / CONFIG_FILE, config)
            else:
                write_atomically(staged / CONFIG_FILE, config)
                _put(staged, target)
            return load_model(target / manifest.version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def set_policy(entry: ModelEntry, policy: VersionPolicy) -> bool:
    """Have another choice of a published model's versions served; return whether it is another one.

    Raises `FileError`, `ExportError` for a policy that names a missing version, and `RepositoryError` for an invalid
    configuration of the model.
    """
    folder = entry.path.parent.parent
    with locked(folder.parent, wait=True), file_errors(folder.parent):
        if VersionPolicy.read(folder) == _checked(policy, folder, entry.manifest):
            return False
        write_atomically(folder / CONFIG_FILE, triton_config(entry.manifest, policy).encode())
        return True


def _checked(policy: VersionPolicy, folder: Path, manifest: Manifest) -> VersionPolicy:
    """Check that a policy names versions in a model's folder, or that of `manifest`. Raises `ExportError`."""
    found = {int(manifest.version)}
    if folder.exists():
        found |= {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
    if missing := sorted(set(policy.versions) - found):
        raise ExportError(
            f"the version policy of {manifest.name} names version {missing[0]}, but there "
            f"{'are' if len(found) > 1 else 'is'} {', '.join(map(str, sorted(found)))}; set another one with "
            "--version-policy"
        )
    return policy


def _put(new: Path, place: Path) -> None:
    """Move a folder to `place`; a folder that is there takes the place of `new`."""
    if not place.exists():
        new.rename(place)
    elif not _exchange(new, place):  # `place` is missing for a moment; who is killed then publishes it again
        place.rename(new.with_name("replaced"))
        new.rename(place)
    flush_folder(place.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where that is not possible (not Linux, NFS)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    failed = renameat2(_CURRENT, os.fsencode(first), _CURRENT, os.fsencode(second), ctypes.c_uint(_EXCHANGE))
    return not failed


def documents_match(checkpoint: Path, entry: ModelEntry) -> bool:
    """Return whether a published model has the documents next to `checkpoint` as they are now."""
    folder = entry.path.parent
    published = {name: (folder / name).read_bytes() for name in DOCUMENTS if (folder / name).is_file()}
    return published == _documents(checkpoint, entry.manifest)


def headline(checkpoint: Path) -> dict[str, float] | None:
    """Return the main figures of the report next to `checkpoint`, None without one. Raises `ExportError`."""
    path = checkpoint.with_name(REPORT)
    if not path.is_file():
        return None
    try:
        return HEADLINE.validate_python(json.loads(path.read_bytes())["headline"])
    except (ValueError, KeyError, TypeError):
        raise ExportError(
            f"{path} has no headline of names and numbers; write it again with distillery-train report"
        ) from None


def triton_config(manifest: Manifest, policy: VersionPolicy | None = None) -> str:
    """Return the `config.pbtxt` for NVIDIA Triton's onnxruntime backend, which serves the same folder.

    Without a policy, the highest version is served.

    Triton has no backend for a cascade, whose configuration describes inputs and outputs only.
    """
    backend = ['backend: "onnxruntime"', f'default_model_filename: "{MODEL_FILE}"']
    if manifest.cascade:
        backend = ["# a cascade, which distillery-serve runs"]
    lines = [f'name: "{manifest.name}"', *backend, "max_batch_size: 256", "dynamic_batching { }"]
    if policy and policy != VersionPolicy():
        lines.append(policy.text())
    for field, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            dims = ", ".join(str(size) for size in spec.shape[1:])  # Triton adds the batch dimension itself
            lines.append(
                f'{field} {{ name: "{spec.name}" data_type: {TRITON_TYPES[spec.datatype]} dims: [ {dims} ] }}'
            )
    return "\n".join(lines) + "\n"


def _documents(checkpoint: Path, manifest: Manifest) -> dict[str, bytes]:
    """Return the documents next to `checkpoint`, with what the export adds to the model card."""
    paths = (checkpoint.with_name(name) for name in DOCUMENTS)
    documents = {path.name: path.read_bytes() for path in paths if path.is_file()}
    if CARD in documents and manifest.acceptance:
        documents[CARD] += acceptance_section(manifest.name, manifest.acceptance).encode()
    return documents


def acceptance_section(name: str, rule: Acceptance) -> str:
    """Return the section of the model card on the rule by which this file's predictions are accepted."""
    outliers = ", ".join(f"{kind} {share:.1%}" for kind, share in rule.outliers_accepted.items())
    return f"""
## Acceptance

`{name}` accepts a prediction whose calibrated confidence is at least {rule.threshold:.4f}. The threshold was \
chosen on {rule.digits:,} validation digits for at most {rule.risk:.2%} errors among accepted ones: it accepts \
{rule.accepted / rule.digits:.1%} of them ({rule.accepted:,}), with {rule.errors:,} errors, and {rule.test_accepted:,} \
test digits, with {rule.test_errors:,} errors. Of images that show no digit it accepts: {outliers}.
"""
