"""Out of PyTorch and on the clock."""

WIDTHS = (0.25, 0.5, 0.75, 1.0)  # that `mnv3 latency` measures by default
RUNTIMES = {
    "default": "PyTorch as a script runs it: NCHW, in a process of its own where the C library keeps no freed memory",
    "eager": "PyTorch, NCHW layout, with freed memory kept (see inference.keep_memory), as for all below",
    "channels_last": "PyTorch with the channels of a pixel side by side in memory",
    "folded": "the same, with batch norm folded into the convolutions",
    "compiled": "torch.compile of the folded network, channels_last",
    "onnxruntime": "exported to ONNX, onnxruntime's CPU provider",
    "onnxruntime-int8": "all in int8 from the image to the logits, onnxruntime",
    "openvino": "exported to OpenVINO, its CPU plugin",
    "openvino-int8": "the same, quantized to int8 by NNCF",
    "executorch": "exported to ExecuTorch, XNNPACK's layers",
    "executorch-int8": "the same, quantized to int8",
    "ncnn": "exported to ncnn, image by image",
    "tflite": "exported to LiteRT, its XNNPACK layers",
}
AS_THEY_COME = ("default", "eager", "channels_last")  # that the networks of other libraries are measured on
# What `mnv3 export` writes, and where to if nobody says
FORMATS = {
    "onnx": "{run}.onnx",
    "onnx-int8": "{run}_int8.onnx",
    "openvino": "{run}_openvino",
    "openvino-int8": "{run}_openvino_int8",
    "executorch": "{run}_executorch",
    "executorch-int8": "{run}_executorch_int8",
    "ncnn": "{run}_ncnn",
    "tflite": "{run}_tflite",
    "html": "{run}.html",
}
# What it does not, and why
REFUSED = {
    "tflite-int8": "LiteRT's quantizer gives wrong answers without a word where a channel is always zero, and V3 takes "
    "longer in int8 than in fp32: take tflite or executorch-int8"
}
