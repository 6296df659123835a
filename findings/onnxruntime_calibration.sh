#!/usr/bin/env bash
# onnxruntime 1.32.0: calibration in parts forgets all but the last part, and "Entropy" is MinMax by default.
#
# Expected: CalibMaxIntermediateOutputs "will produce the same result as all computing with None, but is more memory
# efficient"; CalibrationMethod.Entropy looks for a range that cuts off outliers, as in TensorRT.
# Seen: after each part its extremes are dropped before they were looked at. Of five batches in parts of three only the
# last two count, and the int8 network cuts off what the others had; of six none is left, which raises an error. Entropy
# makes histograms of 128 bins and looks for the best range of at least 128 bins, so there is but one, from the least to
# the greatest, unless a later batch goes further; quantize_static has no option for the number of bins.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static
from onnxruntime.quantization.calibrate import create_calibrator

random = np.random.default_rng(0)
weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
places = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "network", places[:1], places[1:], [weight])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "network.onnx")
batches = [(random.normal(size=(1000, 4)) * strength).astype(np.float32) for strength in (8, 4, 2, 1, 1, 1)]


class Batches(CalibrationDataReader):
    def __init__(self, number):
        self.rest = iter([{"x": one} for one in batches[:number]])

    def get_next(self):
        return next(self.rest, None)


def error(number, method=CalibrationMethod.MinMax, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static("network.onnx", "int8.onnx", Batches(number), calibrate_method=method, extra_options=options)
    got = ort.InferenceSession("int8.onnx").run(None, {"x": batches[0]})[0]
    return float(np.abs(got - batches[0]).max())


def reach(method, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator("network.onnx", ["MatMul"], "augmented.onnx", method, extra_options=options)
        calibrator.collect_data(Batches(5))
        return float(np.max(calibrator.compute_data().data["x"].range_value[1]))


whole, parts = error(5), error(5, CalibMaxIntermediateOutputs=3)
print(f"greatest error of int8, values up to {np.abs(batches[0]).max():.1f}: {whole:.2f}, in parts {parts:.2f}")
assert whole < 0.5 and parts > 10, "parts are put together now"
try:
    error(6, CalibMaxIntermediateOutputs=3)
    raise SystemExit("parts that come out even are right now")
except ValueError as told:
    print("six batches in parts of three:", told)
entropy = CalibrationMethod.Entropy
found = reach(CalibrationMethod.MinMax), reach(entropy), reach(entropy, num_bins=2048)
print("upper end of the range: MinMax {:.2f}, Entropy {:.2f}, with 2048 bins {:.2f}".format(*found))
assert abs(found[0] - found[1]) < 1e-3 and found[2] < 0.9 * found[0], "Entropy chooses a range now"
PYTHON
