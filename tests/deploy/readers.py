"""Programs that read ONNX files, each a function from a file and a batch of images to logits.

Imports none of them, nor anything of this project, at the top: a reader with needs of its own is run as a script,
`readers.py READER FILE IMAGES.npy LOGITS.npy BATCH`, where the needs are on the path.
"""

import sys

import numpy as np


def onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def opencv(path, **engine):
    import cv2

    cv2.setNumThreads(1)
    network = cv2.dnn.readNetFromONNX(path, **engine)

    def run(images):
        network.setInput(images)
        return network.forward().copy()

    return run


def opencv_classic(path):
    import cv2

    return opencv(path, engine=cv2.dnn.ENGINE_CLASSIC)


def opencv_new(path):
    import cv2

    return opencv(path, engine=cv2.dnn.ENGINE_NEW)


def openvino(path):
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # bfloat16 by default
    return lambda images: model(images)[0]


def reference(path):
    import onnx.reference

    evaluator = onnx.reference.ReferenceEvaluator(path)
    return lambda images: evaluator.run(None, {"images": images})[0]


def onnx2torch(path):
    import onnx
    import onnx2torch
    import torch

    network = onnx2torch.convert(onnx.load(path)).eval()
    return lambda images: network(torch.from_numpy(images)).detach().numpy()


def tract(path):
    import tract

    model = tract.onnx().load(path).into_model().into_runnable()
    return lambda images: model.run([images])[0].to_numpy()


def tvm(path):
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model, machines = onnx.load(path), {}

    def run(images):
        if len(images) not in machines:
            module = from_onnx(model, shape_dict={"images": list(images.shape)}, keep_params_in_input=False)
            machines[len(images)] = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
        return machines[len(images)]["main"](tvm.runtime.tensor(images)).numpy()

    return run


def logits(reader: str, path, images: np.ndarray, batch: int) -> np.ndarray:
    """What a reader says to all images, float [n, 3, height, width], `batch` at a time."""
    run = globals()[reader](str(path))
    return np.concatenate([run(images[start : start + batch]) for start in range(0, len(images), batch)])


if __name__ == "__main__":
    reader, path, given, found, batch = sys.argv[1:]
    np.save(found, logits(reader, path, np.load(given), int(batch)))
