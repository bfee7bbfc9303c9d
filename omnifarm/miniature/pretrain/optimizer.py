"""The optimiser of all pre-training stages: Muon on matrices, AdamW on the rest, float32 masters of bf16 weights.

Pure bf16 arithmetic is about ten times faster than float32 on the machines this was made for, but updates are too
small for bf16 to add up; so every weight has a float32 master. Muon's orthogonal updates (Jordan et al. 2024) were
the largest single lever on the codec and the vision tower. A step whose gradient norm is not finite or far above
its running mean is skipped: without that guard one bad batch threw a whole run away.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnifarm.backbone.native import fast_dtype

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Rates and guards."""

    muon_rate: float = 0.012
    """Peak rate of matrices; an update's root mean square is about rate times sqrt(1 / wider side)."""
    adam_rate: float = 2e-3
    """Peak rate of everything else."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices, times the rate."""
    momentum: float = 0.95
    """Of Muon (Nesterov)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Clip of the norm over all gradients, before the momentum."""
    skip_factor: float = 8.0
    """A step with a norm above this multiple of its running mean is skipped."""


class MasterOptimizer:
    """Updates bf16 (or float32) weights from their gradients through float32 masters.

    Args:
        named: Weights to train, with names; names decide nothing but `adam_only`.
        config: Rates.
        adam_only: Weights with one of these strings in their name never get Muon (embeddings, first and last layers).
    """

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], *, config: OptimizerConfig, adam_only: Sequence[str] = ()
    ) -> None:
        pairs = list(named)
        self.config = config
        self.parameters = [parameter for _, parameter in pairs]
        self.masters = [parameter.detach().float().clone() for parameter in self.parameters]
        is_muon = [p.ndim >= 2 and not any(part in name for part in adam_only) for name, p in pairs]
        self._adam = [i for i, muon in enumerate(is_muon) if not muon]
        self._muon: dict[tuple[int, int], list[int]] = {}
        for i, muon in enumerate(is_muon):
            if muon:
                shape = (self.masters[i].shape[0], self.masters[i][0].numel())
                self._muon.setdefault(shape, []).append(i)
        self._first = [torch.zeros_like(master) for master in self.masters]
        self._second = {i: torch.zeros_like(self.masters[i]) for i in self._adam}
        self._adam_steps = dict.fromkeys(self._adam, 0)
        self.mean_norm = 0.0
        self.num_skipped = 0

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """Apply the gradients and clear them.

        Args:
            scale: Factor on both rates, 0..1 (the schedule).

        Returns:
            The gradient norm before clipping; the step was skipped when it is not finite or far above the mean.
        """
        grads = [None if p.grad is None else p.grad.float() for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        present = [grad for grad in grads if grad is not None]
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in present))
        if not math.isfinite(norm) or (self.mean_norm and norm > self.config.skip_factor * self.mean_norm):
            self.num_skipped += 1
            self.mean_norm *= 1.05  # a lasting change of scale is let through after a while
            return norm
        self.mean_norm = norm if not self.mean_norm else 0.97 * self.mean_norm + 0.03 * norm
        clip = min(1.0, self.config.max_grad_norm / (norm + 1e-9))
        for grad in present:
            grad.mul_(clip)
        self._step_adam(grads, scale)
        self._step_muon(grads, scale)
        return norm

    def _step_adam(self, grads: list[Tensor | None], scale: float) -> None:
        beta1, beta2 = self.config.betas
        for i in self._adam:
            grad = grads[i]
            if grad is None:
                continue
            self._adam_steps[i] += 1
            k = self._adam_steps[i]
            self._first[i].lerp_(grad, 1 - beta1)
            self._second[i].lerp_(grad.square(), 1 - beta2)
            denominator = (self._second[i] / (1 - beta2**k)).sqrt_().add_(1e-8)
            self.masters[i].addcdiv_(self._first[i] / (1 - beta1**k), denominator, value=-self.config.adam_rate * scale)
            self.parameters[i].copy_(self.masters[i])

    def _step_muon(self, grads: list[Tensor | None], scale: float) -> None:
        rate = self.config.muon_rate * scale
        for (rows, columns), members in self._muon.items():
            active = [i for i in members if grads[i] is not None]
            if not active:
                continue
            updates = []
            for i in active:
                grad = grads[i]
                assert grad is not None
                self._first[i].lerp_(grad, 1 - self.config.momentum)
                updates.append(torch.lerp(grad, self._first[i], self.config.momentum).reshape(rows, columns))
            orthogonal = orthogonalised(torch.stack(updates))
            factor = rate * max(1.0, rows / columns) ** 0.5
            for i, update in zip(active, orthogonal, strict=True):
                master = self.masters[i]
                master.mul_(1 - rate * self.config.weight_decay).add_(update.reshape(master.shape), alpha=-factor)
                self.parameters[i].copy_(master)

    def state_dict(self) -> dict[str, Tensor]:
        """Return masters and moments; weights are rounded masters and need no place of their own."""
        state = {f"master.{i}": master for i, master in enumerate(self.masters)}
        state |= {f"first.{i}": value for i, value in enumerate(self._first)}
        state |= {f"second.{i}": value for i, value in self._second.items()}
        state["adam_steps"] = torch.tensor([self._adam_steps[i] for i in self._adam], dtype=torch.int64)
        state["mean_norm"] = torch.tensor(self.mean_norm, dtype=torch.float64)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict` and write the masters into the weights; other entries are ignored."""
        for i, master in enumerate(self.masters):
            master.copy_(state[f"master.{i}"])
            self._first[i].copy_(state[f"first.{i}"])
        for i, second in self._second.items():
            second.copy_(state[f"second.{i}"])
        self._adam_steps = dict(zip(self._adam, state["adam_steps"].tolist(), strict=True))
        self.mean_norm = float(state["mean_norm"])
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return approximately U V^T of every matrix's singular value decomposition (five Newton-Schulz steps).

    Args:
        matrices: (B, rows, columns) float32.
    """
    a, b, c = _NEWTON_SCHULZ
    # bf16 is exact enough for an approximation, and float32 fifty times faster where bf16 is not multiplied.
    x = matrices.to(fast_dtype(matrices.device))
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    flat: Tensor = (x.mT if is_tall else x).float()
    return flat


def cosine(fraction: float, *, floor: float = 0.01) -> float:
    """Return the schedule's factor at `fraction` of the budget: from 1 down to `floor`."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0)))
