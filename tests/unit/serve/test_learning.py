"""What may be asked of a fine-tuning job, before anything is read or written."""

import pytest

from omnifarm.errors import RequestError
from serve.bodies import checked
from serve.wire.learning import MAX_BATCH_SIZE, JobBody


def body(**hyperparameters: object) -> JobBody:
    values = {"model": "bagel", "training_file": "file-0", "suffix": "rex", "hyperparameters": hyperparameters}
    return checked(JobBody, values)


@pytest.mark.parametrize("batch_size", [0, -1, MAX_BATCH_SIZE + 1, 10**9, "many"])
def test_a_batch_that_no_trainer_could_hold_is_refused(batch_size: object) -> None:
    with pytest.raises(RequestError, match="batch_size"):
        body(batch_size=batch_size)


def test_a_batch_of_a_size_that_fits_is_taken_and_auto_is_the_backbones_own() -> None:
    assert body(batch_size=MAX_BATCH_SIZE).hyperparameters.overrides() == {"batch_size": MAX_BATCH_SIZE}
    assert body(batch_size="auto").hyperparameters.overrides() == {}
