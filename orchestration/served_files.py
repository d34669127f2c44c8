"""Files of artifacts for a browser: `yt8m ui` serves them beside Dagster's pages, for reading only.

    /yt8m/files/<key>/<generation folder>/<name>

Only what the manifest of a kept generation lists is there, each file checked against it before it is sent. A page runs
no script and loads nothing, whatever it holds: it has the origin of Dagster's pages.
"""

import mimetypes
import re
from collections.abc import MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, PlainTextResponse

from yt8m_assets.errors import Yt8mError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.manifest import FILES_PATH, safe_join

SHOWN = ("text/html", "text/plain", "image/png", "application/json")
"""Content types that open in the browser; every other file is downloaded."""
_FOLDER = re.compile(r"(\d{6})-[0-9a-f]{8}")
_POLICY = "sandbox allow-popups; default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class ArtifactFiles:
    """An ASGI application that answers GET and HEAD below `FILES_PATH`."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Send the file that the path names, or say why not."""
        if scope["method"] not in ("GET", "HEAD"):
            return await PlainTextResponse("files are only read\n", 405)(scope, receive, send)
        try:
            path = await run_in_threadpool(self.find, scope["path"])
        except (Yt8mError, FileNotFoundError) as error:
            return await PlainTextResponse(f"{error}\n", 404)(scope, receive, send)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        disposition = "inline" if kind in SHOWN else "attachment"
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        named: dict[str, Any] = {"filename": path.name, "content_disposition_type": disposition}
        return await FileResponse(path, headers=headers, media_type=kind, **named)(scope, receive, send)

    def find(self, path: str) -> Path:
        """The file, sound, on this machine. Raises FileNotFoundError, StorageError or CorruptArtifactError."""
        parts = PurePosixPath(safe_join(path.removeprefix(FILES_PATH))).parts
        place = next((place for place, part in enumerate(parts) if place and _FOLDER.fullmatch(part)), None)
        if place is None or place == len(parts) - 1:
            raise FileNotFoundError(f"{path}: names no file of an artifact")
        key, folder, name = "/".join(parts[:place]), parts[place], "/".join(parts[place + 1 :])
        try:
            manifest = self.store.read_manifest(key, int(folder[:6]))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}, generation {int(folder[:6])}: has been removed, or never was") from error
        if manifest.folder != folder or name not in manifest.files:
            raise FileNotFoundError(f"{key}, generation {manifest.generation}: holds no {name}")
        return self.store.fetch(manifest, (name,)) / name
