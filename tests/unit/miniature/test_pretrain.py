import copy
import json
import random

import numpy as np
import pytest
import torch

from omnifarm.backbone.packing import LatentSegment, TextSegment, VitSegment, pack
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.miniature.identity import labels
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.architecture import new_backbone, write_configs
from omnifarm.miniature.pretrain.corpus import load_corpus, make_group, render_corpus
from omnifarm.miniature.pretrain.drawing import is_drawing_weight, keys_and_values
from omnifarm.miniature.pretrain.features import patches_of
from omnifarm.miniature.pretrain.main_stage import MainConfig, MainTrainer, SoftTable, load_masters
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, orthogonalised
from omnifarm.miniature.pretrain.records import Recorder
from omnifarm.miniature.pretrain.sequences import NUM_SLOTS, Writer
from omnifarm.miniature.pretrain.superpositions import Superpositions
from omnifarm.miniature.pretrain.tasks import TASKS, Features, Sampler
from omnifarm.miniature.pretrain.timed import rate_scale
from omnifarm.miniature.pretrain.understanding_stage import UnderstandingConfig, UnderstandingTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("miniature")
    write_configs(path, codec=None)
    return path


@pytest.fixture(scope="module")
def sampler(folder):
    groups = [make_group(3, index) for index in range(6)]
    generator = torch.Generator().manual_seed(0)
    features = Features(
        vit=torch.randn(6, corpus.NUM_VIEWS, 64, 192, generator=generator).bfloat16(),
        mean=torch.randn(6, corpus.NUM_VIEWS, 36, 64, generator=generator).bfloat16(),
    )
    return Sampler(groups=groups, features=features, writer=Writer(BackboneTokenizer.from_folder(folder)))


def test_a_group_is_the_same_whenever_it_is_made():
    assert make_group(1, 5) == make_group(1, 5)
    assert make_group(1, 5) != make_group(1, 6)


def test_pre_training_never_meets_a_held_out_identity():
    for index in range(40):
        for scene in make_group(2, index).scenes:
            assert all(placed.identity.split == "train" for placed in scene.subjects)


def test_a_corpus_rendered_in_parts_is_the_corpus_rendered_at_once(tmp_path):
    render_corpus(tmp_path / "whole.npy", num_groups=2, seed=4)
    for start in (1, 0):
        render_corpus(tmp_path / "parts.npy", num_groups=2, seed=4, start=start, stop=start + 1)
    np.testing.assert_array_equal(load_corpus(tmp_path / "whole.npy"), load_corpus(tmp_path / "parts.npy"))


def test_removing_the_first_subject_leaves_the_second(tmp_path):
    group = make_group(1, 0)
    assert group.scenes[corpus.BOTH].index_of(group.first) is not None
    assert group.scenes[corpus.BOTH_GONE].index_of(group.first) is None
    assert group.scenes[corpus.BOTH_GONE].index_of(group.second) is not None


@pytest.mark.parametrize("task", TASKS)
def test_every_task_draws_samples_that_can_be_packed(task, sampler, folder):
    model = new_backbone(folder)
    tokenizer = sampler.writer
    samples = [sampler.draw(task) for _ in range(5)]
    special_ids = BackboneTokenizer.from_folder(folder).special_ids
    packed = pack(samples, special_ids=special_ids, config=model.config)
    assert packed.num_tokens > 0
    learns_text = len(packed.ce_labels) > 0
    assert learns_text == (task in ("understand", "watch"))
    assert (len(packed.mse_index) > 0) == (task in ("draw", "draw_ref", "edit"))
    assert tokenizer.rows.num_rows > 0


def test_a_soft_introduction_has_the_layout_of_a_system_prompt(sampler):
    who = sampler.writer.by_soft(random.Random(0), sampler.groups[0].first)
    (segment,) = who.segments
    assert isinstance(segment, TextSegment)
    experts = [slot.expert for slot in segment.soft]
    assert experts == ["und"] * (1 + NUM_SLOTS) + ["gen"] * NUM_SLOTS
    assert who.written == "<sks>"


def test_answers_spell_the_name_and_questions_use_its_vector(sampler):
    who = sampler.writer.by_soft(random.Random(0), sampler.groups[0].first)
    question = sampler.writer.read("Is <x> in the photo?", who)
    answer = sampler.writer.write("A photo of <x>.", who)
    assert [slot.row for slot in question.soft] == [who.alias]
    assert not answer.soft
    assert set(sampler.writer.encode("<sks>")) <= set(answer.ids)


def test_edits_show_the_source_before_the_instruction(sampler):
    for _ in range(20):
        kinds = [type(segment) for segment in sampler.draw("edit")]
        pictures = [i for i, kind in enumerate(kinds) if kind is VitSegment]
        first_target = kinds.index(LatentSegment, 1) if kinds[0] is LatentSegment else kinds.index(LatentSegment)
        assert first_target > 0
        assert all(index < len(kinds) - 1 for index in pictures)


class Listening(Sampler):
    """Remembers what was asked."""

    def turn(self, turn, who):
        self.heard.append(turn)
        return super().turn(turn, who)


def test_no_question_about_a_picture_says_its_own_answer(sampler):
    listening = Listening(groups=sampler.groups, features=sampler.features, writer=sampler.writer)
    listening.heard = []
    for _ in range(300):
        listening.draw("watch")
    assert any(" on the left" in turn.question for turn in listening.heard)
    for turn in listening.heard:
        assert turn.answer.rstrip(".").lower() not in turn.question.lower(), turn


def test_replays_are_shown_with_none_to_six_examples(sampler):
    who = sampler.writer.by_text(random.Random(0), sampler.groups[0].first)
    begin = sampler.writer.encode("Request:")
    counts = set()
    for _ in range(200):
        ids = sampler._replay(sampler.groups[0], who, is_open=True)[0].ids
        counts.add(sum(ids[i : i + len(begin)] == begin for i in range(len(ids))) - 1)
    assert counts == set(range(7))


def test_every_condition_is_left_out_now_and_then(sampler):
    kinds = {"text": 0, "vae": 0, "vit": 0}
    for _ in range(300):
        parts, _ = sampler._edit_parts(0)
        kinds["text"] += not any(isinstance(part, TextSegment) for part in parts)
        kinds["vae"] += not any(isinstance(part, LatentSegment) for part in parts)
        kinds["vit"] += not any(isinstance(part, VitSegment) for part in parts)
    shares = {name: count / 300 for name, count in kinds.items()}
    assert shares == pytest.approx({"text": 0.1, "vae": 0.05, "vit": 0.3 * 0.95}, abs=0.08)


def test_edits_from_pictures_of_two_change_the_one_who_is_named():
    for index in range(20):
        group = make_group(5, index)
        for source, view, edit in zip(corpus.EDIT_SOURCES, corpus.EDITED, group.edits, strict=True):
            before, after = group.scenes[source], group.scenes[view]
            assert after == edit.target
            if source == corpus.BOTH:
                other = before.subjects[before.index_of(group.second)]
                assert other in after.subjects


def test_neither_company_nor_a_single_attribute_says_whether_somebody_is_there(folder):
    groups = [make_group(3, index) for index in range(200)]
    features = Features(vit=torch.zeros(200, corpus.NUM_VIEWS, 64, 1))
    # Which picture is asked about can be read off its features.
    features.vit[...] = torch.arange(200)[:, None, None, None] * 100 + torch.arange(corpus.NUM_VIEWS)[:, None, None]
    sampler = Sampler(groups=groups, features=features, writer=Writer(BackboneTokenizer.from_folder(folder)), seed=1)
    who = sampler.introduce(0, weights=(1.0, 0.0, 0.0))
    pairs: dict[bool, list[bool]] = {True: [], False: []}
    strangers: list[dict[str, bool]] = []

    def shared(first, second):
        ours, theirs = labels(first), labels(second)
        return {head: value == theirs[head] for head, value in ours.items() if value >= 0 and head != "noun"}

    for turn in range(3000):
        picture, _, answer, *_ = sampler._candidate(turn % 200, corpus.FIRST, who)
        place, view = divmod(round(float(picture.features[0, 0])), 100)
        scene, first = groups[place].scenes[view], groups[turn % 200].first
        said = answer.ids[0] == sampler.writer.encode("Yes")[0]
        assert said == (scene.index_of(first) is not None)
        pairs[said].append(len(scene.subjects) == 2)
        if not said and groups[place].first.noun == first.noun:
            strangers.append(shared(first, groups[place].first))
    shares = {said: np.mean(two) for said, two in pairs.items()}
    assert shares[True] == pytest.approx(0.45, abs=0.05)
    assert shares[False] == pytest.approx(0.45, abs=0.07)
    peers = [(one.first, other.first) for one in groups for other in groups if one.first.noun == other.first.noun]
    usual = [shared(one, other) for one, other in peers if one != other]
    for head in ("person.hair_color", "person.shirt_color", "pet.coat", "pet.neck_color", "object.color"):
        asked, expected = ([one[head] for one in found if head in one] for found in (strangers, usual))
        assert np.mean(asked) > 1.5 * np.mean(expected)


def test_superposed_vectors_hold_every_vector_they_are_made_of():
    superpositions = Superpositions(5)
    rows = superpositions.add(random.Random(0), [4, 1, 1, 0])
    more = superpositions.add(random.Random(1), [2, 3])
    assert (rows, more) == ([5, 6, 7, 8], [9, 10])
    table = torch.eye(5, requires_grad=True)
    extended = superpositions.extended(table)
    torch.testing.assert_close(extended[:5], table)
    sums = extended[rows].sum(dim=0)
    assert (sums[[4, 0]] >= 0.999).all()
    assert sums[1] >= 1.999  # it stands there twice
    assert sums[[2, 3]].sum() == 0
    assert (extended[more].sum(dim=0)[[2, 3]] >= 0.999).all()
    extended[rows].sum().backward()
    assert (table.grad.sum(dim=1)[[0, 1, 4]] > 0).all()
    assert len(superpositions.extended(table)) == 5  # every step has its own


def test_orthogonalised_matrices_have_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_the_optimiser_skips_a_step_that_is_not_finite():
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    optimizer = MasterOptimizer(layer.named_parameters(), config=OptimizerConfig())
    torch.autograd.backward(layer(torch.full((1, 4), float("nan"))).sum())
    optimizer.step(1.0)
    assert optimizer.num_skipped == 1
    assert torch.equal(layer.weight, before)


def test_small_updates_add_up_although_the_weights_are_bf16():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterOptimizer([("w", weight)], config=OptimizerConfig(adam_rate=1e-4))
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step(1.0)
    assert float(weight.detach()) < 1 - 0.005


def test_the_optimiser_goes_on_where_it_stopped():
    def trained(steps, state=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        optimizer = MasterOptimizer(layer.named_parameters(), config=OptimizerConfig())
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(steps):
            torch.autograd.backward(layer(torch.ones(2, 8)).square().sum())
            optimizer.step(1.0)
        return layer, optimizer

    whole, _ = trained(4)
    _, half = trained(2)
    resumed, _ = trained(2, half.state_dict())
    torch.testing.assert_close(resumed.weight, whole.weight)


def test_the_rate_warms_up_stays_and_ends_near_zero():
    assert rate_scale(0.0, step=0, anneal_from=0.4) == pytest.approx(0.01)
    assert rate_scale(0.3, step=500, anneal_from=0.4) == 1.0
    assert rate_scale(1.0, step=500, anneal_from=0.4) == pytest.approx(0.01)


def test_batched_patches_are_those_of_the_backbone():
    from omnifarm.backbone.image_ops import patchify

    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    torch.testing.assert_close(patches_of(images, patch=2)[1], patchify(images[1], patch=2))


def test_records_hold_means_since_the_last_line(tmp_path):
    recorder = Recorder(tmp_path / "curve.jsonl")
    for value in (1.0, 3.0):
        recorder.add(step=1, loss=value)
    recorder.write(seconds=5)
    assert json.loads((tmp_path / "curve.jsonl").read_text()) == {"step": 1, "loss": 2.0, "seconds": 5}


def test_the_main_stage_learns_saves_and_resumes(sampler, folder, tmp_path):
    special_ids = BackboneTokenizer.from_folder(folder).special_ids
    config = MainConfig(budget_s=3600.0, mix={"watch": 1, "draw": 1})

    def trainer():
        return MainTrainer(
            new_backbone(folder), sampler=sampler, special_ids=special_ids, folder=tmp_path, config=config
        )

    first = trainer()
    first.step(1.0)
    first.save(12.0)
    second = trainer()
    assert (second.step_index, second.spent_s) == (1, 12.0)
    model = new_backbone(folder)
    assert load_masters(tmp_path / "main_state.safetensors", model) == 1
    name = "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"
    torch.testing.assert_close(model.state_dict()[name], first.model.state_dict()[name])
    assert not torch.equal(model.state_dict()[name], new_backbone(folder).state_dict()[name])


def test_the_understanding_stage_is_held_to_what_drawing_reads(sampler, folder, tmp_path):
    special_ids = BackboneTokenizer.from_folder(folder).special_ids

    def trained(weight, folder_name):
        model = new_backbone(folder)
        # New layers end in zeros, behind which no gradient arrives and nothing could move.
        model.initialise(std=0.2, generator=torch.Generator().manual_seed(1))
        model.special_ids = special_ids
        soft = SoftTable(sampler.writer.rows, width=model.config.hidden_size, seed=0)
        (tmp_path / folder_name).mkdir()
        config = UnderstandingConfig(
            budget_s=3600.0,
            mix={},
            num_introduced=1,
            num_compared=1,
            num_anchored=8,
            anchor_weight=weight,
        )
        trainer = UnderstandingTrainer(model, soft=soft, sampler=sampler, folder=tmp_path / folder_name, config=config)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in range(8):
            trainer.step(1.0)
        return trainer, before

    def moved(trainer):
        sampler.rng.seed(9)
        conditions = [sampler.drawing("draw")[0] for _ in range(4)]
        table = trainer._table().detach()
        with torch.no_grad():
            now, old = (
                keys_and_values(model, conditions, soft_table=table) for model in (trainer.model, trainer.before)
            )
        return sum(
            float((a - b).square().mean()) for x, y in zip(now, old, strict=True) for a, b in zip(x, y, strict=True)
        )

    held, before = trained(100.0, "held")
    free, _ = trained(0.0, "free")
    assert moved(held) < 0.7 * moved(free)
    changed = {name for name, value in held.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "language_model.lm_head.weight" in changed
    assert not any(is_drawing_weight(name) or name.startswith("vit_model") for name in changed)

    held.save(5.0)
    again = UnderstandingTrainer(
        copy.deepcopy(held.before).requires_grad_(True),
        soft=held.soft,
        sampler=sampler,
        folder=tmp_path / "held",
        config=held.config,
    )
    assert (again.step_index, again.spent_s) == (8, 5.0)
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, held.model.state_dict()[name])
