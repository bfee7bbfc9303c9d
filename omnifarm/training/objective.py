"""The loss of one lane, from what a packed forward measured for all of them.

    L = CE(understanding) + lambda_image * MSE(generation) + lambda_edit * MSE(editing)

Each term is a mean over this lane's own tokens (and latent channels) of that task, so that a lane's loss is the same
number whoever shares the pack. The velocity target is noise - clean, the sign the backbone's weights predict; the
method's source writes its negative (OmniPersona, eq. 6-9).

Shapes: T answer tokens and P target latent tokens of the pack, Z numbers in a latent token, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnifarm.backbone.model import TrainOutput
from omnifarm.concept.recipe import TASKS, Task, TrainingRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneLoss:
    """A lane's loss in one step."""

    total: Tensor
    """Scalar to minimise, with its graph."""
    terms: dict[Task, Tensor]
    """Unweighted mean per task that had a sample, without graph."""


def lane_loss(output: TrainOutput, *, tasks: Sequence[Task], samples: range, recipe: TrainingRecipe) -> LaneLoss:
    """Reduce the measurements of one lane's samples.

    Args:
        output: What the packed forward measured: `ce` (T,), `ce_sample` (T,), `mse` (P, Z), `mse_sample` (P,).
        tasks: Task of every sample of the pack, length S.
        samples: The lane's own samples, consecutive in the pack.
        recipe: The lane's loss weights.
    """
    weights = {"understanding": 1.0, "generation": recipe.lambda_image, "editing": recipe.lambda_edit}
    terms: dict[Task, Tensor] = {}
    device = output.ce.device
    for task in TASKS:
        own = [index for index in samples if tasks[index] == task]
        if not own:
            continue
        own_S = torch.tensor(own, device=device)
        if task == "understanding":
            measured = output.ce[torch.isin(output.ce_sample, own_S)]
        else:
            measured = output.mse[torch.isin(output.mse_sample, own_S)]
        if measured.numel():
            terms[task] = measured.float().mean()
    total = torch.zeros((), device=device)
    for task, term in terms.items():
        total = total + weights[task] * term
    return LaneLoss(total=total, terms={task: term.detach() for task, term in terms.items()})
