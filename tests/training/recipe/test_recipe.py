"""A recipe says which models there are, and a mistake in it is told with its place, its value and the cure."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from distillery import DistilleryError
from training.recipe.files import RECIPES, read_recipe
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


def test_a_recipe_is_a_list_of_models_each_with_its_control(file: Path) -> None:
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
            "student learns from 'tiny', which is none of the models above it: cnn",
        ),
        (('teacher = "cnn"', 'teacher = "student"'), "student learns from 'student', which is none"),
        (
            ('teacher = "cnn"', 'teacher = "student-alone"'),
            "student learns from 'student-alone', which is none",
        ),
        (
            ("[cnn]", '[cnn.distillation]\nteacher="x"\n[cnn]'),
            "cnn learns from 'x', .* above it: there are none",
        ),
        (("[cnn]", "[Cnn]"), "a model's name is lower-case letters and digits, not 'Cnn'"),
        (("[cnn]", '["my-cnn"]'), "a model's name is lower-case letters and digits, not 'my-cnn'"),
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
            r"student: with augmentation\.mixup 0\.5 a digit has no label .*\.alpha 1 and control = false",
        ),
        (("views = 4", "views = "), r"mine\.toml is not valid TOML: .* line 12"),
        (("[student]", "[cnn]"), r"mine\.toml is not valid TOML: "),
        ((WHOLE, "seed = 3"), "models: Dictionary should have at least 1 item"),
        ((WHOLE, "\udcff"), "mine.toml is not valid TOML: 'utf-8' codec"),
    ],
)
def test_a_mistake_is_told_with_file_place_and_value(
    file: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in WHOLE
    file.write_bytes(WHOLE.replace(change[0], change[1], 1).encode(errors="surrogateescape"))
    with pytest.raises(DistilleryError, match=message) as caught:
        read_recipe(str(file))
    assert str(caught.value).startswith(f"--recipe {file}: ")


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    file.write_text("[teacher]\nepochs = 0\nhiden = [1]\n[student]\nalpha = 3\n")
    with pytest.raises(DistilleryError) as caught:
        read_recipe(str(file))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["teacher.epochs", "teacher.hiden", "student.alpha"]


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DistilleryError, match=r"--recipe slow: there is no file .*recipe/slow\.toml"):
        read_recipe("slow")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(DistilleryError, match=r"is not valid TOML: .*Is a directory"):
        read_recipe(str(tmp_path / "folder.toml"))


def test_a_recipe_does_not_change() -> None:
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


def test_recipes_that_name_the_same_models_mean_the_same() -> None:
    best, assistant, longer = (read_recipe(name).models for name in ("best", "assistant", "ensemble"))
    assert assistant["cnn"] == best["cnn"]
    assert longer["cnn"] == best["cnn"].model_copy(update={"epochs": 2 * best["cnn"].epochs, "keep": "last"})
    assert assistant["tiny"] == best["tiny"]


def test_the_notebook_recipe_is_the_notebooks() -> None:
    teacher, student = read_recipe("notebook").models.values()
    assert (teacher.epochs, student.epochs) == (30, 100)
    assert (teacher.dropout, student.dropout) == (0.2, 0)  # 0.8 was the share to keep
    assert teacher.batch_size == student.batch_size == 64
    assert student.distillation
    assert (student.distillation.temperature, student.distillation.alpha) == (20, 0.7)
    assert not teacher.augmentation.enabled
    assert not student.augmentation.enabled
