"""The running service against its own OpenAPI document, by schemathesis."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import API_KEY, running_service

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 10
"""Per operation, besides those of the document and of its limits."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_response_is_documented_and_none_is_an_internal_error(one_model: Path, tmp_path: Path) -> None:
    flags = ("--api-servers", "1", "--api-key", API_KEY, "--request-timeout", "30", "--client-timeout", "30")
    with running_service(one_model, *flags) as service:
        program = (
            "-m",
            "schemathesis.cli",
            "--config-file",
            CONFIGURATION,
            "run",
            f"{service.url}/openapi.json",
        )
        phases = ("--phases=examples,coverage,fuzzing", f"--max-examples={EXAMPLES}", "--seed=1")
        output = ("--continue-on-failure", "--no-shrink", "--no-color")
        result = subprocess.run(
            [sys.executable, *program, *phases, *output, "--header", f"X-API-Key: {API_KEY}"],
            cwd=tmp_path,  # it writes there
            env=os.environ | {"COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=580,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-10_000:] + result.stderr[-1000:]
    [cases] = re.findall(r"([\d,]+) generated, \1 passed", result.stdout)
    assert int(cases.replace(",", "")) > 1000
