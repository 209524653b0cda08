"""The built-in view generators, by modality; they arrive by the same entry points as a third party's."""
