import pytest
import torch

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens, initial_table
from omnifarm.errors import ArtifactError, ConfigError

EMBEDDING = torch.arange(20.0).reshape(5, 4)


def start(recipe: TrainingRecipe, **options: object) -> torch.Tensor:
    layout = SoftTokenLayout.of_recipe(recipe)
    return initial_table(layout, recipe=recipe, embedding_VD=EMBEDDING, class_ids=[1, 3], **options)  # type: ignore[arg-type]


def test_the_table_stacks_identifier_und_and_gen() -> None:
    layout = SoftTokenLayout(num_und=16, num_gen=16)
    assert layout.num_rows == 33
    assert (layout.sks_row, layout.und_rows, layout.gen_rows) == (0, range(1, 17), range(17, 33))


def test_splitting_a_table_and_stacking_it_again_changes_nothing() -> None:
    table = torch.randn(6, 4, requires_grad=True)
    soft = SoftTokenLayout(num_und=3, num_gen=2).split(table)
    assert (tuple(soft.und.shape), tuple(soft.gen.shape)) == ((4, 4), (2, 4))
    assert torch.equal(soft.table(), table.detach())
    assert soft.layout == SoftTokenLayout(num_und=3, num_gen=2)
    with pytest.raises(ConfigError, match="expected a table of 6 rows"):
        SoftTokenLayout(num_und=3, num_gen=2).split(table[:5])


def test_zero_is_the_default_start() -> None:
    assert not start(TrainingRecipe()).any()


def test_random_starts_differ_by_concept_and_repeat() -> None:
    recipe = TrainingRecipe(init="random")
    assert torch.equal(start(recipe, name="a"), start(recipe, name="a"))
    assert not torch.equal(start(recipe, name="a"), start(recipe, name="b"))


def test_the_class_word_start_lies_around_its_mean_embedding() -> None:
    table = start(TrainingRecipe(init="class_word", init_std=0.0))
    assert torch.equal(table, EMBEDDING[[1, 3]].mean(dim=0).expand(33, 4))


def test_the_identifier_may_start_from_words_of_its_own() -> None:
    table = start(TrainingRecipe(), identifier_ids=[4])
    assert torch.equal(table[0], EMBEDDING[4])
    assert not table[1:].any()


def test_the_visual_start_lies_on_centres_of_the_visual_tokens() -> None:
    corners = torch.tensor([[0.0, 0.0, 0, 9], [9, 0, 0, 0], [0, 9, 0, 0]])
    points = corners.repeat_interleave(5, dim=0) + 0.1 * torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
    recipe = TrainingRecipe(init="visual", init_std=0.0, num_und=1, num_gen=1)
    table = start(recipe, visual_ND=points)
    assert torch.equal(table, start(recipe, visual_ND=points))
    nearest = torch.cdist(points, table).argmin(dim=1)
    means = torch.stack([points[nearest == index].mean(dim=0) for index in range(3)])
    torch.testing.assert_close(table, means)
    assert len(torch.unique(table, dim=0)) == 3
    with pytest.raises(ConfigError, match="needs at least 3 visual tokens, found 2"):
        start(recipe, visual_ND=points[:2])


def test_a_class_word_start_without_a_word_is_refused() -> None:
    recipe = TrainingRecipe(init="class_word")
    with pytest.raises(ConfigError, match="needs the class noun's token ids"):
        initial_table(SoftTokenLayout.of_recipe(recipe), recipe=recipe, embedding_VD=EMBEDDING, class_ids=[])


def test_soft_tokens_of_two_widths_are_refused() -> None:
    with pytest.raises(ArtifactError, match="expected und"):
        SoftTokens(und=torch.zeros(2, 4), gen=torch.zeros(2, 5))


def test_a_recipe_decides_whether_tokens_are_decoupled() -> None:
    assert SoftTokenLayout.of_recipe(TrainingRecipe()).gen_expert == "gen"
    coupled = TrainingRecipe.from_json({"is_coupled": True})
    assert SoftTokenLayout.of_recipe(coupled).gen_expert == "und"
    assert coupled.digest() != TrainingRecipe().digest()
    with pytest.raises(ConfigError, match="is_coupled must be true or false"):
        TrainingRecipe.from_json({"is_coupled": 1})
