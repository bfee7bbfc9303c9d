"""Fixtures for every test: here, so that one session starts one server however many files use it."""

from tests.hasty import hasty_miniature
from tests.seaweedfs import seaweedfs

__all__ = ["hasty_miniature", "seaweedfs"]
