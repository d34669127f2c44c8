"""Pictures of a search: readable and not empty, the same bytes for the same result."""

import numpy as np
from matplotlib.image import imread

from tests.ensemble.problem import problem
from yt8m_assets.ensemble import SearchConfig, search_weights
from yt8m_assets.ensemble.plots import plot_search


def test_pictures_are_written_and_depend_on_the_result_alone(tmp_path):
    rankings, ratings = problem({"a": 0.3, "b": 0.9})
    results = [
        search_weights(rankings, ratings, config=SearchConfig(num_trials=6, num_initial_points=2, num_folds=n))
        for n in (2, 0)
    ]
    first, again, other = (plot_search(r, tmp_path / n) for r, n in zip([results[0], *results], "xyz", strict=True))
    assert [path.name for path in first] == ["convergence.png", "weights.png"]
    for path, same in zip(first, again, strict=True):
        pixels = imread(path)[..., :3]
        assert 0.01 < np.mean(pixels.min(-1) < 0.9) < 0.5, "lines and letters on white"
        assert path.read_bytes() == same.read_bytes()
    assert first[0].read_bytes() != other[0].read_bytes()  # the title tells the nested gain
