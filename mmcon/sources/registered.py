"""The sources that come with the package: the entry point `sources` imports this module, which registers them."""

from mmcon.sources import audio, factory, files, hub, manifests, pairs, text, video
from mmcon.sources.bundled import emoji_rows, scenes

__all__ = ["audio", "emoji_rows", "factory", "files", "hub", "manifests", "pairs", "scenes", "text", "video"]
