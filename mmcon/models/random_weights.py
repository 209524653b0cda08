"""What networks of libraries lack for a training from random weights: shortcuts at first, and recent statistics."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# What blocks of MobileNet, MNASNet, EfficientNet and MobileViT call the flag of a shortcut, in the three libraries.
_HAS_SHORTCUT = ("use_res_connect", "apply_residual", "has_skip", "use_residual")
# Options of the libraries that set the momentum of batch norms.
_NORM_OPTIONS = {"norm_layer", "bn_momentum", "batch_norm_momentum"}
# Torch's default: after 60 steps the running statistics are those of the last 20.
_MOMENTUM = 0.1


def prepare_random_weights(network: nn.Module, options: Collection[str] = ()) -> None:
    """Change a network in place for a training from random weights that may be short.

    - The last norm of every inverted residual block has a scale of 0, so that the block starts as its shortcut
      (Goyal et al. 2017, section 5.1, for residual networks). The random weights of these blocks give two views of an
      image features as different as those of two images, and a contrastive loss then falls fastest by making all
      embeddings equal.
    - The momentum of batch norms is torch's default. Some networks have that of a training of a million steps (MNASNet
      .0003, S3D .001, MobileNetV3 .01), so that their running statistics, which evaluation uses, are still those of
      the start after hundreds of steps.

    Args:
        network: of torchvision, timm or transformers.
        options: the names of the options that the caller gave to the library; one of norms is taken as it is.
    """
    for block in network.modules():
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms and any(getattr(block, name, False) is True for name in _HAS_SHORTCUT):
            nn.init.zeros_(norms[-1].weight)
    for norm in () if _NORM_OPTIONS & {*options} else network.modules():
        if isinstance(norm, _BatchNorm) and norm.momentum is not None:
            norm.library_momentum, norm.momentum = norm.momentum, _MOMENTUM  # pyright: ignore


def restore_momentum(network: nn.Module) -> None:
    """Give batch norms the momentum of their library again, for weights that were published."""
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = getattr(norm, "library_momentum", norm.momentum)
