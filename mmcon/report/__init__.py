"""Contact sheets: views of a file as an image, with their parameters."""
