#!/usr/bin/env bash
# onnx2torch 1.5.15: a CumSum without attributes, as torch's exporter writes it, adds up from the end.
#
# Expected: as the standard says, "reverse" is 0 where it is not given, and the running sum starts at the first element:
# torch.cumsum, exported and read back, is torch.cumsum.
# Seen: the converter takes 1 where it is not given. 1, 2, 3, 4 become 10, 9, 7, 4 instead of 1, 3, 6, 10, without a word,
# along every axis and for integers too. Seven of the standard's nine tests of CumSum leave the attribute out; all seven
# get other numbers than are written there, the two with reverse=1 are right. Setting reverse=0 in the node mends it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx2torch==1.5.15 onnx==1.23.2 onnxruntime==1.32.0 \
    torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import io

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.backend.test.case.node import collect_testcases
from onnx2torch import convert

torch.set_num_threads(1)


class Running(torch.nn.Module):
    def forward(self, values):
        return torch.cumsum(values, 1)


values, file = torch.tensor([[1.0, 2, 3, 4]]), io.BytesIO()
torch.onnx.export(Running(), (values,), file, dynamo=False, opset_version=17, verbose=False)
model = onnx.load_from_string(file.getvalue())
session = onnxruntime.InferenceSession(file.getvalue())
found = {
    "torch": Running()(values).tolist(),
    "onnxruntime": session.run(None, {session.get_inputs()[0].name: values.numpy()})[0].tolist(),
    "onnx2torch": convert(model)(values).tolist(),
}
(node,) = [node for node in model.graph.node if node.op_type == "CumSum"]
print("attributes of the exported node:", [one.name for one in node.attribute])
node.attribute.append(onnx.helper.make_attribute("reverse", 0))
found["onnx2torch, reverse=0 written out"] = convert(model)(values).tolist()
for name, numbers in found.items():
    print(f"{name}: {numbers}")

right, wrong = [], []
for test in collect_testcases("CumSum"):
    if "float16" in test.name or not test.data_sets:
        continue
    (inputs, (expected,)) = test.data_sets[0]
    try:
        result = convert(test.model)(*map(torch.from_numpy, map(np.atleast_1d, inputs))).numpy()
    except NotImplementedError as error:
        print(f"{test.name}: {error}")
        continue
    (right if np.allclose(result, expected) else wrong).append(test.name)
print(f"the standard's tests: right {right}, wrong {wrong}")
assert found["torch"] == found["onnxruntime"] == found["onnx2torch, reverse=0 written out"] == [[1, 3, 6, 10]]
assert found["onnx2torch"] == [[10, 9, 7, 4]] and wrong, "it adds up from the start now"
PYTHON
