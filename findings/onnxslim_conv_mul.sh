#!/usr/bin/env bash
# onnxslim 0.1.98: a Mul after a Conv that varies along the width is folded into the weights as if it varied by channel.
#
# Expected: slim() keeps what a network computes. A factor can be folded into a convolution if it has one value for each
# channel (shape [8, 1, 1]); a factor along the columns of the map (a window, a position weight) cannot.
# Seen: only the number of values is looked at, after all ones are taken from the shape. With 8 channels a factor of shape
# [8], [1, 1, 1, 8] (columns) or [8, 1] (rows) is folded in as well, without a word: results are wrong throughout. With a
# map that is not as wide as there are channels, or with Add in place of Mul, all is well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
images = random.standard_normal((1, 4, 8, 8)).astype(np.float32)
weights = random.standard_normal((8, 4, 3, 3)).astype(np.float32)
factor = np.arange(1, 9, dtype=np.float32)


def run(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": images})[0]


errors = {}
for shape in ((8, 1, 1), (8,), (1, 1, 1, 8), (8, 1)):
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Mul", ["c", "k"], ["y"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(factor.reshape(shape), "k")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    before, slim = run(model), onnxslim.slim(model)
    errors[shape] = float(np.abs(run(slim) - before).max() / np.abs(before).max())
    print(f"factor of shape {shape}: {[node.op_type for node in slim.graph.node]}, off by {errors[shape]:.0%} of the largest value")
assert errors[(8, 1, 1)] < 1e-5, "even a factor by channel is folded in wrongly"
assert all(errors[shape] > 0.1 for shape in ((8,), (1, 1, 1, 8), (8, 1))), "a factor by column or row is left alone now"
PYTHON
