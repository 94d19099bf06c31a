"""Dock widgets: the only part that knows Qt and napari."""
