"""A step as large as the backbone and the device make sensible."""

import torch

from jobs.measure_gpu_training import released_config
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.serving.capacity import usual_budget
from omnifarm.serving.scheduler import Budget, Candidate, Kind, choose

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def drawings(count: int) -> list[Candidate]:
    """Guided drawings of 512 x 512 pixels on the released model: 32 x 32 latent tokens and two markers, twice."""
    return [Candidate(task=task, kind=Kind.DRAW, pieces=(2 * 1026,), last_served=0) for task in range(count)]


def test_guided_drawings_of_the_released_model_share_a_step_on_a_gpu() -> None:
    budget = usual_budget(released_config(), device=GPU)
    assert len(choose(drawings(20), budget=budget)) == 8
    reader = Candidate(task=99, kind=Kind.WRITE, pieces=(1,), last_served=0)
    assert 1 < len(choose([*drawings(20), reader], budget=budget)) < 5
    assert len(choose(drawings(20), budget=Budget())) == 1


def test_a_cpu_and_a_small_backbone_keep_the_least(loaded: LoadedBackbone) -> None:
    assert usual_budget(released_config(), device=CPU) == Budget()
    assert usual_budget(loaded.config, device=GPU) == Budget()


def test_a_budget_of_so_many_tokens_keeps_the_share_of_drawings() -> None:
    assert Budget.of(Budget().step_tokens) == Budget()
    assert Budget.of(1).draw_tokens_beside_text == 1
