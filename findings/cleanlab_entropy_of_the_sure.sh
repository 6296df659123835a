#!/usr/bin/env bash
# cleanlab 2.9.0: "confidence_weighted_entropy" gives the surest right predictions the score of the worst labels, 0.
#
# Expected: a label quality from 0 to 1, "lower scores indicate more likely mislabeled examples"; a label that the model
# is certain of has 1, as with the two other methods.
# Seen: the score rises with the certainty to 0.999999 and falls back to 0. It is log(1 + x) / x of x, the entropy over
# the confidence, which goes to 1 as x goes to 0, but below the fraction alone x is held at 1e-6. So it is where one
# logit of ten is 19 or more above the others, and with all that give a probability of exactly 1: nearest neighbours,
# trees, forests. Of 1797 digits by ten neighbours, a hundred of their labels changed, 776 right ones have the score 0;
# of the hundred worst scores 6 are of changed labels, where the other methods find 89.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cleanlab==2.9.0 scikit-learn==1.9.1 numpy==2.4.6 \
    scipy==1.17.1 pandas==3.1.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

methods = "self_confidence", "normalized_margin", "confidence_weighted_entropy"
lead = np.array([5, 15, 18, 19, 20, 25, 40])  # how far the logit of the given class is above the nine others
others = np.exp(-lead)[:, None].repeat(9, axis=1)
probabilities = np.hstack([1 / (1 + others.sum(1, keepdims=True)), others / (1 + others.sum(1, keepdims=True))])
for method in methods:
    found = get_label_quality_scores(np.zeros(len(lead), int), probabilities, method=method)
    print(method, dict(zip(lead.tolist(), found.round(6).tolist())))
assert found[1] > 0.9999 and found[4] < 0.2 and found[-1] < 1e-6, "the surest predictions have a good score now"

images, truth = load_digits(return_X_y=True)
random = np.random.default_rng(0)
changed = random.choice(len(truth), 100, replace=False)
labels = truth.copy()
labels[changed] = (truth[changed] + random.integers(1, 10, 100)) % 10
probabilities = cross_val_predict(KNeighborsClassifier(10), images, labels, cv=5, method="predict_proba")
caught = {}
for method in methods:
    score = get_label_quality_scores(labels, probabilities, method=method)
    caught[method] = np.isin(np.argsort(score, kind="stable")[:100], changed).sum()
    print(f"{method}: of the 100 worst scores {caught[method]} are changed labels; {(score == 0).sum()} scores are 0, "
          f"{((score == 0) & (labels == truth)).sum()} of them of right labels")
assert min(caught["self_confidence"], caught["normalized_margin"]) > 80 and caught["confidence_weighted_entropy"] < 20
PYTHON
