"""One builder a bundled sample: a function of the work folder and the output folder."""

from samples import fashion, speech

BUILDERS = {"fashion": fashion.build, "speech": speech.build}
