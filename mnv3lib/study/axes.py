"""The axes of notebook 05 as data: each a question, and variants that change one recipe."""

from dataclasses import dataclass, field

from mnv3lib.recipe import BEYOND, DEFAULTS, RECIPES

# The base is `modern`. All are measured on the test set, as the earlier report's claims were: these are measurements of
# a recipe that is fixed by then, and nothing of `modern` may be chosen by them.
SETTING = {"model": "v3_small", "width": 0.25, "epochs": 10}
BASE_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Axis:
    """One question; `variants` gives each variant's change to the base.

    setting: where the base itself is another than SETTING says.
    same_budget: give each variant the learning rate that makes its mean over the run the base's.
    """

    question: str
    variants: dict[str, dict]
    setting: dict = field(default_factory=dict)
    same_budget: bool = False


BEYOND_CROP_AND_FLIP = {name: {"augmentation": name} for name in BEYOND if name != "none"}


AXES = {
    # On the smallest maps the base's rate is too high: those networks also get that of `original`.
    "strides": Axis(
        "How many of the stride-2 layers should run at stride 1 when the images have 32 pixels a side?",
        {
            **{f"{count}-lowered": {"lowered_strides": count} for count in range(4)},
            **{f"{count}-lowered-rate-0.1": {"lowered_strides": count, "learning_rate": 0.1} for count in range(2)},
        },
        {"width": 1.0, "epochs": 20},
    ),
    # What three lowered strides cost, spent otherwise: each has the base's MACs times epochs, but for the first.
    "strides-compute": Axis(
        "Are three lowered strides the best use of the compute, or would a wider network or a longer training be?",
        {
            "4-lowered": {"lowered_strides": 4},
            "4-lowered-shorter": {"lowered_strides": 4, "epochs": 3},
            "2-lowered-wider": {"lowered_strides": 2, "width": 0.65},
            "2-lowered-longer": {"lowered_strides": 2, "epochs": 31},
            "1-lowered-wider": {"lowered_strides": 1, "width": 1.3},
            "1-lowered-wider-rate-0.1": {"lowered_strides": 1, "width": 1.3, "learning_rate": 0.1},
            "1-lowered-longer": {"lowered_strides": 1, "epochs": 82},
            "0-lowered-wider": {"lowered_strides": 0, "width": 2.15},
            "0-lowered-wider-rate-0.1": {"lowered_strides": 0, "width": 2.15, "learning_rate": 0.1},
        },
    ),
    "nonlinearity": Axis(
        "Does V3's mix of ReLU and hard swish do better than either everywhere?",
        {"relu": {"nonlinearity": "relu"}, "hard-swish": {"nonlinearity": "hard_swish"}},
    ),
    "squeeze-excitation": Axis(
        "What is squeeze-excitation worth, and does it belong on Small's last 1x1 convolution?",
        {
            "none": {"squeeze_excitation": "none"},
            "last": {"se_last": True},
            "everywhere": {"squeeze_excitation": "all"},
        },
    ),
    # The V3 paper's rate is for batches of 4096 and is scaled with the batch size. Its average of the weights (EMA
    # 0.9999) is left out: it looks back 10,000 steps, and a run of ten epochs has 3,900.
    # AdamW's learning rate times weight decay is the base's, though SGD's momentum makes more of it.
    "optimizer": Axis(
        "Is SGD with momentum better than the RMSProp of the V3 paper (section 6.1.1), and is anything better still?",
        {
            "paper": {
                "optimizer": "rmsprop",
                "learning_rate": 0.1 * 128 / 4096,
                "schedule": "step",
                "warmup": 0.0,
                "momentum": 0.9,
                "weight_decay": 1e-5,
                "dropout": 0.2,
            },
            "original": {
                name: RECIPES["original"].get(name, DEFAULTS[name])
                for name in ("learning_rate", "schedule", "warmup", "momentum", "nesterov", "weight_decay")
            },
            "rmsprop-one-cycle": {"optimizer": "rmsprop", "learning_rate": 0.1 * 128 / 4096, "weight_decay": 1e-5},
            "adamw": {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.1},
            "muon": {"optimizer": "muon"},
        },
    ),
    "weight-decay": Axis(
        "Does L2 regularization make a difference?",
        {text: {"weight_decay": float(text)} for text in ("0", "1e-5", "1e-4", "5e-4", "1e-3")},
    ),
    "weight-decay-wide": Axis(
        "What does the smaller weight decay of wide networks give at full width?",
        {"5e-4": {"weight_decay": 5e-4}},
        {"width": 1.0, "epochs": 20},
    ),
    "dropout": Axis("Does dropout make a difference?", {text: {"dropout": float(text)} for text in ("0", "0.2")}),
    "schedule": Axis(
        "Which course of the learning rate is best when its mean over the run is the same?",
        {
            "constant": {"schedule": "constant"},
            "step": {"schedule": "step", "step_epochs": 4, "step_factor": 0.1},
            "cosine": {"schedule": "cosine"},
            "one-cycle": {"schedule": "one_cycle"},
        },
        same_budget=True,
    ),
    "augmentation": Axis(
        "What are random crops and flips worth, and does further augmentation help?",
        {"none": {"crop": 0, "flip": "none"}, "flip": {"crop": 0}, "crop": {"flip": "none"}, **BEYOND_CROP_AND_FLIP},
    ),
    "augmentation-long": Axis(
        "Does further augmentation help when there are twice the epochs?", BEYOND_CROP_AND_FLIP, {"epochs": 20}
    ),
    "penultimate": Axis(
        "Can the layer before the classifier be narrower, or go, when there are 100 classes and not 1000?",
        {"quarter": {"penultimate": 256}, "none": {"penultimate": 0}},
    ),
    "initialization": Axis(
        "Does it matter how the weights are drawn?",
        {
            "torch": {"initialization": "torch"},
            "kaiming-normal": {"initialization": "kaiming_normal"},
            "truncated-normal": {"initialization": "truncated_normal"},
            "zero-residual": {"zero_init_residual": True},
        },
    ),
    "norm-momentum": Axis(
        "Should batch norm follow the newest batch as slowly as in the V3 paper (0.01) or as torch does (0.1)?",
        {text: {"norm_momentum": float(text)} for text in ("0.01", "0.1")},
    ),
    "resolution": Axis(
        "What does V1's second multiplier, the resolution, trade, and can the first epochs have smaller images?",
        {
            **{f"{size}px": {"image_sizes": [size]} for size in (16, 20, 24, 32)},
            "progressive": {"image_sizes": [20, 24, 32]},
        },
    ),
    "label-smoothing": Axis(
        "Does label smoothing help?",
        {text: {"label_smoothing": float(text)} for text in ("0", "0.05", "0.1", "0.2")},
    ),
}

# The runs that tell most for their time, in that order: `mnv3 sweep --ablation first` (README says how long). Those up
# to strides/1-lowered serve nearly every claim of the earlier report; the last is a trained model and not made again.
FIRST = (
    *("optimizer/paper", "optimizer/original", "augmentation/none", "strides/0-lowered", "weight-decay/0"),
    *("dropout/0.2", "penultimate/quarter", "initialization/torch", "squeeze-excitation/none"),
    *("squeeze-excitation/last", "augmentation/cutmix", "penultimate/none", "strides/1-lowered", "nonlinearity/relu"),
    *("strides/2-lowered", "nonlinearity/hard-swish", "schedule/constant", "strides/3-lowered"),
)
