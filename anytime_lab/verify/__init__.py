"""A text and a gold answer → a grade."""
