"""One builder for each bundled set: a function of the work folder and the output folder."""

from samples import clip, emoji, fashion, motion, speech, spoken

BUILDERS = {
    "fashion": fashion.build,
    "speech": speech.build,
    "emoji": emoji.build,
    "spoken": spoken.build,
    "clip": clip.build,
    "motion": motion.build,
}
