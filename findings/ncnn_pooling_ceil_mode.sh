#!/usr/bin/env bash
# ncnn 1.0.20261020 with pnnx 20261020: pooling with ceil_mode is not torch's, up to values of -3.4e38 and NaN.
#
# Expected: a network that pnnx converts without a word gives in ncnn what it gives in torch, and maps of the same size.
# Seen: torch's nn.AvgPool2d(2, ceil_mode=True) divides the sums of the incomplete windows at the right and lower edge by
# the number of values in them; ncnn divides by all of the kernel, so that on maps of odd size the last row and column
# are half of what they should be and the corner a quarter (with count_include_pad=False both agree). Torch leaves out
# windows that lie wholly in the padding. ncnn has them: with padding=1 a map of 7x7 becomes one of 5x5 instead of 4x4,
# and the last row and column are -3.4e38 (MaxPool2d) or not a number (AvgPool2d, count_include_pad=False).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ncnn==1.0.20261020 pnnx==20261020 torch==2.14.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys
from pathlib import Path

import ncnn
import numpy as np
import torch

torch.set_num_threads(1)
images = torch.ones(1, 3, 7, 7)


def in_ncnn(layer):
    """What ncnn gives for a layer that pnnx converted, in float32."""
    torch.jit.trace(layer, images).save("layer.pt")
    tool = Path(sys.executable).with_name("pnnx")
    subprocess.run([tool, "layer.pt", "inputshape=[1,3,7,7]", "fp16=0"], check=True, capture_output=True)
    with ncnn.Net() as network:
        network.opt.num_threads = 1
        network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
        assert network.load_param("layer.ncnn.param") == 0 and network.load_model("layer.ncnn.bin") == 0
        with network.create_extractor() as run:
            # as in the file that pnnx writes to run the network
            run.input("in0", ncnn.Mat(images.numpy(), batch_index=0).clone())
            return run.extract("out0")[1].numpy(batch_index=0).copy()[0, 0]


def last_row(kind, **options):
    layer = kind(2, **options)
    theirs, right = in_ncnn(layer), layer(images)[0, 0].numpy()
    print(f"{kind.__name__}(2) {options}\n  torch {right.shape}, last row {right[-1].tolist()}\n  ncnn  {theirs.shape}, last row {theirs[-1].tolist()}")
    return theirs, right


AvgPool2d, MaxPool2d = torch.nn.AvgPool2d, torch.nn.MaxPool2d
for options in ({}, {"ceil_mode": True, "count_include_pad": False}):
    theirs, right = last_row(AvgPool2d, **options)
    assert theirs.shape == right.shape and np.allclose(theirs, right)
theirs, right = last_row(AvgPool2d, ceil_mode=True)
assert (right == 1).all() and np.allclose(theirs[-1], [0.5, 0.5, 0.5, 0.25]), "incomplete windows are torch's now"
theirs, right = last_row(MaxPool2d, padding=1, ceil_mode=True)
assert right.shape == (4, 4) and theirs.shape == (5, 5) and (theirs[-1] < -3e38).all(), "maximum: torch's now"
theirs, right = last_row(AvgPool2d, padding=1, ceil_mode=True, count_include_pad=False)
assert right.shape == (4, 4) and theirs.shape == (5, 5) and np.isnan(theirs[-1]).all(), "average: torch's now"
PYTHON
