"""Outputs of networks: background padding, dropout, and the mean of an ensemble."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.support.training.samples import sample_test
from tests.support.training.trainings import SMALL
from training.loop.trainer import predict
from training.model.network import BLACK, Classifier, Ensemble, build, normalise
from training.recipe.schema import Architecture, Model


@pytest.mark.parametrize(
    ("architecture", "text", "parameters"),
    [
        (
            Architecture(hidden=[1200, 1200]),
            "784-1200-1200-10",
            784 * 1200 + 1200**2 + 1200 * 10 + 10 + 6 * 1200,
        ),
        (Architecture(hidden=[16], norm=False), "784-16-10", 784 * 16 + 16 + 16 * 10 + 10),
        (Architecture(), "784-10", 7850),
        (
            Architecture(stages=[[4, 6], [8]], hidden=[5], members=2),
            "2 × 784-conv4+6-conv8-5-10",
            2 * ((9 + 3) * 4 + (4 * 9 + 3) * 6 + (6 * 9 + 3) * 8 + (7 * 7 * 8 + 3) * 5 + 5 * 10 + 10),
        ),
        (
            Architecture(stages=[[2]] * 4),
            "784-conv2-conv2-conv2-conv2-10",
            (9 + 3) * 2 + 3 * (18 + 3) * 2 + 30,
        ),
    ],
)
def test_an_architecture_has_its_shape_and_parameters(
    architecture: Architecture, text: str, parameters: int
) -> None:
    network = build(architecture)
    assert str(architecture) == text
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert predict(network, sample_test().images[:3]).shape == (3, 10)


def test_images_are_padded_with_background() -> None:
    images = sample_test().images[:50]
    network = Classifier([], stages=[[5]], norm=False).eval()
    conv = network.convolutions[0].conv
    canvas = functional.pad(images, (1, 1, 1, 1), value=0)  # as uint8, before anything is normalised
    inputs = normalise(canvas).reshape(-1, 1, 30, 30)
    expected = functional.max_pool2d(torch.relu(functional.conv2d(inputs, conv.weight, conv.bias)), 2)
    found = network.convolutions[0](normalise(images).reshape(-1, 1, 28, 28))
    torch.testing.assert_close(found, expected)
    black = network.convolutions[0](torch.full((1, 1, 28, 28), BLACK))
    torch.testing.assert_close(black, black[:, :, :1, :1].expand_as(black))  # no visible edge


def test_initial_weights_follow_the_notebook() -> None:
    torch.manual_seed(0)
    network = Classifier([1200, 1200])
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm1d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.005)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()


def test_dropout_applies_to_the_inputs_of_each_layer_in_training_only() -> None:
    torch.manual_seed(0)
    network = Classifier([50, 50], stages=[[8]], norm=False, dropout=0.5)
    seen: list[torch.Tensor] = []
    for layer in (
        network.convolutions[0],
        network.hidden[0].linear,
        network.hidden[1].linear,
        network.output,
    ):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    network.train()(torch.ones(8, 784))
    network.eval()(torch.ones(8, 784))
    # Eight equal images: differences come from dropout.
    assert [len(inputs.unique(dim=0)) > 1 for inputs in seen] == [False, True, True, True, *[False] * 4]


def test_an_ensemble_returns_the_mean_log_probabilities_of_its_members() -> None:
    torch.manual_seed(0)
    members = [Classifier([8]), Classifier([8]), Classifier([8])]
    network, images = Ensemble(members), sample_test().images
    logs = [torch.log_softmax(predict(member, images).double(), dim=1) for member in members]
    torch.testing.assert_close(predict(network, images).double(), sum(logs) / 3, rtol=0, atol=1e-5)
    assert network.train()(normalise(images)).shape == (3 * 200, 10)


def test_members_start_from_different_weights() -> None:
    network = build(Architecture(hidden=[8], members=2))
    assert isinstance(network, Ensemble)
    first, second = (member.output.weight for member in network.members)
    assert not torch.equal(first, second)


def test_a_model_has_its_architecture() -> None:
    model = Model(stages=[[4]], hidden=[8], members=3, epochs=9, dropout=0.1)
    assert model.architecture == Architecture(stages=[[4]], hidden=[8], members=3)
    assert SMALL.architecture.model_dump() == {"stages": [], "hidden": [32, 24], "norm": True, "members": 1}
