from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnifarm.backbone.model import Backbone
from omnifarm.backbone.weight_slices import WeightSlices
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError, WeightsError
from omnifarm.training.sharded_backbone import open_backbone, weights_bytes
from omnifarm.training.sharding import Replicated, Turn, choose_sharding, least_workers, require_shareable

GB = 10**9
CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"


@pytest.mark.parametrize(
    ("free_gb", "ranks", "expected"),
    [(80, 1, "replicated"), (80, 8, "replicated"), (40, 2, "zero3"), (24, 4, "zero3")],
)
def test_a_whole_copy_is_kept_where_it_fits_and_shared_where_it_does_not(
    free_gb: int, ranks: int, expected: str
) -> None:
    chosen = choose_sharding("auto", weights_bytes=29 * GB, free_bytes=free_gb * GB, num_ranks=ranks)
    assert chosen == expected


@pytest.mark.parametrize(("free_gb", "expected"), [(80, 1), (49, 1), (40, 2), (24, 3), (16, 4)])
def test_the_least_workers_are_those_that_the_choice_asks_for(free_gb: int, expected: int) -> None:
    assert least_workers(weights_bytes=29 * GB, free_bytes=free_gb * GB) == expected
    chosen = choose_sharding("auto", weights_bytes=29 * GB, free_bytes=free_gb * GB, num_ranks=expected)
    assert chosen == ("replicated" if expected == 1 else "zero3")


def test_whoever_names_a_layout_gets_it() -> None:
    for name in ("replicated", "zero3", "fsdp2"):
        assert choose_sharding(name, weights_bytes=29 * GB, free_bytes=GB, num_ranks=1) == name


def test_what_fits_nowhere_is_refused_with_the_number_of_workers_that_would_do() -> None:
    with pytest.raises(ConfigError, match="at least 3 workers"):
        choose_sharding("auto", weights_bytes=29 * GB, free_bytes=24 * GB, num_ranks=2)
    assert choose_sharding("auto", weights_bytes=29 * GB, free_bytes=24 * GB, num_ranks=3) == "zero3"


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 'zero2'"):
        choose_sharding("zero2", weights_bytes=1, free_bytes=1, num_ranks=1)


def test_a_single_process_cannot_share_with_anybody() -> None:
    with pytest.raises(ConfigError, match="needs the processes of a cell"):
        open_backbone(str(CHECKPOINT), sharding="zero3", dtype=torch.float32)
    _, layout = open_backbone(str(CHECKPOINT), sharding="auto", dtype=torch.float32)
    assert isinstance(layout, Replicated)


def test_what_only_a_whole_copy_can_do_is_refused_to_shared_ones_with_the_way_out() -> None:
    require_shareable(TrainingRecipe())
    with pytest.raises(ConfigError, match=r"float8 needs.*--sharding replicated"):
        require_shareable(TrainingRecipe(precision="float8"))
    with pytest.raises(ConfigError, match=r"describes itself.*omnifarm concept describe"):
        require_shareable(TrainingRecipe(is_self_described=True))


def test_a_whole_copy_waits_for_nobody(model: Backbone) -> None:
    sharding = Replicated(model)
    assert [sharding.idle_turn(is_finished=finished) for finished in (False, True)] == [Turn.WAITING, Turn.OVER]


def test_the_size_of_the_weights_comes_from_the_header() -> None:
    whole = weights_bytes(str(CHECKPOINT), dtype=torch.float32)
    assert whole == 2 * weights_bytes(str(CHECKPOINT), dtype=torch.bfloat16)


def test_any_run_of_numbers_is_read_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.arange(12.0).reshape(4, 3), "b": torch.arange(5, dtype=torch.bfloat16)}
    save_file(tensors, path)
    with WeightSlices(path) as weights:
        assert weights.flat("a", start=4, end=7).tolist() == [4, 5, 6]
        assert weights.flat("b", start=3).tolist() == [3, 4]
        assert weights.bytes_read < path.stat().st_size
        assert torch.equal(weights.rows("a", [3, 1]), tensors["a"][[3, 1]])
        assert weights.rows("a", []).shape == (0, 3)
        assert weights.shape("a") == (4, 3)
        assert "c" not in weights


def test_a_file_with_other_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3)}, path)
    with WeightSlices(path) as weights, pytest.raises(WeightsError, match="found I64"):
        weights.flat("a")
