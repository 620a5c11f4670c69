"""Recipe files: read them, write them."""

from collections.abc import Mapping
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from distillery import DistilleryError, errors
from training.recipe.inheritance import find_recipe, read_resolved
from training.recipe.schema import Model, Recipe


def sections(content: dict[str, Any]) -> dict[str, Any]:
    """Return the models of a recipe's TOML content; other values are settings of `distillery-train`."""
    return {name: value for name, value in content.items() if isinstance(value, dict)}


def read_recipe(name: str) -> Recipe:
    """Return a shipped recipe (`quick`) or that of a TOML file, without command-line options and environment.

    Raises `DistilleryError` for a missing file, invalid TOML or invalid settings.
    """
    content = read_resolved(name)
    try:
        models = TypeAdapter(dict[str, Model]).validate_python(sections(content))
        return Recipe(name=find_recipe(name).stem, models=models)
    except ValidationError as error:
        lines = errors(error, dict[str, Model])
        raise DistilleryError("\n".join(f"--recipe {name}: {line}" for line in lines)) from None


def to_toml(models: Mapping[str, Model]) -> str:
    """Return a recipe that trains `models`: a section each, with the settings that differ from their defaults."""
    return tomli_w.dumps({name: model.model_dump(exclude_defaults=True) for name, model in models.items()})
