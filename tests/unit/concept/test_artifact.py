import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from omnifarm.concept.artifact import (
    MAX_HEADER_BYTES,
    ArtifactManifest,
    decode_manifest,
    decode_soft_tokens,
    encode_manifest,
    encode_soft_tokens,
    tensors_digest,
)
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens
from omnifarm.errors import ArtifactError, ConceptError, NotFoundError
from omnifarm.store.memory import MemoryStore

LAYOUT = SoftTokenLayout(num_und=2, num_gen=2)
SOFT = SoftTokens(und=torch.arange(12.0).reshape(3, 4), gen=torch.ones(2, 4))
DATA = encode_soft_tokens(SOFT)


def manifest_of(soft: SoftTokens = SOFT, **changes: object) -> ArtifactManifest:
    manifest = ArtifactManifest(
        name="maeve", version="v1", class_noun="dog", fingerprint="f" * 64, data_digest="d" * 64,
        tensors_digest=tensors_digest(encode_soft_tokens(soft)), num_und=soft.layout.num_und,
        num_gen=soft.layout.num_gen, width=soft.width, recipe={"steps": 7}, losses={"total": [2.0, 1.0]},
        train_s=3.5, created_at_s=100.0, versions={"torch": "2"}, warnings=("few photographs",),
    )  # fmt: skip
    return dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]


def decode(data: bytes) -> SoftTokens:
    return decode_soft_tokens(data, layout=LAYOUT, width=4)


def with_header(header: object, body: bytes = bytes(80)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def header_of(**changes: object) -> dict[str, object]:
    und = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    gen = {"dtype": "F32", "shape": [2, 4], "data_offsets": [48, 80]}
    return {"und": {**und, **changes}, "gen": gen}


def test_soft_tokens_come_back_bit_for_bit() -> None:
    back = decode(DATA)
    assert torch.equal(back.und, SOFT.und)
    assert torch.equal(back.gen, SOFT.gen)
    assert encode_soft_tokens(back) == DATA
    decode(with_header(header_of()))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "8-byte header length"),
        (b"\xff" * 40, "header of at most"),
        (with_header(b" " * (MAX_HEADER_BYTES + 1)), "header of at most"),
        (with_header(b"{nonsense"), "JSON header"),
        (with_header(b"[" * 9000), "JSON header"),
        (with_header(b'{"und": 1, "und": 2}'), "occurs twice"),
        (with_header([]), "object as header"),
        (with_header({"und": 1}), "exactly the tensors und and gen"),
        (with_header({**header_of(), "__metadata__": {}}), "exactly the tensors und and gen"),
        (with_header(header_of(extra=1)), "must have dtype, shape and data_offsets"),
        (with_header(header_of(dtype="F16")), "must be F32 of shape"),
        (with_header(header_of(shape=[4, 3])), "must be F32 of shape"),
        (with_header(header_of(shape=[3.0, 4])), "must be F32 of shape"),
        (with_header(header_of(data_offsets=[0, 44])), "inside the file"),
        (with_header(header_of(data_offsets=[-4, 44])), "inside the file"),
        (with_header(header_of(data_offsets=[0, True])), "two offsets"),
        (with_header(header_of(data_offsets=[32, 80])), "without gaps or overlaps"),
        (with_header(header_of(), bytes(84)), "without gaps or overlaps"),
        (with_header(header_of(), bytes(60)), "inside the file"),
        (with_header(header_of(), b"\x00\x00\xc0\x7f" + bytes(76)), "must be finite"),
        (with_header(header_of(), b"\x00\x00\x80\x7f" + bytes(76)), "must be finite"),
        (save({"und": torch.full((3, 4), 1e30), "gen": torch.ones(2, 4)}), "no longer than"),
        (save({"und": torch.ones(3, 4), "gen": torch.ones(2, 5)}), "must be F32 of shape"),
    ],
)
def test_a_tampered_file_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        decode(data)
    assert what in str(caught.value)
    assert "train the concept again" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, len(DATA)),
    tail=st.binary(max_size=8),
)
def test_no_damage_gets_past_as_another_error(changes: list[tuple[int, int]], cut: int, tail: bytes) -> None:
    damaged = bytearray(DATA)
    for place, value in changes:
        damaged[place] = value
    try:
        soft = decode(bytes(damaged[:cut]) + tail)
    except ArtifactError:
        return
    assert bool(torch.isfinite(soft.table()).all())


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(ArtifactError, match="must be finite"):
        encode_soft_tokens(SoftTokens(und=torch.full((1, 4), float("nan")), gen=torch.zeros(0, 4)))


def test_a_concept_without_generation_tokens_is_stored() -> None:
    soft = SoftTokens(und=torch.ones(2, 4), gen=torch.zeros(0, 4))
    assert decode_soft_tokens(encode_soft_tokens(soft), layout=soft.layout, width=4).gen.shape == (0, 4)


def test_a_manifest_comes_back() -> None:
    assert decode_manifest(encode_manifest(manifest_of())) == manifest_of()
    assert manifest_of().to_json()["identifier"] == "<maeve>"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema_version": 2}, "expected schema_version 1, found 2"),
        ({"surprise": 1}, "a difference in ['surprise']"),
        ({"width": "4"}, "width is of the wrong kind"),
        ({"width": True}, "width is of the wrong kind"),
        ({"recipe": []}, "recipe is of the wrong kind"),
        ({"name": "../x"}, "name must be a concept's name"),
    ],
)
def test_a_strange_manifest_is_refused(change: dict[str, object], what: str) -> None:
    values = {**manifest_of().to_json(), **change}
    with pytest.raises(ArtifactError) as caught:
        decode_manifest(json.dumps(values).encode())
    assert what in str(caught.value)


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_manifest_gets_past_as_another_error(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        decode_manifest(data)


def test_a_commit_is_found_again_and_repeating_it_does_nothing() -> None:
    repository = ConceptRepository(MemoryStore())
    assert repository.commit(manifest_of(), SOFT)
    assert not repository.commit(manifest_of(created_at_s=500.0), SOFT)
    manifest, soft = repository.load("maeve", fingerprint="f" * 64)
    assert manifest == manifest_of()
    assert torch.equal(soft.table(), SOFT.table())
    assert repository.names() == ["maeve"]


def test_the_newest_version_is_used_and_others_stay() -> None:
    repository = ConceptRepository(MemoryStore())
    repository.commit(manifest_of(), SOFT)
    repository.commit(manifest_of(version="v0", created_at_s=200.0), SOFT)
    assert repository.latest("maeve").version == "v0"
    assert [one.version for one in repository.list()] == ["v0"]
    assert repository.load("maeve", fingerprint="f" * 64, version="v1")[0].version == "v1"
    assert repository.delete("maeve") == 2
    assert repository.delete("maeve") == 0
    with pytest.raises(NotFoundError, match="train it first"):
        repository.latest("maeve")


def test_another_backbone_is_refused() -> None:
    repository = ConceptRepository(MemoryStore())
    repository.commit(manifest_of(), SOFT)
    with pytest.raises(
        ArtifactError, match="was learned for the backbone ffffffffffff, found the backbone 000000000000"
    ):
        repository.load("maeve", fingerprint="0" * 64)


def test_a_concept_exists_only_once_its_manifest_is_written() -> None:
    store = MemoryStore()
    repository = ConceptRepository(store)
    repository.commit(manifest_of(), SOFT)
    store.delete("artifacts/maeve/v1/manifest.json")
    assert repository.list() == []
    assert not repository.is_committed("maeve", "v1")
    assert repository.commit(manifest_of(), SOFT)


def test_racing_writers_leave_one_consistent_artifact() -> None:
    store = MemoryStore()
    other = SoftTokens(und=SOFT.und + 1e-6, gen=SOFT.gen)
    ConceptRepository(store).commit(manifest_of(), SOFT)
    # The second writer looked before the first had finished: its tensors arrive, its manifest loses.
    store.put(
        f"artifacts/maeve/v1/soft_tokens-{manifest_of(other).tensors_digest[:16]}.safetensors",
        encode_soft_tokens(other),
    )
    assert torch.equal(ConceptRepository(store).load("maeve", fingerprint="f" * 64)[1].und, SOFT.und)


def test_swapped_tensors_and_moved_manifests_are_noticed() -> None:
    store = MemoryStore()
    repository = ConceptRepository(store)
    repository.commit(manifest_of(), SOFT)
    key = next(key for key in store.list("artifacts/maeve/v1/soft_tokens"))
    store.put(key, encode_soft_tokens(SoftTokens(und=SOFT.und + 1, gen=SOFT.gen)))
    with pytest.raises(ArtifactError, match="the file was changed"):
        repository.load("maeve", fingerprint="f" * 64)
    store.put("artifacts/bo/v1/manifest.json", encode_manifest(manifest_of()))
    with pytest.raises(ArtifactError, match="copied from elsewhere"):
        repository.latest("bo")
    assert [one.name for one in repository.list()] == ["maeve"]


def test_a_manifest_that_does_not_fit_is_not_committed() -> None:
    with pytest.raises(ArtifactError, match="promises"):
        ConceptRepository(MemoryStore()).commit(manifest_of(num_und=5), SOFT)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "<bo>", "x" * 65])
def test_names_that_are_no_names_are_refused(name: str) -> None:
    with pytest.raises(ConceptError, match="letters, digits"):
        ConceptRepository(MemoryStore()).latest(name)
