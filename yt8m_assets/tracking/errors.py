"""What an error of MLflow means for what met it."""

from yt8m_assets.errors import PermanentError

_REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "NOT_FOUND",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "NOT_IMPLEMENTED",
)


class DeletedExperimentError(PermanentError):
    """Somebody has deleted the experiment, and MLflow keeps its name taken."""

    def __init__(self, name: str, experiment_id: str) -> None:
        super().__init__(
            f"experiment {name!r} is deleted: bring it back with `mlflow experiments restore --experiment-id "
            f"{experiment_id}`, or remove it for good with `mlflow gc --experiment-ids {experiment_id}`"
        )


class RunGoneError(Exception):
    """A run is deleted, or another process has taken it over."""


def describe(error: BaseException) -> str:
    """Kind of an error without its text, which could hold a credential of the tracking URI."""
    return f"{type(error).__name__} {getattr(error, 'error_code', '')}".strip()


def is_refusal(error: BaseException) -> bool:
    """Whether this operation will never be accepted: the server says so, or it cannot even be put into words."""
    unspeakable = isinstance(error, ValueError | TypeError | LookupError | AttributeError | Warning)
    return unspeakable or getattr(error, "error_code", "") in _REFUSALS


def is_unauthorised(error: BaseException) -> bool:
    """Whether the server refuses who is asking."""
    return getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
