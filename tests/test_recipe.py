"""Recipes: every field is checked, names and digests tell them apart, and the schedules are what they say."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

from mnv3lib import Architecture, InputError, Recipe
from mnv3lib.recipe import RECIPES, is_usual, make, strides_for

# Another permitted value for each field; what must change with it is in the second dictionary.
OTHER = {
    "model": "v2",
    "width": 0.5,
    "num_classes": 10,
    "lowered_strides": 2,
    "nonlinearity": "relu",
    "hard_swish": "composed",
    "squeeze_excitation": "none",
    "se_last": True,
    "penultimate": 256,
    "dropout": 0.2,
    "initialization": "torch",
    "zero_init_residual": True,
    "norm_momentum": 0.05,
    "stochastic_depth": 0.1,
    "recipe": "original",
    "variant": "wide",
    "dataset": "digits",
    "data_digest": "0123456789ab",
    "start": "mobilenet_v2_0.5@0123456789ab",
    "freeze": "norms",
    "split": "holdout",
    "seed": 1,
    "epochs": 21,
    "batch_size": 64,
    "optimizer": "muon",
    "learning_rate": 0.2,
    "schedule": "constant",
    "step_epochs": 5,
    "step_factor": 0.5,
    "warmup": 0.1,
    "momentum": 0.8,
    "nesterov": True,
    "weight_decay": 1e-4,
    "depthwise_decay": False,
    "muon_learning_rate": 0.03,
    "muon_weight_decay": 0.1,
    "label_smoothing": 0.1,
    "crop": 2,
    "padding": "reflect",
    "flip": "alternating",
    "augmentation": "cutmix",
    "augmentation_share": 0.5,
    "average_epochs": 5,
    "image_sizes": (24, 32),
}
WITH_IT = {
    "num_classes": {"dataset": "digits"},
    "dataset": {"num_classes": 10},
    "data_digest": {"dataset": "flowers"},
    "freeze": {"start": "mobilenet_v2_0.5@0123456789ab"},
    "augmentation_share": {"augmentation": "mixup"},
}
FIELDS = [field.name for field in dataclasses.fields(Recipe)]


def test_every_field_has_another_value_here():
    assert list(OTHER) == FIELDS


def test_digests_differ_where_a_field_differs():
    recipes = [Recipe()] + [Recipe(**{name: OTHER[name]} | WITH_IT.get(name, {})) for name in FIELDS]
    # The data set and the number of its classes change together.
    assert len({made.digest for made in recipes}) == len(FIELDS)
    assert all(made.differences(Recipe().as_dict()) for made in recipes[1:])


def test_digests_are_equal_where_recipes_are():
    assert Recipe(width=1, learning_rate=1, dropout=0).digest == Recipe(width=1.0, learning_rate=1.0).digest
    assert Recipe(image_sizes=[24, 32]).digest == Recipe(image_sizes=(24, 32)).digest
    assert make("modern", seed=3).digest == make("modern", seed=3).digest


def test_differences_are_named():
    recorded = Recipe(epochs=3, crop=2).as_dict()
    assert set(Recipe().differences(recorded)) == {"epochs", "crop"}
    assert Recipe(epochs=3, crop=2).differences(json.loads(json.dumps(recorded))) == []
    # A record from before a field was added had what is the default now.
    del recorded["padding"]
    assert Recipe(epochs=3, crop=2).differences(recorded) == []


@pytest.mark.parametrize("name", FIELDS)
def test_as_dict_survives_json(name):
    made = Recipe(**{name: OTHER[name]} | WITH_IT.get(name, {}))
    assert Recipe(**json.loads(json.dumps(made.as_dict()))) == made


def test_architecture_has_the_fields_of_the_network():
    made = make("modern", model="v3_large", width=0.5, penultimate=256, nonlinearity="relu")
    assert type(made.architecture) is Architecture
    assert all(value == getattr(made, name) for name, value in dataclasses.asdict(made.architecture).items())


WRONG = [
    (dict(recipe="best"), "recipe 'best'.*original, modern"),
    (dict(variant="a/b"), "variant 'a/b'"),
    (dict(variant="a_b"), "variant 'a_b'"),
    (dict(variant="x" * 61), "variant.*60"),
    (dict(variant=3), "variant 3"),
    (dict(dataset="cifar10"), "data set 'cifar10'.*cifar100, digits"),
    (dict(dataset="my flowers", data_digest="0123456789ab"), "data set 'my flowers'"),
    (dict(dataset="flowers", data_digest="../0123456789"), "data set 'flowers'"),
    (dict(data_digest="0123456789ab"), "data_digest '0123456789ab': cifar100 has none"),
    (dict(start="a/b"), "start 'a/b'"),
    (dict(freeze="all"), "freeze 'all'.*nothing, norms, features"),
    (dict(freeze="norms"), "freeze norms.*start"),
    (dict(augmentation_share=0.5), "augmentation_share 0.5: name an augmentation too"),
    (dict(augmentation_share=0.0, augmentation="mixup"), "augmentation_share 0"),
    (dict(average_epochs=21), "average_epochs 21: there are 20 epochs"),
    (dict(stochastic_depth=1.0), "stochastic_depth 1"),
    (dict(stochastic_depth=0.1, model="v1"), "stochastic_depth: v1 has no residuals"),
    (dict(split="test"), "split 'test'.*full, holdout"),
    (dict(seed=-1), "seed -1"),
    (dict(seed=0.5), "seed 0.5"),
    (dict(epochs=0), "epochs 0"),
    (dict(epochs="20"), "epochs '20'"),
    (dict(batch_size=1), "batch_size 1"),
    (dict(optimizer="adam"), "optimizer 'adam'.*sgd, muon, rmsprop, adamw"),
    (dict(learning_rate=0), "learning_rate 0"),
    (dict(learning_rate=math.nan), "learning_rate nan"),
    (dict(learning_rate="fast"), "learning_rate 'fast'"),
    (dict(schedule="triangle"), "schedule 'triangle'.*one_cycle, cosine, constant, step"),
    (dict(step_epochs=0), "step_epochs 0"),
    (dict(step_factor=1.5), "step_factor 1.5"),
    (dict(augmentation="cutout"), "augmentation 'cutout'.*trivialaugment, erasing, cutmix, mixup"),
    (dict(warmup=1.1), "warmup 1.1"),
    (dict(momentum=-0.9), "momentum -0.9"),
    (dict(nesterov="yes"), "nesterov 'yes'"),
    (dict(depthwise_decay=1.5), "depthwise_decay 1.5"),
    (dict(nesterov=True, momentum=0.0), "nesterov.*momentum"),
    (dict(optimizer="adamw", momentum=1), "momentum 1: adamw"),
    (dict(weight_decay=-1e-4), "weight_decay -0.0001"),
    (dict(muon_learning_rate=0), "muon_learning_rate 0"),
    (dict(muon_weight_decay=2), "muon_weight_decay 2"),
    (dict(label_smoothing=1.5), "label_smoothing 1.5"),
    (dict(crop=17), "crop 17.*16"),
    (dict(crop=2.0), "crop 2.0"),
    (dict(padding="edge"), "padding 'edge'.*zero, reflect"),
    (dict(flip="both"), "flip 'both'.*none, random, alternating"),
    (dict(image_sizes=()), "image_sizes"),
    (dict(image_sizes=32), "image_sizes 32"),
    (dict(image_sizes=(32, 4)), "image_sizes 4"),
    (dict(image_sizes=(16, 24, 32), epochs=2), "image_sizes: 3 sizes in 2 epochs: give 3 epochs or fewer sizes"),
    (dict(image_sizes=("32",)), "image_sizes '32'"),
    (dict(num_classes=10), "num_classes 10: cifar100 has 100"),
    (dict(model="v4"), "model 'v4'"),
    (dict(width=0), "width 0"),
    (dict(lowered_strides=9), "lowered_strides 9"),
    (dict(dropout=2), "dropout 2"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_impossible_values_are_named(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        Recipe(**changes)
    assert "\n" not in str(caught.value)


def test_unknown_field_and_recipe_are_named():
    with pytest.raises(InputError, match=r"'epoch'.*epochs"):
        make("modern", epoch=3)
    with pytest.raises(InputError, match=r"'new'.*original, modern"):
        make("new")
    for dataset in ("mnist", ["digits"], {}):
        with pytest.raises(InputError, match=re.escape(f"data set {dataset!r}: choose from cifar100, digits")):
            make(dataset=dataset)


def test_the_original_recipe_is_the_reports():
    made = make("original")
    assert (made.epochs, made.batch_size, made.optimizer, made.momentum) == (20, 128, "sgd", 0.9)
    assert (made.weight_decay, made.dropout, made.crop, made.flip) == (0.0, 0.0, 4, "random")
    assert (made.learning_rate, made.schedule, made.warmup) == (0.1, "cosine", 0.0)
    assert made.label_smoothing == 0.0
    assert made.lowered_strides == 3


@pytest.mark.parametrize("name", RECIPES)
def test_named_recipes(name):
    made = make(name, model="v2", width=0.35, seed=2)
    assert (made.recipe, made.model, made.width, made.seed) == (name, "v2", 0.35, 2)
    assert all(getattr(made, field) == value for field, value in RECIPES[name].items())
    assert make(name, dataset="digits").num_classes == 10


def test_modern_decays_wide_networks_less():
    assert {make(width=width).weight_decay for width in (0.1, 0.25, 0.49)} == {5e-4}
    assert {make(model="v2", width=width).weight_decay for width in (0.5, 1, 1.4)} == {2e-4}
    assert make(width=1.0, weight_decay=5e-4).weight_decay == 5e-4
    assert make("original", width=1.0).weight_decay == 0


def test_one_is_true_in_digests_too():
    assert make(nesterov=1).digest == make(nesterov=True).digest


def test_numpys_numbers_are_numbers():
    made = make(width=np.float32(0.5), epochs=np.int64(3), seed=np.int32(1), image_sizes=list(np.array([16, 32])))
    plain = make(width=0.5, epochs=3, seed=1, image_sizes=(16, 32))
    assert made.digest == plain.digest and json.dumps(made.as_dict()) == json.dumps(plain.as_dict())


def test_recorded_digests_stay_what_they_were():
    assert make(width=0.25).digest == "7ec386116aec"  # a run in progress is found again by it


def test_strides_follow_the_size_so_that_the_last_maps_are_about_as_wide_as_in_the_papers():
    assert [strides_for(size) for size in (32, 64, 128, 224)] == [3, 2, 1, 0]
    assert all(5 <= math.ceil(size / 2 ** (5 - strides_for(size))) <= 11 for size in range(28, 300))


def test_usual_is_modern_as_it_stands():
    for made in (make(model="v2", width=0.35), make(width=1.0, seed=3)):
        assert is_usual(made.as_dict())
        for change in (dict(epochs=1), dict(learning_rate=0.01), dict(lowered_strides=0), dict(variant="wide")):
            assert not is_usual(dataclasses.replace(made, **change).as_dict()), change
    assert not is_usual(make(width=1.0, weight_decay=5e-4).as_dict())
    assert not is_usual(make("original").as_dict())


def test_run_names():
    assert make(width=0.25).run == "mobilenet_v3_small_0.25"
    assert make(model="v3_large", width=1).run == "mobilenet_v3_large_1.0"
    assert make(model="v1", seed=1).run == "mobilenet_v1_1.0_seed1"
    assert make("original").run == "mobilenet_v3_small_1.0_original"
    assert (
        make("original", dataset="digits", split="holdout", variant="no-se", seed=2).run
        == "mobilenet_v3_small_1.0_original_digits_holdout_no-se_seed2"
    )


def test_recipes_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().epochs = 3


def test_one_cycle():
    made = Recipe(schedule="one_cycle", warmup=0.2)
    assert [made.rate(p) for p in (0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.5, 1, 0.5])
    assert made.rate(1 - 1e-9) == pytest.approx(0, abs=1e-6)
    assert Recipe(schedule="one_cycle").rate(0) == 1


def test_cosine():
    made = Recipe(schedule="cosine")
    assert [made.rate(p) for p in (0, 1 / 3, 0.5, 2 / 3)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert made.rate(1 - 1e-9) == pytest.approx(0, abs=1e-6)
    warmed = Recipe(schedule="cosine", warmup=0.5)
    assert [warmed.rate(p) for p in (0, 0.25, 0.5, 0.75)] == pytest.approx([0, 0.5, 1, 0.5])


def test_constant():
    made = Recipe(schedule="constant", warmup=0.1)
    assert [made.rate(p) for p in (0.05, 0.1, 0.5, 0.999)] == pytest.approx([0.5, 1, 1, 1])


def test_step_is_torchs():
    """The paper's: a hundredth less after every three epochs; with the progress that training has after n steps."""
    made = Recipe(schedule="step", epochs=8)
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), step_size=3, gamma=0.99)
    for epoch in range(8):
        (theirs,) = scheduler.get_last_lr()
        for step in (0, 38):
            assert made.rate((39 * epoch + step + 1) / (39 * 8 + 1)) == pytest.approx(theirs)
        scheduler.optimizer.step()
        scheduler.step()
    assert Recipe(schedule="step", epochs=10, warmup=0.2).rate(0.1) == 0.5


def test_mean_rate():
    means = [
        (dict(schedule="one_cycle", warmup=0.2), 0.5),
        (dict(schedule="cosine"), 0.5),
        (dict(schedule="constant", warmup=0.2), 0.9),
        (dict(schedule="step", epochs=10, step_epochs=4, step_factor=0.1), 0.4 + 0.04 + 0.002),
    ]
    for changes, mean in means:
        assert Recipe(**changes).mean_rate == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant", "step"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_rates_are_factors(schedule, warmup):
    made = Recipe(schedule=schedule, warmup=warmup)
    assert all(0 <= made.rate(step / 1000) <= 1 for step in range(1000))


def test_image_sizes_share_the_epochs():
    made = Recipe(epochs=8, image_sizes=(20, 24, 32))
    assert [made.image_size(epoch) for epoch in range(8)] == [20, 20, 20, 24, 24, 24, 32, 32]
    assert {Recipe(epochs=5).image_size(epoch) for epoch in range(5)} == {32}


@pytest.mark.parametrize("name", ["dropout", "penultimate", "norm_momentum"])
def test_none_is_what_the_paper_says(name):
    assert getattr(make("modern", **{name: None}), name) is None
