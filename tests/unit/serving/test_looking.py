"""Attention maps, held to a plain computation."""

import pytest
import torch
from PIL import Image

from omnifarm.backbone.attention_map import attention_of
from omnifarm.backbone.segments import TextSegment
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.errors import ConfigError, UnknownConceptError
from omnifarm.serving.engine import Engine
from omnifarm.serving.looking import looking_at
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import CHECKPOINT, commit


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    torch.set_num_threads(1)
    return load_backbone(CHECKPOINT)


def test_weights_are_those_of_the_pass(loaded: LoadedBackbone) -> None:
    """The first layer's weights, mixed with its values, give what the layer's attention gave."""
    segment = TextSegment(ids=tuple(range(5, 14)))
    layer = loaded.model.language_model.model.layers[0].self_attn
    mixed, values = [], []
    hooks = [
        layer.o_proj.register_forward_pre_hook(lambda module, inputs: mixed.append(inputs[0])),
        layer.v_proj.register_forward_hook(lambda module, inputs, output: values.append(output)),
    ]
    query = 7
    weights = attention_of(loaded.model, [segment], query=query, keys=range(query))
    for hook in hooks:
        hook.remove()
    assert ((weights > 0) & (weights < 1)).all()
    assert (weights.sum(dim=-1) < 1).all(), "the query sees itself too"
    width = loaded.model.config.head_dim
    heads, groups = mixed[0].shape[1] // width, values[0].shape[1] // width
    values_THd = values[0].unflatten(1, (groups, width)).repeat_interleave(heads // groups, dim=1)[: query + 1]
    whole = torch.cat((weights[0], 1 - weights[0].sum(dim=-1, keepdim=True)), dim=1)
    expected = torch.einsum("ht,thd->hd", whole, values_THd).flatten()
    assert torch.allclose(mixed[0][query], expected, atol=1e-5)


def test_a_map_has_the_shape_of_the_photo_and_depends_on_the_concept(loaded: LoadedBackbone) -> None:
    photo = Image.linear_gradient("L").resize((80, 64)).convert("RGB")
    width = loaded.config.hidden_size
    maps = []
    for seed in (1, 2):
        draw = torch.Generator().manual_seed(seed)
        concept = SoftTokens(
            und=torch.randn(4, width, generator=draw) * 0.2, gen=torch.randn(3, width, generator=draw) * 0.2
        )
        maps.append(looking_at(loaded, photo, concept=concept))
    assert maps[0].shape[0] == loaded.config.llm.num_hidden_layers
    assert maps[0].shape[2] > maps[0].shape[1] > 1
    assert (maps[0].flatten(1).sum(1) < 1).all()
    assert not torch.equal(maps[0], maps[1])


def test_an_engine_looks_with_the_concept_it_serves_and_answers_as_before(loaded: LoadedBackbone) -> None:
    photo = Image.linear_gradient("L").resize((80, 64)).convert("RGB")
    repository = ConceptRepository(MemoryStore())
    for seed, name in enumerate(("maeve", "bo"), start=1):
        commit(repository, loaded, name, seed=seed)
    engine = Engine(loaded, repository)
    before = engine.ask("Is <bo> in the photo?", image=photo, max_tokens=4).text
    # Looked at in the middle of somebody else's request.
    ticket = engine.submit(engine.door.ask("Is <bo> in the photo?", image=photo, max_tokens=4))
    engine.step()
    for name in ("maeve", "bo"):
        _, soft = repository.load(name, fingerprint=loaded.fingerprint)
        assert torch.equal(engine.looking(photo, concept=name), looking_at(loaded, photo, concept=soft))
    while not ticket.is_done:
        engine.step()
    assert ticket.result().text == before
    with pytest.raises(UnknownConceptError):
        engine.looking(photo, concept="nobody")


def test_a_token_cannot_look_ahead(loaded: LoadedBackbone) -> None:
    with pytest.raises(ConfigError, match="before the query"):
        attention_of(loaded.model, [TextSegment(ids=(1, 2))], query=1, keys=range(3))
