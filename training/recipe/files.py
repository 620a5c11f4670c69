"""Models as the TOML text of a recipe that trains them: the other way round from `read_recipe`."""

from collections.abc import Mapping
from typing import Any

from training.recipe.recipe import Model


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
