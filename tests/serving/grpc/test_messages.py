"""The generated messages, and the import of gRPC after the fork."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as configuration
from tritonclient.grpc import service_pb2 as theirs

from serving.codecs.open_inference import open_inference_pb2 as ours
from tests.support.service import ROOT


def test_the_messages_are_a_subset_of_the_protocol() -> None:
    """Triton's client has the complete protocol."""

    def fields(message: Any) -> dict[str, tuple[object, ...]]:
        return {
            field.name: (
                field.number,
                field.type,
                field.is_repeated,
                field.message_type and field.message_type.name,
            )
            for field in message.fields
        }

    def compare(mine: Any, other: Any) -> None:
        assert fields(mine).items() <= fields(other).items()
        for nested in mine.nested_types:
            compare(nested, other.nested_types_by_name[nested.name])

    messages = dict(ours.DESCRIPTOR.message_types_by_name)
    target = messages.pop("ModelInferTarget")
    assert fields(target).items() <= fields(messages["ModelInferRequest"]).items()
    complete = {**theirs.DESCRIPTOR.message_types_by_name, **configuration.DESCRIPTOR.message_types_by_name}
    for name, message in messages.items():
        compare(message, complete[name])
    for name, kind in ours.DESCRIPTOR.enum_types_by_name.items():
        known = configuration.DESCRIPTOR.enum_types_by_name[name].values_by_name
        assert {value.name: value.number for value in kind.values}.items() <= {
            value.name: value.number for value in known.values()
        }.items()


def test_the_generated_messages_are_up_to_date(tmp_path: Path) -> None:
    arguments = ("--proto_path=.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *arguments,
            "serving/codecs/open_inference/open_inference.proto",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("open_inference_pb2.py", "open_inference_pb2.pyi"):
        committed = (ROOT / "serving/codecs/open_inference" / name).read_text()
        assert (tmp_path / "serving/codecs/open_inference" / name).read_text() == committed, (
            "run `make proto`"
        )


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_without_grpcio_the_error_names_the_command_to_install_it(two_models: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; from serving.__main__ import run; run()"
    done = run_python(code, "--models-dir", str(two_models), "--grpc-port", "0")
    assert (done.returncode, done.stderr) == (
        1,
        "distillery-serve: --grpc-port needs grpc: pip install '.[serving,grpc]'\n",
    )


@pytest.mark.slow
def test_grpc_is_not_imported_before_the_fork() -> None:
    assert run_python("import sys, serving.service; print('grpc' in sys.modules)").stdout == "False\n"
