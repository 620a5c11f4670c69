"""Models whose files are not those that `export` wrote."""

import json
from hashlib import sha256
from pathlib import Path


def publish_graph(folder: Path, content: bytes) -> Path:
    """Replace the graph in a version folder, with a manifest for one without acceptance rule; return its path."""
    path, manifest = folder / "model.onnx", folder / "manifest.json"
    path.write_bytes(content)
    fields = json.loads(manifest.read_text())
    fields |= {"sha256": sha256(content).hexdigest(), "acceptance": None, "outputs": fields["outputs"][:2]}
    manifest.write_text(json.dumps(fields))
    return path


def add_version(root: Path, source: str, name: str, version: int) -> Path:
    """Publish the first version of the model `source` as a version of `name`; return its folder."""
    origin, folder = root / source / "1", root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes((origin / "model.onnx").read_bytes())
    fields = json.loads((origin / "manifest.json").read_text()) | {"name": name, "version": str(version)}
    (folder / "manifest.json").write_text(json.dumps(fields))
    return folder
