import copy

import pytest
import torch

from tests.training.support import BERT, MIX
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.training.artifacts import ModelSpec
from yt8m_assets.training.recompute import recompute_activations


def build(recipe: ModelRecipe) -> torch.nn.Module:
    spec = ModelSpec(
        architecture=recipe.architecture,
        overrides=dict(recipe.overrides),
        num_classes=6,
        feature_sizes=(16, 8),
        max_frames=30,
    )
    return spec.build(1).train()


@pytest.mark.parametrize("recipe", [BERT, MIX], ids=["bert", "mix"])
def test_results_gradients_and_statistics_stay_and_less_is_kept(recipe: ModelRecipe) -> None:
    plain = build(recipe)
    sparing = copy.deepcopy(plain)
    recompute_activations(sparing)
    assert list(sparing.state_dict()) == list(plain.state_dict())
    frames, num_frames = torch.rand(4, 6, 24), torch.full((4,), 6)
    kept = {}
    for name, model in (("plain", plain), ("sparing", sparing)):
        sizes: list[int] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            index = model.sample_frame_index(num_frames)  # type: ignore[operator]
            with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
                out = model(frames, num_frames, frame_index=index)
            (out.probabilities.sum() + out.regularization_loss).backward()
        kept[name] = sum(sizes)
    assert kept["sparing"] < kept["plain"]
    for (name, first), (_, second) in zip(plain.named_parameters(), sparing.named_parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name  # type: ignore[arg-type]
    for (name, before), (_, after) in zip(plain.named_buffers(), sparing.named_buffers(), strict=True):
        assert torch.equal(before, after), name
