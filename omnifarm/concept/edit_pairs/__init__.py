"""Removal pairs made from a concept's own photographs: (photo, "remove <c>", photo without it), checked and reviewed."""
