"""One builder a bundled sample: a function of the work folder and the output folder."""

from samples import emoji, fashion, speech, spoken

BUILDERS = {"fashion": fashion.build, "speech": speech.build, "emoji": emoji.build, "spoken": spoken.build}
