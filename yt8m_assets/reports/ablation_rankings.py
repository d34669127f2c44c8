"""The out-of-fold rankings as the ablation asks for them: other shifts, demotions, weights and fusions of the cells."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from yt8m_assets.ensemble.preset import ORIGINAL_W0
from yt8m_assets.evaluation import Ratings, rated_places
from yt8m_assets.ranking.demotion import DemotedRanking, best_classes, candidate_mask, edge_mask, video_means
from yt8m_assets.ranking.files import Ranking, RankingReader, RankingSource, read_ranking
from yt8m_assets.ranking.fusion import AveragedRanking, FusedRanking
from yt8m_assets.ranking.video_term import ComposedRanking
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.data import RATINGS_FILE
from yt8m_assets.stages.ensemble import read_weights, with_second_stage
from yt8m_assets.stages.lineage import Lineage, require_current
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.submission import fuse_models
from yt8m_assets.storage import ArtifactStore, Manifest

_IN_MEMORY_ENTRIES = 50_000_000
"""Entries of all cells up to which they are read once (8 bytes each); above, class by class whenever they are used."""
_MOST_CANDIDATES = 100
Cell = tuple[str, int]


class OofRankings:
    """The published cells and rankings of the hold-out, its ratings and the searched weights."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self._recipe, self._settings = recipe, recipe.prediction
        ratings = store.fetch(require_current(recipe, store, Node("holdout_ratings")))
        self.ratings = Ratings.read_csv(ratings / RATINGS_FILE)
        self.found = read_weights(store.fetch(require_current(recipe, store, Node("ensemble_weights"))))
        self.w0, self.searched = float(self.found["w0"]), dict(self.found["weights"])
        low, high = recipe.search.w0_bounds
        self.equal, self.equal_w0 = dict.fromkeys(self.searched, 1.0), min(max(ORIGINAL_W0, low), high)
        self.rankings: dict[str, RankingSource] = {
            key: RankingReader(store.fetch(require_current(recipe, store, Node("oof_ranking", key))))
            for key in recipe.model_keys
        }
        manifests = self._manifests(store)
        listed = sum(int(manifest.metadata["num_ranked"]) for manifest in manifests.values())
        read = read_ranking if listed <= _IN_MEMORY_ENTRIES else RankingReader
        self._cells: dict[Cell, RankingSource] = {cell: read(store.fetch(m)) for cell, m in manifests.items()}
        self._best_classes = cache(self._find_best_classes)

    def _manifests(self, store: ArtifactStore) -> dict[Cell, Manifest]:
        """Every cell that is up to date, the shifts that no ranking fuses included."""
        cells = [(key, shift) for key in self._recipe.model_keys for shift in SHIFTS]
        lineage = Lineage(self._recipe, store)
        found = {(key, shift): lineage.current(Node("oof_predictions", key, shift)) for key, shift in cells}
        return {cell: manifest for cell, manifest in found.items() if manifest is not None}

    @property
    def num_classes(self) -> int:
        """Rated classes."""
        return int(next(iter(self._cells.values())).class_ids.size)

    @property
    def lists_are_whole(self) -> bool:
        """Whether the cells list every segment: then what is computed from them is what a new pass would give."""
        return all(len(cell.segments) <= self._settings.top_k for cell in self._cells.values())

    def ranking(self, key: str) -> RankingSource:
        """A model's published ranking, or that of the second stage."""
        return self.rankings[key] if key in self.rankings else self._staged(self.rankings)[key]

    def shifts_made(self, key: str) -> set[int]:
        """The shifts of a model whose cells are up to date."""
        return {shift for other, shift in self._cells if other == key}

    def shifted(self, key: str, shifts: Sequence[int]) -> RankingSource:
        """A model's ranking from other shifts, fused as the recipe does."""
        return self._over_shifts([self._cells[key, shift] for shift in sorted(shifts)])

    def _over_shifts(self, cells: Sequence[RankingSource]) -> RankingSource:
        return FusedRanking(cells, [1.0] * len(cells), self._settings.tta_w0, self._settings.top_k)

    def fused(
        self, weights: Mapping[str, float], w0: float, shifts: Mapping[str, Sequence[int]] | None = None
    ) -> RankingSource:
        """The models' rankings fused by place; `shifts` replaces each model's own."""
        rankings = self.rankings if shifts is None else {key: self.shifted(key, shifts[key]) for key in self.rankings}
        return fuse_models(self._staged(rankings), weights, w0, self._settings.top_k)

    def fused_models(self, weights: Mapping[str, float], w0: float) -> RankingSource:
        """The models' rankings alone fused by place, whatever else the search weighs."""
        return fuse_models(self.rankings, weights, w0, self._settings.top_k)

    def _staged(self, rankings: Mapping[str, RankingSource]) -> dict[str, RankingSource]:
        return with_second_stage(self._recipe, rankings, self.ratings, self.found)

    def averaged(self, weights: Mapping[str, float]) -> RankingSource:
        """The models' mean scores over their own shifts, averaged with the weights; equal ones where the second stage
        has all the weight."""
        if not any(weights[key] for key in self._recipe.model_keys):
            weights = dict.fromkeys(weights, 1.0)
        cells, shares = [], []
        for model in self._recipe.models:
            for shift in sorted(model.shifts):
                cells.append(self._cells[model.key, shift])
                shares.append(weights[model.key] / len(model.shifts))
        return AveragedRanking(cells, shares, self._settings.top_k)

    def demoted(self, trim: tuple[int, int], num_candidates: int | None) -> RankingSource:
        """The ensemble with every cell's edges, and classes outside its candidates, ranked last."""
        rankings = {
            model.key: self._over_shifts(
                [self._demoted_cell((model.key, shift), trim, num_candidates) for shift in sorted(model.shifts)]
            )
            for model in self._recipe.models
        }
        return fuse_models(self._staged(rankings), self.searched, self.w0, self._settings.top_k)

    def composed(self, video_weight: float) -> RankingSource:
        """The ensemble with the video's own evidence in every cell."""
        rankings = {
            model.key: self._over_shifts(
                [ComposedRanking(self._cells[model.key, shift], video_weight) for shift in sorted(model.shifts)]
            )
            for model in self._recipe.models
        }
        return fuse_models(self._staged(rankings), self.searched, self.w0, self._settings.top_k)

    def _demoted_cell(self, cell: Cell, trim: tuple[int, int], num_candidates: int | None) -> RankingSource:
        ranking = self._cells[cell]
        candidate = None if num_candidates is None else self._candidate_mask(cell, num_candidates)
        return DemotedRanking(ranking, edge_mask(ranking.segments, *trim), candidate)

    def _candidate_mask(self, cell: Cell, num_candidates: int) -> np.ndarray:
        return candidate_mask(self._best_classes(cell)[:, :num_candidates], self._cells[cell].class_ids.size)

    def _find_best_classes(self, cell: Cell) -> np.ndarray:
        return best_classes(video_means(self._cells[cell]), _MOST_CANDIDATES).astype(np.int32)

    def candidate_share(self, num_candidates: int) -> float:
        """Share of the positive ratings whose class is a candidate of their video, mean over the recipe's cells."""
        shares = []
        for model in self._recipe.models:
            for shift in model.shifts:
                ranking = self._cells[model.key, shift]
                rows = self.ratings.rows_in(ranking.segments)
                known = (rows >= 0) & self.ratings.positive & np.isin(self.ratings.class_id, ranking.class_ids)
                column = np.searchsorted(ranking.class_ids, self.ratings.class_id[known])
                mask = self._candidate_mask((model.key, shift), num_candidates)
                shares.append(mask[ranking.segments.video[rows[known]], column].mean())
        return float(np.mean(shares))


def rated_only(ranking: RankingSource, ratings: Ratings, k: int) -> Ranking:
    """What of a ranking can count: the rated segments among each class's first K, in their order.

    MAP@K, its intervals and paired tests are the same as the whole's, without reading that again.
    """
    places = rated_places(ranking, ratings, k)
    found = np.flatnonzero(places >= 0)
    order = found[np.lexsort((places[found], ratings.class_id[found]))]
    class_id = ratings.class_id[order]
    return Ranking(
        class_ids=ranking.class_ids,
        offsets=np.append(np.searchsorted(class_id, ranking.class_ids), class_id.size),
        segment=ratings.rows_in(ranking.segments)[order],
        score=-places[order].astype(np.float32),
        segments=ranking.segments,
    )
