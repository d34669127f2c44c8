"""A model and its variants side by side: what each reached on the hold-out, and as rows of the leaderboard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from yt8m_assets.errors import ConfigError
from yt8m_assets.evaluation import Ratings, paired_test
from yt8m_assets.ranking.files import RankingReader
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.reports.figures import model_row, norm
from yt8m_assets.stages.data import RATINGS_FILE
from yt8m_assets.stages.ensemble import read_weights
from yt8m_assets.stages.lineage import Inputs, Lineage
from yt8m_assets.stages.nodes import Node, nodes
from yt8m_assets.stages.variants import kept_variants
from yt8m_assets.storage import ArtifactStore, canonical_json
from yt8m_assets.verbatim import markdown_table

OWN = "the recipe's"
_OF_A_ROW = ("finetuned_model", "oof_predictions", "oof_ranking")
COLUMNS = ("variant", "settings", "steps", "MAP in training", "MAP", "gain over the recipe's", "95 % interval", "p")


def compare_variants(recipe: Recipe, store: ArtifactStore, base: str) -> list[dict[str, Any]]:
    """What a model and its variants have reached on the hold-out, the model first; None for what is not there.

    `gain` is of a variant's ranking over the recipe's own, with the interval and the p of a paired bootstrap over
    videos. A variant that this recipe cannot have (its settings were of another one) is left out.
    """
    recipe.model(base)
    own = Lineage(recipe, store)
    rows, k = [_reached(own, base, OWN, {})], recipe.prediction.top_k
    ranking, rated = own.current(Node("oof_ranking", base)), own.current(Node("holdout_ratings"))
    ratings = Ratings.read_csv(store.fetch(rated) / RATINGS_FILE) if ranking and rated else None
    for variant in kept_variants(store, base).values():
        try:
            lineage = Lineage(variant.add_to(recipe), store)
        except ConfigError:
            continue
        rows.append(_reached(lineage, variant.key, variant.name, variant.settings))
        other = lineage.current(Node("oof_ranking", variant.key))
        if ranking and other and ratings is not None:
            pair = RankingReader(store.fetch(other)), RankingReader(store.fetch(ranking))
            test = paired_test(*pair, ratings, recipe.bootstrap_rounds, recipe.seed, k=k)
            rows[-1]["gain"] = {**asdict(test.difference), "p_value": test.p_value}
    return rows


def _reached(lineage: Lineage, key: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    model, ranking = (lineage.current(Node(asset, key)) for asset in ("finetuned_model", "oof_ranking"))
    of_model, of_ranking = (found.metadata if found else {} for found in (model, ranking))
    return {
        "key": key,
        "name": name,
        "settings": {f"{section}.{field}": value for section in settings for field, value in settings[section].items()},
        "steps": of_model.get("steps"),
        "map_in_training": of_model.get("map"),
        "map": of_ranking.get("map_at_100000"),
        "gain": None,
        "mlflow_url": of_model.get("mlflow_url"),
    }


def comparison_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of COLUMNS, the best first, the recipe's own before them."""

    def number(value: float | None, form: str = ".4f") -> str:
        return "" if value is None else f"{value:{form}}"

    own, *others = found
    rows = []
    for row in (own, *sorted(others, key=lambda row: -(row["map"] or 0))):
        gain = row["gain"] or {}
        interval = f"{gain['low']:+.4f} .. {gain['high']:+.4f}" if gain else ""
        settings = ", ".join(f"{name} = {canonical_json(value)}" for name, value in row["settings"].items())
        cells = [row["name"], settings, number(row["steps"], ",d"), number(row["map_in_training"]), number(row["map"])]
        rows.append([*cells, number(gain.get("value"), "+.4f"), interval, number(gain.get("p_value"), ".3f")])
    return rows


def comparison_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The same as a Markdown table."""
    return markdown_table(COLUMNS, comparison_rows(found), range(2, len(COLUMNS)))


def with_variant_rows(
    recipe: Recipe, store: ArtifactStore, inputs: Inputs, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """The leaderboard's figures with a row for each variant whose ranking is there and up to date; its weight is 0."""
    ratings = Ratings.read_csv(store.fetch(inputs.parent("holdout_ratings")) / RATINGS_FILE)
    found = read_weights(store.fetch(inputs.parent("ensemble_weights")))
    rows, simulated = list(figures["models"]), figures["simulated"]
    for key, variant in kept_variants(store).items():
        try:
            wider = variant.add_to(recipe)
        except ConfigError:
            continue
        lineage = Lineage(wider, store)
        wanted = [node for asset in _OF_A_ROW for node in nodes(wider, asset, key)]
        manifests = {node.key: manifest for node in wanted if (manifest := lineage.current(node)) is not None}
        if f"oof_ranking/{key}" not in manifests:
            continue
        ranking = RankingReader(store.fetch(manifests[f"oof_ranking/{key}"]))
        weights, of_row = {**found, "weights": {**found["weights"], key: 0.0}}, replace(inputs, manifests=manifests)
        row = model_row(replace(wider, folds=0), store, of_row, key, ranking, ratings, weights)
        rows.append(row | ({"fold_map": None} if recipe.folds else {}) | ({"test_map": None} if simulated else {}))
        if simulated:
            simulated["holdout"]["norms"][key] = norm(row["map_with_tta"], simulated["holdout"])
    return {**figures, "models": rows}
