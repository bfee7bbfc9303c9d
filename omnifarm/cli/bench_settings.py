"""From the options of benchmark commands to a plan and to settings of scoring."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from omnifarm.bench.judges.chat import ChatSettings
from omnifarm.bench.metrics.text import Protocol
from omnifarm.bench.others import OtherModel, Prompt
from omnifarm.bench.plan import RunPlan
from omnifarm.bench.rows import BASELINES, ROWS, SWEEPS, VARIANTS
from omnifarm.bench.tasks import MINIATURE, PAPER, QUICK
from omnifarm.cli.bench_options import CLIP, DINO, OPENAI
from omnifarm.cli.bench_run import ScoringSettings
from omnifarm.cli.output import json_object
from omnifarm.errors import ConfigError

JUDGE_KEY = "OMNIFARM_JUDGE_KEY"
"""Environment variable with the judge's API key."""
QUICK_STEPS = 120
"""Steps per concept of `--quick` where `--steps` says nothing."""
QUICK_BASELINES = ("plain", "shuffled", "tp", "ip")
"""Baselines of `--quick`."""


def plan_of(
    *,
    data: str,
    backbone: str = "miniature",
    quick: bool = False,
    variants: str = "default",
    baselines: str = "default",
    others: str = "",
    others_url: str = OPENAI,
    local_models: str = "",
    seeds: str = "0",
    steps: int | None = None,
    recipe: str | None = None,
    concepts: int | None = None,
    images: int | None = None,
    name: str = "",
) -> RunPlan:
    """Return the plan that options ask for.

    Raises:
        ConfigError: An option cannot be read, or names a row that does not exist.
    """
    sizes = QUICK if quick else MINIATURE if data.startswith("miniature") else PAPER
    if concepts is not None:
        sizes = replace(sizes, concepts=concepts)
    if images is not None:
        sizes = replace(sizes, images_per_prompt=images, parg_images=images)
    chosen = (
        *_names(variants, default=VARIANTS, what="--variants"),
        *_names(baselines, default=QUICK_BASELINES if quick else BASELINES, what="--baselines"),
    )
    settings: dict[str, Any] = json_object(recipe, what="--recipe")
    if steps is not None or quick:
        settings.setdefault("steps", steps or QUICK_STEPS)
    return RunPlan(
        data=data,
        backbone=backbone,
        rows=tuple(key for key in ROWS if key in chosen),
        seeds=tuple(_seeds(seeds)),
        sizes=sizes,
        recipe=settings,
        others=(*_others(others, url=others_url), *_local_models(local_models)),
        name=name,
    )


def scoring_of(
    *,
    protocol: str = "strict",
    judge: str = "",
    judge_url: str = OPENAI,
    judge_concurrency: int = 4,
    judge_prices: str = "0,0",
    clip: str = CLIP,
    dino: str = DINO,
    arcface: Path | None = None,
) -> ScoringSettings:
    """Return how options want replies scored; the judge's key comes from the environment.

    Raises:
        ConfigError: An option cannot be read.
    """
    if protocol not in get_args(Protocol):
        raise ConfigError(f"--protocol is strict or compat, found {protocol!r}")
    prices = [part for part in judge_prices.split(",") if part.strip()]
    try:
        price_in, price_out = map(float, prices)
    except ValueError as error:
        raise ConfigError(f"--judge-prices is two numbers such as 2.5,10, found {judge_prices!r}") from error
    chat = None
    if judge:
        chat = ChatSettings(
            model=judge, base_url=judge_url, concurrency=judge_concurrency, price_in=price_in, price_out=price_out
        )
    return ScoringSettings(
        protocol="compat" if protocol == "compat" else "strict",
        judge=chat,
        judge_key=os.environ.get(JUDGE_KEY, ""),
        clip=clip,
        dino=dino,
        arcface=str(arcface) if arcface else None,
    )


def _names(text: str, *, default: tuple[str, ...], what: str) -> tuple[str, ...]:
    names: list[str] = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        if name == "none":
            continue
        if name == "default":
            names += default
        elif name in SWEEPS:
            names += SWEEPS[name]
        elif name in ROWS:
            names.append(name)
        else:
            raise ConfigError(f"{what}: no row is called {name!r}; there are {', '.join([*ROWS, *SWEEPS])}")
    return tuple(names)


def _others(text: str, *, url: str) -> list[OtherModel]:
    return [OtherModel(model=model, prompt=prompt, url=url) for model, prompt in _shown(text)]


def _local_models(text: str) -> list[OtherModel]:
    found = []
    for folder, prompt in _shown(text):
        try:
            kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"--local-models: {folder} holds no config.json of transformers ({error})") from error
        found.append(OtherModel(model=str(Path(folder).resolve()), prompt=prompt, draws=kind == "janus"))
    return found


def _shown(text: str) -> list[tuple[str, Prompt]]:
    """Cut MODEL:tp,MODEL:ip into models and what they are shown."""
    pairs = (part.strip().rpartition(":") for part in text.split(",") if part.strip())
    return [(model, cast(Prompt, prompt)) for model, _, prompt in pairs]


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--seeds is whole numbers such as 0,1,2, found {text!r}") from error
