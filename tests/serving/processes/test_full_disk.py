"""Metrics depend on no folder: every disk is full or read-only, and the operator names a folder with foreign files."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.support.service import eventually, running_service
from tests.support.training.samples import sample_test

DIGITS = sample_test().images.tolist()
FULL = Path("/dev/shm")
"""In the service's own mount namespace: a file system of 64 KiB without a free byte. All others are read-only."""
FOREIGN = "counter_1.db", "gauge_livesum_1.db", "notes.txt"
SETUP = f"""
mount --make-rprivate / && mount -o remount,bind,ro / && mount -t tmpfs -o size=64k full {FULL}
touch {" ".join(f"{FULL}/{name}" for name in FOREIGN)}
head -c 1M /dev/zero > {FULL}/fill 2> /dev/null || test -s {FULL}/fill
"""
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
PREFIX = (*NAMESPACE, f'{SETUP}export TMPDIR={FULL} PROMETHEUS_MULTIPROC_DIR={FULL}; exec "$@"', "sh")


def can_mount() -> bool:
    try:
        return subprocess.run([*NAMESPACE, SETUP], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def counts(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=5).text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="this machine allows no mount namespaces")
def test_a_service_on_full_and_read_only_disks_serves_counts_and_replaces_processes(one_model: Path) -> None:
    with running_service(one_model, "--api-servers", "2", prefix=PREFIX) as service:
        inside = Path(f"/proc/{service.process.pid}/root{FULL}")
        assert {file.name for file in inside.iterdir()} == {"fill", *FOREIGN}
        before = counts(service.url)
        assert not any(n for name, n in before.items() if name.startswith("distillery_requests_total"))

        def predict(images: int) -> None:
            answer = httpx.post(f"{service.url}/predict", json={"images": DIGITS[:images]}, timeout=5)
            assert answer.status_code == 200

        def predicted() -> float:
            return counts(service.url)['distillery_images_total{model="student",version="1"}']

        for images in range(1, 41):  # each batch size has series of its own
            predict(images)
        eventually(lambda: predicted() == 820)
        for file in inside.iterdir():
            file.unlink()
        time.sleep(1.1)  # a process that dies earlier ends the service
        killed, _ = service.children()
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: len(service.children()) == 2 and killed not in service.children())
        for _ in range(20):
            predict(1)
        eventually(lambda: predicted() == 840)
        assert counts(service.url)['distillery_process_restarts_total{process="api"}'] == 1
        assert set(counts(service.url)) == set(before)
        assert not list(inside.iterdir())
