"""Write a model into the repository: whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from serving.model.repository import MANIFEST_FILE, MODEL_FILE, Manifest, load_model

TRITON_TYPES = {"UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}


def publish(root: Path, manifest: Manifest, graph: Path, documents: Iterable[Path] = ()) -> Path:
    """Copy `graph` and `documents`, and write the manifest, to `root/<name>/<version>/`; return that folder.

    The folder is made beside its place and renamed into it, so a reader never sees half a model.
    """
    staging = Path(tempfile.mkdtemp(prefix=".publish-", dir=root))
    try:
        model = staging / manifest.name
        version = model / manifest.version
        version.mkdir(parents=True)
        shutil.copyfile(graph, version / MODEL_FILE)
        for document in documents:
            shutil.copyfile(document, version / document.name)
        (version / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        load_model(version)  # what would be refused at the service's start is refused here
        target = root / manifest.name
        target.mkdir(exist_ok=True)
        (model / "config.pbtxt").write_text(triton_config(manifest), encoding="utf-8")
        (model / "config.pbtxt").replace(target / "config.pbtxt")
        if (target / manifest.version).exists():
            (target / manifest.version).rename(staging / "replaced")
        version.rename(target / manifest.version)
        return target / manifest.version
    finally:
        shutil.rmtree(staging)


def triton_config(manifest: Manifest) -> str:
    """`config.pbtxt` for NVIDIA Triton's onnxruntime backend: the same folder serves there as it is."""
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
