"""Remains of a neighbouring digit: what a cut between two touching digits leaves of the one and takes of the other."""

import torch
from torch import Tensor

from training.data.augmentation import augment
from training.data.neighbours import Neighbours, add_neighbours
from training.recipe.schema import Augmentation

COLUMNS = torch.arange(28)


def bars(*columns: range) -> Tensor:
    """Images of one vertical bar each, over 20 rows; `float32 [N, 28, 28]`."""
    images = torch.zeros(len(columns), 28, 28)
    for image, each in zip(images, columns, strict=True):
        image[4:24, list(each)] = 255
    return images


def neighbours(*, left: bool, overlap: float, offset: float) -> Neighbours:
    """The second image beside the first one."""
    return Neighbours(
        torch.tensor([0]),
        torch.tensor([1]),
        torch.tensor([left]),
        torch.tensor([overlap]),
        torch.tensor([1.0]),
        torch.tensor([offset]),
    )


def with_ink(image: Tensor) -> list[int]:
    return COLUMNS[(image > 127).any(0)].tolist()


def test_the_other_digit_touches_and_is_cut_off() -> None:
    images = bars(range(12, 16), range(12, 16))
    for left in (False, True):
        cut = add_neighbours(images.clone(), neighbours(left=left, overlap=0, offset=0))[0]
        assert torch.equal(cut, images[0])


def test_a_cut_behind_the_middle_leaves_remains_and_one_before_it_takes_ink() -> None:
    images = bars(range(12, 16), range(12, 16))
    for left, remains, taken in (
        (False, [12, 13, 14, 15, 16, 17], [12, 13]),
        (True, [10, 11, 12, 13, 14, 15], [14, 15]),
    ):
        behind = add_neighbours(images.clone(), neighbours(left=left, overlap=0, offset=2))[0]
        before = add_neighbours(images.clone(), neighbours(left=left, overlap=0, offset=-2))[0]
        assert (with_ink(behind), with_ink(before)) == (remains, taken)


def test_digits_overlap_by_the_amount_drawn() -> None:
    images = bars(range(12, 16), range(12, 16))
    apart, overlapping = (
        add_neighbours(images.clone(), neighbours(left=False, overlap=overlap, offset=9))[0]
        for overlap in (0, 1)
    )
    assert with_ink(apart) == [*range(12, 20)]
    assert with_ink(overlapping) == [*range(12, 19)]


def test_without_ink_nothing_is_added() -> None:
    assert not add_neighbours(torch.zeros(2, 28, 28), neighbours(left=True, overlap=1, offset=2)).any()


def test_a_share_of_the_digits_gets_a_neighbour_reproducibly() -> None:
    images = torch.randint(0, 256, (2_000, 28, 28), dtype=torch.uint8, generator=seeded(1))
    images[:, :, :8] = images[:, :, 20:] = 0
    settings = Augmentation(neighbour=0.25)
    assert settings.enabled
    changed = augment(images, settings, random=seeded(0))
    assert torch.equal(changed, augment(images, settings, random=seeded(0)))
    share = (changed != images).flatten(1).any(1).float().mean().item()
    assert 0.2 < share < 0.3
    drawn = Neighbours.draw(10_000, 0.5, seeded(2))
    assert 0.45 < len(drawn.digits) / 10_000 < 0.55
    assert drawn.others.min() >= 0
    assert drawn.others.max() < 10_000
    assert 0.4 < drawn.left.float().mean() < 0.6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
