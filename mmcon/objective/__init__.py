"""The training objective: blocks of modality pairs in shared spaces, with their candidates."""
