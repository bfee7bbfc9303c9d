"""One group of golden vectors: its inputs, its expected outputs, and the account of what was compared.

Knows the index format and the tolerances; knows nothing of the model.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from omnifarm.backbone.conformance.report import GroupReport
from omnifarm.errors import WeightsError

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "int64", "int32", "uint8", "bool")}


class Group:
    """Compares computed values with one group of the index and keeps count.

    Args:
        name: Group name.
        entry: Its entry of the index.
        folder: The golden folder.
    """

    def __init__(self, name: str, *, entry: Mapping[str, Any], folder: Path) -> None:
        self.name = name
        self.about = str(entry.get("about", ""))
        self.params: Mapping[str, Any] = entry.get("params") or {}
        self._entries: Mapping[str, Any] = entry.get("tensors") or {}
        self._ratios: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._facts: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        if entry.get("file"):
            try:
                self._tensors = load_file(str(folder / entry["file"]))
            except (OSError, SafetensorError) as error:
                self.fail(str(entry["file"]), f"cannot be read: {error}")
        for tensor_name, described in self._entries.items():
            self._check_recorded(tensor_name, described)

    def fail(self, name: str, why: str) -> None:
        """Note that `name` is wrong; the first reason is kept."""
        self._failures.setdefault(name, why)

    def param(self, name: str) -> Any:
        """Return a parameter of the recorded call.

        Raises:
            WeightsError: The index does not hold it.
        """
        if name not in self.params:
            raise WeightsError(f"group {self.name}: the index must hold params.{name}")
        return self.params[name]

    def given(self, name: str) -> Tensor:
        """Return a recorded tensor used as an input of the replay.

        Raises:
            WeightsError: It is missing from the file.
        """
        if name not in self._tensors:
            raise WeightsError(f"group {self.name}: its file must hold the tensor {name}")
        return self._tensors[name]

    def meaning(self, name: str) -> str:
        """Return what the index says about a tensor."""
        return str(self._entries.get(name, {}).get("meaning", ""))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the recorded shape of a tensor according to the index."""
        return tuple(self._entries[name]["shape"])

    @property
    def outputs(self) -> list[str]:
        """Names of the tensors that must be compared."""
        return [name for name, described in self._entries.items() if described.get("role") != "in"]

    def expects(self, name: str) -> bool:
        """Whether `name` is one of the tensors to compare."""
        return name in self._entries and self._entries[name].get("role") != "in"

    def compare(self, name: str, found: Tensor) -> None:
        """Compare a computed tensor with the recorded one. A name the index does not ask for is ignored."""
        if not self.expects(name):
            return
        if name not in self._tensors:
            self._record(name, math.inf, "missing from the file")
            return
        expected = self._tensors[name]
        found = found.detach().cpu()
        if found.shape != expected.shape:
            self._record(name, math.inf, f"shape must be {tuple(expected.shape)}, found {tuple(found.shape)}")
            return
        ratio, why = _ratio(found, expected, tolerance=self._entries[name].get("tolerance") or {})
        self._record(name, ratio, why)

    def exact(self, name: str, found: Tensor, *, why: str) -> None:
        """Require that `found` equals the recorded tensor bit by bit, besides any comparison made by `compare`."""
        if name not in self._tensors or not torch.equal(found.cpu(), self._tensors[name]):
            self._record(name, math.inf, why)

    def fact(self, name: str, found: Any) -> None:
        """Compare a computed value with the recorded parameter of the same name, exactly (dotted names descend)."""
        expected: Any = self.params
        for part in name.split("."):
            if not isinstance(expected, Mapping) or part not in expected:
                self._note_fact(name, f"params.{name} is missing from the index")
                return
            expected = expected[part]
        if _plain(found) == _plain(expected):
            self._note_fact(name, None)
        else:
            self._note_fact(name, f"params.{name} must be {_short(expected)}, found {_short(_plain(found))}")

    def same(self, name: str, found: Any, *, expected: Any) -> None:
        """Compare two plain values exactly, counted as the fact `name`."""
        is_same = _plain(found) == _plain(expected)
        self._note_fact(name, None if is_same else f"must be {_short(expected)}, found {_short(_plain(found))}")

    def near(self, name: str, found: Any, *, expected: Any) -> None:
        """Compare two lists of numbers (and strings) to 1e-6, counted as the fact `name`."""
        found, expected = _plain(found), _plain(expected)
        is_near = len(found) == len(expected) and all(
            a == b if isinstance(a, str) or isinstance(b, str) else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)
            for a, b in zip(found, expected, strict=True)
        )
        self._note_fact(name, None if is_near else f"must be {_short(expected)}, found {_short(found)}")

    def tolerance_at(self, name: str) -> Mapping[str, Any]:
        """Return the tolerance entry of a tensor."""
        return self._entries[name].get("tolerance") or {}

    def report(self, *, seconds: float) -> GroupReport:
        """Close the account: every out-tensor that was not compared fails."""
        for name in self.outputs:
            if name not in self._ratios:
                self._ratios[name] = math.inf
                self.fail(name, "not covered: no comparison was made")
        return GroupReport(
            num_tensors=sum(name in self._entries for name in self._ratios),
            num_facts=len(self._facts),
            worst_ratio=max(self._ratios.values(), default=math.inf),
            failing=tuple(self._failures),
            failures=tuple(f"{name}: {why}" for name, why in self._failures.items()),
            seconds=seconds,
            ratios=dict(self._ratios),
        )

    def _check_recorded(self, name: str, described: Mapping[str, Any]) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            self.fail(name, "missing from the file")
            return
        if list(tensor.shape) != list(described.get("shape", [])):
            self.fail(name, f"shape must be {described.get('shape')} by the index, the file has {list(tensor.shape)}")
        if tensor.dtype != _DTYPES.get(str(described.get("dtype"))):
            self.fail(name, f"dtype must be {described.get('dtype')} by the index, the file has {tensor.dtype}")
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            self.fail(name, "the recorded tensor holds NaN")

    def _record(self, name: str, ratio: float, why: str) -> None:
        self._ratios[name] = max(ratio, self._ratios.get(name, 0.0))
        if not ratio <= 1:
            self.fail(name, why)

    def _note_fact(self, name: str, problem: str | None) -> None:
        self._facts.add(name)
        self._ratios[f"params.{name}"] = 0.0 if problem is None else math.inf
        if problem is not None:
            self.fail(name, problem)


def _ratio(found: Tensor, expected: Tensor, *, tolerance: Mapping[str, Any]) -> tuple[float, str]:
    """Return the error over its tolerance and a sentence for the case that it is above 1."""
    if expected.numel() == 0:
        return 0.0, ""
    if "max_level_diff" in tolerance:
        levels = (found.to(torch.int64) - expected.to(torch.int64)).abs()
        differing = float((levels > 0).double().mean())
        is_within = int(levels.max()) <= tolerance["max_level_diff"]
        ratio = differing / (1 - float(tolerance["min_equal_fraction"])) if is_within else math.inf
        return ratio, f"up to {int(levels.max())} levels off, {differing:.2%} of the values differ"
    if tolerance.get("exact") or not expected.is_floating_point():
        differing_count = int((found.to(torch.float64) != expected.to(torch.float64)).sum())
        if differing_count == 0:
            return 0.0, ""
        return math.inf, f"must match exactly, {differing_count} of {expected.numel()} values differ"
    if "atol" not in tolerance or "rtol" not in tolerance:
        return math.inf, f"the index gives no tolerance (found {dict(tolerance)})"
    wanted, got = expected.double(), found.double()
    # Entries equal as they stand (infinities among them) need no tolerance; NaN equals nothing.
    error = torch.where(got == wanted, 0.0, (got - wanted).abs())
    bound = float(tolerance["atol"]) + float(tolerance["rtol"]) * wanted.abs()
    ratios = torch.where(error == 0, 0.0, error / bound)
    ratios = torch.nan_to_num(ratios, nan=math.inf, posinf=math.inf)
    worst = float(ratios.max())
    at = int(ratios.flatten().argmax())
    return worst, (
        f"{int((ratios > 1).sum())} of {ratios.numel()} values above the tolerance; worst {worst:.3g} times it: "
        f"expected {float(wanted.flatten()[at]):.6g}, found {float(got.flatten()[at]):.6g}"
    )


def _plain(value: Any) -> Any:
    """Return `value` with tuples as lists and tensors as nested lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _short(value: Any, *, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
