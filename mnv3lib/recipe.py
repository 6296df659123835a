"""What defines a network and a training run: the fields of both, checked, and the named recipes. Needs no torch."""

import dataclasses
import hashlib
import inspect
import json
import math
import re
from dataclasses import dataclass

from mnv3lib.errors import InputError, choose, whole, within

SHORT_NAMES = {"v1": "V1", "v2": "V2", "v3_small": "V3 Small", "v3_large": "V3 Large"}
MODELS = tuple(SHORT_NAMES)
STRIDES = 5  # every one of the four networks halves its input five times, the stem first
MAX_WIDTH = 4.0
DATASETS = {"cifar100": 100, "digits": 10}  # and how many classes each has
OWN = r"[a-z0-9][a-z0-9.+-]{0,39}"  # how a data set of one's own may be called
VARIANT = r"[A-Za-z0-9.+-]{0,60}"

# What the fields may be: one of several names,
CHOICES = {
    "model": MODELS,
    "nonlinearity": ("paper", "relu", "hard_swish"),
    "hard_swish": ("fused", "composed"),
    "squeeze_excitation": ("paper", "none", "all"),
    "initialization": ("torch", "kaiming_normal", "truncated_normal"),
    "recipe": ("original", "modern", "finetune"),
    "freeze": ("nothing", "norms", "features"),
    "split": ("full", "holdout"),
    "optimizer": ("sgd", "muon", "rmsprop", "adamw"),
    "schedule": ("one_cycle", "cosine", "constant", "step"),
    "padding": ("zero", "reflect"),
    "flip": ("none", "random", "alternating"),
    "augmentation": ("none", "trivialaugment", "erasing", "cutmix", "mixup"),  # see data.Augmentation
}
SIZES = 8, 512  # pixels a side
# a whole number within bounds,
WHOLE = {
    "num_classes": (1, 100_000),
    "lowered_strides": (0, STRIDES),
    "penultimate": (0, 100_000),
    "seed": (0, 1_000_000),
    "epochs": (1, 10_000),
    "average_epochs": (0, 10_000),
    "batch_size": (2, 100_000),
    "step_epochs": (1, 10_000),
    "crop": (0, 16),
}
# or a number: ABOVE_ZERO has the upper bounds of those that may not be 0, MOST those of all that do not end at 1.
ABOVE_ZERO = {
    "width": MAX_WIDTH,
    "norm_momentum": 1,
    "learning_rate": 100,
    "muon_learning_rate": 100,
    "augmentation_share": 1,
}
MOST = ABOVE_ZERO | {"dropout": 0.99, "stochastic_depth": 0.99}


@dataclass(frozen=True)
class Architecture:
    """Everything that defines a network. An impossible value raises InputError (a ValueError) that names it.

    model: v1, v2, v3_small or v3_large.
    width: the papers' width multiplier, 0 < width <= 4. The penultimate layer is not narrowed below 1, as in the V2 and
        V3 papers and their code (torchvision narrows V3's).
    num_classes: length of the logits.
    lowered_strides: how many of the five stride-2 layers, stem included and from the input on, run at stride 1.
        0 is the papers' network for 224 px; 3 keeps 8x8 maps for the last 5x5 layers at 32 px (7x7 in the paper).
    nonlinearity: paper, relu or hard_swish (everywhere).
    hard_swish: fused (torch's kernel) or composed (from primitives).
    squeeze_excitation: paper, none or all (in every block).
    se_last: squeeze-excitation on Small's last 1x1 convolution; table 2 of the V3 paper ticks it, the code has none.
    penultimate: channels of the layer before the classifier, not scaled by width; None: the paper's, 0: no such layer.
    dropout: probability of dropping, before the classifier; None: as in torchvision (0 for V1).
    initialization: torch (its default), kaiming_normal (fan-out, as torchvision) or truncated_normal (standard
        deviation 0.09, as the official code).
    zero_init_residual: start each block that has a residual as the identity.
    norm_momentum: batch norm's weight of the newest batch; None: as in torchvision (0.01 for V3, the paper's 0.99).
    stochastic_depth: how likely it is in training that an image skips the last of the blocks that have a residual;
        less for those before, in equal steps from zero (Huang et al. 2016).
    """

    model: str
    width: float = 1.0
    num_classes: int = 100
    lowered_strides: int = 3
    nonlinearity: str = "paper"
    hard_swish: str = "fused"
    squeeze_excitation: str = "paper"
    se_last: bool = False
    penultimate: int | None = None
    dropout: float | None = None
    initialization: str = "kaiming_normal"
    zero_init_residual: bool = False
    norm_momentum: float | None = None
    stochastic_depth: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in CHOICES:
                choose(name, value, CHOICES[name])
            elif field.type is bool:
                choose(name, value, (False, True))
                object.__setattr__(self, name, bool(value))  # 1 is True, in digests too
            elif value is None and field.type in (int | None, float | None):
                continue
            elif name in WHOLE:
                whole(name, value, *WHOLE[name])
                object.__setattr__(self, name, int(value))  # JSON knows none of NumPy's
            elif field.type in (float, float | None):
                within(name, value, 0, MOST.get(name, 1), above=name in ABOVE_ZERO)
                object.__setattr__(self, name, float(value))  # a width of 1 is one of 1.0, in names and digests too
        if self.model == "v1" and self.penultimate:
            raise InputError("penultimate: v1 has no such layer; leave it at None")
        if self.se_last and self.model != "v3_small":
            raise InputError(f"se_last: only v3_small has it in the paper's table, not {self.model}")
        if self.model == "v1" and self.stochastic_depth:
            raise InputError("stochastic_depth: v1 has no residuals; leave it at 0")


@dataclass(frozen=True)
class Recipe(Architecture):
    """The network (the fields of Architecture) and how it is trained. An impossible value raises InputError.

    recipe: the name it goes by; part of the run's name.
    variant: what a comparison calls a changed recipe; part of the run's name too.
    dataset: cifar100, digits, or the name of a data set of one's own.
    data_digest: what such images of one's own are known by; see folders.
    start: the trained network that it starts from, by its name and digest (see transfer); empty: random weights.
    freeze: which layers of a trained network are not trained on: nothing, norms (batch normalisation) or features (all
        but the last).
    split: full (train on the whole training set, measure on the test set) or holdout (train on 90 % of the training
        set, measure on the other 10 %; for every choice, so that none is made on the test set).
    seed: what the initial weights, the order of the images and the augmentation are drawn with.
    epochs: passes over the training images; each leaves out the last batch if it is not full.
    batch_size: images a step.
    optimizer: sgd, muon (torch.optim.Muon for the pointwise convolutions, SGD for the rest), rmsprop (squares decaying
        by 0.9, epsilon 0.0316, as torchvision's reference training of V3) or adamw.
    learning_rate: the highest learning rate of the schedule.
    schedule: how the learning rate falls after the warm-up: one_cycle (linear to zero), cosine (to zero), constant, or
        step (times step_factor whenever step_epochs epochs are over).
    step_epochs: epochs between two steps; by default the V3 paper's, section 6.1.1.
    step_factor: what a step multiplies the learning rate by; by default the V3 paper's, section 6.1.1.
    warmup: the share of steps in which the learning rate rises linearly from zero.
    momentum: the momentum of SGD and RMSProp; AdamW's first beta. Muon keeps torch's 0.95.
    nesterov: whether SGD looks ahead along its momentum.
    weight_decay: the decay of kernels and matrices; biases and norms have none.
    depthwise_decay: whether depthwise kernels decay too (the V1 paper, section 3.2, advises little or none there).
    muon_learning_rate: the learning rate of the pointwise convolutions, with the optimizer muon.
    muon_weight_decay: the weight decay of the pointwise convolutions, with the optimizer muon.
    label_smoothing: share of the target spread over all classes.
    crop: pixels of padding for the random crop.
    padding: what is around an image for the random crop, zero (black) or reflect (the mirrored image).
    flip: how images are mirrored: none, random or alternating (in every second epoch).
    augmentation: what is done beyond crop and flip: none, trivialaugment, erasing, cutmix or mixup (torchvision's, at
        its defaults).
    augmentation_share: how many of the images (trivialaugment, erasing) or batches (cutmix, mixup) get it.
    average_epochs: stochastic weight averaging (SWA, Izmailov et al. 2018): the weights at the end of so many last
        epochs are averaged, and batch norm's statistics taken anew from the training images; 0 and 1 keep the last.
    image_sizes: pixels a side, the epochs shared out among them evenly; the last size is the one it is measured at.
    """

    model: str = "v3_small"
    dropout: float | None = 0.0
    recipe: str = "modern"
    variant: str = ""
    dataset: str = "cifar100"
    data_digest: str = ""
    start: str = ""
    freeze: str = "nothing"
    split: str = "full"
    seed: int = 0
    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    step_epochs: int = 3
    step_factor: float = 0.99
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    depthwise_decay: bool = True
    muon_learning_rate: float = 0.02
    muon_weight_decay: float = 0.0
    label_smoothing: float = 0.0
    crop: int = 4
    padding: str = "zero"
    flip: str = "random"
    augmentation: str = "none"
    augmentation_share: float = 1.0
    average_epochs: int = 0
    image_sizes: tuple[int, ...] = (32,)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.variant, str) or not re.fullmatch(VARIANT, self.variant):
            raise InputError(f"variant {self.variant!r}: use letters, digits and . + - alone, 60 at most")
        if self.nesterov and not self.momentum:
            raise InputError("nesterov: it needs a momentum above 0")
        if self.optimizer == "adamw" and self.momentum == 1:
            raise InputError(f"momentum {self.momentum:g}: adamw needs one below 1")
        if self.augmentation == "none" and self.augmentation_share != 1:
            raise InputError(f"augmentation_share {self.augmentation_share:g}: name an augmentation too")
        if self.average_epochs > self.epochs:
            raise InputError(f"average_epochs {self.average_epochs}: there are {self.epochs} epochs")
        if not isinstance(self.image_sizes, tuple | list) or not self.image_sizes:
            raise InputError(f"image_sizes {self.image_sizes!r}: give a list of at least one size in pixels")
        object.__setattr__(self, "image_sizes", tuple(self.image_sizes))  # JSON and YAML have lists
        for size in self.image_sizes:
            whole("image_sizes", size, *SIZES)
        object.__setattr__(self, "image_sizes", tuple(map(int, self.image_sizes)))
        if len(self.image_sizes) > self.epochs:  # it would be measured at a size that it was never trained at
            count = len(self.image_sizes)
            raise InputError(f"image_sizes: {count} sizes in {self.epochs} epochs: give {count} epochs or fewer sizes")
        _check_dataset(self.dataset, self.data_digest)
        if self.num_classes != DATASETS.get(self.dataset, self.num_classes):
            raise InputError(f"num_classes {self.num_classes}: {self.dataset} has {DATASETS[self.dataset]} classes")
        if not isinstance(self.start, str) or not re.fullmatch(r"[A-Za-z0-9_.+@-]{0,220}", self.start):
            raise InputError(f"start {self.start!r}: give the name of a run, and after an @ the digest of its weights")
        if self.freeze != "nothing" and not self.start:
            raise InputError(f"freeze {self.freeze}: without a network to start from it would hold random weights")

    @property
    def run(self) -> str:
        """The name of the run: mobilenet_v3_small_0.25, with what is not usual behind it (_original, _seed1)."""
        parts = ["mobilenet", self.model, str(float(self.width))]
        if self.recipe != "modern":
            parts.append(self.recipe)
        if self.dataset != "cifar100":
            parts.append(self.dataset)
        if self.split != "full":
            parts.append(self.split)
        if self.variant:
            parts.append(self.variant)
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "_".join(parts)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that differ wherever two recipes differ.

        Fields at their default do not count, so a run in progress is found again after a field was added.
        """
        chosen = {name: value for name, value in self.as_dict().items() if value != DEFAULTS[name]}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]

    def differences(self, recorded: dict) -> list[str]:
        """The fields in which the recipe of a record differs; what a record does not have counts as the default."""
        return [name for name, value in self.as_dict().items() if recorded.get(name, DEFAULTS[name]) != value]

    @property
    def architecture(self) -> Architecture:
        return Architecture(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Architecture)})

    def as_dict(self) -> dict:
        """The fields as JSON knows them."""
        return dataclasses.asdict(self) | {"image_sizes": list(self.image_sizes)}

    def image_size(self, epoch: int) -> int:
        """Pixels a side in `epoch`, counted from 0."""
        return self.image_sizes[epoch * len(self.image_sizes) // self.epochs]

    def rate(self, progress: float) -> float:
        """The schedule's factor of the learning rate when a share `progress`, in [0, 1), of the steps is done."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return self.step_factor ** (int(progress * self.epochs) // self.step_epochs)
        rest = (progress - self.warmup) / (1 - self.warmup)
        return 1 - rest if self.schedule == "one_cycle" else (1 + math.cos(math.pi * rest)) / 2

    @property
    def mean_rate(self) -> float:
        """The mean of the schedule's factor over the run."""
        return math.fsum(self.rate((part + 0.5) / 10_000) for part in range(10_000)) / 10_000


def meanings() -> dict[str, str]:
    """What the docstrings of Architecture and Recipe say of each field, in lines of the form `name: text`."""
    found = {}
    for documented in (Architecture, Recipe):
        text = inspect.cleandoc(documented.__doc__)  # Python 3.13 has taken the indentation away already
        found |= re.findall(r"^(\w+): (.*(?:\n    .*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in found.items()}


def is_usual(recorded: dict) -> bool:
    """Whether the recipe of a record is `modern` as it stands; the seed is left open."""
    usual = make("modern", **{name: recorded[name] for name in ("model", "width", "seed")})
    return not usual.differences(recorded)


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)} | {"image_sizes": [32]}

RECIPES = {
    # The earlier report's, as far as it tells. Learning rate and schedule it does not: 0.1 and cosine are ours.
    "original": dict(learning_rate=0.1, schedule="cosine", momentum=0.9),
    # Chosen on 5,000 held-out training images (notebooks/tuning.yaml; what each change gave is in results/tuning). The
    # weight decay is that of narrow networks.
    "modern": dict(
        learning_rate=0.6,
        schedule="one_cycle",
        warmup=0.2,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        label_smoothing=0.05,
        norm_momentum=0.1,
        crop=2,
        padding="reflect",
        flip="alternating",
    ),
}
# For a network that starts from a trained one.
RECIPES["finetune"] = RECIPES["modern"] | dict(batch_size=32, learning_rate=0.05, weight_decay=2e-4)

# `modern` decays the weights of wide networks less, which was found as the rest of it was: V3 Large 0.5 and Small 1.0
# gain 4.4 and 2.9 points by it. For V3 Small 0.25 it made no difference (at half the learning rate).
WIDE, WIDE_DECAY = 0.5, 2e-4


def make(recipe: str = "modern", **changes) -> Recipe:
    """The recipe called `recipe` with some fields changed, e.g. `make("modern", model="v2", width=0.35, seed=1)`.

    `num_classes` follows `dataset`, where that is not one's own, and the weight decay of `modern` is WIDE_DECAY from
    the width WIDE on. Raises InputError on an unknown field or an impossible value.
    """
    choose("recipe", recipe, RECIPES)
    names = [field.name for field in dataclasses.fields(Recipe)]
    for name in changes:
        choose("field of a recipe", name, names)
    dataset = changes.get("dataset", DEFAULTS["dataset"])
    _check_dataset(dataset, changes.get("data_digest", ""))
    classes = {"num_classes": DATASETS[dataset]} if dataset in DATASETS else {}
    made = Recipe(**classes | RECIPES[recipe] | changes, recipe=recipe)
    if recipe == "modern" and made.width >= WIDE and "weight_decay" not in changes:
        made = dataclasses.replace(made, weight_decay=WIDE_DECAY)
    return made


def strides_for(size: int) -> int:
    """How many strides to lower at `size` pixels a side, so that the last maps are about 7 to 8 pixels wide, as in the
    papers: 3 at 32 px, 2 at 64, 1 at 128, 0 at 224."""
    return min(STRIDES, max(0, STRIDES - round(math.log2(size / 7.5))))


def _check_dataset(name: str, digest: str) -> None:
    """Raise InputError unless this is a data set that everybody has, or one's own, which has a digest."""
    if name in list(DATASETS):
        if digest:
            raise InputError(f"data_digest {digest!r}: {name} has none")
    elif not (re.fullmatch(OWN, str(name)) and re.fullmatch("[0-9a-f]{12}", str(digest))):
        raise InputError(f"unknown data set {name!r}: choose from {', '.join(DATASETS)}, or give a folder of images")


def short(model: str) -> str:
    """A model's name for people: V3 Small."""
    return SHORT_NAMES[model]
