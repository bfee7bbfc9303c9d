"""Every error OmniFarm raises on purpose, as one tree.

    OmniFarmError
    |-- ConfigError (ValueError)         a setting is missing, unknown or out of range
    |-- ConceptError (ValueError)        a concept's photos, facts or questions cannot be used
    |-- WeightsError (ValueError)        a checkpoint folder does not hold what its configuration promises
    |-- StoreError (OSError)             object storage did not do what was asked
    |   |-- NotFoundError (KeyError)     no object under that key
    |   |-- PreconditionError            a conditional write lost: somebody else wrote first
    |   `-- AccessError (PermissionError) credentials or permissions are wrong
    |-- ArtifactError (ValueError)       a committed concept is damaged or belongs to another backbone
    |-- TrainingError (RuntimeError)     an optimisation cannot go on
    |-- FarmError (RuntimeError)         jobs, leases or the cluster are in a state that needs a person
    `-- ServingError (RuntimeError)      a request cannot be answered
        |-- RequestError (ValueError)    the request itself is wrong
        |-- UnknownConceptError (LookupError)
        `-- OverloadedError              try again later

A message says what was expected, what was found and what to do. Facts given as keyword arguments are
kept in `facts` for machine-readable output. Errors travel between processes, so they pickle.
"""

from typing import Any, Self


class OmniFarmError(Exception):
    """Root of the tree.

    Args:
        message: What was expected, what was found, what to do.
        **facts: Values behind the message (JSON-compatible), for logs and HTTP error bodies.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from (message, facts): the default would call `__init__` without the facts."""
        return _rebuild, (type(self), self.message, self.facts)

    def __str__(self) -> str:
        """The message alone; KeyError and OSError would quote or decorate it."""
        return self.message

    @classmethod
    def _from_parts(cls, message: str, facts: dict[str, Any]) -> Self:
        return cls(message, **facts)


def _rebuild(cls: type[OmniFarmError], message: str, facts: dict[str, Any]) -> OmniFarmError:
    return cls._from_parts(message, facts)


class ConfigError(OmniFarmError, ValueError):
    """A setting is missing, unknown or out of range."""


class ConceptError(OmniFarmError, ValueError):
    """A concept's photos, facts or questions cannot be used."""


class WeightsError(OmniFarmError, ValueError):
    """A checkpoint folder does not hold what its configuration promises."""


class StoreError(OmniFarmError, OSError):
    """Object storage did not do what was asked."""


class NotFoundError(StoreError, KeyError):
    """No object under that key."""


class PreconditionError(StoreError):
    """A conditional write lost: somebody else wrote first."""


class AccessError(StoreError, PermissionError):
    """Credentials or permissions are wrong."""


class ArtifactError(OmniFarmError, ValueError):
    """A committed concept is damaged or belongs to another backbone."""


class TrainingError(OmniFarmError, RuntimeError):
    """An optimisation cannot go on."""


class FarmError(OmniFarmError, RuntimeError):
    """Jobs, leases or the cluster are in a state that needs a person."""


class ServingError(OmniFarmError, RuntimeError):
    """A request cannot be answered."""


class RequestError(ServingError, ValueError):
    """The request itself is wrong."""


class UnknownConceptError(ServingError, LookupError):
    """No such concept is visible to the caller."""


class OverloadedError(ServingError):
    """Try again later."""
