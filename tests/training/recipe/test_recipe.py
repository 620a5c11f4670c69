"""Recipes: their models, inheritance, and reports of invalid settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from distillery import DistilleryError
from training.recipe.files import read_recipe, to_toml
from training.recipe.inheritance import RECIPES
from training.recipe.schema import Architecture, Augmentation, Model, Recipe
from training.runs.pipeline import jobs

WHOLE = """
seed = 3

[cnn]
stages = [[16, 16], [32]]
hidden = [64]
members = 2
augmentation = { shift = 2, elastic = 0.7 }

[student]
hidden = [800, 800]
views = 4

[student.distillation]
teacher = "cnn"
temperature = 4

[tiny]
hidden = [32]
control = false

[tiny.distillation]
teacher = "student"
loss = "dist"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def test_a_recipe_is_a_list_of_models_and_their_controls(file: Path) -> None:
    file.write_text(WHOLE)
    recipe = read_recipe(str(file))
    assert recipe.name == "mine"
    trained = jobs(recipe)
    assert [job.name for job in trained] == ["cnn", "student-alone", "student", "tiny"]
    assert [job.role for job in trained] == ["cnn", "student", "student", "tiny"]
    cnn, alone, student, _ = (job.model for job in trained)
    assert cnn.architecture == Architecture(stages=[[16, 16], [32]], hidden=[64], members=2)
    assert cnn.augmentation == Augmentation(shift=2, elastic=0.7)
    assert alone.distillation is None
    assert student.distillation
    assert (student.distillation.teacher, student.distillation.temperature) == ("cnn", 4)
    assert alone == student.model_copy(update={"distillation": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("hidden = [64]", "hiden = [64]"), r"cnn\.hiden: unknown setting; did you mean hidden\?"),
        (
            ("temperature = 4", "temperature = 0"),
            r"student\.distillation\.temperature: .* greater than 0 \(found 0\)",
        ),
        (("temperature = 4", "temperature = -1.5"), r"temperature: .* greater than 0 \(found -1\.5\)"),
        (("temperature = 4", "alpha = 1.01"), r"alpha: .* less than or equal to 1 \(found 1\.01\)"),
        (("temperature = 4", "alpha = -0.1"), r"alpha: .* greater than or equal to 0 \(found -0\.1\)"),
        (("temperature = 4", 'loss = "l2"'), r"loss: Input should be 'kl', 'mse', .* \(found 'l2'\)"),
        (
            ('teacher = "cnn"', 'teacher = "tiny"'),
            "student learns from 'tiny', which must be a model above it: cnn",
        ),
        (('teacher = "cnn"', 'teacher = "student"'), "student learns from 'student', which must be"),
        (
            ('teacher = "cnn"', 'teacher = "student-alone"'),
            "student learns from 'student-alone', which must be",
        ),
        (
            ("[cnn]", '[cnn.distillation]\nteacher="x"\n[cnn]'),
            "cnn learns from 'x', .* above it: there is none",
        ),
        (("[cnn]", "[figures]"), r"\[figures\] is reserved; rename the model"),
        (("[cnn]", "[Cnn]"), "a model's name must be lower-case letters and digits, not 'Cnn'"),
        (("[cnn]", '["my-cnn"]'), "a model's name must be lower-case letters and digits, not 'my-cnn'"),
        (("members = 2", "members = 0"), r"cnn\.members: .* greater than or equal to 1 \(found 0\)"),
        (("[[16, 16], [32]]", "[[16], []]"), r"cnn\.stages\.1: List should have at least 1 item"),
        (("[[16, 16], [32]]", "[[1], [1], [1], [1], [1]]"), r"cnn\.stages: List should have at most 4 items"),
        (("views = 4", "views = 0"), r"student\.views: .* greater than 0 \(found 0\)"),
        (
            ("views = 4", "leave_out = [10]"),
            r"student\.leave_out\.0: .* less than or equal to 9 \(found 10\)",
        ),
        (
            ("views = 4", "augmentation = { mixup = 0.5 }"),
            r"student: digits have no label with augmentation\.mixup 0\.5; .*\.alpha 1 and control = false",
        ),
        (("views = 4", "views = "), r"mine\.toml is not valid TOML: .* line 12"),
        (("[student]", "[cnn]"), r"mine\.toml is not valid TOML: "),
        ((WHOLE, "seed = 3"), "models: Dictionary should have at least 1 item"),
        ((WHOLE, "\udcff"), "mine.toml is not valid TOML: 'utf-8' codec"),
    ],
)
def test_an_invalid_setting_is_reported_with_file_place_and_value(
    file: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in WHOLE
    file.write_bytes(WHOLE.replace(change[0], change[1], 1).encode(errors="surrogateescape"))
    with pytest.raises(DistilleryError, match=message) as caught:
        read_recipe(str(file))
    assert str(caught.value).startswith(f"--recipe {file}: ")


def test_all_invalid_settings_are_reported_at_once(file: Path) -> None:
    file.write_text("[teacher]\nepochs = 0\nhiden = [1]\n[student]\nalpha = 3\n")
    with pytest.raises(DistilleryError) as caught:
        read_recipe(str(file))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["teacher.epochs", "teacher.hiden", "student.alpha"]


def test_an_unknown_recipe_lists_the_known_ones_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        DistilleryError, match=r"--recipe quik: there is no recipe 'quik'; known: .*best.* quick\?"
    ):
        read_recipe("quik")
    with pytest.raises(DistilleryError, match=r"there is no file .*quik\.toml"):
        read_recipe(str(tmp_path / "quik.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(DistilleryError, match=r"is not valid TOML: .*Is a directory"):
        read_recipe(str(tmp_path / "folder.toml"))


def test_a_recipe_inherits_the_models_of_its_base_and_changes_single_settings(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(WHOLE)
    (tmp_path / "mine.toml").write_text(
        'base = "base.toml"\n[student]\nepochs = 3\n[student.distillation]\nalpha = 0.5\n[new]\nhidden = [5]\n'
    )
    base, mine = (read_recipe(str(tmp_path / f"{name}.toml")).models for name in ("base", "mine"))
    assert list(mine) == [*base, "new"]
    assert (mine["cnn"], mine["tiny"]) == (base["cnn"], base["tiny"])
    student = base["student"]
    assert student.distillation
    distillation = student.distillation.model_copy(update={"alpha": 0.5})
    assert mine["student"] == student.model_copy(update={"epochs": 3, "distillation": distillation})


def test_a_base_may_be_a_shipped_recipe_that_has_a_base_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "best"\n[cnn]\nmembers = 5\n')
    mine, best = read_recipe(str(tmp_path / "mine.toml")).models, read_recipe("best").models
    assert mine == best | {"cnn": best["cnn"].model_copy(update={"members": 5})}


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('"b.toml"', "a recipe cannot be its own base: a → b → a"),
        ('"quik"', "there is no recipe 'quik'; known: .* quick\\?"),
        ('"c.toml"', r"there is no file .*c\.toml"),
        ("3", "base must be the name of a recipe or a .toml file, not 3"),
    ],
)
def test_an_invalid_base_is_rejected(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "a.toml").write_text(f"base = {base}\n")
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(DistilleryError, match=message):
        read_recipe(str(tmp_path / "a.toml"))


def test_a_written_recipe_reads_back_as_the_same_models(tmp_path: Path) -> None:
    models = read_recipe("best").models
    (tmp_path / "again.toml").write_text(to_toml(models))
    assert read_recipe(str(tmp_path / "again.toml")).models == models


def test_a_recipe_is_frozen() -> None:
    recipe = Recipe(name="x", models={"teacher": Model()})
    with pytest.raises(ValidationError):
        recipe.models["teacher"].epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_shipped_is_valid(path: Path) -> None:
    recipe = read_recipe(path.stem)
    assert recipe.name == path.stem
    for name, hidden in (
        ("teacher", [1200, 1200]),
        ("student", [800, 800]),
    ):  # what the paper calls by these names
        assert name not in recipe.models or recipe.models[name].hidden == hidden


def test_models_shared_by_several_recipes_are_identical() -> None:
    best, assistant, longer = (read_recipe(name).models for name in ("best", "assistant", "ensemble"))
    assert longer["cnn"] == assistant["cnn"].model_copy(
        update={"epochs": 2 * best["cnn"].epochs, "keep": "last"}
    )
    for name in ("cnn", "tiny"):  # those of best see photometric changes too
        augmentation = {"augmentation": assistant[name].augmentation}
        assert assistant[name] == best[name].model_copy(update=augmentation)


def test_photometric_changes_are_off_where_a_protocol_is_reproduced_and_on_where_models_are_served() -> None:
    changed = {
        name: {model.augmentation.photometric.enabled for model in read_recipe(name).models.values()}
        for name in ("paper", "notebook", "cnn", "ensemble", "strong", "assistant", "quick")
    }
    assert changed.pop("quick") == {True}
    assert set.union(*changed.values()) == {False}
    best = read_recipe("best").models
    assert [name for name, model in best.items() if not model.augmentation.photometric.enabled] == ["plain"]


def test_the_notebook_recipe_has_the_notebooks_settings() -> None:
    teacher, student = read_recipe("notebook").models.values()
    assert (teacher.epochs, student.epochs) == (30, 100)
    assert (teacher.dropout, student.dropout) == (0.2, 0)  # 0.8 was the share to keep
    assert teacher.batch_size == student.batch_size == 64
    assert student.distillation
    assert (student.distillation.temperature, student.distillation.alpha) == (20, 0.7)
    assert not teacher.augmentation.enabled
    assert not student.augmentation.enabled
