"""The settings that the ablation compares, stage by stage, each with its ranking of the hold-out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from yt8m_assets.ensemble.second_stage import SECOND_STAGE
from yt8m_assets.recipes.schema import SHIFTS, ModelRecipe, Recipe

if TYPE_CHECKING:
    from yt8m_assets.ranking.files import RankingSource
    from yt8m_assets.reports.ablation_rankings import OofRankings

SHIFT_SETS = ((-1, 0, 1), (0, 1, 2), (-2, -1, 0), (-2, -1, 0, 1), (-2, -1, 0, 1, 2))
"""Shift sets to try beside a recipe's own, where their cells are materialised."""
TRIMS = ((1, 0), (0, 1), (1, 1), (6, 2))
"""First and last segments of a video to rank last; the 7th place left out the first six and the last two."""
CANDIDATES = (5, 10, 20)
"""Numbers of candidate classes to try; a video's top 20 hold over 97 % of the positives."""
VIDEO_WEIGHTS = (0.1, 0.2, 0.3, 0.5)
"""Weights of the video's own evidence to try."""
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Setting:
    """A ranking to look at."""

    name: str
    ranking: "Callable[[], RankingSource]"
    note: str = ""
    in_recipe: bool = False


def stages(recipe: Recipe, oof: "OofRankings") -> Iterator[tuple[str, str, list[Setting]]]:
    """(stage, subject, its settings, the one to compare with first)."""
    for model in recipe.models:
        yield "shifts", model.key, _shift_settings(model, oof)
    yield "shifts", ENSEMBLE, _ensemble_shift_settings(recipe, oof)
    if not demoted(recipe):
        yield "trimming", ENSEMBLE, _demotion_settings(oof, trims=TRIMS)
        wanted = [k for k in CANDIDATES if k < oof.num_classes]
        yield "candidates", ENSEMBLE, _demotion_settings(oof, candidates=wanted)
        yield "video", ENSEMBLE, _demotion_settings(oof, video_weights=VIDEO_WEIGHTS)
    for name, weights, w0 in (("equal", oof.equal, oof.equal_w0), ("searched", oof.searched, oof.w0)):
        searched = weights is oof.searched
        ranks = Setting(f"places, {name} weights", partial(oof.fused, weights, w0), in_recipe=searched)
        scores = Setting(f"mean scores, {name} weights", partial(oof.averaged, weights))
        yield "fusion", ENSEMBLE, [ranks, scores]
    yield "weights", ENSEMBLE, _weight_settings(recipe, oof)
    if recipe.second_stage:
        models_alone = Setting("off, equal weights", partial(oof.fused_models, oof.equal, oof.equal_w0))
        alone = Setting("the second stage alone", partial(oof.ranking, SECOND_STAGE), "each video by the other folds")
        weighed = Setting("weighed by the search", partial(oof.fused, oof.searched, oof.w0), in_recipe=True)
        yield "second stage", ENSEMBLE, [models_alone, alone, weighed]
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
    oof: "OofRankings",
    trims: Sequence[tuple[int, int]] = (),
    candidates: Sequence[int] = (),
    video_weights: Sequence[float] = (),
) -> list[Setting]:
    note = "" if oof.lists_are_whole else "approximate: the lists are cut at top_k, the rest cannot come forward"
    rows = [Setting("off", partial(oof.fused, oof.searched, oof.w0), in_recipe=True)]
    for trim in trims:
        edges = " and ".join(f"{name} {size}" for name, size in zip(("first", "last"), trim, strict=True) if size)
        rows.append(Setting(edges, partial(oof.demoted, trim, None), note))
    for k in candidates:
        share = f"the top {k} of a video hold {oof.candidate_share(k):.1%} of the positives"
        rows.append(Setting(f"top {k}", partial(oof.demoted, (0, 0), k), f"{share}; {note}" if note else share))
    return [*rows, *(Setting(f"weight {weight:g}", partial(oof.composed, weight), note) for weight in video_weights)]


def _weight_settings(recipe: Recipe, oof: "OofRankings") -> list[Setting]:
    from yt8m_assets.ensemble.preset import ORIGINAL_W0

    preset = dict.fromkeys(oof.searched, 0.0) | {model.key: model.preset_weight for model in recipe.models}
    best = oof.found["best_single"]["key"]
    nested = oof.found["nested"]
    unseen = "no nested estimate: search.num_folds is 0 or videos are few"
    if nested is not None:
        unseen = f"on unseen videos {nested['gain']:+.4f} (s.e. {nested['gain_standard_error']:.4f})"
    best_trial, amount = oof.found["searched"], oof.found["shrinking"]["amount"]
    towards = oof.found["shrinking"].get("towards", "equal ones")
    tuned = f"tuned on these ratings; {unseen}"
    published = f"the search's, shrunk by {amount:g} towards {towards}" if amount else tuned
    rows = [
        Setting("equal", partial(oof.fused, oof.equal, oof.equal_w0)),
        Setting("the original's", partial(oof.fused, preset, ORIGINAL_W0), "each model's preset_weight in the recipe"),
        Setting("searched", partial(oof.fused, oof.searched, oof.w0), published, in_recipe=True),
    ]
    if amount:
        plain = partial(oof.fused, best_trial["weights"], best_trial["w0"])
        rows.append(Setting("searched, not shrunk", plain, tuned))
    return [*rows, Setting("best single model", partial(oof.ranking, best), f"{best}, chosen on these ratings")]


def demoted(recipe: Recipe) -> bool:
    """Whether the recipe's cells rank something last already, or weigh the video: their scores are no longer plain."""
    settings = recipe.prediction
    changed = settings.trim_start or settings.trim_end or settings.video_weight
    return bool(changed or settings.candidate_classes is not None)


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
