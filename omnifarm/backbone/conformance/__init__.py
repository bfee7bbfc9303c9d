"""Golden vectors: replay everything recorded from the official code and compare number by number."""

from omnifarm.backbone.conformance.report import GoldenReport, GroupReport
from omnifarm.backbone.conformance.verify import verify_golden

__all__ = ["GoldenReport", "GroupReport", "verify_golden"]
