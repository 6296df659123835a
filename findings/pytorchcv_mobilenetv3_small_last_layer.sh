#!/usr/bin/env bash
# pytorchcv 0.0.74: MobileNetV3 Small has Large's layer before the classifier, a sixth more parameters than the paper's.
#
# Expected: 1024 channels before the classifier (V3 paper, table 2) and 2.54 million parameters, as torchvision has them.
# Seen: 1280 channels, as table 1 has for Large, at width 1 and at the smaller ones (the paper's code narrows this layer at
# none of them), and 2.95 million parameters. Large and V2 agree with torchvision to a thousandth, so a comparison by these
# networks makes Small alone look heavier than it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytorchcv==0.0.74 torch==2.14.1 torchvision==0.29.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torchvision.models as theirs
from pytorchcv.model_provider import get_model
from torch import nn


def size(network):
    return sum(one.numel() for one in network.parameters())


def before_classifier(network):
    return [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1].weight.shape[1]


for name, reference in (
    ("mobilenetv2_w1", theirs.mobilenet_v2()),
    ("mobilenetv3_large_w1", theirs.mobilenet_v3_large()),
    ("mobilenetv3_small_w1", theirs.mobilenet_v3_small()),
):
    network = get_model(name)
    found, wanted = size(network), size(reference)
    print(f"{name}: {found:,} parameters, torchvision's {wanted:,} ({found / wanted - 1:+.1%}); before the classifier "
          f"{before_classifier(network)} channels, torchvision's {before_classifier(reference)}")
    if "small" in name:
        assert before_classifier(network) == 1280 and found / wanted > 1.15, "Small's last layers have changed"
    else:
        assert abs(found / wanted - 1) < 1e-3
for name in ("mobilenetv3_small_wd2", "mobilenetv3_small_w7d20"):
    print(f"{name}: {before_classifier(get_model(name))} channels before the classifier")
    assert before_classifier(get_model(name)) == 1280
PYTHON
