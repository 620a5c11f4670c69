"""Settings of bulk scoring; the command that takes them is in `serving.scoring.__main__`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from pydantic_settings import CliPositionalArg

from distillery import Metavar
from serving.config import MAX_BODY_BYTES, MAX_PIXELS, RepositorySettings


class ScoringSettings(RepositorySettings):
    """All settings of bulk scoring."""

    inputs: CliPositionalArg[list[Path]] = Field(min_length=1, description="files and folders")
    out: Annotated[Path, Metavar("DIR")] = Field(description="folder for the results")
    model: str | None = Field(
        None, description="model to use; default: fast-int8, student-int8, student or the first"
    )
    column: str | None = Field(
        None, description="column of Parquet files; default: the only one with pictures or lists of integers"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="where processes run: on this machine, or on a Ray cluster"
    )
    ray_address: Annotated[str | None, Metavar("ADDRESS")] = Field(
        None,
        description="Ray cluster, such as 10.0.0.5:6379 or auto; default: RAY_ADDRESS, or a new one on this machine",
    )
    processes: NonNegativeInt | None = Field(
        None,
        description="processes; 0: score in the command's own, which a file that crashes a decoder ends; default: one "
        "per usable core, or per CPU of the Ray cluster",
    )
    part_items: PositiveInt | None = Field(
        None,
        le=1_000_000,
        description="items of an input per file of results; default: 65536 images of arrays, 1024 pictures",
    )
    max_body_bytes: PositiveInt = Field(MAX_BODY_BYTES, description="maximum size of a picture file")
    max_pixels: PositiveInt = Field(
        MAX_PIXELS, description="maximum pixels that decoding a picture may hold in memory"
    )

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine == "local" and self.ray_address is not None:
            raise ValueError("--ray-address needs --engine ray")
        if self.engine == "ray" and self.processes == 0:
            raise ValueError("--processes 0 is for --engine local; expected at least 1, or none for all CPUs")
        return self
