"""Replays a golden folder group by group and reports."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden, read_index
from omnifarm.backbone.conformance.replay_cached import (
    replay_generate,
    replay_prefill,
    replay_understand,
    replay_velocity,
)
from omnifarm.backbone.conformance.replay_parts import replay_guidance, replay_static, replay_vae, replay_vit
from omnifarm.backbone.conformance.replay_sampling import replay_drawing, replay_interleave
from omnifarm.backbone.conformance.replay_soft import replay_soft
from omnifarm.backbone.conformance.replay_training import replay_chain, replay_packing, replay_training
from omnifarm.backbone.conformance.report import GoldenReport, GroupReport
from omnifarm.backbone.weights import load_backbone
from omnifarm.errors import WeightsError

REPLAYS: dict[str, Callable[[Golden, Group], None]] = {
    "static": replay_static,
    "a_vit": replay_vit,
    "b_vae": replay_vae,
    "c_prefill": replay_prefill,
    "d_generate_text": replay_generate,
    "g2_understand": replay_understand,
    "e_velocity": replay_velocity,
    "e2_cfg_unit": replay_guidance,
    "f_t2i": replay_drawing,
    "f2_t2i_think": replay_drawing,
    "f3_t2i_window": replay_drawing,
    "g_edit": replay_drawing,
    "g4_edit_window": replay_drawing,
    "g3_interleave": replay_interleave,
    "h_train": replay_training,
    "h2_packing": replay_packing,
    "h3_chain": replay_chain,
    "i_soft": replay_soft,
}
"""How each group of the index is replayed."""


def verify_golden(folder: Path | str) -> GoldenReport:
    """Replay every group of a golden folder and compare everything it recorded.

    Takes seconds for a tiny checkpoint. Damaged or missing files are reported, never raised.

    Args:
        folder: Holds `index.json`, the groups' tensors, `images` and `checkpoint`.

    Returns:
        One entry per group of the index. A group fails if anything in it differs, is missing, or was not compared.
    """
    folder = Path(folder)
    groups: dict[str, GroupReport] = {}
    try:
        index = read_index(folder)
    except WeightsError as error:
        return GoldenReport(groups={"folder": _broken("index.json", error)})
    golden: Golden | None = None
    try:
        golden = Golden(folder=folder, index=index, backbone=load_backbone(folder / "checkpoint"))
    except Exception as error:  # noqa: BLE001 - whatever a damaged set raises belongs into its report
        groups["folder"] = _broken("checkpoint", error)
    for name, entry in index["groups"].items():
        try:
            groups[name] = _replayed(golden, name, entry=entry, folder=folder)
        except Exception as error:  # noqa: BLE001 - an entry that is no group at all
            groups[name] = _broken(name, error)
    return GoldenReport(groups=groups)


def _replayed(golden: Golden | None, name: str, *, entry: Mapping[str, Any], folder: Path) -> GroupReport:
    started = time.perf_counter()
    group = Group(name, entry=entry, folder=folder)
    replay = REPLAYS.get(name)
    if replay is None:
        group.fail(name, "not covered: no replay of this group is known")
    elif golden is None:
        group.fail(name, "not covered: the checkpoint cannot be loaded")
    else:
        try:
            with torch.no_grad():
                replay(golden, group)
        except Exception as error:  # noqa: BLE001 - whatever a damaged set raises belongs into its report
            group.fail(name, f"the replay stopped: {type(error).__name__}: {error}")
    return group.report(seconds=time.perf_counter() - started)


def _broken(name: str, error: Exception) -> GroupReport:
    what = f"{name}: {type(error).__name__}: {error}"
    return GroupReport(num_tensors=0, num_facts=0, worst_ratio=float("inf"), failing=(name,), failures=(what,))
