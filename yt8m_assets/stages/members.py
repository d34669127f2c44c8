"""What a pass of predictions is told, and a model that takes part in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.recipes.schema import Recipe

if TYPE_CHECKING:
    from yt8m_assets.prediction.blocks import ScoringOptions
    from yt8m_assets.prediction.scoring import ModelCells


def scoring_options(recipe: Recipe) -> "ScoringOptions":
    """How a recipe's segments are cut and scored."""
    from yt8m_assets.prediction.blocks import ScoringOptions

    settings = recipe.prediction
    return ScoringOptions(
        batch_size=settings.batch_size,
        edges=settings.edges,
        max_frames=recipe.data.max_frames,
        top_k=settings.top_k,
        precision=settings.precision,
        compile=settings.compile,
        trim_start=settings.trim_start,
        trim_end=settings.trim_end,
        candidate_classes=settings.candidate_classes,
        video_weight=settings.video_weight,
    )


def cells_of(
    recipe: Recipe,
    key: str,
    model: Any,
    shifts: Sequence[int],
    class_ids: np.ndarray,
    segments: Any,
    device: Any,
    kept: bool = False,
) -> "ModelCells":
    """A model, its head cut to the rated classes, with an empty cell for each shift; `kept` on the device."""
    import torch

    from yt8m_assets.prediction.device_topk import DeviceTopK
    from yt8m_assets.prediction.scoring import CellScores, ModelCells
    from yt8m_assets.ranking.topk import StreamingTopK

    restricted = model.restrict_classes(torch.as_tensor(class_ids, dtype=torch.int64, device=device))
    if recipe.prediction.precision == "bfloat16":
        restricted.hold_linear_weights(torch.bfloat16)
    k = min(recipe.prediction.top_k, len(segments))

    def best() -> Any:
        return DeviceTopK(class_ids, k, segments, device) if kept else StreamingTopK(class_ids, k, segments)

    cells = [CellScores(shift=shift, best=best()) for shift in shifts]
    return ModelCells(key=key, model=restricted, cells=cells)
