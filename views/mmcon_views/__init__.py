"""The built-in view generators by modality, registered by entry points, as third-party generators are."""
