"""The sources that come with the package: the entry point `sources` imports this module, which registers them."""

from mmcon.sources import factory
from mmcon.sources.bundled import emoji_concepts, fashion_images, motion_clips, scenes, speech_prompts

__all__ = ["emoji_concepts", "factory", "fashion_images", "motion_clips", "scenes", "speech_prompts"]
