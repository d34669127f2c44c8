"""Connections to Google Cloud Storage: whose credentials, how long to insist, and what an error means.

gcsfs knows no deadline, does not retry a time-out and has none by default; here each request of a call is insisted on,
so that a listing of many pages, a deletion of many objects or a long download loses one request and not what came
before.
"""

import os
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from yt8m_assets.errors import StorageError
from yt8m_assets.storage.retry import RetryPolicy, insist, status_of

PUBLIC_BUCKETS = ("youtube8m-ml", "youtube8m-ml-us-east1")
"""The challenge's own: read anonymously, so that stale credentials of this machine are not in the way."""
ANONYMOUS_BUCKETS = "YT8M_ANONYMOUS_BUCKETS"
"""Environment variable with more of them, separated by commas."""
ZONAL = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
"""gcsfs's variable: "false" switches its support of zonal ("Rapid") buckets off. It asks through gRPC what a bucket is,
which stalls 23-60 s against anything but Google's own endpoint; so emulators and anonymous readers do without."""

_CONNECTING = threading.Lock()


def is_public(bucket: str) -> bool:
    """Whether a bucket is read without credentials."""
    return bucket in (*PUBLIC_BUCKETS, *os.environ.get(ANONYMOUS_BUCKETS, "").replace(" ", "").split(","))


def connect(bucket: str, policy: RetryPolicy) -> Any:
    """A filesystem of gcsfs for a bucket, each request of which is insisted on; one for all buckets of a kind."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    with _CONNECTING:  # the first of several threads makes it; `cache` alone would let each make its own
        return _connect(bool(emulator) or is_public(bucket), policy, emulator)


@cache
def _connect(anonymous: bool, policy: RetryPolicy, emulator: str) -> Any:
    import aiohttp

    kind = _kind(zonal=not anonymous and os.environ.get(ZONAL, "true").lower() in ("true", "1"))

    class InsistentFileSystem(kind):  # type: ignore[misc, valid-type]
        """With our retries, which have a deadline, in place of the library's."""

        attempt = getattr(kind._request, "__wrapped__", kind._request)
        """One request, made once."""

        async def _request(self, *args: Any, **kwargs: Any) -> Any:
            return await insist(lambda: self.attempt(*args, **kwargs), policy, self.renew)

        def renew(self) -> str | None:
            credentials = self.credentials.credentials
            if credentials is None:
                return None
            credentials.token = None
            return identity(self)

        async def _lookup_bucket_type(self, bucket: str) -> Any:
            """Asked once a bucket, whatever comes of it: a network without gRPC must not wait each time."""
            if bucket not in self._storage_layout_cache:
                self._storage_layout_cache[bucket] = await self._get_bucket_type(bucket)
            return self._storage_layout_cache[bucket]

    return InsistentFileSystem(
        token="anon" if anonymous else None,
        requests_timeout=aiohttp.ClientTimeout(total=policy.request_seconds),
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _kind(zonal: bool) -> Any:
    """The class of gcsfs for a kind of buckets. Its import reads the variable, and takes long where that is on."""
    before = os.environ.get(ZONAL)
    os.environ[ZONAL] = "false"
    try:
        from gcsfs.core import GCSFileSystem
    finally:
        os.environ.pop(ZONAL)
        if before is not None:
            os.environ[ZONAL] = before
    if not zonal:
        return GCSFileSystem
    from gcsfs.extended_gcsfs import ExtendedGcsFileSystem

    return ExtendedGcsFileSystem


def is_zonal(files: Any, path: str) -> bool:
    """Whether a path (bucket/name) lies in a zonal ("Rapid") bucket, which is read and written through gRPC."""
    asked = getattr(files, "_is_zonal_bucket", None)
    return asked is not None and bool(sync(files.loop, asked, path.split("/")[0]))


def presents_certificate(files: Any) -> bool:
    """Whether a connection shows a client's certificate, which only gcsfs's own requests do."""
    return bool(getattr(files, "_use_client_cert", False))


def of_zonal_buckets(error: BaseException) -> bool:
    """Whether an error came through gRPC."""
    from google.api_core.exceptions import GoogleAPICallError

    return isinstance(error, GoogleAPICallError)


def identity(files: Any) -> str:
    """Whose credentials a connection uses, and the file they come from."""
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or _login_file()
    if files.credentials.credentials is not None:
        return f"the credentials file {path}" if path else "the service account of this machine"
    if path and files.credentials.token != "anon":
        return f"no credentials (the credentials file {path} cannot be used)"
    return "no credentials (anonymous)"


def _login_file() -> str | None:
    """What `gcloud auth application-default login` leaves behind."""
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    path = folder / "application_default_credentials.json"
    return str(path) if path.is_file() else None


def typed_error(error: BaseException, uri: str, permission: str, files: Any) -> StorageError | None:
    """The permanent error that an error of gcsfs means, which never quotes it (it may hold headers); None: no idea."""
    from gcsfs.retry import HttpError, NonRetryableError
    from google.auth.exceptions import GoogleAuthError

    status = status_of(error)
    match = re.match(r"[a-z0-9]+://([^/]+)", uri)
    bucket = match.group(1) if match else uri
    if status in (401, 403) or isinstance(error, GoogleAuthError | NonRetryableError):
        if files.credentials.credentials is None:
            _connect.cache_clear()  # who logs in meanwhile is seen by the next call
        return StorageError(
            f"{uri}: access denied ({status or 401}); {identity(files)}: needs {permission} on bucket {bucket!r}. "
            "Grant it, log in with `gcloud auth application-default login`, or name a public bucket in "
            + ANONYMOUS_BUCKETS
        )
    if "requester pays" in str(error):
        return StorageError(f"{uri}: the store answered 400; bucket {bucket!r} makes readers pay: copy what is needed")
    if isinstance(error, HttpError | ValueError):
        status = 400 if status is None else status
        return StorageError(f"{uri}: the store refuses the request ({status}); check the bucket and the name")
    return None
