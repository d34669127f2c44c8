"""Arrays by name in one file, as numpy's `savez` writes them."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from yt8m_assets.errors import DataError

_FAULTS = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy raises of a damaged archive, depending on where it is damaged, and of a file that is none."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file. Raises DataError naming the file; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except _FAULTS as error:
        raise DataError(f"{path}: not an NPZ file of plain arrays ({error})") from error
