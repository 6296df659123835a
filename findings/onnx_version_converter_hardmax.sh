#!/usr/bin/env bash
# onnx 1.23.2: the version converter changes what Hardmax and Resize compute, and nothing tells of it.
#
# Expected: a model of a newer opset that gives the same numbers, as with Softmax: from opset 13 on it runs along one axis
# only, where before it ran over all axes from that one on, so the converter puts a Flatten before and a Reshape behind it.
# Seen: Hardmax changed its meaning in the same opset in the same way, but the node is kept as it is: one winner an image
# becomes one a pixel. And Resize of opset 10, which samples at "asymmetric" positions, gets no attributes and so opset
# 11's default, "half_pixel". Upsample of opset 9 goes the same way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

images = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)


def run(model):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": images})[0]


def difference(old, new, operator, initializers=(), **attributes):
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *(tensor.name for tensor in initializers)], ["y"], **attributes)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", old)], ir_version=6)
    before, after = run(model), run(version_converter.convert_version(model, new))
    print(f"{operator}, opset {old} to {new}: sum {before.sum():.3f} before, {after.sum():.3f} after")
    return np.abs(before - after).max()


scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
assert difference(11, 13, "Softmax", axis=1) < 1e-6, "Softmax is changed, too"
assert difference(11, 13, "Hardmax", axis=1) == 1, "Hardmax is converted well now"
assert difference(10, 11, "Resize", [scales], mode="linear") > 0.1, "Resize is converted well now"
assert difference(9, 11, "Upsample", [scales], mode="linear") > 0.1, "Upsample is converted well now"
PYTHON
