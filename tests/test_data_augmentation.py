"""Augmentation beyond crop and flip: what it does to a batch, to the labels and to training."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from mnv3lib import data, training
from mnv3lib.data import Augmentation

CLASSES = 10


@pytest.fixture
def batch():
    """Eight images, each of one colour that is its number, and labels from 2 on."""
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1).expand(8, 16, 16, 3).contiguous()
    return images, torch.arange(8) + 2


def augment(name, images, labels, seed=0, share=1.0):
    torch.manual_seed(seed)
    augmentation = Augmentation(name, CLASSES, share)
    inputs = augmentation.pixels(images).permute(0, 3, 1, 2).float()
    return augmentation.inputs(inputs, labels)


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_targets_are_the_shares_of_the_pixels(name, batch):
    """Each image holds as much of its neighbour as its target says, and targets are shares that sum to one."""
    for seed in range(5):
        inputs, targets = augment(name, *batch, seed=seed)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        classes = torch.arange(CLASSES) - 2.0  # the number in the pixels of each class
        torch.testing.assert_close(inputs.mean((1, 2, 3)), (targets * classes).sum(1))


def test_cutmix_pastes_one_box_and_mixup_blends(batch):
    cut, _ = augment("cutmix", *batch, seed=3)
    assert set(cut[4].unique().tolist()) == {3.0, 4.0}
    pasted = (cut[4, 0] == 3.0).nonzero()
    height, width = (pasted.max(0).values - pasted.min(0).values + 1).tolist()
    assert len(pasted) == height * width
    mixed, _ = augment("mixup", *batch, seed=3)
    assert len(mixed[4].unique()) == 1 and 3.0 < mixed[4, 0, 0, 0] < 4.0


def test_mixing_is_another_each_time(batch):
    torch.manual_seed(0)
    augmentation = Augmentation("mixup", CLASSES)
    inputs = batch[0].permute(0, 3, 1, 2).float()
    first, second = (augmentation.inputs(inputs, batch[1])[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_erasing_fills_a_box_of_half_of_the_images_with_the_mean(digits):
    images, labels = digits.train.images[:400], digits.train.labels[:400]
    inputs = data.normalise(images, digits.mean, digits.std)
    torch.manual_seed(0)
    erased, same = Augmentation("erasing", CLASSES).inputs(inputs, labels)
    assert torch.equal(same, labels)
    changed = (erased != inputs).any(1)  # [n, height, width]
    touched = changed.flatten(1).any(1)
    assert 0.4 < touched.float().mean() < 0.6
    assert (erased.permute(0, 2, 3, 1)[changed] == 0).all()
    for box in changed[touched][:20]:
        corners = box.nonzero()
        height, width = (corners.max(0).values - corners.min(0).values + 1).tolist()
        assert len(corners) == height * width <= 0.34 * 32 * 32


def test_trivialaugment_treats_each_image_by_itself_as_torchvision_does(digits):
    images = digits.train.images[:32]
    torch.manual_seed(5)
    ours = Augmentation("trivialaugment", CLASSES).pixels(images)
    torch.manual_seed(5)
    transform = v2.TrivialAugmentWide()
    theirs = torch.stack([transform(image.permute(2, 0, 1)) for image in images]).permute(0, 2, 3, 1)
    assert ours.dtype == torch.uint8 and torch.equal(ours, theirs)
    assert 16 <= sum(not torch.equal(a, b) for a, b in zip(ours, images, strict=True)) < 32


@pytest.mark.parametrize("name", ["trivialaugment", "erasing", "cutmix", "mixup"])
def test_training_uses_it(name, tiny, few_digits, monkeypatch):
    """The loss is that of the augmented images and their targets: other weights come out than without."""
    seen, cross_entropy = [], F.cross_entropy

    def spy(logits, targets, **options):
        seen.append(targets.dtype)
        return cross_entropy(logits, targets, **options)

    monkeypatch.setattr(F, "cross_entropy", spy)
    plain, augmented = (
        training.fit_recipe(tiny(augmentation=one), few_digits, log=lambda line: None) for one in ("none", name)
    )
    assert plain.history[0]["train_loss"] != augmented.history[0]["train_loss"]
    mixing = name in ("cutmix", "mixup")
    assert seen == [torch.int64] * 3 + [torch.float32 if mixing else torch.int64] * 3


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_a_share_of_the_batches_is_mixed(name, batch):
    """The others keep their images; their targets have the same form, for a captured step."""
    plain = batch[0].permute(0, 3, 1, 2).float()
    mixed = 0
    for seed in range(200):
        inputs, targets = augment(name, *batch, seed=seed, share=0.3)
        assert targets.shape == (8, CLASSES) and targets.dtype == torch.float32
        if torch.equal(inputs, plain):
            assert torch.equal(targets, F.one_hot(batch[1], CLASSES).float())
        else:
            mixed += 1
    assert 30 < mixed < 90


@pytest.mark.parametrize("name", ["trivialaugment", "erasing"])
def test_a_share_of_the_images_is_changed(name, digits):
    images, labels = digits.train.images[:300], digits.train.labels[:300]
    plain = images.permute(0, 3, 1, 2).float()
    changed = {}
    for share in (1.0, 0.4):
        inputs, same = augment(name, images, labels, share=share)
        assert torch.equal(same, labels)
        changed[share] = (inputs != plain).flatten(1).any(1).float().mean().item()
    assert changed[0.4] == pytest.approx(0.4 * changed[1.0], abs=0.08)


def test_none_draws_nothing():
    """Recipes without it are as they were before it existed: no number of the generator is used up."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    Augmentation("none", CLASSES).pixels(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert torch.equal(torch.rand(1), expected)
