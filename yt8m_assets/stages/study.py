"""A study: variants of one model out of a space, tried one after another, the hopeless ones ended early.

What it has tried lies in the store after every trial, and what it tries next follows from that: a study that is killed
goes on with the same trials, the one that was under way from its checkpoint. A larger budget goes on likewise.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from yt8m_assets.errors import ConfigError, MissingArtifactError, NonFiniteError
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.recipes.study import StudyConfig, as_recipe, nested
from yt8m_assets.stages.lineage import Inputs, find_made, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.study_table import study_metadata, write_study
from yt8m_assets.stages.training import Options, checkpoints_of, finetune, pretrain
from yt8m_assets.stages.variants import FOLDER, Variant, keep_variant, kept_variants, train_variant
from yt8m_assets.storage import ArtifactStore, StageResult, canonical_json, sha256_text
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.tracking.record import PARENT_TAG
from yt8m_assets.training.model_files import TRAINING, read_json
from yt8m_assets.training.pruning import Curve, MedianRule, TrialPrunedError, curve_of
from yt8m_assets.training.space import Space

CODE_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a study."""

    number: int
    """From 0, in the order in which they were tried."""
    point: Mapping[str, Any]
    """Setting -> its value."""
    status: str
    """`completed`, `pruned` (ended early), or `failed` (its loss was no number any more)."""
    score: float | None
    """MAP on the hold-out, as trained, of the weights it published; of one that ended early its best; else None."""
    steps: int
    """Optimiser steps that it took."""
    curve: Curve = ()
    """Share of the training, and MAP, of each evaluation."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What one study knows."""

    recipe: Recipe
    store: ArtifactStore
    base: str
    config: StudyConfig
    space: Space
    inputs: Inputs
    """Of the recipe's own fine-tuned model: what all trials are made from."""

    @property
    def key(self) -> str:
        """Key of what it leaves."""
        return f"study/{self.base}/{self.config.name}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the trials follow from: all but the budget."""
        told = {name: value for name, value in plain(self.config).items() if name != "steps"}
        space = {"searched": plain(self.space.searched), "fixed": plain(self.space.fixed)}
        own = {"own": plain(self.inputs.config), "made_like": self.inputs.fingerprint}
        return {"code_version": CODE_VERSION, **told, "space": space, **own}

    @property
    def journal(self) -> str:
        """Key of what has been tried."""
        return f"checkpoints/{self.key}"

    def past(self) -> tuple[list[Trial], dict[str, Any] | None]:
        """The trials so far, and the tracked run. Raises ConfigError where the name is another study's."""
        identity = sha256_text(canonical_json(self.identity))
        # where the newest is damaged the one before will do: its next trial is the one that is lost, and found made
        manifest = find_made(self.store, self.journal, identity) or self.store.manifest(self.journal)
        if manifest is None:
            return [], None
        if manifest.fingerprint != identity:
            raise ConfigError(
                f"study {self.config.name!r} of {self.base} was of another space, seed, recipe or data: choose another "
                "name for this one"
            )
        values = json.loads((self.store.fetch(manifest, ("trials.json",)) / "trials.json").read_text())
        curves = [tuple((float(at), float(score)) for at, score in row["curve"]) for row in values["trials"]]
        return [Trial(**{**row, "curve": curve}) for row, curve in zip(values["trials"], curves, strict=True)], values[
            "run"
        ]

    def note(self, trials: Sequence[Trial], run: TrackedRun) -> None:
        """Keep what has been tried."""
        fingerprint = sha256_text(canonical_json(self.identity))
        with self.store.publish(self.journal, fingerprint=fingerprint, scratch=True) as publication:
            values = {"trials": [asdict(trial) for trial in trials], "run": run.state()}
            (publication.path / "trials.json").write_text(json.dumps(values, sort_keys=True, allow_nan=False) + "\n")

    def variant(self, number: int, point: Mapping[str, Any]) -> Variant:
        """The variant of a trial."""
        return Variant(base=self.base, name=f"{self.config.name}_{number:02d}", settings=nested(point))

    def propose(self, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """What to try next; None where the space or the budget is at its end."""
        scores = [trial.score for trial in trials if trial.score is not None]
        worst = min(scores, default=0.0)
        told = [(dict(trial.point), worst if trial.score is None else trial.score) for trial in trials]
        point = self.space.propose(told, self.config.seed, self.config.num_initial)
        if point is None:
            return None
        cost, left = self.cost(point), self.left(trials)
        if cost > left and not trials:
            raise ConfigError(f"study.steps = {self.config.steps}: the first trial alone takes {cost}")
        return point if cost <= left else None

    def cost(self, point: Mapping[str, Any]) -> int:
        """Optimiser steps of a whole trial."""
        row = self.variant(0, point).add_to(self.recipe).models[-1]
        return row.finetuning.num_steps + (0 if row.starts_from else row.pretraining.num_steps)

    def left(self, trials: Sequence[Trial]) -> int:
        """What of the budget some trials leave."""
        return self.config.steps - sum(trial.steps for trial in trials)

    def within(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those of the past trials that this budget has room for: there are more where a larger one was asked for."""
        fits = [self.cost(trial.point) <= self.left(trials[:number]) for number, trial in enumerate(trials)]
        return list(trials[: fits.index(False)]) if False in fits else list(trials)

    def refuse_others(self, trials: Sequence[Trial]) -> None:
        """Raise ConfigError where a later trial would have the name of a variant that is somebody's own."""
        for kept in kept_variants(self.store, self.base).values():
            name, _, number = kept.name.rpartition("_")
            if name == self.config.name and number.isdecimal() and int(number) > len(trials):
                raise ConfigError(
                    f"study {name!r} of {self.base}: the variant {kept.name!r} is kept and is none of its trials: "
                    f"choose another name for the study, or forget it (yt8m variant {self.base} {kept.name} --forget)"
                )

    def forget(self, trial: Trial) -> None:
        """Forget a trial's variant, unless its name has become that of another one since."""
        variant = self.variant(trial.number, trial.point)
        kept = kept_variants(self.store, self.base).get(variant.key)
        if kept is not None and plain(kept.settings) == plain(variant.settings):
            self.store.delete(f"{FOLDER}/{variant.key}")

    def run_trial(self, trials: Sequence[Trial], point: dict[str, Any], options: Options) -> Trial:
        """Train one more variant, as far as it is worth it."""
        variant = keep_variant(self.recipe, self.store, self.variant(len(trials), point), may_equal=True)
        wider = variant.add_to(self.recipe)
        row, store = wider.models[-1], self.store
        curves = tuple(trial.curve for trial in trials)
        alone = row.finetuning.num_processes == 1
        judge = MedianRule(curves=curves, num_steps=row.finetuning.num_steps) if alone else None
        before = 0 if row.starts_from else row.pretraining.num_steps
        known: Any = {"number": len(trials), "point": point}
        judged: Any = {**options, "judge": judge}
        try:
            pretrain(wider, store, variant.key, **options)
            result = finetune(wider, store, variant.key, **judged)
        except TrialPrunedError as end:
            self._discard(wider, variant.key)
            best = max(score for _, score in end.curve)
            return Trial(**known, status="pruned", score=best, steps=before + end.step, curve=end.curve)
        except NonFiniteError:
            self._discard(wider, variant.key)
            return Trial(**known, status="failed", score=None, steps=before + row.finetuning.num_steps)
        found = read_json(store.fetch(result.manifest, (TRAINING,)) / TRAINING)
        curve = curve_of(found["evaluations"], row.finetuning.num_steps)
        if not curve:
            raise ConfigError(f"study of {self.base}: there is no hold-out to judge by")
        return Trial(
            **known,
            status="completed",
            score=float(found["candidates"][found["weights"]]["map"]),
            steps=before + int(found["steps"]),
            curve=curve,
        )

    def _discard(self, wider: Recipe, key: str) -> None:
        for asset in ("pretrained_model", "finetuned_model"):
            with suppress(MissingArtifactError):  # its pre-training failed
                checkpoints_of(self.store, resolve_inputs(wider, self.store, Node(asset, key))).discard()


def best_of(trials: Sequence[Trial]) -> Trial:
    """The completed trial of highest score, the first of equals. Raises ConfigError where none was completed."""
    completed = [trial for trial in trials if trial.status == "completed"]
    if not completed:
        raise ConfigError("study: no trial was completed: give it more steps, or another space")
    return max(completed, key=lambda trial: (trial.score, -trial.number))


def run_study(
    recipe: Recipe, store: ArtifactStore, base: str, config: StudyConfig, **options: Unpack[Options]
) -> StageResult:
    """Try settings of a model until the budget is spent, rank the hold-out by the best, and publish what was found.

    The best trial stays as a variant; the others are forgotten, and go with the next `yt8m gc`. Raises what training
    raises; ConfigError for a space or a budget that holds no trial.
    """
    space, inputs = config.space_of(recipe, base), resolve_inputs(recipe, store, Node("finetuned_model", base))
    study = Study(recipe=recipe, store=store, base=base, config=config, space=space, inputs=inputs)
    told = {**study.identity, "steps": config.steps}
    fingerprint = sha256_text(canonical_json(told))
    if (published := find_made(store, study.key, fingerprint)) is not None:
        return StageResult(published, reused=True)
    tags = options["run_tags"]
    shared = {**(tags(base) if callable(tags) else tags), "study": config.name, "variant_of": base}
    with store.publish(
        study.key, fingerprint=fingerprint, parents=inputs.parents, config=told, code_version=CODE_VERSION
    ) as publication:
        past, resume = study.past()
        study.refuse_others(past)
        trials = study.within(past)
        params = {"space": canonical_json(study.identity["space"]), "seed": config.seed}
        with (
            options["tracking"].run(
                f"{recipe.model(base).title} study {config.name}, {recipe.name}",
                kind="study",
                model=base,
                params=params,
                tags={**shared, "recipe": recipe.name, "asset": "study", "fingerprint": fingerprint},
                resume=resume,
            ) as run,
            options["progress"].task(f"study of {base}", config.steps, "steps") as task,
        ):
            if trials:
                task.resume(sum(trial.steps for trial in trials))
            else:
                study.note(trials, run)
            own: Options = {**options, "run_tags": {**shared, PARENT_TAG: run.record.token}}
            while (point := study.propose(trials)) is not None:
                trial = study.run_trial(trials, point, own)
                trials.append(trial)
                track(trials, run)
                study.note(trials, run)
                task.advance(trial.steps)
                options["progress"].log(describe(trial, trials))
            best = best_of(trials)
            variant = study.variant(best.number, best.point)
            train_variant(recipe, store, keep_variant(recipe, store, variant, may_equal=True), **own)
            for trial in trials:
                if trial is not best:
                    study.forget(trial)
            rows = [{**asdict(trial), "point": dict(trial.point)} for trial in trials]
            better = as_recipe(recipe, base, f"{recipe.name}_{config.name}", variant.settings)
            write_study(publication, rows, best.number, better, recipe.model(base).title)
            publication.metadata.update(study_metadata(rows, best.number), study=config.name, variant=variant.key)
            publication.metadata.update(mlflow_run_id=run.run_id, mlflow_url=run.url)
            run.log_artifact(publication.report_path, "report")
            run.keep(publication.path)
    return publication.result


def track(trials: Sequence[Trial], run: TrackedRun) -> None:
    """Show the newest trial in the study's own run."""
    trial, scores = trials[-1], [one.score for one in trials if one.score is not None]
    values = {"study/steps": float(sum(one.steps for one in trials))}
    values |= {"study/map_at_100000": trial.score} if trial.score is not None else {}
    run.log_metrics(values | ({"study/best_map_at_100000": max(scores)} if scores else {}), step=trial.number)


def describe(trial: Trial, trials: Sequence[Trial]) -> str:
    """A line for people."""
    score = "none" if trial.score is None else f"{trial.score:.4f}"
    settings = ", ".join(f"{name} = {value}" for name, value in trial.point.items())
    best = max((one.score for one in trials if one.score is not None), default=0.0)
    return f"   trial {trial.number}: {trial.status}, MAP {score} (best {best:.4f}) with {settings}"
