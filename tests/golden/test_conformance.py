"""The vectors recorded from the official code, and what the verifier says about damaged ones."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnifarm.backbone.conformance import verify_golden
from tests.golden.variant import build_variant

SET_A = Path(__file__).parent / "a"
Damage = Callable[[Path], None]


def copy_of(target: Path, *, groups: Sequence[str]) -> Path:
    """Copy the golden set with only some groups in its index."""
    shutil.copytree(SET_A, target)
    edit_index(target, lambda index: index.update(groups={name: index["groups"][name] for name in groups}))
    return target


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_every_group_of_the_golden_set_passes_and_every_tensor_is_compared() -> None:
    index = json.loads((SET_A / "index.json").read_text())
    report = verify_golden(SET_A)
    assert report.failing == []
    assert report.passed
    assert set(report.groups) == set(index["groups"])
    for name, group in index["groups"].items():
        outputs = [t for t in (group.get("tensors") or {}).values() if t["role"] == "out"]
        assert report.groups[name].num_tensors == len(outputs)
        assert report.groups[name].worst_ratio < 0.2
    assert json.loads(json.dumps(report.to_json()))["pass"] is True


def test_a_backbone_of_other_sizes_and_an_undeclared_vocabulary_replays_whole(tmp_path: Path) -> None:
    folder = build_variant(tmp_path / "b", source=SET_A)
    report = verify_golden(folder)
    assert report.failing == []
    reference = verify_golden(SET_A)
    for name, group in report.groups.items():
        assert group.num_tensors == reference.groups[name].num_tensors
        assert group.num_facts == reference.groups[name].num_facts


def _poison(folder: Path) -> None:
    edit_tensors(
        folder / "e2_cfg_unit.safetensors", lambda t: t["global_sT4_sI1_min0"].view(-1)[3:4].fill_(float("nan"))
    )


def _nudge(folder: Path) -> None:
    edit_tensors(folder / "e2_cfg_unit.safetensors", lambda t: t["global_sT4_sI1_min0"].view(-1)[3:4].add_(1e-3))


def _cut(folder: Path) -> None:
    edit_tensors(
        folder / "e2_cfg_unit.safetensors",
        lambda t: t.update({"global_sT4_sI1_min0": t["global_sT4_sI1_min0"][:3].clone()}),
    )


def _drop(folder: Path) -> None:
    edit_tensors(folder / "e2_cfg_unit.safetensors", lambda t: t.pop("global_sT4_sI1_min0"))


def _invent(folder: Path) -> None:
    edit_index(
        folder,
        lambda index: index["groups"]["e2_cfg_unit"]["tensors"].update(
            novelty={"shape": [1], "dtype": "float32", "role": "out", "meaning": "", "tolerance": {"exact": True}}
        ),
    )


def _invent_group(folder: Path) -> None:
    edit_index(folder, lambda index: index["groups"].update(z_new={"file": None, "params": {}, "tensors": {}}))


def _truncate(folder: Path) -> None:
    data = (folder / "e2_cfg_unit.safetensors").read_bytes()
    (folder / "e2_cfg_unit.safetensors").write_bytes(data[: len(data) // 2])


def _untoleranced(folder: Path) -> None:
    edit_index(
        folder,
        lambda index: index["groups"]["e2_cfg_unit"]["tensors"]["global_sT4_sI1_min0"].update(tolerance={}),
    )


@pytest.mark.parametrize(
    ("damage", "named", "why"),
    [
        (_poison, "e2_cfg_unit/global_sT4_sI1_min0", "NaN"),
        (_nudge, "e2_cfg_unit/global_sT4_sI1_min0", "above the tolerance"),
        (_cut, "e2_cfg_unit/global_sT4_sI1_min0", "shape must be"),
        (_drop, "e2_cfg_unit/global_sT4_sI1_min0", "missing from the file"),
        (_invent, "e2_cfg_unit/novelty", "missing from the file"),
        (_invent_group, "z_new/z_new", "not covered"),
        (_truncate, "e2_cfg_unit/e2_cfg_unit.safetensors", "cannot be read"),
        (_untoleranced, "e2_cfg_unit/global_sT4_sI1_min0", "no tolerance"),
        (lambda folder: (folder / "e2_cfg_unit.safetensors").unlink(), "e2_cfg_unit/v", "missing from the file"),
        (lambda folder: (folder / "index.json").write_text("{"), "folder/index.json", "JSON"),
        (lambda folder: (folder / "index.json").unlink(), "folder/index.json", "JSON"),
        (lambda folder: edit_index(folder, lambda index: index.update(groups={})), "folder/index.json", "groups"),
        (lambda folder: (folder / "checkpoint" / "ae.safetensors").unlink(), "folder/checkpoint", r"ae\.safetensors"),
        (lambda folder: (folder / "checkpoint" / "ema.safetensors").write_bytes(b"x"), "folder/checkpoint", "ema"),
        (lambda folder: shutil.rmtree(folder / "checkpoint"), "e2_cfg_unit/e2_cfg_unit", "not covered"),
    ],
)
def test_a_damaged_set_fails_with_the_name_of_what_is_wrong(
    tmp_path: Path, damage: Damage, named: str, why: str
) -> None:
    folder = copy_of(tmp_path / "set", groups=["e2_cfg_unit"])
    damage(folder)
    report = verify_golden(folder)
    assert not report.passed
    assert named in report.failing
    lines = [line for group in report.groups.values() for line in group.failures]
    assert any(why.replace("\\", "") in line for line in lines if line.startswith(named.split("/")[1])), lines


def test_a_tensor_nobody_computes_fails_as_not_covered(tmp_path: Path) -> None:
    folder = copy_of(tmp_path / "set", groups=["e2_cfg_unit"])
    _invent(folder)
    edit_tensors(folder / "e2_cfg_unit.safetensors", lambda t: t.update(novelty=torch.zeros(1)))
    report = verify_golden(folder)
    assert report.failing == ["e2_cfg_unit/novelty"]
    assert "not covered" in report.groups["e2_cfg_unit"].failures[0]


def test_a_missing_picture_fails_the_groups_that_need_it(tmp_path: Path) -> None:
    folder = copy_of(tmp_path / "set", groups=["a_vit", "f_t2i", "g2_understand"])
    (folder / "images" / "img0.png").unlink()
    report = verify_golden(folder)
    assert report.groups["f_t2i"].passed
    assert not report.groups["a_vit"].passed
    assert "img0.png" in report.groups["g2_understand"].failures[0]


def test_a_wrong_recorded_fact_fails_with_its_name(tmp_path: Path) -> None:
    folder = copy_of(tmp_path / "set", groups=["static", "g2_understand"])

    def change(index: dict) -> None:
        index["groups"]["g2_understand"]["params"]["output_text"] = "something else"
        index["groups"]["static"]["params"]["resize_table"][2]["out_wh"] = [1, 1]
        index["groups"]["static"]["params"]["special_token_ids"]["eos_token_id"] = 1

    edit_index(folder, change)
    failing = verify_golden(folder).failing
    assert failing == ["static/special_token_ids", "static/resize_table[2]", "g2_understand/output_text"]


def test_an_8_bit_picture_must_follow_exactly_from_its_recorded_float_tensor(tmp_path: Path) -> None:
    folder = copy_of(tmp_path / "set", groups=["b_vae"])

    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors["decoded_u8"].view(-1)
        place = int((flat > 0).nonzero()[0])
        flat[place] -= 1

    edit_tensors(folder / "b_vae.safetensors", change)
    report = verify_golden(folder)
    assert report.failing == ["b_vae/decoded_u8"]
    assert "exactly" in report.groups["b_vae"].failures[0]
