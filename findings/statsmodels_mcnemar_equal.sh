#!/usr/bin/env bash
# statsmodels 0.15.0: McNemar's test with the usual correction calls two identical classifiers different, with p = 0.
#
# Expected: where no image is right by one classifier and wrong by the other there is no evidence of a difference: p is
# 1, as exact=True gives it, or not a number, or an error, as in mlxtend.
# Seen with exact=False: statistic infinite, p = 0.0, which passes every threshold and survives Holm's correction. The
# correction takes one from the difference even where that is zero, and the square of it is divided by zero; NumPy's
# warning of that is the only word. Without the correction p is NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

right = np.arange(10_000) % 10 < 7  # the same answers twice
table = np.array([[(right & right).sum(), (right & ~right).sum()], [(~right & right).sum(), (~right & ~right).sum()]])
exact = mcnemar(table, exact=True).pvalue
corrected = mcnemar(table, exact=False)  # correction=True is the default
plain = mcnemar(table, exact=False, correction=False).pvalue
few = mcnemar([[7000, 1], [1, 2998]], exact=False).pvalue
print(f"p of identical answers: exact {exact}, corrected {corrected.pvalue} (statistic {corrected.statistic}), not corrected {plain}")
print(f"with one image for either: corrected {few:.2f}")
rejected = multipletests([corrected.pvalue, 0.04, 0.2], method="holm")[0]
print(f"by Holm, beside 0.04 and 0.2: significant {rejected.tolist()}")
assert exact == 1 and np.isnan(plain) and few > 0.4
assert corrected.pvalue == 0 and rejected[0], "no discordant pair is handled now"
PYTHON
