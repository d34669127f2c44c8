"""What a job on another machine needs of this one: the recipe as one file, and the class files that it names.

Both go into the store, below `submitted/`, named by their content: to send the same again changes nothing.
"""

import json
from dataclasses import replace
from typing import Any

from yt8m_assets.data.records.framing import is_remote, read_whole
from yt8m_assets.errors import ConfigError, MissingDataError
from yt8m_assets.recipes.loading import flatten
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, sha256_text
from yt8m_assets.storage.backend import SUBMITTED_FOLDER

CLASS_FILES = {
    "segment_classes_uri": "segment_label_ids.csv",
    "vocabulary_uri": "vocabulary.csv",
    "label_map_uri": "label_map.csv",
}
SHARDS = ("pretraining", "segments", "test")


def send_recipe(recipe: Recipe, store: ArtifactStore) -> str:
    """Put a recipe and its class files into the store; the URI of the JSON file that any machine loads it from.

    What is made from it has the fingerprints of the recipe here: files count by their content, wherever they lie.
    Raises ConfigError naming a field whose shards lie on this machine while the store is in a bucket, and
    MissingDataError naming a class file that cannot be read.
    """
    data = recipe.data
    for name in SHARDS:
        local = [pattern for pattern in getattr(data, name) if not is_remote(pattern)]
        if local and is_remote(store.root_uri):
            raise ConfigError(f"data.{name} = {local[0]!r} is on this machine alone: copy it to a bucket and name that")
    files: dict[str, tuple[str, bytes]] = {}
    for field, name in CLASS_FILES.items():
        uri = getattr(data, field)
        if uri and not is_remote(uri):
            try:
                files[field] = name, read_whole(uri)
            except OSError as error:
                raise MissingDataError(f"data.{field} = {uri!r}: cannot be read: {error.strerror or error}") from error
    digest = sha256_text(json.dumps([flatten(recipe), [content.hex() for _, content in files.values()]]))[:16]
    folder = f"{SUBMITTED_FOLDER}/{digest}"
    changes: dict[str, Any] = {}
    for field, (name, content) in files.items():
        store.backend.put_bytes(f"{folder}/{name}", content)
        changes[field] = f"{store.root_uri}/{folder}/{name}"
    sent = flatten(replace(recipe, data=replace(data, **changes)))
    store.backend.put_bytes(f"{folder}/recipe.json", json.dumps(sent, indent=1).encode())
    return f"{store.root_uri}/{folder}/recipe.json"
