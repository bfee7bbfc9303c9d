"""The learned vectors of one concept, their order in a table, and how they start.

Paper section 3: P_und = [p_sks, p_1..p_Nu], P_gen = [p_1..p_Ng]. A table stacks them: row 0 is the identifier's own
vector, then N_u rows of the understanding expert, then N_g rows of the generation expert.

Shapes: C = 1 + N_u + N_g rows, D width of the language model, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnifarm.backbone.segments import Expert
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ArtifactError, ConfigError
from omnifarm.seeding import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftTokenLayout:
    """How many vectors a concept has, in which rows, and whose weights process them."""

    num_und: int
    """N_u, besides the identifier's own."""
    num_gen: int
    """N_g."""
    is_coupled: bool = False
    """All through the understanding expert: the ablation without decoupling."""

    def __post_init__(self) -> None:
        if self.num_und < 0 or self.num_gen < 0:
            raise ConfigError(f"soft tokens: counts must be at least 0, found und {self.num_und}, gen {self.num_gen}")

    @classmethod
    def of_recipe(cls, recipe: TrainingRecipe) -> "SoftTokenLayout":
        """Return the layout a recipe asks for."""
        return cls(num_und=recipe.num_und, num_gen=recipe.num_gen, is_coupled=recipe.is_coupled)

    @property
    def num_rows(self) -> int:
        """Rows of the table, C."""
        return 1 + self.num_und + self.num_gen

    @property
    def sks_row(self) -> int:
        """Row of the identifier's vector."""
        return 0

    @property
    def und_rows(self) -> range:
        """Rows of the understanding vectors, without the identifier's."""
        return range(1, 1 + self.num_und)

    @property
    def gen_rows(self) -> range:
        """Rows of the generation vectors."""
        return range(1 + self.num_und, self.num_rows)

    @property
    def gen_expert(self) -> Expert:
        """Who processes the generation vectors."""
        return "und" if self.is_coupled else "gen"

    def split(self, table_CD: Tensor) -> "SoftTokens":
        """Cut a trained table (C, D) into soft tokens (detached float32 copies on the CPU).

        Raises:
            ConfigError: The table has another number of rows.
        """
        if table_CD.ndim != 2 or table_CD.shape[0] != self.num_rows:
            raise ConfigError(
                f"soft tokens: expected a table of {self.num_rows} rows, found shape {tuple(table_CD.shape)}"
            )
        whole = table_CD.detach().to("cpu", torch.float32, copy=True)
        cut = 1 + self.num_und
        return SoftTokens(und=whole[:cut].clone(), gen=whole[cut:].clone(), is_coupled=self.is_coupled)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SoftTokens:
    """The learned vectors of one concept."""

    und: Tensor
    """(N_u + 1, D) float32; row 0 is the identifier's vector."""
    gen: Tensor
    """(N_g, D) float32."""
    is_coupled: bool = False
    """See `SoftTokenLayout`."""

    def __post_init__(self) -> None:
        shapes = f"und {tuple(self.und.shape)}, gen {tuple(self.gen.shape)}"
        if self.und.ndim != 2 or self.gen.ndim != 2 or self.und.shape[0] < 1 or self.und.shape[1] != self.gen.shape[1]:
            raise ArtifactError(f"soft tokens: expected und (N_u + 1, D) and gen (N_g, D), found {shapes}")

    @property
    def layout(self) -> SoftTokenLayout:
        """Counts and routes."""
        return SoftTokenLayout(num_und=self.und.shape[0] - 1, num_gen=self.gen.shape[0], is_coupled=self.is_coupled)

    @property
    def width(self) -> int:
        """D."""
        return int(self.und.shape[1])

    def table(self) -> Tensor:
        """Return (C, D): und, then gen. What soft slots of this concept point into."""
        return torch.cat([self.und, self.gen])


def initial_table(
    layout: SoftTokenLayout,
    *,
    recipe: TrainingRecipe,
    embedding_VD: Tensor,
    class_ids: Sequence[int],
    identifier_ids: Sequence[int] = (),
    visual_ND: Tensor | None = None,
    name: str = "",
) -> Tensor:
    """Return the vectors a concept's training starts from, (C, D) float32.

    Zero is the paper's choice (with RMSNorm its gradient is huge but finite, and training leaves it).

    Args:
        layout: Rows.
        recipe: `init`, `init_std`, `identifier_init` and `seed` are read.
        embedding_VD: The backbone's token embedding (V, D).
        class_ids: Ids of the class noun, for `class_word`.
        identifier_ids: Ids of the recipe's `identifier_init` text; empty starts the identifier like the others.
        visual_ND: Visual tokens of the concept's photographs as the language model sees them, for `visual`.
        name: The concept, so that equal recipes give concepts different noise.

    Raises:
        ConfigError: `class_word` without class ids, or `visual` with fewer visual tokens than rows.
    """
    width = embedding_VD.shape[1]
    table_CD = torch.zeros(layout.num_rows, width)
    if recipe.init != "zero":
        draws = torch.randn(table_CD.shape, generator=generator(recipe.seed, name, "soft_tokens"))
        table_CD += recipe.init_std * draws
    if recipe.init == "visual":
        if visual_ND is None or len(visual_ND) < layout.num_rows:
            found = 0 if visual_ND is None else len(visual_ND)
            raise ConfigError(f"soft tokens: init visual needs at least {layout.num_rows} visual tokens, found {found}")
        table_CD += centres(visual_ND, layout.num_rows, draws=generator(recipe.seed, name, "centres"))
    if recipe.init == "class_word":
        if not class_ids:
            raise ConfigError("soft tokens: init class_word needs the class noun's token ids, found none")
        table_CD += _mean_embedding(embedding_VD, class_ids)
    if identifier_ids:
        table_CD[layout.sks_row] = _mean_embedding(embedding_VD, identifier_ids)
    return table_CD


def centres(points_ND: Tensor, count: int, *, draws: torch.Generator, rounds: int = 10) -> Tensor:
    """Return `count` centres of points by k-means (Lloyd's rounds from randomly chosen points), (count, D) float32."""
    points_ND = points_ND.detach().to("cpu", torch.float32)
    centres = points_ND[torch.randperm(len(points_ND), generator=draws)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points_ND, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points_ND)
        sizes = torch.bincount(nearest, minlength=count)
        # A centre that lost all its points stays where it was.
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
    return centres


def _mean_embedding(embedding_VD: Tensor, ids: Sequence[int]) -> Tensor:
    rows = embedding_VD.detach()[torch.tensor(list(ids), device=embedding_VD.device)]
    return rows.to("cpu", torch.float32).mean(dim=0)
