#!/usr/bin/env bash
# ncnn 1.0.20261020 (Python): Mat of a NumPy array takes the array's memory and ignores its strides.
#
# Expected: ncnn.Mat(array) holds the array's values whatever its strides are, or raises, as other runtimes' bindings do.
# Seen: of a transposed view (an image from [height, width, channels] to [channels, height, width], the usual step before
# a network) the shape is taken and the values come in the order of the memory. No error: a network simply answers
# wrongly. numpy.ascontiguousarray before it mends that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import ncnn
import numpy

image = numpy.arange(4 * 4 * 3, dtype=numpy.float32).reshape(4, 4, 3)
view = image.transpose(2, 0, 1)
taken = numpy.array(ncnn.Mat(view))
whole = numpy.array(ncnn.Mat(numpy.ascontiguousarray(view)))
print(f"shape {taken.shape}; equal to the array: as a view {(taken == view).mean():.0%}, contiguous {(whole == view).mean():.0%}")
assert taken.shape == whole.shape == view.shape
assert (whole == view).all(), "even a contiguous array is not taken over"
assert not (taken == view).all(), "strides are heeded now"
PYTHON
