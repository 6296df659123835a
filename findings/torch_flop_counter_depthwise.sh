#!/usr/bin/env bash
# torch 2.14.1: FlopCounterMode counts the backward pass of a depthwise convolution many times over.
#
# Expected: a training step of a convolution is three times its forward pass (forward, gradient of the input, gradient of
# the weights, each the same number of multiplications), with groups as without.
# Seen: so it is with groups=1. With groups, the gradient of the weights is counted as if every channel met every other:
# groups times too much. A depthwise layer of 64 channels gets 66 instead of 3, and a step of torchvision's
# mobilenet_v3_small 25 forward passes instead of a little less than 3. The forward pass itself is counted right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)


def steps_in_forwards(module, shape):
    inputs = torch.randn(shape, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        outputs = module(inputs)
    with FlopCounterMode(display=False) as backward:
        outputs.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops() / forward.get_total_flops() + 1


seen = {}
for groups in (1, 2, 8, 64):
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, groups=groups, bias=False)
    flops, seen[groups] = steps_in_forwards(layer, (1, 64, 16, 16))
    assert flops == 2 * 64 * 64 // groups * 9 * 16 * 16, "the forward pass is counted in another way now"
    print(f"64 channels in {groups:2} groups: a step is {seen[groups]:.1f} forward passes")
network = torchvision.models.mobilenet_v3_small()
_, whole = steps_in_forwards(network, (2, 3, 64, 64))
print(f"mobilenet_v3_small: a step is {whole:.1f} forward passes")
assert seen[1] == 3, "even a plain convolution is counted otherwise"
assert all(seen[groups] == groups + 2 for groups in seen), "the weights' gradient is counted by groups now"
assert whole > 20, "the network is counted otherwise now"
PYTHON
