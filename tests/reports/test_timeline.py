"""The timeline of a model that sees whole videos: each second among every fifth before and after it."""

from dataclasses import replace

import numpy as np
import torch

from tests.graph import publish_untrained
from tests.tiny import tiny_model
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.reports.timeline import find_video, score_seconds
from yt8m_assets.stages.data import read_segment_classes, read_shards
from yt8m_assets.stages.lineage import require_current
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import load_model

SCORER = {"width": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 8}


def test_each_second_is_scored_among_the_others_of_its_video(graph):
    recipe, store = graph
    scorer = tiny_model("scorer", (0, 1), architecture="frame_scorer", overrides=SCORER)
    recipe = replace(recipe, models=(*recipe.models, scorer))
    publish_untrained(recipe, store, "scorer", 5)
    classes = read_segment_classes(recipe, store)
    video = find_video(recipe, store, load_videos(read_shards(recipe, store, "segment_shards").uris()[:1]).video_ids[0])
    scores = score_seconds(recipe, store, video, ["scorer"], classes)
    model = load_model(store, require_current(recipe, store, Node("finetuned_model", "scorer")))
    for second in range(len(video.frames)):
        first = second % 5
        shown = [np.clip(np.arange(s - 2, s + 3), 0, len(video.frames) - 1) for s in range(first, len(video.frames), 5)]
        frames = torch.from_numpy(video.frames[np.concatenate(shown)])[None]
        inputs = model_inputs(frames, torch.ones(frames.shape[:2], dtype=torch.bool))
        asked = torch.tensor([[second // 5 * 5]])
        with torch.inference_mode():
            expected = model(inputs, torch.tensor([frames.shape[1]]), asked).probabilities[0, classes]
        np.testing.assert_allclose(scores[second], expected, atol=1e-6)
