#!/usr/bin/env bash
# timm 1.0.31: DropBlock2d drops far more than its rate where the block is not small beside the map.
#
# Expected: drop_prob is about the share of activations that are set to zero, as in the paper and in torchvision.
# Seen, at the defaults (rate 0.1, block 7): on a map of 14x14 21 %, on one of 8x8 62 %, on one of 7x7, the last stage
# of most networks at 224 px, 93 %, where what is left is multiplied by 14; torchvision 0.29.1 drops 9 to 10 % on each.
# The rate of the seeds is the paper's, for seeds that lie so that the whole block fits into the map; here they are drawn
# all over the map. timm's own networks take smaller blocks (3 on the last stage: 15 % on 7x7).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from timm.layers import DropBlock2d
from torchvision.ops import DropBlock2d as TorchvisionDropBlock2d


def rate(layer, side):
    """The share of ones that a layer sets to zero in training."""
    torch.manual_seed(0)
    return (layer.train()(torch.ones(1024, 4, side, side)) == 0).double().mean().item()


for block, side in ((3, 7), (7, 7), (7, 8), (7, 14)):
    of_timm = rate(DropBlock2d(drop_prob=0.1, block_size=block), side)
    of_torchvision = rate(TorchvisionDropBlock2d(0.1, block), side)
    print(f"block {block}, map {side:2} x {side:2}: timm drops {of_timm:.1%}, torchvision {of_torchvision:.1%}; asked for 10 %")
    assert 0.08 < of_torchvision < 0.12
    if block == 7:
        assert of_timm > (0.5 if side < 9 else 0.15), "the rate is heeded now"
PYTHON
