#!/usr/bin/env bash
# tract 0.23.9 (Python, ONNX): recurrent layers of direction "reverse" run forward; Celu lacks a factor.
#
# Expected: what tract reads without an error it computes as the standard says and onnxruntime does.
# Seen: an LSTM, GRU or RNN with direction="reverse" gives, to a rounding, what direction="forward" gives with the same
# weights; "bidirectional" is right in both halves.
# Celu is alpha * (exp(x / alpha) - 1) for x below 0; the factor alpha before it is left out, so that it is right only
# at alpha=1, the default. Softplus(x) is infinite from 89 on, where it should be x.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tract==0.23.9 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper


def both(operator, values, weights=(), **attributes):
    """What onnxruntime and tract give for a network of one node."""
    names = [f"w{place}" for place in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (4 if weights else 2))],
        [numpy_helper.from_array(one, name) for name, one in zip(names, weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, "network.onnx")
    (right,) = onnxruntime.InferenceSession("network.onnx").run(None, {"x": values})
    return right, tract.onnx().load("network.onnx").into_model().into_runnable().run([values])[0].to_numpy()


random = np.random.default_rng(0)
sequence = random.standard_normal((5, 1, 2)).astype(np.float32)
for operator, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    weights = [random.standard_normal((2, gates * 3, size)).astype(np.float32) for size in (2, 3)]
    found = {}
    for direction in ("forward", "reverse", "bidirectional"):
        some = weights if direction == "bidirectional" else [one[:1] for one in weights]
        found[direction] = both(operator, sequence, some, hidden_size=3, direction=direction)
    errors = {direction: float(abs(right - theirs).max()) for direction, (right, theirs) in found.items()}
    forward = float(abs(found["reverse"][1] - found["forward"][1]).max())
    told = ", ".join(f"{direction} {error:.0e}" for direction, error in errors.items())
    print(f"{operator}, greatest difference from onnxruntime: {told}; tract's reverse from its forward {forward:.0e}")
    assert errors["forward"] < 1e-5 and errors["bidirectional"] < 1e-5
    assert errors["reverse"] > 0.01 and forward < 1e-5, f"{operator} runs backward now"

for alpha in (0.5, 1.0, 2.0):
    right, theirs = both("Celu", np.float32([[-3, -1, 2]]), alpha=alpha)
    print(f"Celu, alpha={alpha}: onnxruntime {right[0].round(4).tolist()}, tract {theirs[0].round(4).tolist()}")
    assert np.allclose(right[0, :2], theirs[0, :2] * alpha, atol=1e-5), "Celu has its factor now"
right, theirs = both("Softplus", np.float32([[1, 80, 88, 89, 1000]]))
print(f"Softplus: onnxruntime {right[0].round(4).tolist()}, tract {theirs[0].round(4).tolist()}")
assert np.isinf(theirs[0, 3:]).all() and np.allclose(right[0, 1:], [80, 88, 89, 1000]), "Softplus is finite now"
PYTHON
