"""Pre-train the miniature from nothing: one command, resumable, no other input than the drawn world.

    python jobs/pretrain_miniature.py --out /tmp/miniature --budget 100
    python jobs/pretrain_miniature.py --out /tmp/miniature --budget 30 --device cuda --processes 1

Run it again after a crash and it goes on. The finished backbone is in OUT/weights; to ship it, copy that folder over
`omnifarm/miniature/weights`.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from omnifarm.farm.ray_cluster import connect, worker_bundle
from omnifarm.miniature.pretrain.job import JobConfig, Stage, alone, run_job

_MAX_FAILURES = 8


def train_with_ray(stage: Stage, config: JobConfig) -> None:
    """Run a stage in `config.processes` Ray Train workers; killed ones start again from the stage's last state.

    With more than one node `config.out` must be readable and writable from all of them.
    """
    connect()
    use_gpu = config.device == "cuda"
    with tempfile.TemporaryDirectory(prefix="omf-pretrain-", ignore_cleanup_errors=True) as folder:
        TorchTrainer(
            _work,
            train_loop_config={"stage": stage, "config": config},
            # Takes tensors of both devices, and 8 million numbers a step ask for nothing faster.
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=config.processes,
                use_gpu=use_gpu,
                resources_per_worker=worker_bundle(cpus=1, use_gpu=use_gpu),
            ),
            run_config=RunConfig(
                storage_path=folder, name="pretrain", failure_config=FailureConfig(max_failures=_MAX_FAILURES)
            ),
        ).fit()


def _work(values: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    values["stage"](values["config"])


def main(
    out: Annotated[Path, typer.Option(help="Working folder: pictures, states, curves, weights (about 2 GB).")],
    budget: Annotated[
        float, typer.Option(help="Minutes of training, all stages together; drawing pictures not counted.")
    ] = 100.0,
    groups: Annotated[int, typer.Option(min=2, help="Groups of ten pictures to train on.")] = 4000,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Ray Train workers of the main, understanding and drawing stages, one core or GPU each."
        ),
    ] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the same stages.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the corpus.")] = 1,
    compiled: Annotated[
        bool, typer.Option(help="Use torch.compile in the main and drawing stages (needs a C++ compiler).")
    ] = True,
) -> None:
    """Render, train vision tower, codec, language model and judge, export in the official layout."""
    config = JobConfig(
        out=out.resolve(),
        budget_s=60 * budget,
        num_groups=groups,
        processes=processes,
        device=device,
        seed=seed,
        compiled=compiled,
    )
    folder = run_job(config, spread=alone if processes == 1 else train_with_ray)
    typer.echo(f"The backbone is in {folder}")


if __name__ == "__main__":
    typer.run(main)
