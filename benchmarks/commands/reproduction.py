"""The paper's MNIST section, reproduced and kept as a result.

    distillery-bench reproduction               trains what is missing in runs/paper
    distillery-bench reproduction --seeds 0

All the work is that of `distillery-train reproduce`, which uses again whatever is trained and evaluated.
"""

import json
from pathlib import Path

from pydantic import Field

from benchmarks.commands.seeds import run_stage
from benchmarks.results.files import RESULTS, write_result
from distillery import Command
from training.paper.reproduce import REPRODUCTION
from training.recipe.files import find_recipe


class ReproductionBench(Command):
    """Keep what `distillery-train reproduce` finds beside the paper's figures, for docs/paper.md."""

    recipe: str = Field("paper", description="paper, or a TOML file with a teacher and a student")
    seeds: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="one training of everything each")
    out: Path = Field(Path("runs"), description="folder for runs")
    threads: int | None = Field(None, gt=0, description="CPU threads; all usable cores if not given")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    results_dir: Path = Field(RESULTS, description="where the result is kept")

    def run(self) -> None:
        flags = [f"--recipe={self.recipe}", f"--seeds={','.join(map(str, self.seeds))}", f"--out={self.out}"]
        flags += [f"--threads={self.threads}"] if self.threads else []
        flags += [f"--data-dir={self.data_dir}"] if self.data_dir else []
        run_stage("training", "reproduce", *flags)
        found = json.loads((self.out / find_recipe(self.recipe).stem / REPRODUCTION).read_bytes())
        path = write_result("reproduction", found, folder=self.results_dir)
        print(json.dumps({"result": str(path), "models": found["models"]}))
