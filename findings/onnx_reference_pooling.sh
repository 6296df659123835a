#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator contradicts the standard in three common operators.
#
# Expected: onnx.reference.ReferenceEvaluator is what a runtime is to be compared with, and does as the standard says.
# Seen, where onnxruntime does:
# - LpNormalization with p=1 divides by the sum of the values, not of their absolute values;
# - MaxPool with auto_pad=SAME_LOWER and stride 2 makes a map of floor(length / stride) and leaves out the padding, though
#   the standard and onnx's own shape inference say ceil(length / stride); SAME_UPPER is right;
# - AveragePool with ceil_mode=1 pads at the beginning for the last, incomplete window, so every window shifts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def both(operator, inputs, **attributes):
    inputs = np.array(inputs, np.float32)
    shape = [f"d{axis}" for axis in range(inputs.ndim)]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape.dim
    reference = ReferenceEvaluator(model).run(None, {"x": inputs})[0]
    runtime = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": inputs})[0]
    print(f"{operator} {attributes}\n  reference {reference.ravel()}, onnxruntime {runtime.ravel()}")
    assert [size.dim_value for size in inferred] == list(runtime.shape), "onnxruntime's shape is not the inferred one"
    return reference, runtime


def agree(pair):
    return pair[0].shape == pair[1].shape and np.allclose(*pair, atol=1e-5)


row = [[[[1, 2, 3, 4, 5, 6, 7]]]]
values = np.array([[1, -2, 1.5]])
assert agree(both("LpNormalization", values, axis=1, p=2)), "p=2 differs, too"
reference, runtime = both("LpNormalization", values, axis=1, p=1)
assert np.allclose(runtime, values / np.abs(values).sum()), "onnxruntime differs from the standard"
assert np.allclose(reference, values / values.sum()), "the reference takes absolute values now"

pooling = {"kernel_shape": [1, 3], "strides": [1, 2]}
assert agree(both("MaxPool", row, auto_pad="SAME_UPPER", **pooling)), "SAME_UPPER differs, too"
reference, runtime = both("MaxPool", row, auto_pad="SAME_LOWER", **pooling)
assert runtime.ravel().tolist() == [2, 4, 6, 7], "onnxruntime differs from the standard"
assert reference.ravel().tolist() == [3, 5, 7], "the reference's MaxPool is another now"

pooling = {"kernel_shape": [1, 3], "strides": [1, 3]}
assert agree(both("AveragePool", row, **pooling)), "it differs without ceil_mode, too"
reference, runtime = both("AveragePool", row, ceil_mode=1, **pooling)
assert runtime.ravel().tolist() == [2, 5, 7], "onnxruntime differs from the standard"
assert reference.ravel().tolist() == [1.5, 4, 6], "the reference's AveragePool is another now"
PYTHON
