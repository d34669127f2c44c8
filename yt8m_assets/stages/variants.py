"""Variants of a recipe's models: kept by name in the store, trained, ranked, and compared with what the recipe has.

A variant is one more model of the recipe for whoever asks for it, and no part of the recipe: nothing that the recipe
makes depends on it. Its artifacts lie beside the others under its key; what it sets, in `variants/<key>`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.recipes.variants import as_further_model, variant_key, with_variant
from yt8m_assets.stages.nodes import Node, with_ancestors
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.stages.ranking import rank_model
from yt8m_assets.stages.training import Options, finetune, pretrain
from yt8m_assets.storage import ArtifactStore, StageResult, canonical_json, sha256_text

FOLDER = "variants"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is kept of a variant."""

    base: str
    """Key of the model that it is one of."""
    name: str
    """Its name among those of the base."""
    settings: Mapping[str, Any]
    """What it changes: fields of the model's row, as in a JSON recipe."""

    @property
    def key(self) -> str:
        """Its key: what its artifacts and its runs are called by."""
        return variant_key(self.base, self.name)

    def add_to(self, recipe: Recipe) -> Recipe:
        """The recipe with it as one more model. Errors as `with_variant`."""
        return with_variant(recipe, self.base, self.name, self.settings)

    def as_model(self, recipe: Recipe) -> dict[str, Any]:
        """Its entry below `models` of a JSON recipe that counts it in: see `as_further_model`."""
        return {"base": self.base, **as_further_model(self.add_to(recipe), self.key, self.settings)}

    def needs(self, recipe: Recipe) -> list[Node]:
        """What of the recipe it is made from, in order."""
        above = with_ancestors(self.add_to(recipe), [Node("oof_ranking", self.key)])
        return [node for node in above if node.model != self.key]


def kept_variants(store: ArtifactStore, base: str | None = None) -> dict[str, Variant]:
    """Key -> each variant that the store keeps, of one model or of all, in the order of their names."""
    found = {}
    for key in store.list_keys(FOLDER):
        values = store.require(key).metadata
        variant = Variant(base=values["base"], name=values["name"], settings=values["settings"])
        if base in (None, variant.base):
            found[variant.key] = variant
    return found


def keep_variant(recipe: Recipe, store: ArtifactStore, variant: Variant, *, may_equal: bool = False) -> Variant:
    """Keep a variant by its name, or find it by it where it sets nothing. A name means one thing, for good.

    `may_equal`: its settings may be the recipe's own. Raises ConfigError for settings that a recipe could not have, and
    for others than the name stands for.
    """
    before = kept_variants(store).get(variant.key)
    if before is not None:
        if before.base != variant.base or (variant.settings and plain(variant.settings) != plain(before.settings)):
            raise ConfigError(
                f"variant {variant.name!r} of {variant.base} sets {canonical_json(plain(before.settings))}: "
                "choose another name for other settings, or leave them out"
            )
        before.add_to(recipe)
        return before
    row, own = variant.add_to(recipe).models[-1], recipe.model(variant.base)
    if not may_equal and row == replace(own, key=row.key, title=row.title, starts_from=row.starts_from):
        example = "finetuning.learning_rate"
        raise ConfigError(
            f"variant {variant.name!r} of {variant.base}: changes nothing; give a setting, such as {example}"
        )
    values = {"base": variant.base, "name": variant.name, "settings": plain(variant.settings)}
    with store.publish(f"{FOLDER}/{variant.key}", fingerprint=sha256_text(canonical_json(values))) as publication:
        (publication.path / "variant.json").write_text(canonical_json({variant.key: values}) + "\n")
        publication.metadata.update(values)
    return variant


def known_variant(store: ArtifactStore, base: str, name: str) -> Variant:
    """A kept variant. Raises ConfigError naming those there are."""
    known = kept_variants(store, base)
    if variant_key(base, name) not in known:
        names = ", ".join(variant.name for variant in known.values()) or "none"
        raise ConfigError(f"unknown variant {name!r} of {base}; kept: {names}")
    return known[variant_key(base, name)]


def forget_variant(store: ArtifactStore, base: str, name: str) -> None:
    """Forget a variant; what was made of it goes with the next `yt8m gc`. Raises ConfigError for an unknown one."""
    store.delete(f"{FOLDER}/{known_variant(store, base, name).key}")


def with_kept(recipe: Recipe, store: ArtifactStore, keys: Iterable[str]) -> Recipe:
    """The recipe, with those kept variants of its models as well that `keys` name."""
    for key in keys:
        if (
            key not in recipe.model_keys
            and (found := kept_variants(store).get(key))
            and found.base in recipe.model_keys
        ):
            recipe = found.add_to(recipe)
    return recipe


def train_variant(
    recipe: Recipe, store: ArtifactStore, variant: Variant, **options: Unpack[Options]
) -> tuple[StageResult, StageResult]:
    """Train a variant that is kept, and rank the hold-out by it; what is up to date is left as it is.

    Returns the fine-tuned model and the ranking. An interrupted one is continued. Errors as `pretrain`, `finetune` and
    `predict_cells`: MissingArtifactError names what of the recipe is to be materialised first.
    """
    wider = variant.add_to(recipe)
    pretrain(wider, store, variant.key, **options)
    model = finetune(wider, store, variant.key, **options)
    tags, shown = options["run_tags"], {"tracking": options["tracking"], "progress": options["progress"]}
    given: Any = {**shown, "run_tags": tags(variant.key) if callable(tags) else tags}
    predict_cells(wider, store, "oof", [(variant.key, shift) for shift in wider.model(variant.key).shifts], **given)
    return model, rank_model(wider, store, "oof", variant.key, progress=options["progress"])
