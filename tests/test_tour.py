"""The tour through the pages is made of what the browser's tests see, and of nothing else."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.tour import FRAMES, SECONDS, SIZE, make_tour


def test_each_frame_is_a_picture_that_a_test_takes() -> None:
    sources = "".join(path.read_text() for path in (Path(__file__).parent / "browser").glob("test_*.py"))
    assert set(FRAMES) <= set(re.findall(r'picture\(\w+, "([\w-]+)"\)', sources))


def test_every_picture_is_shown_for_its_time_above_its_text(tmp_path: Path) -> None:
    for number, name in enumerate(FRAMES):
        Image.new("RGB", (1440, 900), (200, 20 * number, 30)).save(tmp_path / f"{name}.png")
    make_tour(tmp_path, tmp_path / "tour.gif")
    with Image.open(tmp_path / "tour.gif") as tour:
        assert (tour.size, tour.n_frames) == (SIZE, len(FRAMES))
        for number in range(tour.n_frames):
            tour.seek(number)
            assert tour.info["duration"] == 1000 * SECONDS
            assert abs(tour.convert("RGB").getpixel((480, 300))[1] - 20 * number) < 8
    (tmp_path / "backfill.png").unlink()
    with pytest.raises(FileNotFoundError, match="backfill"):
        make_tour(tmp_path, tmp_path / "tour.gif")
