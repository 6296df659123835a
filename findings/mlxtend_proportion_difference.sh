#!/usr/bin/env bash
# mlxtend 0.25.0: proportion_difference gives a p-value near 1 where the first classifier is the better one.
#
# Expected: of "a difference of proportions test" the same p for two accuracies in either order, small where they differ
# much, as in statsmodels and by chi-squared. The user guide tells of the two-tailed test and of |z| above 1.96.
# Seen: 0.72 against 0.69 of 10,000 images, 4.65 deviations apart, has p = 0.999998, in the other order 0.000002; two
# equal accuracies have 0.5. What is returned is the normal distribution's share below z, so it asks only whether the
# first is worse. Whoever puts the new network first never sees it win; put second, it gets half the p: the guide's own
# example (0.84, 0.92, 100 images) has 0.040, "a statistically significant difference", where both sides give 0.08.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlxtend==0.25.0 statsmodels==0.15.0 numpy==2.4.6 \
    scipy==1.17.1 pandas==3.1.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from mlxtend.evaluate import proportion_difference
from scipy.stats import chi2_contingency
from statsmodels.stats.proportion import proportions_ztest

counts = (7200, 6900, 10_000), (6900, 7200, 10_000), (7000, 7000, 10_000), (84, 92, 100), (92, 84, 100)
for first, second, n in counts:
    z, p = proportion_difference(first / n, second / n, n)
    reference = proportions_ztest([first, second], [n, n])[1]
    squared = chi2_contingency([[first, n - first], [second, n - second]], correction=False).pvalue
    print(f"{first / n:.2f} against {second / n:.2f} of {n:,}: z {z:+.2f}, p {p:.6f}; statsmodels {reference:.6f}, "
          f"chi-squared {squared:.6f}")
    assert abs(reference - squared) < 1e-9
    one_sided = abs(p - (1 - reference / 2 if first > second else reference / 2)) < 2e-3
    assert one_sided, "p has become that of a difference"
PYTHON
