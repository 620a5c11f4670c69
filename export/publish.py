"""Write a model into the repository, whole or not at all, with the report that is next to its checkpoint."""

import json
import shutil
import tempfile
from pathlib import Path

from pydantic import TypeAdapter

from export import ExportError
from export.signing import SigningKey
from serving.model.repository import MANIFEST_FILE, MODEL_FILE, Acceptance, Manifest, ModelEntry, load_model
from serving.model.signature import SIGNATURE_FILE
from training.report.report import CARD, REPORT

TRITON_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}
DOCUMENTS = (CARD, REPORT)
"""Written next to a checkpoint by `distillery-train report`; both, or neither."""
HEADLINE = TypeAdapter(dict[str, float])


def publish(
    root: Path, manifest: Manifest, content: bytes, checkpoint: Path, key: SigningKey | None = None
) -> ModelEntry:
    """Write `<name>/<version>/` below `root`: the graph, the manifest and the documents next to `checkpoint`.

    `key` signs the manifest.

    The folder is written next to its destination and renamed into it, so a reader never finds an incomplete model.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".publish-", dir=root))
    try:
        version = staging / manifest.name / manifest.version
        version.mkdir(parents=True)
        (version / MODEL_FILE).write_bytes(content)
        for name, document in _documents(checkpoint, manifest).items():
            (version / name).write_bytes(document)
        document = f"{manifest.model_dump_json(indent=2)}\n".encode()
        (version / MANIFEST_FILE).write_bytes(document)
        if key:
            (version / SIGNATURE_FILE).write_bytes(key.sign(document))
        load_model(version)  # what the service would reject at its start is rejected here
        target = root / manifest.name
        target.mkdir(exist_ok=True)
        (staging / "config.pbtxt").write_text(triton_config(manifest), encoding="utf-8")
        (staging / "config.pbtxt").replace(target / "config.pbtxt")
        if (target / manifest.version).exists():
            (target / manifest.version).rename(staging / "replaced")
        version.rename(target / manifest.version)
        return load_model(target / manifest.version)
    finally:
        shutil.rmtree(staging)


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


def triton_config(manifest: Manifest) -> str:
    """Return the `config.pbtxt` for NVIDIA Triton's onnxruntime backend, which serves the same folder."""
    lines = [
        f'name: "{manifest.name}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{MODEL_FILE}"',
        "max_batch_size: 256",
        "dynamic_batching { }",
    ]
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
