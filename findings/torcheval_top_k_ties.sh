#!/usr/bin/env bash
# torcheval 0.0.7: a network that gives every class the same score, or no number at all, is 100 % right in top-5.
#
# Expected: 5 % of 100 classes, as in torchmetrics, in scikit-learn and by torch.topk; of NaN the same, or an error.
# Seen: with k=1 a hundredth, as it should be; with k=2 or more 100 %. An answer counts as right if fewer than k classes
# have a greater score, and of equal scores, or of NaN, none is greater. So a training that diverged has the best
# top-5 of all, and scores with few levels are flattered: random ones in 4 levels get 15 %.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torcheval==0.0.7 torch==2.14.1 scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from sklearn.metrics import top_k_accuracy_score
from torcheval.metrics import MulticlassAccuracy

torch.manual_seed(0)
labels = torch.arange(100).repeat(20)
scores = torch.randn(len(labels), 100)
cases = {
    "random": scores,
    "random, in 4 levels": (scores * 0.5).round().clamp(-1, 2),
    "all the same": torch.zeros_like(scores),
    "all NaN": torch.full_like(scores, torch.nan),
}
accuracies = {}
for name, values in cases.items():
    for k in (1, 5):
        metric = MulticlassAccuracy(num_classes=100, k=k)
        accuracies[name, k] = metric.update(values, labels).compute().item()
    largest = (values.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    judged = "an error" if values.isnan().any() else f"{top_k_accuracy_score(labels, values, k=5, labels=range(100)):.1%}"
    print(f"{name}: top-1 {accuracies[name, 1]:.1%}, top-5 {accuracies[name, 5]:.1%}; top-5 by topk {largest:.1%}, scikit-learn {judged}")
    assert largest < 0.1
assert accuracies["random", 5] < 0.1 < accuracies["random, in 4 levels", 5]
assert accuracies["all the same", 1] < 0.02 and accuracies["all NaN", 1] < 0.02
assert accuracies["all the same", 5] == accuracies["all NaN", 5] == 1, "ties are counted otherwise now"
PYTHON
