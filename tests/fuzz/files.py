"""Fuzz targets of files that an operator gives the service: ONNX, manifests, API keys."""

import hashlib
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import TensorProto, helper

from distillery import DistilleryError
from serving.engine.admission.api_keys import Access, hash_of
from serving.model.graph_check import GraphError, check_graph
from serving.model.repository import INPUTS, OUTPUTS, RepositoryError, load_model
from tests.fuzz.target import Target

_MEMORY = Path("/dev/shm")


@cache
def folder() -> TemporaryDirectory[str]:
    """Return a folder for the files, in memory if possible."""
    return TemporaryDirectory(prefix="distillery-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)


def graph() -> onnx.ModelProto:
    """Return a small graph of the form that `export` writes; what it computes is not checked."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 3], bytes(24), raw=True)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], bytes(16), raw=True)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["flat"], "reshape"),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], "gemm", alpha=0.5, transB=1),
        helper.make_node("MaxPool", ["logits"], ["pooled"], "pool", kernel_shape=[2, 2], auto_pad="VALID"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    values = {
        "image": helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 28, 28]),
        "logits": helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10]),
        "probabilities": helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
    }
    body = helper.make_graph(
        nodes, "digits", [values["image"]], [values["logits"], values["probabilities"]], [weight, shape]
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"acceptance_power": "1.0"})
    return model


def graph_seeds() -> list[bytes]:
    plain, external, loop = graph(), graph(), graph()
    onnx.external_data_helper.set_external_data(external.graph.initializer[0], "other.bin")
    loop.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "inner", [], [])))
    return [one.SerializeToString() for one in (plain, external, loop)]


def check(data: bytes) -> None:
    """Check a file; ONNX's own parser must read what passes, and find the same operators and bytes."""
    try:
        check_graph(data, INPUTS, OUTPUTS)
    except GraphError as error:
        assert 0 < len(str(error)) < 20_000  # noqa: PT017
        return
    model = onnx.load_from_string(data)
    assert not model.functions
    assert [one.version for one in model.opset_import] == [20]
    assert not any(one.external_data for one in model.graph.initializer)
    assert not any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)


def manifest() -> dict[str, object]:
    """Return a valid manifest of the file of `graph`."""
    content = graph().SerializeToString()
    return {
        "name": "student",
        "version": "1",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "inputs": [spec.model_dump() for spec in INPUTS],
        "outputs": [spec.model_dump() for spec in OUTPUTS],
        "opset": 20,
        "precision": "int8",
        "quantisation": {"percentile": 99.9},
        "architecture": "784-10",
        "parameters": 7850,
        "test_errors": 100,
        "test_accuracy": 0.99,
        "parity": {"images": 10_000, "disagreements": 0, "largest_difference": 1e-6},
        "headline": {"ece": 0.01},
        "calibration_temperature": 1.5,
        "checkpoint_sha256": "0" * 64,
        "recipe": {"hidden": [1, 2], "name": "x"},
        "dataset": {"a.gz": "0" * 64},
        "tools": {"torch": "2"},
    }


def manifest_seeds() -> list[bytes]:
    text = json.dumps(manifest(), separators=(",", ":")).encode()
    return [
        text,
        text.replace(b"0.99", b"NaN"),
        text.replace(b'"x"', b"[" * 500 + b"]" * 500),
        text.replace(b"7850", b"9" * 5000),
        text.replace(b"student", b"..\\u0000"),
        text.replace(b'"x"', b'"\\ud800"'),
        b"",
    ]


@cache
def model_folder() -> Path:
    version = Path(folder().name, "student", "1")
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(graph().SerializeToString())
    return version


def load(data: bytes) -> None:
    """Load a model with a manifest; an invalid one is an error of one line."""
    path = model_folder()
    (path / "manifest.json").write_bytes(data)
    try:
        entry = load_model(path)
    except RepositoryError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    json.loads(entry.manifest.model_dump_json())


def keys_seeds() -> list[bytes]:
    entry = f'[[keys]]\nname = "alice"\nhash = "{hash_of("secret")}"\n'
    other = f'[[keys]]\nname = "bob"\nhash = "{hash_of("other")}"\nscopes = ["infer", "metrics"]\nrate = "600/minute"\n'
    return [
        entry.encode(),
        (entry + other).encode(),
        (entry + entry).encode(),
        b"keys = []",
        b"keys = [1]",
        b"a = " + b"[" * 2000,
        b"a = " + b"9" * 5000,
        b'a = "\\ud800"',
        b"a = 9999-99-99",
        b"",
    ]


def read_keys(data: bytes) -> None:
    """Read a file of API keys; an invalid one is an error that shows no key."""
    path = Path(folder().name, "keys.toml")
    path.write_bytes(data)
    try:
        access = Access(file=path)
    except DistilleryError:
        return
    assert access.required
    assert len(access)


TOML_WORDS = (
    b"[[keys]]",
    b"name = ",
    b"hash = ",
    b"scopes = ",
    b"rate = ",
    b'"""',
    b"'''",
    b"sha256:",
    b"1/second",
)
TARGETS = (
    Target(
        "onnx", graph_seeds, check, (b"Loop", b"\x0a", b"\x12", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02")
    ),
    Target(
        "manifest", manifest_seeds, load, (b"NaN", b"null", b"1e999", b"-1", b'""', b"[]", b"{}", b"\\ud800")
    ),
    Target("keys", keys_seeds, read_keys, TOML_WORDS),
)
