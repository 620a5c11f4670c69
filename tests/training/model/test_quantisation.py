"""A network trained as int8 computes it answers as its int8 graph, and learns through the rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from export.parity import answer, open_session
from export.pipeline import Digits, Source, export_checkpoint
from tests.support.networks import used
from tests.support.samples import sample_test, sample_training
from tests.support.trainings import CONVOLUTIONAL, CPU, SMALL, same, train
from training.loop.trainer import Job, Observer, Training, predict
from training.model.checkpoint import load_checkpoint
from training.model.network import Classifier
from training.model.quantisation import QuantisedClassifier, quantised
from training.recipe.schema import Architecture, Distillation, Model, Recipe
from training.runs.folder import ModelRun
from training.runs.pipeline import DataSet, train_recipe
from training.runs.trained import current_model, over_seeds

DATA = DataSet(*sample_training(), {"sample": "0" * 64})
MODELS = {
    "teacher": SMALL,
    "mlp": SMALL.model_copy(update={"distillation": Distillation(temperature=4), "alone": False}),
    "cnn": CONVOLUTIONAL,
    "mlpq": Model(quantised_from="mlp", epochs=2, learning_rate=1e-3),
    "cnnq": Model(quantised_from="cnn", epochs=2, learning_rate=1e-3),
}


def trained(root: Path, seed: int = 0) -> dict[str, ModelRun]:
    recipe = Recipe(name="sample", seed=seed, models=MODELS)
    return train_recipe(recipe, DATA, device=CPU, root=root, observer=Observer())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[str, ModelRun]:
    return trained(root)


@pytest.mark.parametrize("name", ["mlpq", "cnnq"])
def test_the_int8_file_answers_as_the_network_was_trained(
    name: str, runs: dict[str, ModelRun], export_digits: Digits, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(runs[name].checkpoint)
    found = checkpoint.card["quantisation"]
    assert checkpoint.card["architecture"]["norm"] is False
    network = QuantisedClassifier(Architecture(**checkpoint.card["architecture"]), found["ceilings"])
    network.load_state_dict(checkpoint.network.state_dict())
    _, int8 = export_checkpoint(
        Source(name, runs[name].checkpoint), export_digits, models_dir=tmp_path, int8=True
    )
    assert int8.manifest.quantisation is not None
    assert int8.manifest.quantisation["weight_bits"] == found["weight_bits"]
    digits = torch.cat([part.images for part in (*sample_training(), sample_test())])
    logits = answer(open_session(int8.path), digits.numpy())
    own = predict(network, digits).numpy()
    # A sum that lies between two integers may be rounded either way.
    np.testing.assert_allclose(logits, own, atol=0.02 * np.abs(own).max())
    assert np.abs(logits - own).mean() < 1e-4 * np.abs(own).max()
    np.testing.assert_array_equal(logits.argmax(1), own.argmax(1))
    assert int8.manifest.quantisation["validation_errors"] == checkpoint.card["validation_errors"]


@pytest.mark.parametrize(
    "architecture", [Architecture(hidden=[40, 30]), Architecture(stages=[[8], [8]], hidden=[12])], ids=str
)
def test_it_starts_as_the_network_it_comes_from(architecture: Architecture) -> None:
    network, images = used(architecture), sample_training()[0].images
    assert isinstance(network, Classifier)
    wanted, found = predict(network, images), predict(quantised(network, architecture, images), images)
    assert (found - wanted).std() < 0.05 * wanted.std()
    assert not torch.equal(found, wanted)


def test_gradients_reach_every_weight() -> None:
    architecture = Architecture(stages=[[4], [4, 6]], hidden=[12])
    network = used(architecture)
    images = sample_training()[0].images[:100]
    through = quantised(network, architecture, images)
    inputs = torch.rand(100, 784)
    torch.nn.functional.cross_entropy(through(inputs), torch.arange(100) % 10).backward()
    for name, weight in through.named_parameters():
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0, name


def test_it_inherits_what_its_section_does_not_say(runs: dict[str, ModelRun]) -> None:
    decisive = runs["mlpq"].decisive
    assert decisive["start"] == runs["mlp"].fingerprint
    assert decisive["teacher"] == runs["teacher"].fingerprint
    model, start = (Model(**runs[name].decisive["model"]) for name in ("mlpq", "mlp"))
    assert (model.epochs, model.learning_rate, model.norm) == (2, 1e-3, False)
    for field in ("hidden", "batch_size", "augmentation", "distillation"):
        assert getattr(model, field) == getattr(start, field)


def test_what_is_done_is_used_again_and_seeds_belong_together(root: Path, runs: dict[str, ModelRun]) -> None:
    before = load_checkpoint(runs["mlpq"].checkpoint).network.state_dict()
    assert same(before, load_checkpoint(trained(root)["mlpq"].checkpoint).network.state_dict())
    trained(root, seed=1)
    assert set(over_seeds(current_model(root, "mlpq"))) == {0, 1}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Model(quantised_from="nobody"), "quantised from 'nobody', which is no single network above it"),
        (Model(quantised_from="q"), "quantised from 'q', which is no single network above it"),
        (Model(quantised_from="many"), "quantised from 'many', which is no single network above it"),
        (Model(quantised_from="mlp", hidden=[8]), "quantised from mlp: leave its shape away"),
    ],
)
def test_a_start_that_cannot_be_is_refused(section: Model, message: str) -> None:
    many = SMALL.model_copy(update={"members": 2})
    with pytest.raises(ValidationError, match=message):
        Recipe(name="mine", models={"mlp": SMALL, "many": many, "q": section})


def test_an_interrupted_one_goes_on(runs: dict[str, ModelRun]) -> None:
    start = load_checkpoint(runs["cnn"].checkpoint).network
    model = Model(**runs["cnnq"].decisive["model"])

    def new() -> Training:
        network = quantised(start, model.architecture, DATA.training.images)
        return Training(Job("cnnq", model, 0), DATA.training, DATA.validation, device=CPU, network=network)

    stopped = train(new(), epochs=1)
    resumed = new()
    resumed.restore(*stopped.state())
    assert same(train(resumed).kept, load_checkpoint(runs["cnnq"].checkpoint).network.state_dict())
