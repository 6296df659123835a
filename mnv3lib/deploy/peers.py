"""What a person would run instead: torchvision's and timm's MobileNets, with as many strides lowered as ours."""

from torch import nn

from mnv3lib.errors import InputError, choose

LIBRARIES = ("torchvision", "timm")
NAMES = {
    ("torchvision", "v2"): "mobilenet_v2",
    ("torchvision", "v3_small"): "mobilenet_v3_small",
    ("torchvision", "v3_large"): "mobilenet_v3_large",
    ("timm", "v1"): "mobilenetv1_100",
    ("timm", "v2"): "mobilenetv2_100",
    ("timm", "v3_small"): "mobilenetv3_small_100",
    ("timm", "v3_large"): "mobilenetv3_large_100",
}


def build(library: str, model: str, *, lowered_strides: int = 3) -> nn.Module:
    """The network at width 1.0 for 100 classes, untrained, in eval mode.

    `lowered_strides` as in recipe.Architecture; where input and output then have the same shape, the block gets the
    residual connection that ours has. Raises InputError if the library has no such network or is not installed.
    """
    choose("library", library, LIBRARIES)
    choose(f"network of {library}", model, [one for owner, one in NAMES if owner == library])
    name = NAMES[library, model]
    if library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name, num_classes=100)
    else:
        try:
            import timm
        except ImportError:
            raise InputError("timm is not installed: pip install timm, or leave it out") from None
        network = timm.create_model(name, pretrained=False, num_classes=100)
    lower_strides(network, lowered_strides)
    return network.eval()


def lower_strides(network: nn.Module, count: int) -> None:
    """Make the first `count` strided convolutions work at stride 1, in place."""
    strided = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.stride == (2, 2)]
    for convolution in strided[:count]:
        convolution.stride = (1, 1)
    for block in network.modules():
        flag = next((name for name in ("use_res_connect", "has_skip") if hasattr(block, name)), None)
        inside = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        if flag and set(inside).intersection(strided[:count]):
            # The last convolution but those of squeeze-excitation, which have a bias, gives the block's output.
            last = [one for one in inside if one.bias is None][-1]
            setattr(block, flag, inside[0].in_channels == last.out_channels)
