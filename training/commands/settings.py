"""Settings that commands share: the dataset, the run, the device, and the models of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, create_model

from distillery import Command, DistilleryError, Metavar
from training.loop.device import Device, DeviceName, Precision, choose_device
from training.recipe.files import read_recipe
from training.recipe.inheritance import find_recipe, read_resolved
from training.recipe.schema import Model, Recipe


class DataSettings(Command):
    """The MNIST files."""

    group: ClassVar[str] = "data"

    data_dir: Annotated[Path | None, Metavar("DIR")] = Field(
        None, description="folder with the MNIST files; default: found in known places, or downloaded"
    )


class RunSettings(DataSettings):
    """A recipe and the folder of its run."""

    group: ClassVar[str] = "run"

    recipe: Annotated[str, Metavar("RECIPE")] = Field(
        "quick", description="shipped recipe (quick, notebook, paper, best, …) or TOML file"
    )
    out: Annotated[Path, Metavar("DIR")] = Field(
        Path("runs"), description="folder of all runs; the recipe's is a subfolder"
    )

    @property
    def root(self) -> Path:
        """Folder of the run. Raises `DistilleryError` for an unknown recipe."""
        return self.out / find_recipe(self.recipe).stem


class DeviceSettings(Command):
    """Where and how to compute."""

    group: ClassVar[str] = "device"

    device: DeviceName = Field("auto", description="device to compute on; auto: CUDA if available")
    precision: Precision = Field(
        "auto", description="precision of matrix products; auto: bfloat16 where it is fast"
    )
    threads: Annotated[int | None, Metavar("N")] = Field(
        None, gt=0, description="CPU threads; default: all usable cores"
    )

    def choose_device(self) -> Device:
        """Return the device of these settings. Raises `DistilleryError` where there is no such device."""
        return choose_device(self.device, self.precision, threads=self.threads)


class RecipeSettings(RunSettings, DeviceSettings):
    """A recipe to train; every setting of its models is an option."""

    group: ClassVar[str] = "recipe"

    seed: int = Field(0, ge=0, description="seed of initial weights, batches, views and dropout")
    teacher_seed: Annotated[int | None, Metavar("N")] = Field(
        None,
        ge=0,
        description="seed of the first teachers and of all views, shared by students of several seeds",
    )

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> type[Self]:
        """Return a subclass with a setting for every model of the recipe named in `arguments`.

        Raises `DistilleryError` for an unusable recipe.
        """
        name = cls.peek("recipe", arguments)
        fields: dict[str, Any] = {}
        for section, model in read_recipe(name).models.items():
            if section in cls.model_fields or hasattr(cls, section):
                raise DistilleryError(
                    f"--recipe {name}: [{section}] is the name of an option; rename the model"
                )
            fields[section] = (Model, model)
        command = create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **fields)
        command.preset = read_resolved(name)
        return command

    def resolved(self) -> Recipe:
        """Return the recipe with options, environment and files applied. Raises `ValidationError`."""
        models = {name: model for name, model in self if isinstance(model, Model)}
        return Recipe(name=self.root.name, seed=self.seed, teacher_seed=self.teacher_seed, models=models)
