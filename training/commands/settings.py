"""What the commands that train share: the recipe, each of whose models is a set of flags, and where to compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, create_model

import distillery
from distillery import read_toml
from training.loop.device import DeviceName, Precision
from training.recipe.files import find_recipe, read_recipe
from training.recipe.schema import Model, Recipe
from training.report.figures import FIGURES
from training.sweep.search import SWEEP


class RecipeCommand(distillery.Command):
    """A command that trains models of a recipe."""

    recipe: str = Field("quick", description="quick, notebook, paper, best, or a TOML file with models")
    seed: int = Field(0, ge=0, description="decides initial weights, order of digits, views and dropout")
    teacher_seed: int | None = Field(
        None,
        ge=0,
        description="seed of the first teachers and of all views, when students of more seeds share them",
    )
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    out: Path = Field(Path("runs"), description="folder for runs")
    device: DeviceName = Field("auto", description="auto takes CUDA where there is one")
    precision: Precision = Field(
        "auto", description="of matrix products; auto takes bfloat16 where it is quick"
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; all usable cores if not given")

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> type[Self]:
        """Return this command with a setting for each model of the recipe that `arguments` name."""
        name = cls.peek("recipe", arguments)
        fields: dict[str, Any] = {}
        for section, model in read_recipe(name).models.items():
            if section in (FIGURES, SWEEP) or section in cls.model_fields or hasattr(cls, section):
                raise distillery.DistilleryError(
                    f"--recipe {name}: [{section}] is taken; give the model another name"
                )
            fields[section] = (Model, model)
        command = create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **fields)
        command.preset = read_toml(find_recipe(name), f"--recipe {name}")
        return command

    def settled(self) -> Recipe:
        """The recipe with all flags, variables and the file taken into account. Raises `ValidationError`."""
        models = {name: model for name, model in self if isinstance(model, Model)}
        name = find_recipe(self.recipe).stem
        return Recipe(name=name, seed=self.seed, teacher_seed=self.teacher_seed, models=models)
