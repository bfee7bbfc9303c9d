"""Folder layouts concepts are read from, one module per layout."""
