"""What an artifact is, as one JSON file with a checksum; and the hashes and names that everything agrees on."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, get_origin

from yt8m_assets.errors import CorruptArtifactError, LaterVersionError, StorageError, other_schema

SCHEMA = 1
REPORT_FOLDER = "report"
"""Files below this folder (plots, logs) are shown to people and do not enter the digest."""
INDEX_FOLDER = "index"
"""Files below this folder follow from the content and do not enter the digest either: they may change their form."""
FILES_PATH = "/yt8m/files/"
"""Where `yt8m ui` serves the files of artifacts, beside Dagster's pages."""
_PART = re.compile(r"[A-Za-z0-9_.+=-]+")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Refuses NaN and unknown types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Absent:
    """Stands for the value of a field that is not there."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each field that differs: its name, nested ones with dots, and both values, ABSENT where there is none."""
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name, ABSENT), new.get(name, ABSENT)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from differences(before, now, f"{prefix}{name}.")
        elif before != now:
            yield f"{prefix}{name}", before, now


def safe_join(*parts: str) -> str:
    """Join name parts to a relative key. Raises StorageError for anything that could leave the root.

    A part may hold letters, digits and `_ . + = -`, separated by `/`; `..`, absolute names and NUL are out.
    """
    names = [name for part in parts for name in part.split("/")]
    for name in names:
        if not _PART.fullmatch(name) or name.startswith("."):
            raise StorageError(f"unsafe artifact name {'/'.join(parts)!r}: {name!r} is not allowed")
    return "/".join(names)


def require_types(kind: type, values: Mapping[str, Any]) -> None:
    """Raise TypeError where a value that was read from JSON is not of the type that its field of a dataclass has."""
    for each in fields(kind):
        wanted, value = get_origin(each.type) or each.type, values.get(each.name, ABSENT)
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if value is not ABSENT and isinstance(wanted, type) and not fits:
            raise TypeError(f"{each.name} is of type {type(value).__name__}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is: its inputs, its files and what a person wants to know about it."""

    key: str
    """Name of the artifact below the store's root."""
    generation: int
    """Number of this publication, from 1."""
    folder: str
    """Folder of the files, beside the manifest."""
    fingerprint: str
    """Hash of everything that determined the content: config, code version, parents."""
    digest: str
    """Hash of the content: every file's name and sha256 (files below report/ and index/ excepted)."""
    files: dict[str, dict[str, Any]]
    """Relative name -> {"size": bytes, "sha256": hex}."""
    parents: dict[str, str] = field(default_factory=dict)
    """Key of each input artifact -> its digest."""
    config: dict[str, Any] = field(default_factory=dict)
    """The slice of the recipe that determined the content."""
    code_version: str = ""
    """Version of the code that made it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Numbers, texts and links for people."""
    created_unix_seconds: float = 0.0
    """When it was published; for people only, nothing is decided by it."""
    schema: int = SCHEMA
    """Version of this format."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry["size"] for entry in self.files.values())

    def page(self, name: str) -> str:
        """Where the pages of `yt8m ui` show or hand out one of the files; a link without host, true at every port."""
        return f"{FILES_PATH}{self.key}/{self.folder}/{name}"

    def to_bytes(self) -> bytes:
        """JSON with a checksum of the rest, so that a damaged manifest is noticed."""
        content = asdict(self)
        checksum = sha256_text(canonical_json(content))
        return json.dumps({**content, "checksum": checksum}, indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Manifest":
        """Parse and check. Raises CorruptArtifactError naming the manifest, LaterVersionError for a later format's."""
        try:
            values = json.loads(content)
            checksum = values.pop("checksum")
            schema = values["schema"]
            if schema != SCHEMA:
                kind = LaterVersionError if type(schema) is int and schema > SCHEMA else CorruptArtifactError
                raise kind(other_schema(name, schema, SCHEMA, "materialise it again"))
            if checksum != sha256_text(canonical_json(values)):
                raise CorruptArtifactError(f"{name}: its checksum does not match; materialise the artifact again")
            require_types(cls, values)
            manifest = cls(**values)
            for file, entry in manifest.files.items():
                safe_join(file)
                if (type(entry["size"]), type(entry["sha256"])) != (int, str):
                    raise TypeError(f"{file}: no size and sha256")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptArtifactError(f"{name}: not a manifest ({error}); materialise the artifact again") from error
        safe_join(manifest.folder)
        return manifest


def is_content(name: str) -> bool:
    """Whether a file enters the digest."""
    return PurePosixPath(name).parts[0] not in (REPORT_FOLDER, INDEX_FOLDER)


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of names and sha256 of the content files."""
    return sha256_text(canonical_json({name: entry["sha256"] for name, entry in files.items() if is_content(name)}))


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> size and sha256 of every file below a folder. Raises StorageError for a link or an odd name."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError(f"{name}: an artifact holds plain files only, this is a link")
        if path.is_file():
            files[safe_join(name)] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Compare a file with its manifest entry. Raises CorruptArtifactError naming path, expected and found."""
    if not path.is_file():
        raise CorruptArtifactError(f"{path}: is missing although its manifest lists it; materialise the artifact again")
    if path.stat().st_size != entry["size"]:
        raise CorruptArtifactError(
            f"{path}: {path.stat().st_size} bytes, its manifest says {entry['size']}; materialise it again"
        )
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise CorruptArtifactError(
            f"{path}: sha256 {found[:12]}, its manifest says {entry['sha256'][:12]}; materialise it again"
        )
