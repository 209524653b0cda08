"""Imported by the entry point `encoders`; registers the built-in encoders."""

from mmcon.models import audio, precomputed, resnet_tiny, text, video

__all__ = ["audio", "precomputed", "resnet_tiny", "text", "video"]
