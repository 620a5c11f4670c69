"""The image, built from the Dockerfile and run as compose.yaml does, by buildah and podman (`.ci/try-image`)."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.service import ROOT

PACKAGES = "buildah", "debootstrap", "podman", "runc"


@pytest.mark.container
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not all(map(shutil.which, PACKAGES)), reason=f"needs Debian's {', '.join(PACKAGES)} (make container)"
)
def test_the_image_is_built_predicts_is_scraped_serves_the_page_and_stops(model_repository: Path) -> None:
    """With a read-only root, without capabilities and privileges, as a user that is not root; torch is not in it."""
    run = subprocess.run(
        [ROOT / ".ci/try-image", model_repository], capture_output=True, text=True, check=False
    )
    output = run.stdout
    assert run.returncode == 0, output + run.stderr
    models = {path.name for path in model_repository.iterdir()}
    assert set(re.findall(r'^(\S+): \{"model":"\1"', output, re.MULTILINE)) == models
    assert f"{len(models)} models counted in the metrics" in output
    assert "page: served" in output
    assert "Read-only file system" in output
    assert "SIGTERM: ended with status 0" in output
