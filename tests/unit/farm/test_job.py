import json
from dataclasses import replace

import pytest

from omnifarm.errors import FarmError
from omnifarm.farm.job import ALLOWED_MOVES, JobIdentity, JobRecord, JobState, Lease, UnreadableRecordError, check_move

IDENTITY = JobIdentity(spec_digest="s", recipe_digest="r", backbone_fingerprint="b")
QUEUED = JobRecord(
    name="maeve", concept_url="s3://b/c", identity=IDENTITY, num_steps=10, created_at_s=1.0, updated_at_s=1.0
)
LEASE = Lease(worker="w", token="t", expires_at_s=5.0)
RECORDS = [
    QUEUED,
    replace(QUEUED, state=JobState.LEASED, lease=LEASE, attempts=1),
    replace(QUEUED, state=JobState.RUNNING, lease=LEASE, step=3),
    replace(QUEUED, state=JobState.COMMITTED, artifact="artifacts/maeve/1/", step=10),
    replace(QUEUED, state=JobState.CANCELLED, step=2, saved_step=2, priority=0, submission="friday"),
    replace(QUEUED, state=JobState.FAILED, error="bad photo é", traceback="line 1\nline 2"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.state.value)
def test_a_record_survives_its_encoding(record: JobRecord) -> None:
    assert JobRecord.decode(record.encode()) == record


def test_the_id_follows_from_the_identity_alone() -> None:
    assert QUEUED.job_id == replace(QUEUED, name="other", num_steps=99, created_at_s=7.0).job_id
    assert len(QUEUED.job_id) == 32


@pytest.mark.parametrize("part", ["spec_digest", "recipe_digest", "backbone_fingerprint"])
def test_each_part_of_the_identity_moves_the_id(part: str) -> None:
    assert replace(IDENTITY, **{part: "x"}).job_id != IDENTITY.job_id


def test_parts_cannot_flow_into_each_other() -> None:
    one = JobIdentity(spec_digest="ab", recipe_digest="c", backbone_fingerprint="d")
    other = JobIdentity(spec_digest="a", recipe_digest="bc", backbone_fingerprint="d")
    assert one.job_id != other.job_id


def test_the_json_form_names_version_id_and_state() -> None:
    values = json.loads(QUEUED.encode())
    assert (values["schema_version"], values["job_id"], values["state"]) == (2, QUEUED.job_id, "queued")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"schema_version": 2}', b"null", pytest.param(b"[" * 100_000, id="deep")]
)
def test_other_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(FarmError, match="job record was expected"):
        JobRecord.decode(data)


def test_a_record_of_a_later_release_is_refused() -> None:
    values = {**QUEUED.to_json(), "schema_version": 3}
    with pytest.raises(FarmError, match="schema 2 was expected, found 3"):
        JobRecord.decode(json.dumps(values).encode())


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(FarmError, match="surprise"):
        JobRecord.decode(json.dumps({**QUEUED.to_json(), "surprise": 1}).encode())


@pytest.mark.parametrize("part", [None, "identity", "lease"])
def test_a_value_of_the_wrong_type_is_refused_wherever_it_stands(part: str | None) -> None:
    whole = RECORDS[1].to_json()
    values = whole if part is None else whole[part]
    for name in values.keys() - {"schema_version", "job_id"}:
        wrong = {**values, name: [[1]]}
        with pytest.raises(UnreadableRecordError, match="job record was expected"):
            JobRecord.decode(json.dumps(wrong if part is None else {**whole, part: wrong}).encode())


def test_a_record_under_a_foreign_identity_is_refused() -> None:
    values = {**QUEUED.to_json(), "job_id": "0" * 32}
    with pytest.raises(FarmError, match="edited by hand"):
        JobRecord.decode(json.dumps(values).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"step": 11},
        {"step": -1},
        {"num_steps": 0},
        {"state": JobState.LEASED},
        {"lease": LEASE},
        {"state": JobState.COMMITTED},
        {"artifact": "a"},
        {"saved_step": 11},
        {"priority": 10},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FarmError, match="maeve"):
        replace(QUEUED, **change)


@pytest.mark.parametrize("submission", ["", "a/b", "ü", "x" * 65])
def test_a_submission_has_a_plain_name(submission: str) -> None:
    with pytest.raises(FarmError, match="a submission is named by"):
        replace(QUEUED, submission=submission)


def test_committed_is_final_and_every_state_has_a_row() -> None:
    assert ALLOWED_MOVES[JobState.COMMITTED] == frozenset()
    assert set(ALLOWED_MOVES) == set(JobState)


def test_a_move_outside_the_table_says_what_is_allowed() -> None:
    with pytest.raises(FarmError, match="'maeve' is queued; that leads to cancelled, leased, queued, not to committed"):
        check_move(QUEUED, to=JobState.COMMITTED)
    check_move(QUEUED, to=JobState.LEASED)
