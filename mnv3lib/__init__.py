"""MobileNet V1, V2 and V3 on CIFAR-100: the networks, the training loop and the report."""

from importlib import import_module

# What is public, and where it is: imported when it is first asked for, so that `mnv3 --help` waits for no torch.
_PLACES = {
    "Architecture": "recipe",
    "InputError": "errors",
    "MobileNet": "networks",
    "Recipe": "recipe",
    "build": "networks",
    "load": "store",
    "predict": "inference",
    "train": "own.transfer",
}
__all__ = list(_PLACES)


def __getattr__(name: str):
    if name == "data":  # as in mnv3lib.data.folder(...)
        return import_module("mnv3lib.data")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
