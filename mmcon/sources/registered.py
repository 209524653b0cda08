"""Imported by the entry point `sources`; registers the built-in sources."""

from mmcon.sources import factory
from mmcon.sources.bundled import emoji_concepts, fashion_images, motion_clips, scenes, speech_prompts, video_pairs

__all__ = ["emoji_concepts", "factory", "fashion_images", "motion_clips", "scenes", "speech_prompts", "video_pairs"]
