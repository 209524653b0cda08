"""The encoders that come with the package: the entry point `encoders` imports this module, which registers them."""

from mmcon.models import audio, encoders, resnet_tiny, text, video

__all__ = ["audio", "encoders", "resnet_tiny", "text", "video"]
