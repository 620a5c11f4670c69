"""`distillery-score`: `python -m serving.scoring shards/*.tar --out scores`."""

import sys

import distillery
from distillery import DistilleryError
from serving.scoring.config import ScoringSettings


class Score(ScoringSettings):
    """Score files and folders of pictures or arrays; write predictions to Parquet.

    Inputs: folders of pictures; .tar files as WebDataset names their members; .parquet files with a column of pictures
    or of 784 integers; .npy; IDX as MNIST has it, also .gz. Results are those of the service. An item without a
    prediction is set aside with the reason. A run that was interrupted, or killed, continues with the same command;
    every item is in the results once.
    """

    examples = (
        "distillery-score pictures --out scores",
        "distillery-score shards/train-*.tar --out scores --processes 8",
        "distillery-score digits.parquet --column image --out scores --model teacher",
        "distillery-score .cache/mnist/t10k-images-idx3-ubyte.gz --out scores",
    )

    def run(self) -> None:
        try:
            from serving.scoring.run import score  # noqa: PLC0415 - `--help` needs neither Arrow nor onnxruntime
        except ModuleNotFoundError as error:
            raise _missing(error, "scoring") from None
        try:
            score(self)
        except ModuleNotFoundError as error:  # imported by --engine ray
            raise _missing(error, "ray") from None


def _missing(error: ModuleNotFoundError, extra: str) -> DistilleryError:
    return DistilleryError(f"{extra} needs the package {error.name}: pip install 'distillery[{extra}]'")


COMMANDS: dict[str, type[distillery.Command]] = {"score": Score}


def run() -> None:
    """Run the command."""
    sys.exit(distillery.main("distillery-score", COMMANDS, default="score"))


if __name__ == "__main__":
    run()
