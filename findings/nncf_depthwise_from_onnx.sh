#!/usr/bin/env bash
# NNCF 3.4.0 with OpenVINO 2026.4.1: depthwise weights that were read from an ONNX file get their scales along the wrong
# axis, and the layer is computed in float.
#
# Expected: a depthwise convolution is quantized alike, a scale a channel, whether the model was read from a file
# (Core.read_model) or converted from the same file (openvino.convert_model).
# Seen, with 16 channels and a 3x3 kernel: scales of shape [16, 1, 1, 1, 1] after convert_model, and [16, 1, 1, 1, 3],
# along the width of the kernel, after read_model, which leaves the weights behind a Reshape. There the CPU plugin keeps
# the convolution in f32, without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nncf==3.4.0 openvino==2026.4.1 onnx==1.22.0 numpy==2.4.6
HOME="$folder" "$folder/venv/bin/python" -W ignore - "$folder/network.onnx" <<'PYTHON'
import logging
import sys

import nncf
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

nncf.set_log_level(logging.ERROR)
random = np.random.default_rng(0)
weights = random.standard_normal((16, 1, 3, 3)).astype(np.float32)
shape = ["n", 16, 8, 8]
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], group=16, kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
    "depthwise",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    [numpy_helper.from_array(weights, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), sys.argv[1])
images = [random.standard_normal((1, 16, 8, 8)).astype(np.float32) for _ in range(16)]


def quantized(model):
    """The shape of the weights' scales, and in what the convolution is computed."""
    model = nncf.quantize(model, nncf.Dataset(images))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (convolution,) = [node for node in model.get_ops() if node.get_type_name() == "GroupConvolution"]
    waiting, scales = [convolution.input_value(1).get_node()], None
    while waiting:
        node = waiting.pop()
        if node.get_type_name() in ("FakeQuantize", "Multiply"):
            place = 3 if node.get_type_name() == "FakeQuantize" else 1
            scales = list(node.input_value(place).get_shape())
            break
        waiting += [one.get_node() for one in node.input_values()]
    (run,) = [
        node.get_rt_info()["runtimePrecision"].astype(str)
        for node in compiled.get_runtime_model().get_ops()
        if "Convolution" in node.get_rt_info()["layerType"].astype(str)
    ]
    return scales, run


read, converted = openvino.Core().read_model(sys.argv[1]), openvino.convert_model(sys.argv[1])
found = {name: quantized(model) for name, model in (("read_model", read), ("convert_model", converted))}
for name, (scales, run) in found.items():
    print(f"{name}: scales of shape {scales}, computed in {run}")
assert found["convert_model"][1] in ("i8", "u8"), "after convert_model it is not int8 either"
assert found["read_model"][1] == "f32", "after read_model it is int8 now"
PYTHON
