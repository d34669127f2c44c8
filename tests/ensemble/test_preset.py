"""The original's constants, against what its README publishes."""

import pytest

from models import list_models
from yt8m_assets.ensemble.preset import ORIGINAL_W0, ORIGINAL_WEIGHTS, TTA_W0

PERCENT = (0.22, 2.81, 4.90, 13.88, 5.97, 19.67, 20.03, 17.26, 15.46)
"""In the README's order; rounded, they add up to 100.2."""


def test_the_weights_are_the_published_shares() -> None:
    assert list(ORIGINAL_WEIGHTS) == list(list_models())
    shares = [100.2 * weight / sum(ORIGINAL_WEIGHTS.values()) for weight in ORIGINAL_WEIGHTS.values()]
    assert shares == pytest.approx(PERCENT, abs=0.01)
    assert (round(ORIGINAL_W0, 4), round(TTA_W0, 4)) == (6.0584, 3.7238)
