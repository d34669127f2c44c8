import numpy as np

from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.data.simulation.world import build_world

CONFIG = SimulationConfig()
WORLD = build_world(CONFIG)
RGB, AUDIO = slice(0, 1024), slice(1024, 1152)


def own_norms(part):
    """Length of what a class adds beyond its group's part, which its two appearances share."""
    difference = WORLD.prototypes[:, 0, part] - WORLD.prototypes[:, 1, part]
    return np.linalg.norm(difference, axis=-1) / np.sqrt(2.0)  # two independent directions are nearly orthogonal


def test_rated_classes_are_a_true_subset_and_mostly_frequent():
    rated = np.array(WORLD.rated_classes)
    assert len(rated) == CONFIG.num_rated_classes < CONFIG.num_classes
    assert (np.diff(rated) > 0).all()
    assert rated.max() < CONFIG.num_classes
    assert WORLD.frequencies[rated].mean() > 1.2 * WORLD.frequencies.mean()


def test_frequencies_fall_with_the_rank_and_sum_to_one():
    assert (np.diff(WORLD.frequencies) < 0).all()
    np.testing.assert_allclose(WORLD.frequencies.sum(), 1.0)
    np.testing.assert_allclose(WORLD.frequencies[0] / WORLD.frequencies[9], (13 / 4) ** 0.7)


def test_each_modality_has_its_share_and_alone_tells_its_classes_apart():
    kinds = np.array(WORLD.modalities)
    assert {k: int((kinds == k).sum()) for k in ("rgb", "audio", "both")} == {"rgb": 12, "audio": 12, "both": 36}
    rated = kinds[list(WORLD.rated_classes)]
    assert {k: int((rated == k).sum()) for k in ("rgb", "audio")} == {"rgb": 5, "audio": 5}
    for kind, part, norm in (("rgb", RGB, 0.0), ("audio", AUDIO, 0.0)):
        other = "audio" if kind == "rgb" else "rgb"
        np.testing.assert_allclose(own_norms(part)[kinds == other], norm, atol=1e-5)
    for kind, part, norm in (
        ("both", RGB, CONFIG.class_norm_rgb),
        ("both", AUDIO, CONFIG.class_norm_audio),
        ("rgb", RGB, CONFIG.class_norm_rgb * CONFIG.rgb_only_boost),
        ("audio", AUDIO, CONFIG.class_norm_audio * CONFIG.audio_only_boost),
    ):
        np.testing.assert_allclose(own_norms(part)[kinds == kind].mean(), norm, rtol=0.05)


def test_classes_of_a_group_look_alike():
    mean = WORLD.prototypes.mean(axis=1)
    gram = mean @ mean.T
    same = WORLD.groups[:, None] == WORLD.groups[None, :]
    off_diagonal = ~np.eye(CONFIG.num_classes, dtype=bool)
    expected = CONFIG.group_norm_rgb**2 + CONFIG.group_norm_audio**2
    np.testing.assert_allclose(gram[same & off_diagonal].mean(), expected, rtol=0.1)
    assert abs(gram[~same].mean()) < 0.1 * expected
    assert (np.bincount(WORLD.groups) == CONFIG.num_classes // CONFIG.num_groups).all()


def test_the_seed_decides_everything():
    again, other = build_world(SimulationConfig()), build_world(SimulationConfig(seed=9))
    np.testing.assert_array_equal(again.prototypes, WORLD.prototypes)
    assert again.rated_classes == WORLD.rated_classes
    assert other.rated_classes != WORLD.rated_classes
    assert WORLD.class_name(7) == f"class 07 ({WORLD.modalities[7]})"
