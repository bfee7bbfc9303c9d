"""Every row of the tables: what is learned for it, how it is asked, and what it takes part in.

A row is plain data. Rows that learn with the same settings share their training; a row whose name ends in "-style" is
a re-implementation on our backbone and says so, never the published system.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omnifarm.bench.tasks import DRAWING, TASKS, UNDERSTANDING, Task
from omnifarm.concept.recipe import TASKS as TRAINING_TASKS
from omnifarm.concept.recipe import Task as TrainingTask
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError

Kind = Literal["learned", "shuffled", "headed", "staged", "lora", "prompted", "endpoint", "local"]
"""Soft tokens the farm learns; those in a wrong order; those beside a concept head; soft tokens learned in three stages;
low-rank weights; words and pictures in the prompt; another model behind an endpoint, or in a folder."""
FARMED: tuple[Kind, ...] = ("learned", "shuffled", "headed")
"""Kinds that the farm learns."""
OWN_LEARNING: tuple[Kind, ...] = ("staged", "lora")
"""Kinds that learn in another way."""
Section = Literal["ours", "ablation", "tokens", "exemplars", "baseline"]
"""Where a row stands in the report."""

REIMPLEMENTED = "re-implementation on our backbone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row."""

    key: str
    """Name in commands and files."""
    title: str
    """Name in tables."""
    section: Section
    """Where it stands."""
    kind: Kind = "learned"
    """How it comes by what it knows."""
    tasks: tuple[Task, ...] = TASKS
    """What it takes part in; other cells read "-"."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Recipe settings that differ from the backbone's own."""
    trains: tuple[TrainingTask, ...] = TRAINING_TASKS
    """What it learns from; the shares of the rest are given to these."""
    replay: Literal["unified", "three_stage", "off"] = "unified"
    """Knowledge replay before drawing."""
    num_exemplars: int | None = None
    """Worked examples in the replay prompt; None for the backbone's own number."""
    prompt: str = ""
    """What a prompted row puts before every request: `tp`, `tp_noextra`, `ip`, `rap`, or the class noun for the name (`class`)."""
    num_pictures: int = 1
    """Photographs in the prompt of `ip`."""
    note: str = ""
    """What a reader has to know about it."""

    def recipe_of(self, base: TrainingRecipe) -> TrainingRecipe:
        """Return the recipe of this row on a backbone whose own recipe is `base`."""
        if self.trains == TRAINING_TASKS:
            return base.with_overrides(self.recipe)
        kept = {task: base.shares[task] if task in self.trains else 0.0 for task in TRAINING_TASKS}
        total = sum(kept.values())
        if total == 0:
            raise ConfigError(f"row {self.key}: the backbone's recipe gives no share to {self.trains}")
        return base.with_overrides({**{f"share_{task}": share / total for task, share in kept.items()}, **self.recipe})


def _tokens(number: int) -> Row:
    halves = {"num_und": number // 2, "num_gen": number // 2}
    return Row(key=f"tokens_{number}", title=f"{number} soft tokens", section="tokens", recipe=halves)


def _exemplars(number: int) -> Row:
    return Row(
        key=f"exemplars_{number}",
        title=f"replay with {number} worked examples",
        section="exemplars",
        tasks=("parg",),
        num_exemplars=number,
    )


_ROWS = (
    Row(key="ours", title="OmniPersona (ours)", section="ours"),
    Row(
        key="without_decoupling",
        title="w/o decoupled tokens",
        section="ablation",
        recipe={"is_coupled": True},
        note="all soft tokens through the understanding expert (coupled tokens)",
    ),
    Row(key="without_replay", title="w/o knowledge replay", section="ablation", tasks=("parg",), replay="off"),
    Row(key="without_edit_data", title="w/o edit data", section="ablation", trains=("understanding", "generation")),
    Row(
        key="three_stage",
        title="replay in three calls",
        section="ablation",
        tasks=("parg",),
        replay="three_stage",
        note="Table 3: sequential instead of unified",
    ),
    *map(_tokens, (4, 8, 16, 32, 64)),
    *map(_exemplars, range(7)),
    Row(key="plain", title="no personalisation", section="baseline", kind="prompted", prompt="class", replay="off",
        note="the class noun instead of the name"),
    Row(key="shuffled", title="shuffled tokens", section="baseline", kind="shuffled",
        note="ours with the rows of its soft tokens in a random order"),
    Row(key="tp", title="text prompt (TP)", section="baseline", kind="prompted", prompt="tp", replay="off",
        note="appearance and facts in the prompt"),
    Row(key="tp_noextra", title="TP without facts", section="baseline", kind="prompted", prompt="tp_noextra", replay="off",
        note="appearance in the prompt"),
    Row(key="ip", title="image prompt (IP), 1 photo", section="baseline", kind="prompted", prompt="ip", replay="off"),
    Row(key="ip_4", title="image prompt (IP), 4 photos", section="baseline", kind="prompted", prompt="ip", num_pictures=4,
        replay="off"),
    Row(key="yollava_style", title="Yo'LLaVA-style", section="baseline", tasks=UNDERSTANDING, trains=("understanding",),
        recipe={"num_und": 16, "num_gen": 0},
        note=f"{REIMPLEMENTED}: 16 understanding tokens, questions alone"),
    Row(key="mcllava_style", title="MC-LLaVA-style", section="baseline", tasks=UNDERSTANDING, trains=("understanding",),
        recipe={"num_und": 16, "num_gen": 0, "init": "visual"},
        note=f"{REIMPLEMENTED}: 16 understanding tokens started at the concept's own visual tokens, questions alone"),
    Row(key="yochameleon_style", title="Yo'Chameleon-style", section="baseline", trains=("understanding", "generation"),
        recipe={"num_und": 16, "num_gen": 16, "is_coupled": True}, replay="off",
        note=f"{REIMPLEMENTED}: two soft prompts in one token space, no replay; without self-prompting and soft positives"),
    Row(key="unictokens_style", title="UniCTokens-style", section="baseline", kind="staged",
        trains=("understanding", "generation"), recipe={"num_und": 16, "num_gen": 16, "is_coupled": True, "init": "visual"},
        replay="off",
        note=f"{REIMPLEMENTED}: three stages of a third of the steps each, 33 soft tokens in one space; persons start without a "
        "face embedding"),
    Row(key="ti_style", title="Textual-Inversion-style", section="baseline", tasks=(*DRAWING,), trains=("generation",),
        recipe={"num_und": 0, "num_gen": 16}, replay="off",
        note=f"{REIMPLEMENTED}: generation tokens alone, drawings alone"),
    Row(key="dreambooth_style", title="DreamBooth-style", section="baseline", kind="lora", tasks=(*DRAWING,),
        trains=("generation",), recipe={"learning_rate": 1e-3}, replay="off",
        note=f"{REIMPLEMENTED}: a rare word and the class noun, low-rank weights on the generation expert's attention, "
        "prior preservation with pictures the frozen model drew"),
    Row(key="myvlm_style", title="MyVLM-style", section="baseline", kind="headed", tasks=("rec", "vqa"),
        trains=("understanding",), recipe={"num_und": 0, "num_gen": 0}, replay="off",
        note=f"{REIMPLEMENTED}: a linear head on the vision tower decides presence, one learned vector joins the prompt; "
        "without its attention regulariser"),
    Row(key="rap_style", title="RAP-style retrieval", section="baseline", kind="prompted", prompt="rap", tasks=UNDERSTANDING,
        replay="off",
        note=f"{REIMPLEMENTED}, not fine-tuned: photo, name and description of the named concept are looked up"),
)  # fmt: skip

ROWS: Mapping[str, Row] = {row.key: row for row in _ROWS}
"""Every row by key, in the order of the report."""
VARIANTS = ("ours", "without_decoupling", "without_replay", "without_edit_data")
"""What `--variants` stands for by default: the paper's Table 2."""
SWEEPS: Mapping[str, tuple[str, ...]] = {
    "tokens": tuple(key for key in ROWS if key.startswith("tokens_")),
    "exemplars": tuple(key for key in ROWS if key.startswith("exemplars_")),
    "replay": ("ours", "without_replay", "three_stage"),
    "decoupling": ("ours", "without_decoupling", "without_edit_data"),
}
"""Names that stand for several rows: Fig. 9, Fig. 6b, Table 3, and Fig. 6a with Fig. 8."""
BASELINES = tuple(row.key for row in _ROWS if row.section == "baseline")
"""What `--baselines` stands for by default."""
ABSENT: Mapping[str, str] = {
    "Show-o": "transformers has no class for it; its published numbers stand below",
    "Chameleon, Janus": "other models: give --local-models FOLDER:tp",
    "GPT-4o, Qwen2.5-VL": "other models: give --others MODEL:tp --others-url URL",
}
"""Systems of the paper that are no rows by themselves, and how they become some."""


def chosen_rows(names: Sequence[str]) -> list[Row]:
    """Return the rows of some names, each once, in the order of the report.

    Args:
        names: Keys, or names of sweeps.

    Raises:
        ConfigError: There is no such row.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in ROWS and name not in SWEEPS:
            raise ConfigError(f"no row is called {name!r}; there are {', '.join([*ROWS, *SWEEPS])}")
        wanted.update(SWEEPS.get(name, (name,)))
    return [row for key, row in ROWS.items() if key in wanted]
