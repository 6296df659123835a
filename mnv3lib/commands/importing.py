"""Make the weights in a .pth file a run, without running what is in the file, and measure it.

The keys must be torchvision's, mnv3lib's own or timm's (of its V2 and V3, but not of the converted tf_ models, whose
padding differs), the classes in alphabetical order.
"""

import argparse

from mnv3lib import provenance, recipe
from mnv3lib.commands.options import given, model, note, path, positive
from mnv3lib.recipe import Architecture


def add(command) -> None:
    command.add_argument("file", type=path, metavar="FILE", help="a checkpoint that torch.save wrote, or safetensors")
    command.add_argument("--run", required=True, metavar="NAME", help="what to call it")
    imported = provenance.place("trained_models").parent / "build" / "imported"
    command.add_argument("--models", type=path, default=imported, help="the folder that it goes to")
    command.add_argument(
        "--data", type=path, metavar="FOLDER", help="the folder of CIFAR-100, or of your own images, a folder a class"
    )
    command.add_argument(
        "--dataset", choices=recipe.DATASETS, help="the data set that it was trained on (else what --data holds)"
    )
    command.add_argument("--model", type=model, required=True, help=f"one of {', '.join(recipe.MODELS)}")
    command.add_argument("--width", type=float, default=1.0, help="its width multiplier")
    command.add_argument("--image-size", type=positive, default=32, help="pixels a side that it was trained with")
    strides = "stride-2 layers that run at stride 1 in it (else by image size: 3 at 32 px, 0 at 224)"
    command.add_argument("--lowered-strides", type=int, help=strides)
    command.add_argument("--penultimate", type=int, help="channels before its classifier (else the paper's)")
    command.add_argument("--weights", metavar="NAME", help="which, where the file has several (else the averaged ones)")
    command.add_argument("--se-last", action="store_true", help="squeeze-excitation on Small's last 1x1 convolution")
    for name in ("mean", "std"):
        command.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"the {name} of its normalisation (else the data set's)",
        )


def run(options: argparse.Namespace) -> None:
    fields = given(options)
    name = fields.pop("dataset")
    if fields["lowered_strides"] is None:
        fields["lowered_strides"] = recipe.strides_for(options.image_size)
    Architecture(**fields)  # what is wrong is told at once
    from mnv3lib import data
    from mnv3lib.study import importing

    importing.check(options.file, options.run, options.models)
    dataset = data.load(name or data.name_of(options.data), options.data, options.image_size, log=note)
    record = importing.import_pth(
        options.file,
        options.run,
        options.models,
        architecture=Architecture(**fields | {"num_classes": len(dataset.classes)}),
        dataset=dataset,
        size=options.image_size,
        mean=options.mean,
        std=options.std,
        weights=options.weights,
    )
    origin = record["imported"]
    if origin["not_taken"]:
        note(f"the weights are those of {origin['weights']}; not taken: {', '.join(origin['not_taken'])}")
    print(f"{record['run']}: top-1 {record['result']['top1']:.2f} %, in {options.models}")
