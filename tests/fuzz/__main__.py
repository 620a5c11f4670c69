"""Coverage-guided fuzzing of every decoder.

    make fuzz                              # every target, 100,000 inputs each
    make fuzz TARGET=json RUNS=1000000     # one of them
    python -m tests.fuzz FOLDER TARGET -runs=N -seed=N     # libFuzzer's options

A target decodes an input as the service does. The input may be rejected by a documented error; any other exception, an
input that takes 5 s, growing memory, and more than 2 GiB are failures, and the input is
written to FOLDER/TARGET-failed.
FOLDER/TARGET keeps the inputs that reach new code.
"""

import logging
import random
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import atheris

LIBRARIES = {
    "pictures": "PIL",
    "read": "PIL",
    "form": "python_multipart",
    "http": "uvicorn.protocols.http",
    "keys": "tomllib",
}
"""Whose coverage guides a target, besides that of `serving`: to instrument all of them takes long."""
NAME = sys.argv[2]

_INSTRUMENTED = ["none"] if NAME == "all" else ["serving", *LIBRARIES.get(NAME, "").split()]

with atheris.instrument_imports(include=_INSTRUMENTED):
    from tests.fuzz.table import TARGETS
    from tests.fuzz.target import Target, Watched

OPTIONS = ("-rss_limit_mb=2048", "-timeout=5", "-print_final_stats=1")


def main() -> int:
    """Fuzz one target in this process, or each in a process of its own; return the exit status."""
    folder, _, *options = sys.argv[1:]
    if NAME != "all":
        fuzz(TARGETS[NAME], Path(folder), options)
        return 0
    print("| target | inputs | seconds | code reached | corpus | slowest input | memory |", flush=True)
    failed = [name for name in TARGETS if not run_target(name, folder, options)]
    return 1 if failed else 0


def fuzz(target: Target, folder: Path, options: list[str]) -> None:
    """Write the seeds to the folder of the target and fuzz; does not return."""
    corpus = folder / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(target.seeds()):
        (corpus / f"seed{index:03}").write_bytes(seed)
    options = [f"-max_len={target.max_bytes}", f"-artifact_prefix={folder}/{target.name}-", *options]
    if target.words:
        words = folder / f"{target.name}.words"
        lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in target.words)
        words.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        options.insert(0, f"-dict={words}")
    warnings.simplefilter("ignore")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # as the service does
    change = target.mutate

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        assert change
        return change(data, max_size, random.Random(seed), atheris.Mutate)  # noqa: S311 - not a secret

    watched = Watched(target, folder / f"{target.name}-failed")
    keywords = {"custom_mutator": mutate} if change else {}
    atheris.Setup([sys.argv[0], str(corpus), *OPTIONS, *options], watched, **keywords)
    atheris.Fuzz()


def run_target(name: str, folder: str, options: list[str]) -> bool:
    """Fuzz a target in a process of its own, print a row of results, return whether it passed."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz", folder, name, *options]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    seconds = time.monotonic() - started
    Path(folder, f"{name}.log").write_text(result.stderr, encoding="utf-8")
    found = dict(re.findall(r"stat::(\w+):\s+(\d+)", result.stderr))
    covered, _, corpus = (re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", result.stderr) or [("?",) * 3])[-1]
    row = (
        f"{int(found.get('number_of_executed_units', 0)):,}",
        f"{seconds:.0f}",
        covered,
        corpus,
        f"{found.get('slowest_unit_time_sec', '?')} s",
        f"{found.get('peak_rss_mb', '?')} MB",
    )
    print(f"| {name} | {' | '.join(row)} |", flush=True)
    if result.returncode:
        print(result.stderr[-3000:], flush=True)
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
