import pytest
import torch

from omnifarm.backbone.packing import LatentSegment, pack, shifted
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.architecture import new_backbone, write_configs
from omnifarm.miniature.pretrain.corpus import make_group
from omnifarm.miniature.pretrain.drawing import CopiesForward, copy_times, is_drawing_weight, read_conditions
from omnifarm.miniature.pretrain.drawing_stage import DrawingConfig, DrawingTrainer, kept_tokens
from omnifarm.miniature.pretrain.main_stage import SoftTable
from omnifarm.miniature.pretrain.sequences import LATENT_GRID, SoftRows, Writer
from omnifarm.miniature.pretrain.tasks import Features, Sampler

TASKS = ("draw", "draw", "edit", "draw_ref", "edit")
COPIES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("miniature")
    write_configs(path, codec=None)
    return path


@pytest.fixture
def sampler(folder):
    groups = [make_group(3, index) for index in range(6)]
    generator = torch.Generator().manual_seed(0)
    features = Features(
        vit=torch.randn(6, corpus.NUM_VIEWS, 64, 192, generator=generator).bfloat16(),
        mean=torch.randn(6, corpus.NUM_VIEWS, 36, 64, generator=generator).bfloat16(),
    )
    return Sampler(groups=groups, features=features, writer=Writer(BackboneTokenizer.from_folder(folder)), seed=2)


@pytest.fixture
def model(folder):
    built = new_backbone(folder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # Every branch has to matter, and both experts have to differ.
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(is_drawing_weight(name))
    built.special_ids = BackboneTokenizer.from_folder(folder).special_ids
    return built


def _batch(sampler):
    generator = torch.Generator().manual_seed(7)
    conditions, latents = zip(*(sampler.drawing(task) for task in TASKS), strict=True)
    noise = torch.randn(len(TASKS), COPIES, *LATENT_SHAPE, generator=generator)
    logits = torch.randn(len(TASKS), COPIES, generator=generator)
    return list(conditions), torch.stack(latents), noise, logits


LATENT_SHAPE = (LATENT_GRID[0] * LATENT_GRID[1], 64)


def test_copies_give_the_velocities_of_the_packed_forward_pass(model, sampler):
    conditions, latents, noise, logits = _batch(sampler)
    soft = sampler.writer.superpositions.extended(SoftTable(SoftRows(), width=192, seed=0)().detach())
    packed = pack(
        [
            [
                *segments,
                *(
                    LatentSegment(
                        latents=latents[i], grid=LATENT_GRID, timestep_logit=float(logits[i, r]), noise=noise[i, r]
                    )
                    for r in range(COPIES)
                ),
            ]
            for i, segments in enumerate(conditions)
        ],
        special_ids=model.require_special_ids(),
        config=model.config,
    )
    expected = model.train_forward(packed, soft_table=soft).velocity
    times = shifted(torch.sigmoid(logits.double()), shift=model.config.timestep_shift).float()
    read = read_conditions(model, conditions, soft_table=soft)
    got = CopiesForward(model, grid=LATENT_GRID)(latents, noise, times, conditions=read)
    torch.testing.assert_close(got.reshape(expected.shape), expected, atol=2e-5, rtol=2e-5)


def test_gradients_reach_the_generation_side_through_clean_pictures_too(model, sampler):
    conditions = [sampler.drawing("edit")[0] for _ in range(4)]
    with_picture = [i for i, c in enumerate(conditions) if any(isinstance(s, LatentSegment) for s in c)]
    soft = sampler.writer.superpositions.extended(SoftTable(SoftRows(), width=192, seed=0)())
    read = read_conditions(model, [conditions[i] for i in with_picture], soft_table=soft)
    read.keys[0].float().sum().backward()
    assert model.vae2llm.weight.grad.abs().max() > 0
    assert all(p.grad is None for n, p in model.named_parameters() if not is_drawing_weight(n))


def test_times_of_copies_are_spread_and_shifted():
    generator = torch.Generator().manual_seed(0)
    times = copy_times(200, 8, shift=3.0, generator=generator)
    assert times.shape == (200, 8)
    assert float(times.min()) > 0
    assert float(times.max()) < 1
    assert bool((times.diff(dim=1) > 0).all())
    assert 0.72 < float(times.median()) < 0.78


def test_the_drawing_stage_learns_resumes_and_leaves_understanding_alone(folder, sampler, tmp_path):
    def trainer():
        model = new_backbone(folder)
        model.special_ids = BackboneTokenizer.from_folder(folder).special_ids
        config = DrawingConfig(
            budget_s=1000, batches=({"draw": 2}, {"edit": 1, "draw_ref": 1}), copies=2, compiled=False
        )
        soft = SoftTable(SoftRows(), width=192, seed=0)
        return DrawingTrainer(model, soft=soft, sampler=sampler, folder=tmp_path, config=config)

    first = trainer()
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    for _ in range(3):
        first.step(1.0)
    changed = {name for name, value in first.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(is_drawing_weight(name) for name in changed)
    first.save(12.0)
    second = trainer()
    assert (second.step_index, second.spent_s) == (3, 12.0)
    for name, value in second.model.state_dict().items():
        torch.testing.assert_close(value, first.model.state_dict()[name])


def test_tokens_that_an_edit_keeps_are_those_that_stand_in_its_source() -> None:
    source = torch.randn(LATENT_SHAPE)
    target = source.clone()
    target[[3, 8]] += 1
    kept = kept_tokens([LatentSegment(latents=source, grid=LATENT_GRID)], target)
    assert (kept == 0).nonzero().flatten().tolist() == [3, 8]
    assert kept_tokens([], target).sum() == 0
