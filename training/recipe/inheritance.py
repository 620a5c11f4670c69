"""Recipes that extend another one: `base = "cnn"` at the top of a recipe file.

The models of the base come first. A section of the same name changes the settings it names and keeps the others:

    base = "cnn"            # another recipe of this folder, or a TOML file relative to this one
    [cnn]
    epochs = 30             # the ensemble of the recipe `cnn`, trained for longer

Models with identical settings have one folder per run and one identity, so what is written once is trained alike.
"""

from pathlib import Path
from typing import Any

from distillery import DistilleryError, read_toml, unknown

RECIPES = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def find_recipe(name: str, *, folder: Path = Path()) -> Path:
    """Return the path of a shipped recipe, or of a TOML file relative to `folder`. Raises `DistilleryError`."""
    if name.endswith(".toml"):
        return folder / name
    if name not in (names := recipe_names()):
        raise DistilleryError(f"--recipe {name}: {unknown('recipe', name, names)}; or give a .toml file")
    return RECIPES / f"{name}.toml"


def read_resolved(name: str) -> dict[str, Any]:
    """Return the TOML content of a recipe with that of its bases merged in. Raises `DistilleryError`."""
    return _read(find_recipe(name), f"--recipe {name}", ())


def _read(path: Path, setting: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        chain = " → ".join(each.stem for each in (*seen, path))
        raise DistilleryError(f"{setting}: a recipe cannot be its own base: {chain}")
    content = read_toml(path, setting)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise DistilleryError(f"{setting}: base must be the name of a recipe or a .toml file, not {base!r}")
    inherited = _read(find_recipe(base, folder=path.parent), setting, (*seen, path.resolve()))
    return _merged(inherited, content)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
