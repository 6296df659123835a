#!/usr/bin/env bash
# paddlepaddle 3.3.1: paddle.flops fails under NumPy 2.4, and counts running averages as parameters.
#
# Expected: paddle.flops counts a network of paddle.vision; its parameters are those that training changes, 3,504,872 of
# MobileNetV2 (as torchvision has them).
# Seen: with NumPy 2.4, which pip installs beside it, TypeError ("only 0-dimensional arrays ..."), after all layers were
# counted: the number of parameters is an array of one element. With NumPy 2.3 it answers. Its "Params" then have batch
# norm's running means and variances in them, 3,538,984, and its "Flops" are multiply-accumulates of convolutions beside
# two operations a value of batch norm: 314 million for the paper's 300.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for numpy in 2.4.6 2.3.5; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check paddlepaddle==3.3.1 "numpy==$numpy"
  "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

import numpy
import paddle
from paddle.vision.models import mobilenet_v2, mobilenet_v3_small

print(f"NumPy {numpy.__version__}")
for make in (mobilenet_v2, mobilenet_v3_small):
    network, told = make(), io.StringIO()
    trained = sum(int(numpy.prod(one.shape)) for one in network.parameters() if not one.stop_gradient)
    try:
        with contextlib.redirect_stdout(told):
            flops = paddle.flops(network, [1, 3, 224, 224])
    except TypeError as error:
        print(f"  {make.__name__}: TypeError: {error}")
        assert numpy.__version__ == "2.4.6", "it fails under NumPy 2.3 too now"
    else:
        params = int(told.getvalue().split("Params:")[1])
        print(f"  {make.__name__}: {flops:,} flops, {params:,} params, of which {trained:,} are trained")
        assert numpy.__version__ == "2.3.5", "it works under NumPy 2.4 now"
        assert params > trained
PYTHON
done
