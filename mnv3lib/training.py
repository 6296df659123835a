"""Fit a recipe: step, evaluate, checkpoint, resume, and write the run to the folder of trained models."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from mnv3lib import checkpoint, cost, data, kernels, optimizers, provenance, store
from mnv3lib.data import Augmentation, Dataset, Split
from mnv3lib.errors import DivergedError, InputError
from mnv3lib.inference import accuracy, best_five, default_device, keep_memory, resize
from mnv3lib.networks import MobileNet
from mnv3lib.progress import bar
from mnv3lib.recipe import Recipe
from mnv3lib.writing import standing


@dataclass
class Fit:
    """What came out of a run: the network, a row an epoch, the predictions on the measured set.

    `origin` tells when, where and from which commit it started, and in `resumed` the same of each time it went on.
    """

    recipe: Recipe
    network: MobileNet
    history: list[dict]
    predictions: dict[str, np.ndarray]
    origin: dict


def train(
    recipe: Recipe,
    *,
    dataset: Dataset | None = None,
    start: MobileNet | None = None,
    models: Path | None = None,
    checkpoints: Path | None = None,
    device: torch.device | None = None,
    weights: bool = True,
    overwrite: bool = False,
    more: Callable[[Fit, Dataset], dict] = lambda fit, dataset: {},
    log: Callable[[str], None] = print,
) -> dict:
    """Make the run that `recipe` defines, or go on with it, and return its record.

    A run that has its record in the folder `models` (else store.folder_for's) already is not made again, unless
    `overwrite`; see `made_already` for what is refused. Images of one's own come as `dataset`, and what `recipe` starts
    from as `start`, both as they were given to transfer.plan. The checkpoint of a run in progress lies in
    `checkpoints`, and goes when the run is written. Without `weights` only record and history are kept. What `more`
    returns goes into the record too.
    """
    models = models or store.folder_for(recipe)
    folder = checkpoint.folder_of(recipe, checkpoints)
    with checkpoint.alone(folder):
        there = made_already(recipe, models, weights, overwrite)
        if there is None:
            dataset = dataset or data.load(recipe.dataset)
            fit = fit_recipe(recipe, dataset, start, state=folder / checkpoint.STATE, device=device, log=log)
            record = make_record(fit) | more(fit, dataset)
            if dataset.facts:
                record["data"] = dataset.facts
            there = _made_meanwhile(recipe, models, weights, overwrite)
            if there is None:
                store.save(models, record, fit.history, *((fit.network, fit.predictions) if weights else (None, None)))
        if there is not None:
            record = there
            log(f"{recipe.run} is in {models} already")
        checkpoint.clear(folder)
    return record


def made_already(recipe: Recipe, models: Path, weights: bool = True, overwrite: bool = False) -> dict | None:
    """The record of this very recipe in `models`, if it is there and not to be written over.

    Raises InputError if the run of that name has another recipe, has no record, or was kept without the `weights` that
    are wanted, and if `models` or what has the run's name is no folder.
    """
    target = store.run_folder(recipe.run, models)
    for place, mend in ((Path(models), "name another for the runs"), (target, "move it away")):
        if place.exists() and not place.is_dir():  # said before hours of training
            raise InputError(f"{place} is no folder: {mend}")
    if overwrite:
        return None
    if recipe.run not in store.runs(models):
        there = standing(target)
        if there.exists() and any(there.iterdir()):  # weights that somebody copied, say
            mend = "move it away, train with --overwrite or give the new one a variant"
            raise InputError(f"{target} has no {store.RECORD}, so its recipe is unknown: {mend}")
        return None
    record = store.load_record(recipe.run, models)
    differing = recipe.differences(record["recipe"])
    if differing:
        if differing == ["data_digest"]:
            what = "was trained on other images, or these have changed, or were split otherwise (--test-share)"
        else:
            what = f"has another recipe ({', '.join(differing)} differ)"
        raise InputError(f"{target} {what}: move it away, train with --overwrite or give the new one a variant")
    if weights and not store.has(recipe.run, store.WEIGHTS, models):
        mend = "move it away, train with --overwrite or with --no-weights"
        raise InputError(f"{target} was kept without weights: {mend}")
    return record


def _made_meanwhile(recipe: Recipe, models: Path, weights: bool, overwrite: bool) -> dict | None:
    """What `made_already` finds after the training, when another process may have written a run of this name."""
    try:
        return made_already(recipe, models, weights, overwrite)
    except InputError as error:
        kept = "what was trained here is kept, and the same command then only writes it"
        raise InputError(f"written by another process meanwhile: {error}; {kept}") from None


def has_made(recipe: Recipe, models: Path, weights: bool = True) -> bool:
    """Whether `made_already` finds the run, with `weights` if they are wanted."""
    try:
        return made_already(recipe, models, weights) is not None
    except InputError:
        return False


def make_record(fit: Fit) -> dict:
    """The record of a run, ready for JSON. Accuracies are in percent."""
    recipe = fit.recipe
    parameters, macs = cost.totals(fit.network, recipe.image_sizes[-1])
    return {
        "run": recipe.run,
        "recipe": recipe.as_dict(),
        "parameters": parameters,
        "macs": macs,
        "result": accuracy(fit.predictions),
        **fit.origin,
        "seconds": round(math.fsum(row["seconds"] for row in fit.history), 1),
        "images_per_second": round(statistics.median(row["images_per_second"] for row in fit.history), 1),
    }


def fit_recipe(
    recipe: Recipe,
    dataset: Dataset,
    start: MobileNet | None = None,
    *,
    state: Path | None = None,
    device: torch.device | None = None,
    until: int | None = None,
    log: Callable[[str], None] = print,
) -> Fit:
    """Train the network of `recipe` on `dataset`, epoch by epoch, and measure it after the last.

    `start` is the trained network that it begins as, where the recipe names one.
    With `state`, a file, a checkpoint is written there after every epoch, and a run found there goes on, also on
    another device. `until` is the epoch after which to stop, instead of the recipe's last. On one CPU with one number
    of threads it ends with the same weights, bit for bit, as a run never stopped, or as another of the same seed. Other
    machines, thread counts and versions of torch round differently, and a GPU from run to run: nothing is promised
    about them. Raises DivergedError when the loss or a weight is no finite number.
    """
    device = device or default_device()
    keep_memory()
    torch.backends.cudnn.allow_tf32 = False  # what is measured on a GPU should be what a CPU measures
    train_split, test_split = (part.to(device) for part in data.parts(dataset, recipe.split))

    torch.manual_seed(recipe.seed)
    network = MobileNet(recipe.architecture)
    network.classes, network.mean, network.std = dataset.classes, dataset.mean, dataset.std
    network.size = recipe.image_sizes[-1]
    if bool(recipe.start) != (start is not None):
        raise InputError(f"start {recipe.start!r}: give that network, and none without it")
    if start is not None:
        begin(network, start)
    freeze(network, recipe.freeze)
    network.to(device, memory_format=torch.channels_last)
    all_optimizers = optimizers.make(recipe, network)
    average = AveragedModel(network) if recipe.average_epochs > 1 else None
    stateful = all_optimizers if average is None else [*all_optimizers, average]
    here = {"commit": provenance.commit(), "environment": provenance.environment(device)}
    if device.type == "cpu":
        here["environment"]["kernels"] = kernels.way(network)
    history, origin = [], here | {"started": provenance.now(), "resumed": []}
    if state and state.is_file():
        history, origin = checkpoint.restore(state, recipe, network, stateful)
        origin["resumed"].append({"after_epoch": len(history)} | here)
        log(f"{recipe.run}: goes on after epoch {len(history)} of {recipe.epochs}")

    predictions = None
    step = CapturedStep() if device.type == "cuda" else gradients
    for epoch in range(len(history), until or recipe.epochs):
        row = train_epoch(recipe, network, all_optimizers, train_split, epoch, step)
        began = time.perf_counter()
        if average is not None and epoch >= recipe.epochs - recipe.average_epochs:
            average.update_parameters(network)
            if epoch == recipe.epochs - 1:
                apply_swa(recipe, network, average, train_split)
        predictions = best_five(network, test_split, recipe.image_sizes[-1])
        _check_finite(recipe, network, predictions, epoch)
        top1 = accuracy(predictions)["top1"]
        row = {**row, "test_top1": top1, "seconds": round(row["seconds"] + time.perf_counter() - began, 3)}
        history.append(row)
        if state:
            checkpoint.write(state, recipe, network, stateful, history, origin)
        log(
            f"{recipe.run}: epoch {epoch + 1}/{recipe.epochs}, loss {row['train_loss']:.3f}, training top-1 "
            f"{row['train_top1']:.2f} %, test top-1 {top1:.2f} %, {row['images_per_second']:.0f} images/s"
        )
    if predictions is None:
        predictions = best_five(network, test_split, recipe.image_sizes[-1])
    return Fit(recipe, network.eval(), history, predictions, origin)


def begin(network: MobileNet, source: MobileNet) -> None:
    """Give `network` the weights of `source`, except the last layer's, and its mean and std."""
    last = f"classifier.{len(network.classifier) - 1}."
    mine, theirs = (
        {key: value for key, value in one.state_dict().items() if not key.startswith(last)} for one in (network, source)
    )
    for key in [*mine, *theirs]:
        if key not in mine or key not in theirs or mine[key].shape != theirs[key].shape:
            raise InputError(
                f"the network to start from has another {key}: leave model, width and layers as it has them"
            )
    network.load_state_dict(theirs, strict=False)
    network.mean, network.std = source.mean, source.std


def freeze(network: MobileNet, what: str) -> None:
    """Keep a part of a network in training as it is: nothing, norms, or features, which is all but the last layer."""
    if what == "features":
        network.requires_grad_(False)
        network.classifier[-1].requires_grad_(True)
    for module in network.modules() if what != "nothing" else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def _autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on GPUs that have it. Cast weights are not cached: a captured graph would cast them once and for all."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def gradients(
    network: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the gradients of the loss of one batch into the parameters' `grad`; returns the loss and the logits."""
    network.zero_grad()
    with _autocast(inputs.device):
        logits = kernels.forward(network, inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    loss.backward()
    return loss.detach(), logits.detach()


class CapturedStep:
    """`gradients` as a CUDA graph.

    A step has some hundred kernels, each so small that a GPU would wait longer for its launch than it works on it. The
    graph is of one network and of batches of one shape; where the shape changes, it is captured again.
    """

    def __init__(self):
        self.graph, self.inputs, self.targets, self.outputs = None, None, None, None

    def __call__(self, network, inputs, targets, label_smoothing) -> tuple[torch.Tensor, torch.Tensor]:
        if self.graph is None or (self.inputs.shape, self.targets.shape) != (inputs.shape, targets.shape):
            self._capture(network, inputs, targets, label_smoothing)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.outputs

    def _capture(self, network, inputs, targets, label_smoothing) -> None:
        self.graph = self.outputs = None  # the memory of the old one
        self.inputs, self.targets = inputs.clone(), targets.clone()
        arguments = network, self.inputs, self.targets, label_smoothing
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        stream = torch.cuda.Stream(inputs.device)
        stream.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.random.fork_rng([inputs.device]):
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries set themselves up in the first steps, which no graph can hold
                    gradients(*arguments)
            torch.cuda.current_stream(inputs.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):  # others may run beside
                outputs = gradients(*arguments)
        network.load_state_dict(kept)  # batch norm counted the batches of the capture
        self.graph, self.outputs = graph, outputs


def train_epoch(
    recipe: Recipe,
    network: nn.Module,
    all_optimizers: list[torch.optim.Optimizer],
    split: Split,
    epoch: int,
    step: Callable = gradients,
) -> dict:
    """One pass over `split`; returns the row of history without the test accuracy.

    `step` makes the gradients of a batch: `gradients`, or a CapturedStep that was made for this network.
    """
    start = time.perf_counter()
    device = split.labels.device
    size = recipe.image_size(epoch)
    steps = data.steps(split, recipe.batch_size)
    torch.manual_seed(recipe.seed * 100_003 + epoch)  # of dropout and of augmentation beyond crop and flip
    augmentation = Augmentation(recipe.augmentation, recipe.num_classes, recipe.augmentation_share)
    freeze(network.train(), recipe.freeze)
    batches = _batches(recipe, split, epoch)
    loss_sum, correct, images, rate = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
    for number, (pixels, labels) in enumerate(bar(batches, f"epoch {epoch + 1}/{recipe.epochs}", total=steps)):
        factor = recipe.rate((epoch * steps + number + 1) / (recipe.epochs * steps + 1))
        for optimizer in all_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        rate = recipe.learning_rate * factor
        inputs = resize(data.normalise(augmentation.pixels(pixels), network.mean, network.std), size)
        inputs, targets = augmentation.inputs(inputs, labels)
        loss, logits = step(network, inputs, targets, recipe.label_smoothing)
        for optimizer in all_optimizers:
            optimizer.step()
        loss_sum += loss * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        images += len(labels)
    if not math.isfinite(loss_sum.item()):
        raise DivergedError(f"{recipe.run}: the loss is {loss_sum.item()} in epoch {epoch + 1}: lower learning_rate")
    seconds = time.perf_counter() - start
    return {
        "epoch": epoch + 1,
        "learning_rate": round(rate, 8),
        "train_loss": round(loss_sum.item() / images, 6),
        "train_top1": round(100 * correct.item() / images, 4),
        "seconds": seconds,
        "images_per_second": round(images / seconds, 1),
    }


def _batches(recipe: Recipe, split: Split, epoch: int):
    moved = dict(crop=recipe.crop, padding=recipe.padding, flip=recipe.flip)
    return data.epoch_batches(split, batch_size=recipe.batch_size, seed=recipe.seed, epoch=epoch, **moved)


@torch.no_grad()
def apply_swa(recipe: Recipe, network: MobileNet, average: AveragedModel, split: Split) -> None:
    """Stochastic weight averaging: give `network` the averaged weights, and its norms the statistics of one more epoch.

    The images are cropped and flipped, but not augmented beyond that. torch's update_bn would have them skip blocks,
    too, where a recipe has stochastic depth. Norms that `freeze` keeps as they are keep their statistics.
    """
    network.load_state_dict(average.module.state_dict())
    norms = [module for module in network.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    if recipe.freeze != "nothing" or not norms:
        return
    momentum = norms[0].momentum
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # of all batches alike
    batches = _batches(recipe, split, recipe.epochs)
    for pixels, _ in bar(batches, "statistics of the average", total=data.steps(split, recipe.batch_size)):
        inputs = resize(data.normalise(pixels, network.mean, network.std), recipe.image_sizes[-1])
        network(inputs.contiguous(memory_format=torch.channels_last))
    for norm in norms:
        norm.eval().momentum = momentum


def _check_finite(recipe: Recipe, network: nn.Module, predictions: dict[str, np.ndarray], epoch: int) -> None:
    """Raise DivergedError if the last step of an epoch broke the network; its loss is from before it."""
    broken = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if broken or not np.isfinite(predictions["probabilities"]).all():
        what = f"{broken[0]} is" if broken else "the guesses are"
        raise DivergedError(
            f"{recipe.run}: {what} no longer of finite numbers after epoch {epoch + 1}: lower learning_rate"
        )
