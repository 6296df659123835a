"""ONNX files with int8 convolutions and linear layers: static quantization by onnxruntime."""

import math
import tempfile
from pathlib import Path

import torch

from mnv3lib.deploy import onnx_files

OPERATORS = ["Conv", "Gemm"]  # that become int8
CUT = 1e-4  # the share of an activation's values that its range leaves out


def quantized(source: bytes, images: torch.Tensor) -> bytes:
    """The content of an ONNX file with its operators quantized; its metadata stay.

    images: what the file takes, float [n, 3, size, size]; they give the ranges of the activations. Weights have a
    scale per channel, and 7 bits, since processors without VNNI overflow in sums of 8-bit products. Whether accuracy
    is kept has to be measured.
    """
    onnx, _ = onnx_files.extra()
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.shape_inference import quant_pre_process

    method = quantization.CalibrationMethod.Percentile
    with tempfile.TemporaryDirectory() as folder, onnx_files.quiet():
        whole, prepared, augmented = (Path(folder) / f"{step}.onnx" for step in ("whole", "prepared", "augmented"))
        whole.write_bytes(source)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        calibrator = quantization.create_calibrator(prepared, OPERATORS, str(augmented), method)
        found = {
            name: TensorData(lowest=low.numpy(), highest=high.numpy())
            for name, (low, high) in ranges(augmented, sorted(calibrator.tensors_to_calibrate), images).items()
        }
        quantizer = quantization.QDQQuantizer(
            onnx.load(prepared),
            per_channel=True,
            reduce_range=True,
            weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QUInt8,
            tensors_range=TensorsData(method, found),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=OPERATORS,
            extra_options={},
        )
        quantizer.quantize_model()
    model = quantizer.model.model
    told = onnx.load_from_string(source).metadata_props
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in told})
    return model.SerializeToString()


def ranges(path: Path, names: list[str], images: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The range of each of the outputs `names` of an ONNX file over `images`, float [n, 3, size, size].

    The limit on both sides is what CUT of the absolute values exceed, which would stretch the steps for all others,
    or the extreme value if it lies nearer. onnxruntime's own calibrator keeps every value of all images until the end;
    here it is the largest ones that are kept, and the memory is that of one batch.
    """
    opened = onnx_files.open_session(path, spinning=False)
    largest, lows, highs = {}, {}, {}
    for batch in images.split(onnx_files.BATCH):
        for name, output in zip(names, opened.run(names, {"images": batch.numpy()}), strict=True):
            values = torch.from_numpy(output).flatten()
            low, high = values.aminmax()
            lows[name], highs[name] = min(low, lows.get(name, low)), max(high, highs.get(name, high))
            values = values.abs()
            if name in largest:
                values = torch.cat([largest[name], values[values > largest[name][-1]]])
            count = math.ceil(CUT * output.size / len(batch) * len(images))
            largest[name] = values.topk(min(count, len(values))).values
    return {name: (max(lows[name], -top[-1]), min(highs[name], top[-1])) for name, top in largest.items()}
