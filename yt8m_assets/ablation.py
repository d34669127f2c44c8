"""What each switch of a recipe is worth, on the out-of-fold rankings: every figure with an interval, every gain tested.

No model runs: trimming, candidates, shifts and fusions act on rankings, so they are redone from the published cells,
class by class. A setting is compared with its stage's first one, on the same rated pairs and the same drawn videos.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import ParentMismatchError
from yt8m_assets.lineage import Node, current_manifest
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.loading import KNOWN_RECIPES
from yt8m_assets.recipes.schema import SHIFTS, ModelRecipe, Recipe
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.tracking import Tracking

if TYPE_CHECKING:
    from yt8m_assets.ablation_rankings import OofRankings
    from yt8m_assets.evaluation import Ratings
    from yt8m_assets.prediction.ranking import Ranking, RankingSource

SHIFT_SETS = ((-1, 0, 1), (0, 1, 2), (-2, -1, 0), (-2, -1, 0, 1), (-2, -1, 0, 1, 2))
"""Shift sets to try beside a recipe's own, where their cells are materialised."""
TRIMS = ((1, 0), (0, 1), (1, 1), (6, 2))
"""First and last segments of a video to rank last; the 7th place left out the first six and the last two."""
CANDIDATES = (5, 10, 20)
"""Numbers of candidate classes to try; a video's top 20 hold over 97 % of the positives."""
ENSEMBLE = "ensemble"
FIGURES_FILE = "ablation.json"


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One row: a setting of a stage."""

    stage: str
    """Which switch: shifts, trimming, candidates, fusion, weights or loss."""
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


@dataclass(frozen=True)
class Setting:
    """A ranking to look at."""

    name: str
    ranking: "Callable[[], RankingSource]"
    note: str = ""
    in_recipe: bool = False


def ablate(
    recipe: Recipe, store: ArtifactStore, *, tracking: Tracking, progress: Progress, run_tags: Mapping[str, str]
) -> dict[str, Any]:
    """The rows and what they rest on, as JSON values; the same as a tracked run.

    Deterministic for the same artifacts, but for the run's id.

    Raises MissingArtifactError naming what is not materialised, ParentMismatchError naming what is stale.
    """
    from yt8m_assets.ablation_rankings import OofRankings

    manifests = {node.key: require_current(recipe, store, node) for node in _needed(recipe)}
    params = {"recipe": recipe.name, "bootstrap_rounds": recipe.bootstrap_rounds, "top_k": recipe.prediction.top_k}
    tags = {**run_tags, "recipe": recipe.name, **{f"parent.{key}": m.digest for key, m in manifests.items()}}
    with tracking.run("ablation", kind="report", params=params, tags=tags) as run:
        oof = OofRankings(recipe, store)
        stages = list(_stages(recipe, oof))
        judge = _Judge(recipe, oof.ratings)
        effects: list[Effect] = []
        with progress.task("ablation", sum(max(1, len(part[2])) for part in stages), "settings") as task:
            for stage, subject, settings in stages:
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
    links = {"mlflow_run_id": run.run_id, "mlflow_url": run.url}
    return figures | {name: value for name, value in links.items() if value is not None}


def _needed(recipe: Recipe) -> list[Node]:
    rankings = [Node("oof_ranking", key) for key in recipe.model_keys]
    return [Node("holdout_ratings"), *rankings, Node("ensemble_weights")]


def require_current(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest:
    """The node's manifest. Raises MissingArtifactError where there is none, ParentMismatchError where it is stale."""
    store.require(node.key)
    manifest = current_manifest(recipe, store, node)
    if manifest is None:
        raise ParentMismatchError(f"{node.key} is not what the recipe and its inputs ask for now; materialise it again")
    return manifest


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
        from yt8m_assets.ablation_rankings import rated_only
        from yt8m_assets.evaluation import bootstrap_map, paired_test

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


def _stages(recipe: Recipe, oof: "OofRankings") -> Iterator[tuple[str, str, list[Setting]]]:
    """(stage, subject, its settings, the one to compare with first)."""
    for model in recipe.models:
        yield "shifts", model.key, _shift_settings(model, oof)
    yield "shifts", ENSEMBLE, _ensemble_shift_settings(recipe, oof)
    if not demoted(recipe):
        yield "trimming", ENSEMBLE, _demotion_settings(oof, trims=TRIMS)
        wanted = [k for k in CANDIDATES if k < oof.num_classes]
        yield "candidates", ENSEMBLE, _demotion_settings(oof, candidates=wanted)
    for name, weights, w0 in (("equal", oof.equal, oof.equal_w0), ("searched", oof.searched, oof.w0)):
        searched = weights is oof.searched
        ranks = Setting(f"places, {name} weights", partial(oof.fused, weights, w0), in_recipe=searched)
        scores = Setting(f"mean scores, {name} weights", partial(oof.averaged, weights))
        yield "fusion", ENSEMBLE, [ranks, scores]
    yield "weights", ENSEMBLE, _weight_settings(recipe, oof)
    for plain, rated in loss_pairs(recipe):
        settings = [Setting(f"{key}: {loss}", partial(oof.ranking, key)) for key, loss in (plain, rated)]
        yield "loss", rated[0], settings


def shift_label(shifts: Sequence[int]) -> str:
    """Such as `-1, 0, +1`."""
    return ", ".join(f"{shift:+d}" if shift else "0" for shift in sorted(shifts))


def plain_shift(model: ModelRecipe) -> int:
    """The shift without which there is none: 0, else the smallest of the model's own."""
    return min(model.shifts, key=abs)


def _shift_settings(model: ModelRecipe, oof: "OofRankings") -> list[Setting]:
    own, made = tuple(sorted(model.shifts)), oof.shifts_made(model.key)
    sets = dict.fromkeys([(plain_shift(model),), own, *SHIFT_SETS])
    return [
        Setting(shift_label(shifts), partial(oof.shifted, model.key, shifts), in_recipe=shifts == own)
        for shifts in sets
        if made >= set(shifts)
    ]


def _ensemble_shift_settings(recipe: Recipe, oof: "OofRankings") -> list[Setting]:
    single = {model.key: (plain_shift(model),) for model in recipe.models}
    rows = [
        Setting("0 alone", partial(oof.fused, oof.searched, oof.w0, single)),
        Setting("each model's own", partial(oof.fused, oof.searched, oof.w0), in_recipe=True),
    ]
    common = set(SHIFTS).intersection(*(oof.shifts_made(key) for key in recipe.model_keys))
    for shifts in SHIFT_SETS:
        if common >= set(shifts):
            every = dict.fromkeys(recipe.model_keys, shifts)
            name = f"{shift_label(shifts)} for all"
            rows.append(Setting(name, partial(oof.fused, oof.searched, oof.w0, every)))
    return rows


def _demotion_settings(
    oof: "OofRankings", trims: Sequence[tuple[int, int]] = (), candidates: Sequence[int] = ()
) -> list[Setting]:
    note = "" if oof.lists_are_whole else "approximate: the lists are cut at top_k, the rest cannot come forward"
    rows = [Setting("off", partial(oof.fused, oof.searched, oof.w0), in_recipe=True)]
    for trim in trims:
        edges = " and ".join(f"{name} {size}" for name, size in zip(("first", "last"), trim, strict=True) if size)
        rows.append(Setting(edges, partial(oof.demoted, trim, None), note))
    for k in candidates:
        share = f"the top {k} of a video hold {oof.candidate_share(k):.1%} of the positives"
        rows.append(Setting(f"top {k}", partial(oof.demoted, (0, 0), k), f"{share}; {note}" if note else share))
    return rows


def _weight_settings(recipe: Recipe, oof: "OofRankings") -> list[Setting]:
    from yt8m_assets.ensemble.preset import ORIGINAL_W0

    preset = {model.key: model.preset_weight for model in recipe.models}
    best = oof.found["best_single"]["key"]
    nested = oof.found["nested"]
    unseen = "no nested estimate: search.num_folds is 0 or videos are few"
    if nested is not None:
        unseen = f"on unseen videos {nested['gain']:+.4f} (s.e. {nested['gain_standard_error']:.4f})"
    return [
        Setting("equal", partial(oof.fused, oof.equal, oof.equal_w0)),
        Setting("the original's", partial(oof.fused, preset, ORIGINAL_W0), "each model's preset_weight in the recipe"),
        Setting(
            "searched", partial(oof.fused, oof.searched, oof.w0), f"tuned on these ratings; {unseen}", in_recipe=True
        ),
        Setting("best single model", partial(oof.ranking, best), f"{best}, chosen on these ratings"),
    ]


def demoted(recipe: Recipe) -> bool:
    """Whether the recipe's cells rank something last already."""
    settings = recipe.prediction
    return bool(settings.trim_start or settings.trim_end or settings.candidate_classes is not None)


def loss_pairs(recipe: Recipe) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Models that differ in `finetuning.label_weighting` alone, as ((key, "all"), (key, "rated"))."""

    def rest(model: ModelRecipe) -> tuple[Any, ...]:
        fine = replace(model.finetuning, label_weighting="all")
        return model.architecture, dict(model.overrides), model.pretraining, fine, sorted(model.shifts)

    by_loss = {loss: [m for m in recipe.models if m.finetuning.label_weighting == loss] for loss in ("all", "rated")}
    return [
        ((plain.key, "all"), (rated.key, "rated"))
        for plain in by_loss["all"]
        for rated in by_loss["rated"]
        if rest(plain) == rest(rated)
    ]


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
        values = {"prediction": {"trim_start": 0, "trim_end": 0, "candidate_classes": None}}
        for stage in ("trimming", "candidates"):
            row = Effect(stage=stage, subject=ENSEMBLE, setting="off")
            rows.append(replace(row, note=f"needs new predictions: {_overlay(recipe, values)}"))
    return rows


def _overlay(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """A JSON recipe that changes these values alone."""
    base = recipe.name if recipe.name in KNOWN_RECIPES else "FILE OF THIS RECIPE"
    return json.dumps({"base": base, "name": f"{recipe.name}_other", **values})
