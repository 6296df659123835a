"""Whether a network is as sure as it should be: calibration error, NLL, and a temperature that mends what it can."""

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch.nn import functional as F

SCORES = ("nll", "temperature", "nll_scaled", "ece_scaled")


def table(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> pd.DataFrame:
    """The reliability table: images sorted by the probability of the best guess into equally wide bins.

    confidence: that probability, in [0, 1]; right: whether the guess is. Columns: low, high (the bin is (low, high]),
    images, confidence (its mean) and top1, both in percent and missing in an empty bin.
    """
    edges = np.arange(bins + 1) / bins
    images = pd.DataFrame({"confidence": np.asarray(confidence, float).clip(0, 1), "top1": right})
    groups = images.groupby(pd.cut(images["confidence"], edges, labels=False, include_lowest=True))
    filled = groups.size().reindex(range(bins), fill_value=0).to_numpy()
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "images": filled}).join(100 * groups.mean())


def ece(table: pd.DataFrame) -> float:
    """The expected calibration error, in percentage points, from a reliability table; 0 is perfect.

    The mean of |accuracy - confidence|, each bin weighted by its images (Guo et al. 2017, "On Calibration of Modern
    Neural Networks", equation 3).
    """
    gaps = (table["top1"] - table["confidence"]).abs()
    return float((gaps * table["images"]).sum() / table["images"].sum())


def temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """What the logits [n, classes] must be divided by for the least NLL (Guo et al., section 4.2)."""
    found = optimize.minimize_scalar(
        lambda exponent: F.cross_entropy(logits / np.exp(exponent), labels).item(),
        bounds=(-3, 3),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return float(np.exp(found.x))


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """SCORES of logits [n, classes]: the mean NLL in nats, and both scores once a temperature has scaled the logits.

    No image helps to choose its own temperature: those of even number are scaled by the one that suits those of odd
    number, and the other way round. `temperature` is the mean of the two. All but nll need two images.
    """
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels.astype(np.int64))
    found = dict.fromkeys(SCORES, np.nan) | {"nll": F.cross_entropy(logits, labels).item()}
    if len(labels) < 2:
        return found
    scaled, temperatures = torch.empty_like(logits), []
    for mine in (0, 1):
        other = 1 - mine
        temperatures.append(temperature(logits[other::2], labels[other::2]))
        scaled[mine::2] = logits[mine::2] / temperatures[-1]
    confidence, guesses = scaled.softmax(1).max(1)
    found["temperature"] = float(np.mean(temperatures))
    found["nll_scaled"] = F.cross_entropy(scaled, labels).item()
    found["ece_scaled"] = ece(table(confidence.numpy(), (guesses == labels).numpy()))
    return found
