"""Built-in view generators of audio; importing this package registers them."""

from mmcon_views.audio import log_mel, loudness, published, spectrogram, timing, transmission, waveform

__all__ = ["log_mel", "loudness", "published", "spectrogram", "timing", "transmission", "waveform"]
