#!/usr/bin/env bash
# onnxconverter-common 1.16.0: with keep_io_types=True a network that ends in Resize gives float16 all the same.
#
# Expected: "keep_io_types" leaves inputs and outputs in float32, whatever is computed between them.
# Seen: so it is where the last node is computed in float16. Where it is one of those that are kept in float32 (Resize is,
# by default, and ends many networks for segmentation and depth; or any that op_block_list names), its float32 result is
# cast to float16 and handed out so, without a word. What reads the file then gets the other type and numbers of 11 bits,
# or infinity beyond 65504, though they were at hand in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxconverter-common==1.16.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxconverter_common import float16


def converted(last, **options):
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="first")]
    if last == "Resize":
        nodes.append(helper.make_node("Resize", ["r", "", "s"], ["y"], name="last", mode="linear"))
    else:
        nodes.append(helper.make_node(last, ["r"], ["y"], name="last"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, "height", "width"])],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")] if last == "Resize" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    model = float16.convert_float_to_float16(model, keep_io_types=True, **options)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = session.run(None, {"x": np.full((1, 1, 4, 4), 1.0, np.float32)})[0]
    print(f"last node {last}, {options}: takes {session.get_inputs()[0].type}, gives {outputs.dtype}")
    return outputs.dtype


assert converted("Sigmoid") == np.float32, "outputs are never kept"
assert converted("Resize") == np.float16, "the output stays float32 now"
assert converted("Sigmoid", op_block_list=["Sigmoid"]) == np.float16, "the output of a blocked node stays float32 now"
PYTHON
