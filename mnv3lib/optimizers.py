"""The optimizers of a recipe."""

import torch
from torch import nn

from mnv3lib.recipe import Recipe


class PointwiseMuon(torch.optim.Muon):
    """Muon for 1x1 convolutions: it knows matrices alone, so it gets their kernels as such, in the same memory."""

    def __init__(self, kernels: list[nn.Parameter], **options):
        self.kernels = kernels
        super().__init__([nn.Parameter(kernel.detach().view(kernel.shape[:2])) for kernel in kernels], **options)

    def step(self, closure=None):
        for kernel, matrix in zip(self.kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = kernel.grad.view(matrix.shape)
        return super().step(closure)


def make(recipe: Recipe, network: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizers of a recipe; each group of parameters keeps its highest learning rate as `peak`."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]  # the others are frozen
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizers = []
    if recipe.optimizer == "muon":
        pointwise = [p for p in kernels if p.ndim == 4 and p.shape[1] > 1 and p.shape[2:] == (1, 1)]
        chosen = {id(parameter) for parameter in pointwise}
        kernels = [parameter for parameter in kernels if id(parameter) not in chosen]
        if pointwise:  # with frozen features there are none
            rates = dict(lr=recipe.muon_learning_rate, weight_decay=recipe.muon_weight_decay)
            optimizers.append(PointwiseMuon(pointwise, **rates))
    if not recipe.depthwise_decay:
        others += [parameter for parameter in kernels if parameter.ndim == 4 and parameter.shape[1] == 1]
        kernels = [parameter for parameter in kernels if parameter.ndim != 4 or parameter.shape[1] > 1]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "rmsprop":
        last = torch.optim.RMSprop(groups, lr=recipe.learning_rate, alpha=0.9, eps=0.0316, momentum=recipe.momentum)
    elif recipe.optimizer == "adamw":
        last = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=True)
    else:
        last = torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
        )
    optimizers.append(last)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
