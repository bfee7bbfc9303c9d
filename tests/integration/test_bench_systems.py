"""Systems of the benchmark on the miniature: what they learn, and that asking several items at once changes nothing."""

import copy
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.bench.asking import ask_all
from omnifarm.bench.data.load import BenchData, load_benchmark
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.rows import ROWS
from omnifarm.bench.tasks import BenchConcept, Sizes
from omnifarm.cli.bench_head import HeadedSystem
from omnifarm.cli.bench_learning import learn, learned_seconds
from omnifarm.cli.bench_lora import PROJECTIONS, LoraSystem, lora_key
from omnifarm.cli.bench_stages import StagedSystem, StageSamples, whiten
from omnifarm.cli.bench_systems import LearnedSystem, PromptedSystem, in_memory
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.errors import ConfigError, NotFoundError, ServingError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.miniature.benchmark import BenchmarkSizes
from omnifarm.store.base import Store
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.serving.concepts import commit

SMALL = BenchmarkSizes(train=3, test=2, hard_negatives=2, easy_negatives=2, edits=2, edits_per_operation=1, removals=1)


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    torch.set_num_threads(1)
    return load_backbone("miniature")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> BenchData:
    sizes = Sizes(
        concepts=2, questions=2, prompts=1, images_per_prompt=1, people_images=0, parg_prompts=1, parg_images=1
    )
    return load_benchmark("miniature:3", sizes=sizes, scratch=tmp_path_factory.mktemp("drawn"), drawn_sizes=SMALL)


@pytest.fixture(scope="module")
def first(drawn: BenchData) -> BenchConcept:
    return drawn.benchmark.concepts[0]


def recipe_of(row: str, *, steps: int) -> TrainingRecipe:
    base = inspect_backbone("miniature", overrides={"steps": steps, "batch_size": 3, "noise_draws": 1}).recipe
    return ROWS[row].recipe_of(base)


def learned(row: str, concepts: list[BenchConcept], loaded: LoadedBackbone, *, steps: int) -> MemoryStore:
    store = MemoryStore()
    recipe = recipe_of(row, steps=steps).with_overrides({"precision": "float32"})
    learn(ROWS[row], [one.spec for one in concepts], loaded=loaded, store=store, recipe=recipe, lanes=2)
    return store


def filed(store: Store) -> dict[str, Any]:
    """Everything that is filed but how long it took."""
    found: dict[str, Any] = {}
    for key in store.list():
        data = store.get(key).data
        if key.endswith(".png"):
            found[key] = data
        else:
            found[key] = [line for line in data.decode().splitlines() if '_s"' not in line and "at_once" not in line]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("row", ["tp", "ip", "ours"])
def test_several_items_at_once_get_what_each_gets_alone(
    row: str, loaded: LoadedBackbone, drawn: BenchData, first: BenchConcept
) -> None:
    artifacts = MemoryStore()
    commit(ConceptRepository(artifacts), loaded, first.name, seed=1)
    stores = [MemoryStore(), MemoryStore()]
    for store, at_once in zip(stores, (1, 8), strict=True):
        system: Any = PromptedSystem(loaded, row=ROWS[row])
        if row == "ours":
            system = LearnedSystem(loaded, store=artifacts, row=ROWS[row])
        replies = ReplyFile(store, prefix="r")
        count = ask_all(
            system, drawn.benchmark, replies, tasks=ROWS[row].tasks, base_seed=0, concepts=[first.name], at_once=at_once
        )
        assert count == len(drawn.benchmark.items_of(first.name)) > 8
    alone, together = map(filed, stores)
    assert alone == together
    lines = [line for value in alone.values() if isinstance(value, list) for line in value]
    assert {line for line in lines if '"failure"' in line} == {' "failure": "",'}


@pytest.fixture(scope="module")
def staged(loaded: LoadedBackbone, drawn: BenchData) -> MemoryStore:
    return learned("unictokens_style", list(drawn.benchmark.concepts), loaded, steps=6)


@pytest.mark.slow
def test_three_stages_leave_thirty_three_tokens_and_are_not_learned_again(
    staged: MemoryStore, drawn: BenchData, loaded: LoadedBackbone
) -> None:
    manifests = ConceptRepository(staged).list()
    assert [one.name for one in manifests] == sorted(one.name for one in drawn.benchmark.concepts)
    assert {(one.num_und, one.num_gen, one.is_coupled) for one in manifests} == {(16, 16, True)}
    _, soft = ConceptRepository(staged).load(manifests[0].name, fingerprint=loaded.fingerprint)
    assert (soft.table().norm(dim=1) > 0).all()
    assert all(seconds > 0 for seconds in learned_seconds(ROWS["unictokens_style"], store=staged).values())
    before = {key: staged.get(key).data for key in staged.list("artifacts/")}
    recipe = recipe_of("unictokens_style", steps=6).with_overrides({"precision": "float32"})
    specs = [one.spec for one in drawn.benchmark.concepts]
    learn(ROWS["unictokens_style"], specs, loaded=loaded, store=staged, recipe=recipe, lanes=2)
    assert {key: staged.get(key).data for key in staged.list("artifacts/")} == before


@pytest.mark.slow
def test_stages_keep_the_tokens_of_questions_and_of_drawings_apart(
    staged: MemoryStore, loaded: LoadedBackbone, first: BenchConcept
) -> None:
    row = ROWS["unictokens_style"]
    plain = StagedSystem(loaded, store=staged, row=row)
    plain.fit(first)
    manifest, soft = ConceptRepository(staged).load(first.name, fingerprint=loaded.fingerprint)
    other = soft.gen.clone()
    other[8:] += 3.0
    changed = StagedSystem(loaded, store=in_memory(manifest, replace(soft, gen=other)), row=row)
    changed.fit(first)
    prompt = f"A photo of {first.identifier}."
    assert plain.generate(prompt, seed=1).picture.tobytes() == changed.generate(prompt, seed=1).picture.tobytes()  # type: ignore[union-attr]
    question = f"What does {first.identifier} look like?"
    assert plain.answer(question, None).text != changed.answer(question, None).text


def test_questions_of_the_last_stage_point_to_its_own_tokens(loaded: LoadedBackbone, first: BenchConcept) -> None:
    bench, recipe = Workbench(loaded), recipe_of("unictokens_style", steps=3)
    layout = SoftTokenLayout(num_und=16, num_gen=8, is_coupled=True)
    sides = [bench.samples(first.spec, recipe=recipe, layout=layout) for _ in range(2)]
    rows: dict[str, set[int]] = {"understanding": set(), "generation": set()}
    for step in range(4):
        for sample in StageSamples(*sides, shift=8).draw(step):
            slots = [slot for part in sample.segments if isinstance(part, TextSegment) for slot in part.soft]
            rows[sample.task] |= {slot.row for slot in slots}
    assert rows["understanding"] == {*range(17), *range(25, 33)}
    assert rows["generation"] == set(range(25))


def test_what_was_open_late_in_a_drawing_becomes_white() -> None:
    end = Image.new("RGB", (32, 32), (10, 20, 30))
    late = end.copy()
    late.paste((90, 20, 30), (16, 0, 32, 16))
    pixels = np.asarray(whiten(late, end, block=16))
    assert (pixels[:16, 16:] == 255).all()
    assert (pixels[16:] == np.asarray(end)[16:]).all()
    assert whiten(None, end, block=16) is end


@pytest.fixture(scope="module")
def lora(loaded: LoadedBackbone, first: BenchConcept) -> MemoryStore:
    return learned("dreambooth_style", [first], loaded, steps=4)


@pytest.mark.slow
def test_low_rank_weights_change_drawings_and_leave_the_backbone_alone(
    loaded: LoadedBackbone, lora: MemoryStore, first: BenchConcept
) -> None:
    before = copy.deepcopy(loaded.model.state_dict())
    prompt = f"A photo of {first.identifier}."
    system = LoraSystem(loaded, store=lora, row=ROWS["dreambooth_style"])
    system.fit(first)
    drawn = system.generate(prompt, seed=3).picture
    named = prompt.replace(first.identifier, f"sks {first.spec.class_noun}")
    plain = PromptedSystem(loaded, row=ROWS["plain"])
    plain.fit(first)
    untouched = plain.generate(named, seed=3).picture
    assert drawn is not None
    assert untouched is not None
    assert drawn.tobytes() != untouched.tobytes()
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert learned_seconds(ROWS["dreambooth_style"], store=lora)[first.name] > 0
    with pytest.raises(ServingError):
        system.answer("Who is it?", None)


def test_without_peft_the_row_says_what_to_install(
    loaded: LoadedBackbone, first: BenchConcept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"omnifarm\[bench\]"):
        learned("dreambooth_style", [first], loaded, steps=1)


@pytest.mark.slow
def test_merged_matrices_compute_what_peft_computes(
    loaded: LoadedBackbone, lora: MemoryStore, first: BenchConcept
) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    system = LoraSystem(loaded, store=lora, row=ROWS["dreambooth_style"])
    system.fit(first)
    matrices = load(lora.get(lora_key(first.name)).data)
    injected = copy.deepcopy(loaded.model)
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=PROJECTIONS.pattern), injected)
    x = torch.randn(5, loaded.config.hidden_size, generator=torch.Generator().manual_seed(0))
    layers = [(name, module) for name, module in injected.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 4 * loaded.config.llm.num_hidden_layers
    merged = dict(system.model.named_modules())
    with torch.no_grad():
        for name, layer in layers:
            layer.lora_A["default"].weight.copy_(matrices[f"{name}.down"])
            layer.lora_B["default"].weight.copy_(matrices[f"{name}.up"])
            assert matrices[f"{name}.up"].abs().max() > 0
            torch.testing.assert_close(merged[name](x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_weights_of_another_concept_are_put_in_place_of_the_last(
    loaded: LoadedBackbone, lora: MemoryStore, drawn: BenchData, first: BenchConcept
) -> None:
    second = drawn.benchmark.concepts[1]
    data = lora.get(lora_key(first.name)).data
    zero = {name: torch.zeros_like(value) for name, value in load(data).items()}
    store = MemoryStore()
    store.put(lora_key(first.name), data)
    store.put(lora_key(second.name), save(zero, metadata={"fingerprint": loaded.fingerprint, "train_s": "1"}))
    system = LoraSystem(loaded, store=store, row=ROWS["dreambooth_style"])
    system.fit(first)
    system.fit(second)
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in system.model.state_dict().items())
    store.put(lora_key(second.name), save(zero, metadata={"fingerprint": "f" * 64, "train_s": "1"}))
    with pytest.raises(ServingError, match="another backbone"):
        system.fit(second)
    with pytest.raises(NotFoundError):
        LoraSystem(loaded, store=MemoryStore(), row=ROWS["dreambooth_style"]).fit(first)


@pytest.mark.slow
def test_a_head_says_who_is_there_and_needs_pictures_without_it(loaded: LoadedBackbone, first: BenchConcept) -> None:
    artifacts = MemoryStore()
    commit(ConceptRepository(artifacts), loaded, first.name, seed=1)
    system = HeadedSystem(loaded, store=artifacts, row=ROWS["myvlm_style"])
    system.fit(first)
    spec = first.spec
    ask = f"Is {first.identifier} in the photo?"
    assert {system.answer(ask, picture).text for picture in first.train_pictures()} == {"Yes."}
    assert {system.answer(ask, spec.open_image(one.image)).text for one in spec.negatives} == {"No."}
    with pytest.raises(ServingError, match="pictures only"):
        system.answer(ask, None)
    with pytest.raises(ServingError, match="add negatives"):
        system.fit(replace(first, spec=replace(spec, negatives=())))


@pytest.mark.slow
def test_behind_a_no_the_plain_model_answers(loaded: LoadedBackbone, first: BenchConcept) -> None:
    artifacts = MemoryStore()
    commit(ConceptRepository(artifacts), loaded, first.name, seed=1)
    headed = HeadedSystem(loaded, store=artifacts, row=ROWS["myvlm_style"])
    plain, own = PromptedSystem(loaded, row=ROWS["plain"]), LearnedSystem(loaded, store=artifacts, row=ROWS["ours"])
    for system in (headed, plain, own):
        system.fit(first)
    question = "What is in the background?"
    absent, present = first.spec.open_image(first.spec.negatives[0].image), first.train_pictures()[0]
    assert headed.answer(question, absent).text == plain.answer(question, absent).text
    assert headed.answer(question, present).text == own.answer(question, present).text
