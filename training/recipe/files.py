"""Recipe files: find, read and write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distillery import DistilleryError, errors, read_toml
from training.recipe.schema import Model, Recipe

RECIPES = Path(__file__).parent


def find_recipe(name: str) -> Path:
    """Turn `quick`, another file of `training/recipe`, or the path of a TOML file into a path."""
    return Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"


def sections(content: dict[str, Any]) -> dict[str, Any]:
    """Return the models of a recipe's TOML content; what is no table is a setting of `distillery-train`."""
    return {name: value for name, value in content.items() if isinstance(value, dict)}


def read_recipe(name: str) -> Recipe:
    """Return the recipe `quick`, `notebook`, ..., or of a TOML file, without flags and environment.

    Raises `DistilleryError` for a file that is not there, is no TOML, or describes no models.
    """
    path = find_recipe(name)
    content = read_toml(path, f"--recipe {name}")
    try:
        models = TypeAdapter(dict[str, Model]).validate_python(sections(content))
        return Recipe(name=path.stem, models=models)
    except ValidationError as error:
        lines = errors(error, dict[str, Model])
        raise DistilleryError("\n".join(f"--recipe {name}: {line}" for line in lines)) from None


def as_toml(models: Mapping[str, Model]) -> str:
    """Return a section for each model, with the settings that are not at their defaults."""
    sections = []
    for name, model in models.items():
        settings = model.model_dump(exclude_defaults=True)
        sections.append("\n".join([f"[{name}]", *_lines(settings)]))
    return "\n\n".join(sections) + "\n"


def _lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in settings.items()]


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(_lines(value))} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
