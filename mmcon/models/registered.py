"""Registers the built-in encoders: the entry point `encoders` imports this module."""

from mmcon.models import audio, precomputed, resnet_tiny, text, video

__all__ = ["audio", "precomputed", "resnet_tiny", "text", "video"]
