"""The initial weights of residual blocks with depthwise convolutions, of torchvision and timm."""

from __future__ import annotations

from torch import nn

# What the blocks of MobileNet, MNASNet and EfficientNet call the flag of a shortcut, in torchvision and timm.
_HAS_SHORTCUT = ("use_res_connect", "apply_residual", "has_skip")


def start_as_shortcuts(network: nn.Module) -> None:
    """Set the scale of the last norm of every inverted residual block to 0, so that the block starts as its shortcut.

    Goyal et al. 2017, section 5.1, for residual networks. The libraries do not for these blocks. Their random weights
    give two views of an image features as different as those of two images, and a contrastive loss then falls fastest
    by making all embeddings equal.
    """
    for block in network.modules():
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms and any(getattr(block, name, False) is True for name in _HAS_SHORTCUT):
            nn.init.zeros_(norms[-1].weight)
