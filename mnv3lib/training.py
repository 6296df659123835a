"""Fit a recipe: step, evaluate, checkpoint, resume, and write the run to the folder of trained models."""

import ctypes
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from mnv3lib import checkpoint, cost, data, dead_channels, kernels, optimizers, provenance, store
from mnv3lib.augmentation import Beyond
from mnv3lib.data import Dataset, Split
from mnv3lib.errors import InputError
from mnv3lib.networks import MobileNet
from mnv3lib.recipe import Recipe


class DivergedError(RuntimeError):
    """The loss, a weight or a guess is no longer a finite number. The checkpoint is the last good epoch's."""


@dataclass
class Fit:
    """What came out of a run: the network, a row an epoch, the predictions on the measured set.

    `dead` tells how many channels say nothing behind each kind of activation, on 500 training images (see
    dead_channels.count). `origin` tells when, where and from which commit it started, and in `resumed` the same of each
    time it went on.
    """

    network: MobileNet
    history: pd.DataFrame
    predictions: dict[str, np.ndarray]
    dead: dict[str, int]
    origin: dict


def default_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_memory() -> None:
    """Tell glibc's allocator to keep what is freed.

    By default it gives the activations back to the system after every step, and the page faults of asking for them
    again cost a third of the training time on CPUs.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 * 2**20)


def train(
    recipe: Recipe,
    *,
    dataset: Dataset | None = None,
    models: Path | None = None,
    checkpoints: Path | None = None,
    device: torch.device | None = None,
    weights: bool = True,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> dict:
    """Make the run that `recipe` defines, or go on with it, and return its record.

    A run that has its record in the folder `models` already is not made again, unless `overwrite`; see `made_already`
    for what is refused. The checkpoint of a run in progress lies in `checkpoints`, and goes
    when the run is written. Without `weights` only record and history are kept.
    """
    models = models or store.models_folder()
    folder = checkpoint.folder_of(recipe, checkpoints)
    with checkpoint.alone(folder):
        record = None if overwrite else made_already(recipe, models, weights)
        if record is None:
            fit = fit_recipe(
                recipe,
                dataset or data.load(recipe.dataset),
                state=folder / checkpoint.STATE,
                device=device,
                log=log,
            )
            record = describe(recipe, fit)
            store.save(models, record, fit.history, *((fit.network, fit.predictions) if weights else (None, None)))
        else:
            log(f"{recipe.run} is in {models} already")
        checkpoint.clear(folder)
    return record


def made_already(recipe: Recipe, models: Path, weights: bool = True) -> dict | None:
    """The record of this very recipe in `models`, if it is there.

    Raises InputError if the run of that name has another recipe, or was kept without the `weights` that are wanted.
    """
    if recipe.run not in store.runs(models):
        return None
    target = store.run_folder(recipe.run, models)
    record = store.load_record(recipe.run, models)
    differing = recipe.differences(record["recipe"])
    if differing:
        raise InputError(f"{target} has another recipe ({', '.join(differing)} differ): overwrite it or move it away")
    if weights and not (target / store.WEIGHTS).is_file():
        raise InputError(f"{target} was kept without weights: overwrite it, move it away or ask for no weights")
    return record


def describe(recipe: Recipe, fit: Fit) -> dict:
    """The record of a run, ready for JSON. Accuracies are in percent."""
    parameters, macs = cost.totals(fit.network, recipe.image_sizes[-1])
    return {
        "run": recipe.run,
        "recipe": recipe.as_dict(),
        "parameters": parameters,
        "macs": macs,
        "result": accuracy(fit.predictions),
        "dead_channels": fit.dead,
        **fit.origin,
        "seconds": round(float(fit.history["seconds"].sum()), 1),
        "images_per_second": round(float(fit.history["images_per_second"].median()), 1),
    }


def accuracy(predictions: dict[str, np.ndarray]) -> dict:
    """`top1` and `top5` of what `best_five` returned, in percent, and how many `images` that were."""
    hits = predictions["classes"] == predictions["labels"][:, None]
    return {
        "top1": round(100 * float(hits[:, 0].mean()), 4),
        "top5": round(100 * float(hits.any(1).mean()), 4),
        "images": len(hits),
    }


def fit_recipe(
    recipe: Recipe,
    dataset: Dataset,
    *,
    state: Path | None = None,
    device: torch.device | None = None,
    log: Callable[[str], None] = print,
) -> Fit:
    """Train the network of `recipe` on `dataset`, epoch by epoch, and measure it after the last.

    With `state`, a file, a checkpoint is written there after every epoch, and a run found there goes on, also on
    another device. On one CPU with one number of threads it ends with the same weights, bit for bit, as a run never
    stopped, or as another of the same seed. Other machines, thread counts and versions of torch round differently, and
    a GPU from run to run: nothing is promised about them. Raises DivergedError when the loss or a weight is no finite
    number.
    """
    device = device or default_device()
    keep_memory()
    torch.backends.cudnn.allow_tf32 = False  # what is measured on a GPU should be what a CPU measures
    train_split, test_split = (
        data.holdout(dataset.train) if recipe.split == "holdout" else (dataset.train, dataset.test)
    )
    train_split, test_split = train_split.to(device), test_split.to(device)

    torch.manual_seed(recipe.seed)
    network = MobileNet(recipe.architecture)
    network.classes, network.mean, network.std = dataset.classes, dataset.mean, dataset.std
    network.to(device, memory_format=torch.channels_last)
    several = optimizers.make(recipe, network)
    here = {"commit": provenance.commit(), "environment": provenance.environment(device)}
    if device.type == "cpu":
        here["environment"]["kernels"] = kernels.way()
    history, origin = [], here | {"started": provenance.now(), "resumed": []}
    if state and state.is_file():
        history, origin = checkpoint.restore(state, recipe, network, several)
        origin["resumed"].append({"after_epoch": len(history)} | here)
        log(f"{recipe.run}: goes on after epoch {len(history)} of {recipe.epochs}")

    predictions = None
    step = CapturedStep() if device.type == "cuda" else gradients
    for epoch in range(len(history), recipe.epochs):
        row = train_epoch(recipe, network, several, train_split, epoch, step)
        start = time.perf_counter()
        predictions = best_five(network, test_split, recipe.image_sizes[-1])
        _check_finite(recipe, network, predictions, epoch)
        top1 = accuracy(predictions)["top1"]
        row = {**row, "test_top1": top1, "seconds": round(row["seconds"] + time.perf_counter() - start, 3)}
        history.append(row)
        if state:
            checkpoint.write(state, recipe, network, several, history, origin)
        log(
            f"{recipe.run}: epoch {epoch + 1}/{recipe.epochs}, loss {row['train_loss']:.3f}, training top-1 "
            f"{row['train_top1']:.2f} %, test top-1 {top1:.2f} %, {row['images_per_second']:.0f} images/s"
        )
    if predictions is None:
        predictions = best_five(network, test_split, recipe.image_sizes[-1])
    some = resize(data.normalise(train_split.images[:500], network.mean, network.std), recipe.image_sizes[-1])
    dead = dead_channels.count(network, some).groupby("nonlinearity")["dead"].sum().to_dict()
    columns = ["epoch", "learning_rate", "train_loss", "train_top1", "test_top1", "seconds", "images_per_second"]
    return Fit(network.eval(), pd.DataFrame(history, columns=columns), predictions, dead, origin)


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
    several: list[torch.optim.Optimizer],
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
    beyond = None if recipe.augmentation == "none" else Beyond(recipe.augmentation, recipe.num_classes)
    network.train()
    batches = data.epoch_batches(
        split,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        epoch=epoch,
        crop=recipe.crop,
        padding=recipe.padding,
        flip=recipe.flip,
    )
    loss_sum, hits, images, rate = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
    bar = tqdm(
        batches, total=steps, desc=f"epoch {epoch + 1}/{recipe.epochs}", leave=False, disable=not sys.stderr.isatty()
    )
    for number, (pixels, labels) in enumerate(bar):
        factor = recipe.rate((epoch * steps + number + 1) / (recipe.epochs * steps + 1))
        for optimizer in several:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        rate = recipe.learning_rate * factor
        pixels = beyond.pixels(pixels) if beyond else pixels
        inputs = resize(data.normalise(pixels, network.mean, network.std), size)
        inputs, targets = beyond.inputs(inputs, labels) if beyond else (inputs, labels)
        loss, logits = step(network, inputs, targets, recipe.label_smoothing)
        for optimizer in several:
            optimizer.step()
        loss_sum += loss * len(labels)
        hits += (logits.argmax(1) == labels).sum()
        images += len(labels)
    if not math.isfinite(loss_sum.item()):
        raise DivergedError(f"{recipe.run}: the loss is {loss_sum.item()} in epoch {epoch + 1}: lower learning_rate")
    seconds = time.perf_counter() - start
    return {
        "epoch": epoch + 1,
        "learning_rate": round(rate, 8),
        "train_loss": round(loss_sum.item() / images, 6),
        "train_top1": round(100 * hits.item() / images, 4),
        "seconds": seconds,
        "images_per_second": round(images / seconds, 1),
    }


def _check_finite(recipe: Recipe, network: nn.Module, predictions: dict[str, np.ndarray], epoch: int) -> None:
    """Raise DivergedError if the last step of an epoch broke the network; its loss is from before it."""
    broken = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if broken or not np.isfinite(predictions["probabilities"]).all():
        what = f"{broken[0]} is" if broken else "the guesses are"
        raise DivergedError(
            f"{recipe.run}: {what} no longer of finite numbers after epoch {epoch + 1}: lower learning_rate"
        )


def resize(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """Float images [n, 3, height, width] resampled (bilinear, antialiased) to `size` pixels a side if they differ."""
    if inputs.shape[-1] == size:
        return inputs
    return F.interpolate(inputs, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def best_five(network: MobileNet, split: Split, size: int = 32, batch_size: int = 500) -> dict[str, np.ndarray]:
    """`labels` [n], the five best `classes` [n, 5], best first, and their `probabilities` [n, 5] for every image."""
    network.eval()
    classes, probabilities = [], []
    for start in range(0, len(split), batch_size):
        pixels = split.images[start : start + batch_size]
        logits = network(resize(data.normalise(pixels, network.mean, network.std), size))
        best = logits.softmax(1).topk(min(5, logits.shape[1]))
        classes.append(best.indices.cpu())
        probabilities.append(best.values.cpu())
    return {
        "labels": split.labels.cpu().numpy().astype(np.uint8),
        "classes": torch.cat(classes).numpy().astype(np.uint8),
        "probabilities": torch.cat(probabilities).numpy().astype(np.float32),
    }
