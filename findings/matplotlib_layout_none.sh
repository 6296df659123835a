#!/usr/bin/env bash
# matplotlib 3.11.2: a figure made with layout="none" is saved without a layout once, and with the style's from then on.
#
# Expected: plt.figure(layout="none") uses no layout engine, whatever the style says, as its documentation has it; so a
# figure that is saved twice, as an SVG and as a PNG, has its axes in the same place in both.
# Seen: with figure.constrained_layout.use in the style there is no engine at first (get_layout_engine is None). The first
# savefig leaves a ConstrainedLayoutEngine behind, and the second one moves the axes by it. set_layout_engine("none"),
# called on a figure that has an engine, leaves a place holder, which all saving respects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check matplotlib==3.11.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("agg")
plt.rcParams["figure.constrained_layout.use"] = True


def saved_twice(figure):
    """The engine and the left edge of the axes: at first, after saving, and after saving again."""
    axes = figure.add_subplot()
    axes.set_ylabel("a label\nof four\nlines\nbeside it")
    found = []
    for _ in range(3):
        found.append((type(figure.get_layout_engine()).__name__, round(float(axes.get_position().x0), 3)))
        figure.savefig(io.BytesIO())
    print(*found, sep="\n", end="\n\n")
    return found


print("layout='none' from the start:")
(first, left), (second, same), (third, moved) = saved_twice(plt.figure(layout="none"))
assert (first, second, third) == ("NoneType", "ConstrainedLayoutEngine", "ConstrainedLayoutEngine")
assert left == same == 0.125 and abs(moved - left) > 0.02
figure = plt.figure()
figure.set_layout_engine("none")
print("set_layout_engine('none') afterwards:")
assert saved_twice(figure) == [("PlaceHolderLayoutEngine", 0.125)] * 3
PYTHON
