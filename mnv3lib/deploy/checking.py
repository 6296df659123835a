"""PyTorch's own answers, to which those of every file are compared."""

import numpy as np
import torch

from mnv3lib.deploy.onnx_files import Normalised, floats
from mnv3lib.networks import MobileNet


@torch.inference_mode()
def expected(network: MobileNet, images: torch.Tensor) -> np.ndarray:
    """The network's logits [n, classes] for uint8 images [n, size, size, 3]."""
    module = Normalised(network).eval()
    return torch.cat([module(part) for part in floats(images)]).numpy()
