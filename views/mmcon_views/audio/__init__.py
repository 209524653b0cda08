"""Built-in view generators of audio; importing this package registers them."""

from mmcon_views.audio import (
    byol_a,
    clar,
    codec,
    cola,
    crop,
    filters,
    log_mel,
    loudness,
    noise,
    reverb,
    spec_augment,
    speech,
    time_pitch,
)

__all__ = [
    "byol_a",
    "clar",
    "codec",
    "cola",
    "crop",
    "filters",
    "log_mel",
    "loudness",
    "noise",
    "reverb",
    "spec_augment",
    "speech",
    "time_pitch",
]
