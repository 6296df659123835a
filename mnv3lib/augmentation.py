"""Augmentation beyond crop and flip: torchvision's transforms, at its defaults, on the batches of an epoch.

They draw from torch's global generator, which `training` seeds anew in each epoch, so that an epoch can be run again.
"""

from collections.abc import Callable

import torch


class Beyond:
    """What a recipe's `augmentation` does to a batch: to its pixels, or to the network's inputs and their labels.

    trivialaugment (Müller and Hutter 2021) and erasing (Zhong et al. 2020; half of the images) take one image at a
    time; cutmix (Yun et al. 2019) and mixup (Zhang et al. 2018) mix each image of a batch with its neighbour, all by
    the same share.
    """

    def __init__(self, name: str, classes: int):
        from torchvision.transforms import v2  # slow to import, and most recipes have none of these

        self.of_pixels = v2.TrivialAugmentWide() if name == "trivialaugment" else None
        self.of_inputs = v2.RandomErasing() if name == "erasing" else None
        mixing = {"cutmix": v2.CutMix, "mixup": v2.MixUp}.get(name)
        self.of_both = mixing and mixing(num_classes=classes)

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, height, width, 3] to the same, before they are normalised."""
        return (
            images if self.of_pixels is None else _each(self.of_pixels, images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        )

    def inputs(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [n, 3, height, width] and labels [n] to images and the targets of the loss.

        The targets are the labels, or shares of the classes [n, classes] where images were mixed.
        """
        if self.of_inputs is not None:
            inputs = _each(self.of_inputs, inputs)
        if self.of_both is not None:
            inputs, labels = self.of_both(inputs, labels)
        return inputs.contiguous(memory_format=torch.channels_last), labels


def _each(transform: Callable, images: torch.Tensor) -> torch.Tensor:
    """A transform that would treat a batch all alike, image by image."""
    return torch.stack([transform(image) for image in images])
