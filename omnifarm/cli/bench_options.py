"""Options of benchmark commands, stated once for `omnifarm bench` and for the cluster job.

Imports nothing of the benchmark, so that `--help` answers at once; `bench_settings` makes sense of the values.
"""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[str, typer.Option("--data", help="miniature:SEED, a data folder in any layout, or s3://...")]
StoreUrl = Annotated[str, typer.Option("--store", help="Where everything is kept: a folder or s3://...")]
Backbone = Annotated[str, typer.Option("--backbone", help="miniature, a checkpoint folder, or a Hugging Face id.")]
Quick = Annotated[bool, typer.Option("--quick", help="Three concepts, few items, few steps: does everything work?")]
Variants = Annotated[
    str,
    typer.Option(
        "--variants", help="Comma-separated rows, `default` (ours and the paper's three ablations), or `none`."
    ),
]
Baselines = Annotated[str, typer.Option("--baselines", help="Comma-separated rows, `default` (all), or `none`.")]
Others = Annotated[
    str, typer.Option("--others", help="Other models behind an endpoint, as rows: gpt-4o-2024-11-20:tp,MODEL:ip")
]
OthersUrl = Annotated[str, typer.Option("--others-url", help="Of their OpenAI-compatible endpoint.")]
LocalModels = Annotated[
    str,
    typer.Option("--local-models", help="Other models in folders, through transformers, as rows: FOLDER:tp,FOLDER:ip"),
]
Seeds = Annotated[str, typer.Option("--seeds", help="Comma-separated base seeds; each learns everything anew.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps per concept; the backbone's recipe.")]
Recipe = Annotated[str | None, typer.Option("--recipe", help="More recipe settings of every learned row, as JSON.")]
Concepts = Annotated[int | None, typer.Option("--concepts", min=1, help="Concepts, evenly over the groups; all.")]
Images = Annotated[int | None, typer.Option("--images", min=1, help="Drawings per prompt; 4 (1 on the miniature).")]
Name = Annotated[str, typer.Option("--name", help="Of the run; default: from what it does, so repeats go on.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Processes; as many as there are cores.")]
AtOnce = Annotated[
    int,
    typer.Option(
        "--at-once", min=1, help="Items a process has under way at the same time; 1 times each by itself (Table 3)."
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask again what has failed, such as while an endpoint was away.")
]
Judge = Annotated[
    str, typer.Option("--judge", help="Model id of the judge; default: the drawn world's rules, or none.")
]
JudgeUrl = Annotated[str, typer.Option("--judge-url", help="Of the judge's OpenAI-compatible endpoint.")]
JudgeAtOnce = Annotated[int, typer.Option("--judge-concurrency", min=1, help="Questions to the judge at once.")]
JudgePrices = Annotated[str, typer.Option("--judge-prices", help="Money per million tokens in,out: 2.5,10")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="strict, or compat for the public scripts' arithmetic.")]
Clip = Annotated[str, typer.Option("--clip", help="CLIP: a folder or a model in the local cache.")]
Dino = Annotated[str, typer.Option("--dino", help="DINOv2: a folder or a model in the local cache.")]
ArcFace = Annotated[Path | None, typer.Option("--arcface", help="Folder with models/antelopev2/*.onnx.")]

AT_ONCE = 16
"""Default of `--at-once`."""
OPENAI = "https://api.openai.com/v1"
"""Default endpoint of a judge."""
CLIP = "openai/clip-vit-base-patch32"
"""Default CLIP: what the public script uses."""
DINO = "facebook/dinov2-base"
"""Default DINO."""
