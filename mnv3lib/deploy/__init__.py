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
    "openvino": "exported to ONNX, OpenVINO's CPU plugin",
}
FORMATS = ("onnx", "onnx-int8")  # that `mnv3 export` writes
