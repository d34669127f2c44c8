"""What each switch of a recipe is worth, on the out-of-fold rankings: every figure with an interval, every gain tested.

No model runs: trimming, candidates, shifts and fusions act on rankings, so they are redone from the published cells,
class by class. A setting is compared with its stage's first one, on the same rated pairs and the same drawn videos.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from yt8m_assets.progress import Progress
from yt8m_assets.recipes.loading import KNOWN_RECIPES
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.reports.ablation_settings import ENSEMBLE, Setting, demoted, loss_pairs, stages
from yt8m_assets.stages.lineage import require_current
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, canonical_json, sha256_text
from yt8m_assets.tracking import Tracking

if TYPE_CHECKING:
    from yt8m_assets.evaluation import Ratings
    from yt8m_assets.ranking.files import Ranking

FIGURES_FILE = "ablation.json"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row: a setting of a stage."""

    stage: str
    """Which switch: shifts, trimming, candidates, video, fusion, weights, second stage or loss."""
    subject: str
    """A model's key, or `ensemble`."""
    setting: str
    """What the switch is at."""
    in_recipe: bool = False
    """Whether the recipe has it there."""
    map: float | None = None
    """Out-of-fold MAP@K; None where it would take a training or new predictions (see `note`)."""
    low: float | None = None
    """Lower end of its bootstrap interval."""
    high: float | None = None
    """Upper end."""
    gain: float | None = None
    """MAP minus that of the stage's first setting for the same subject; None for the first itself."""
    gain_low: float | None = None
    """Lower end of the gain's interval."""
    gain_high: float | None = None
    """Upper end."""
    p_value: float | None = None
    """Two-sided, of the paired test."""
    note: str = ""
    """What a reader has to know about the figure, or what it takes to have it."""


def ablate(
    recipe: Recipe, store: ArtifactStore, *, tracking: Tracking, progress: Progress, run_tags: Mapping[str, str]
) -> dict[str, Any]:
    """The rows and what they rest on, as JSON values; the same as a tracked run.

    Deterministic for the same artifacts, but for the run's id.

    Raises MissingArtifactError naming what is not materialised, ParentMismatchError naming what is stale.
    """
    from yt8m_assets.reports.ablation_page import PAGE_FILE, write_ablation_page
    from yt8m_assets.reports.ablation_rankings import OofRankings

    manifests = {node.key: require_current(recipe, store, node) for node in _needed(recipe)}
    params = {"recipe": recipe.name, "bootstrap_rounds": recipe.bootstrap_rounds, "top_k": recipe.prediction.top_k}
    made_from = {f"parent.{key}": manifest.digest for key, manifest in manifests.items()}
    fingerprint = sha256_text(canonical_json({**params, **made_from}))
    tags = {**run_tags, "asset": "ablation", "recipe": recipe.name, "fingerprint": fingerprint, **made_from}
    with (
        TemporaryDirectory() as folder,
        tracking.run("ablation", kind="report", params=params, tags=tags) as run,
    ):
        oof = OofRankings(recipe, store)
        compared = list(stages(recipe, oof))
        judge = _Judge(recipe, oof.ratings)
        effects: list[Effect] = []
        with progress.task("ablation", sum(max(1, len(part[2])) for part in compared), "settings") as task:
            for stage, subject, settings in compared:
                effects += judge.compare(stage, subject, settings, task.advance)
        effects += _retrainings(recipe)
        figures = {
            **params,
            "num_ratings": len(oof.ratings),
            "num_positive_ratings": int(oof.ratings.positive.sum()),
            "lists_are_whole": oof.lists_are_whole,
            "nested_gain_of_search": (oof.found["nested"] or {}).get("gain"),
            "parents": {key: manifest.digest for key, manifest in manifests.items()},
            "effects": [asdict(effect) for effect in effects],
        }
        run.log_metrics(metrics(effects), step=0)
        run.log_dict(figures, FIGURES_FILE)
        write_ablation_page(figures, Path(folder, PAGE_FILE))
        run.log_artifact(Path(folder, PAGE_FILE))
    links = {"mlflow_run_id": run.run_id, "mlflow_url": run.url}
    return figures | {name: value for name, value in links.items() if value is not None}


def _needed(recipe: Recipe) -> list[Node]:
    rankings = [Node("oof_ranking", key) for key in recipe.model_keys]
    return [Node("holdout_ratings"), *rankings, Node("ensemble_weights")]


def metrics(effects: Sequence[Effect]) -> dict[str, float]:
    """Metric name -> value for tracking: `ablation/<stage>/<subject>/<setting>` and the same with `gain`."""
    found: dict[str, float] = {}
    for effect in effects:
        setting = "".join(c if c.isalnum() or c in " _.-" else " " for c in effect.setting)
        name = f"ablation/{effect.stage}/{effect.subject}/{' '.join(setting.split())}"
        if effect.map is not None:
            found[f"{name}/map_at_100000"] = effect.map
        if effect.gain is not None:
            found[f"{name}/gain"] = effect.gain
    return found


class _Judge:
    """Scores rankings against the ratings; of each only the rated segments are kept, which is all that counts."""

    def __init__(self, recipe: Recipe, ratings: "Ratings") -> None:
        self._rounds, self._seed, self._k = recipe.bootstrap_rounds, recipe.seed, recipe.prediction.top_k
        self._ratings = ratings

    def compare(
        self, stage: str, subject: str, settings: Sequence[Setting], on_setting: Callable[[], None]
    ) -> Iterator[Effect]:
        """A row per setting; the first is what the others are compared with."""
        from yt8m_assets.evaluation import bootstrap_map, paired_test
        from yt8m_assets.reports.ablation_rankings import rated_only

        first: Ranking | None = None
        for setting in settings:
            ranking = rated_only(setting.ranking(), self._ratings, self._k)
            quality = bootstrap_map(ranking, self._ratings, self._rounds, self._seed, k=self._k)
            row = Effect(
                stage=stage, subject=subject, setting=setting.name, in_recipe=setting.in_recipe, note=setting.note
            )
            row = replace(row, map=quality.value, low=quality.low, high=quality.high)
            if first is None:
                first = ranking
            else:
                test = paired_test(ranking, first, self._ratings, self._rounds, self._seed, k=self._k)
                gain = test.difference
                row = replace(row, gain=gain.value, gain_low=gain.low, gain_high=gain.high, p_value=test.p_value)
            on_setting()
            yield row


def _retrainings(recipe: Recipe) -> list[Effect]:
    """Rows without a figure, and the recipe file that it takes to have one."""
    rows = []
    values: dict[str, Any]
    paired = {key for pair in loss_pairs(recipe) for key, _ in pair}
    for now, other in (("all", "rated"), ("rated", "all")):
        keys = [m.key for m in recipe.models if m.finetuning.label_weighting == now and m.key not in paired]
        if keys:
            values = {"models": {key: {"finetuning": {"label_weighting": other}} for key in keys}}
            row = Effect(stage="loss", subject=ENSEMBLE, setting=f"{other} for {len(keys)} models with {now}")
            rows.append(replace(row, note=f"needs a training under another --state: {_overlay(recipe, values)}"))
    if demoted(recipe):
        values = {"prediction": {"trim_start": 0, "trim_end": 0, "candidate_classes": None, "video_weight": 0.0}}
        for stage in ("trimming", "candidates", "video"):
            row = Effect(stage=stage, subject=ENSEMBLE, setting="off")
            rows.append(replace(row, note=f"needs new predictions: {_overlay(recipe, values)}"))
    return rows


def _overlay(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """A JSON recipe that changes these values alone."""
    base = recipe.name if recipe.name in KNOWN_RECIPES else "FILE OF THIS RECIPE"
    return json.dumps({"base": base, "name": f"{recipe.name}_other", **values})
