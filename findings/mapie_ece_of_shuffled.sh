#!/usr/bin/env bash
# MAPIE 1.6.0: the calibration error depends on the order of the images, and has one bin less than asked for.
#
# Expected: expected_calibration_error is that of a set of images, whatever their order; "array split" makes bins of
# equally many images, as "quantile" does, and num_bins=2 makes two bins.
# Seen: with "array split" a network whose scores are off by 12.6 % on average has an error of 12.6 % if the scores come
# sorted, and of 1.2 % if they come as they are in a test set: they are cut into groups as they lie, unsorted, and
# each group's greatest score becomes an edge. All edges then lie near 1, and nearly all images share one bin, where too
# high and too low scores cancel. With "uniform" (the default) and "quantile" num_bins counts the edges, both ends among
# them: 2 make one bin, in which a network that is a quarter too sure of some and too unsure of others has no error, and
# 1 gives NaN. top_label_ece takes its bins from the same function.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mapie==1.6.0 numpy==2.4.6 scipy==1.17.1 \
    scikit-learn==1.9.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from mapie.metrics.calibration import expected_calibration_error


def by_hand(right, score, bins):
    groups = np.array_split(np.argsort(score), bins)
    return sum(len(one) * abs(score[one].mean() - right[one].mean()) for one in groups) / len(score)


random = np.random.default_rng(0)
score = random.uniform(size=10_000)
right = (random.random(10_000) < 0.25 + score / 2).astype(int)  # of what is given 0 or 1, a quarter is the other way
order = np.argsort(score)
for bins in (10, 15, 50):
    hand = by_hand(right, score, bins)
    ordered = expected_calibration_error(right[order], score[order], bins, "array split")
    shuffled = expected_calibration_error(right, score, bins, "array split")
    quantile = expected_calibration_error(right, score, bins, "quantile")
    print(f"{bins} bins: by hand {hand:.4f}, array split of sorted scores {ordered:.4f}, of the same unsorted "
          f"{shuffled:.4f}; quantile {quantile:.4f}")
    assert abs(ordered - hand) < 0.003 and abs(quantile - hand) < 0.005
    assert shuffled < 0.3 * hand, "the order does not matter any more"

score = np.repeat([0.25, 0.75], 500)
right = np.arange(1000) % 2  # right half of the time, in either half
found = [expected_calibration_error(right, score, bins) for bins in (1, 2, 3)]
print(f"scores of 0.25 and 0.75, all right half of the time: {by_hand(right, score, 2)} by hand in two bins; "
      f"with num_bins=1 {found[0]}, 2 {found[1]}, 3 {found[2]}")
assert np.isnan(found[0]) and found[1] == 0 and found[2] == 0.25, "num_bins counts bins now"
PYTHON
