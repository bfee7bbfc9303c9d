"""Numbers as printed in the OmniPersona paper: shown beside ours, never mixed with them.

They come from other data, other judges, other weights and partly other models; nothing here was measured by us.
"""

from collections.abc import Mapping
from types import MappingProxyType

from omnifarm.bench.metrics.columns import PAPER_COLUMNS

SOURCE = "OmniPersona, tables 1 to 3, as printed"
"""What stands above published numbers."""


def _row(text: str) -> Mapping[str, float]:
    values = text.split()
    assert len(values) == len(PAPER_COLUMNS), text
    return MappingProxyType({key: float(one) for key, one in zip(PAPER_COLUMNS, values, strict=True) if one != "-"})


TABLE_1: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "GPT-4o + TP": _row(".742 .473 .676 .610 .685 .689 .301 .626 .198 .780 .690 .463 .645 .554"),
        "GPT-4o + IP": _row(".773 .543 .685 .589 .652 .794 .310 .722 .559 .782 .792 .512 .603 .558"),
        "Real Images": _row("- - - - - .832 - .728 .739 - .832 - - -"),
        "Yo'LLaVA 13B": _row(".919 .609 .629 .612 .593 - - - - - - - - -"),
        "MC-LLaVA 13B": _row(".924 .628 .637 .601 .583 - - - - - - - - -"),
        "RAP-MLLM 13B": _row(".940 .616 .616 .712 .722 - - - - - - - - -"),
        "Qwen2.5-VL 3B + TP": _row(".660 .407 .727 .574 .774 - - - - - - - - -"),
        "Yo'LLaVA (Phi-1.5)": _row(".765 .488 .497 .510 .494 - - - - - - - - -"),
        "Textual Inversion": _row("- - - - - .630 .247 .569 .371 .070 .628 - - -"),
        "DreamBooth (SD)": _row("- - - - - .649 .281 .591 .436 .071 .650 - - -"),
        "Chameleon 7B + TP": _row(".690 .413 .488 .509 .564 .547 .176 .509 .011 .329 .549 .122 .520 .321"),
        "Chameleon 7B + IP": _row(".493 .445 .498 .407 .535 .523 .160 .469 .066 .299 .499 .093 .442 .268"),
        "Show-o 1.3B + TP": _row(".566 .461 .409 .504 .579 .664 .264 .553 .048 .770 .660 .250 .340 .295"),
        "Bagel 7B + TP": _row(".788 .420 .542 .445 .632 .697 .284 .425 .309 .813 .725 .297 .566 .432"),
        "Yo'Chameleon 7B": _row(".764 .474 .507 .510 .581 .697 .236 .590 .224 .266 .698 .108 .360 .234"),
        "UniCTokens 1.3B": _row(".790 .503 .523 .544 .603 .750 .282 .646 .334 .359 .749 .155 .212 .184"),
        "OmniPersona 7B": _row(".852 .529 .603 .646 .678 .791 .273 .579 .413 .613 .788 .711 .605 .658"),
    }
)
"""Table 1: system to column to value."""

TABLE_2: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "w/o disentangled tokens": _row(".804 .477 .541 .589 .652 .778 .289 .585 .402 .431 .732 .652 .613 .633"),
        "w/o knowledge replay": _row("- - - - - - - - - .312 .765 - - -"),
        "w/o edit data": _row(".840 .517 .614 .632 .659 .772 .296 .553 .397 .584 .781 .683 .592 .638"),
        "full": _row(".852 .529 .603 .646 .678 .791 .273 .579 .413 .613 .788 .711 .605 .658"),
    }
)
"""Table 2: ablation to column to value."""

TABLE_3: Mapping[str, tuple[float, int, float]] = MappingProxyType(
    {"three calls": (1.87, 3, 0.635), "one call (unified)": (1.45, 1, 0.613), "no replay": (0.0, 0, 0.312)}
)
"""Table 3: way of replay to (seconds, model calls, PARG score)."""
