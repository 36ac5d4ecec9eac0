"""Frames → figures, views in a notebook, and the report page. No torch."""
