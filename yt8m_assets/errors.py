"""Typed errors: what went wrong, where, and what to do about it.

Two families decide what a caller may do. A `TransientError` may pass when the same call is made again; a
`PermanentError` will not, so nothing retries it. Every message names the file, record, field or key and the way out.
"""

import re


class Yt8mError(Exception):
    """Base of every error this project raises on purpose."""


def with_notes(error: BaseException, text: str) -> str:
    """A text about an error, and its notes: what else failed beside it."""
    return "\n".join([text, *getattr(error, "__notes__", ())])


def without_credentials(text: str) -> str:
    """A text whose addresses hold no user and password: errors of other libraries quote what they were given."""
    return re.sub(r"(?<=://)[^\s/]*@", "", text)


LATER = "a later version of yt8m-assets wrote it: run that one, or keep this one to a store of its own (YT8M_STORAGE)"


def other_schema(name: str, found: object, known: int, cure: str) -> str:
    """The message about a file of another format; `cure` is for one that is older."""
    later = isinstance(found, int) and found > known
    return f"{name}: written as schema {found}, this version reads {known}; {LATER if later else cure}"


class TransientError(Yt8mError):
    """A passing fault (time-out, throttling, reset): the same call may succeed later."""


class PermanentError(Yt8mError):
    """A fault that stays until somebody changes the input, the configuration or the permissions."""


class ConfigError(PermanentError, ValueError):
    """A recipe, option or environment setting is wrong; the message names the field to change."""


class DataError(PermanentError, ValueError):
    """Data does not hold what it must."""


class CorruptShardError(DataError):
    """A shard's bytes are damaged: bad checksum, truncation or an impossible length.

    Attributes: `uri`, `offset` (byte at which the record starts), `record` (its number, from 0), `reason`.
    """

    def __init__(self, uri: str, offset: int, record: int, reason: str) -> None:
        super().__init__(f"{uri}: record {record} at byte {offset}: {reason}")
        self.uri, self.offset, self.record, self.reason = uri, offset, record, reason

    def __reduce__(self):  # rebuilt from its parts when it crosses a process boundary
        return type(self), (self.uri, self.offset, self.record, self.reason)


class SchemaMismatchError(CorruptShardError):
    """A record is whole but is not what YouTube-8M defines; `reason` names the feature, what was expected and got."""


class MissingDataError(DataError, FileNotFoundError):
    """A file, pattern or shard that should exist does not."""

    def __str__(self) -> str:  # FileNotFoundError would print an errno tuple
        return str(self.args[0]) if self.args else ""


class VocabularyError(DataError):
    """A vocabulary file cannot be read, or a label lies outside the vocabulary."""


class SubmissionError(DataError):
    """A submission cannot be written or scored as asked."""


class StorageError(PermanentError, OSError):
    """An artifact could not be written or read; the message names the path and the space needed where known."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingArtifactError(StorageError):
    """An artifact that another one needs has not been materialised (or has no valid manifest)."""


class CorruptArtifactError(StorageError):
    """An artifact's bytes do not match its manifest."""


class LaterVersionError(StorageError):
    """A store holds what a later version of this project wrote, in a format that this one does not know."""


class PartitionBusyError(TransientError):
    """Another run is publishing the same artifact at this moment."""


class ParentMismatchError(PermanentError):
    """Artifacts that must come from the same parents do not."""


class ParentCheckError(PermanentError):
    """An artifact that another one needs has failed its newest blocking check; the message names node and check."""


class CheckpointMismatchError(PermanentError):
    """A checkpoint does not belong to this configuration; the message lists the differing fields."""


class NonFiniteError(PermanentError):
    """A loss, gradient or score is NaN or infinite; the message names step, batch and video ids."""


class WorkerCrashError(TransientError):
    """A data-loading or training worker process died."""


class OutOfMemoryError(PermanentError):
    """The device ran out of memory; the message says which setting to lower."""
