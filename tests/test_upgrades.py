"""Row F53: what a release left (tests/golden/releases) is read, and what a later one leaves is refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestration.cli import main
from tests.golden.release import FEATURE_SIZES, INDEXED, NUM_STEPS, RELEASES, STOPPED_AFTER, pretrain_half, recipe
from yt8m_assets.data.dataset.index import ShardIndex, build_index
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, DataError
from yt8m_assets.progress import NullProgress
from yt8m_assets.ranking.files import RankingReader
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node, all_nodes
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.storage import ArtifactStore, canonical_json, sha256_text
from yt8m_assets.tracking import NullTracking
from yt8m_assets.tracking.sync import kept_runs
from yt8m_assets.training.model_files import ModelSpec, read_json

REMADE: dict[str, set[str]] = {"0.1.0": set()}
"""Release -> the assets that a later version makes again (a raised `code_version`): a changelog says so for each."""
NUM_RUNS = 12
"""Of MLflow: trainings, passes of prediction, the search, the submission."""
WAY_OUT = "a later version of yt8m-assets wrote it: run that one, or keep this one to a store of its own"


@dataclass(frozen=True)
class Old:
    """A copy of what a release left."""

    version: str
    folder: Path

    @property
    def recipe(self) -> Recipe:
        return recipe(self.folder / "shards")

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.folder / "artifacts"), self.folder / "cache")

    def run(self, *arguments: str) -> int:
        """A command line over it, as its state folder."""
        file = self.folder / "golden.py"
        shards = f"Path({str(self.folder / 'shards')!r})"
        file.write_text(
            f"from pathlib import Path\nfrom tests.golden.release import recipe\nRECIPE = recipe({shards})\n"
        )
        return main([*arguments, "--recipe", str(file), "--state", str(self.folder)])

    def file(self, pattern: str) -> Path:
        """The one file of the store that fits a pattern."""
        (path,) = (self.folder / "artifacts").glob(pattern)
        return path


@pytest.fixture(params=sorted(path.name for path in RELEASES.iterdir()))
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    shutil.copytree(RELEASES / request.param, tmp_path / "old")
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("COLUMNS", "200")
    return Old(request.param, tmp_path / "old")


def test_f53_all_of_a_release_is_up_to_date_but_what_the_changelog_says(old: Old) -> None:
    lineage = Lineage(old.recipe, old.store)
    states = {node: lineage.state(node) for node in all_nodes(old.recipe)}
    assert "missing" not in states.values()
    assert {node.asset for node, state in states.items() if state == "stale"} == REMADE[old.version]


def test_f53_every_file_of_a_release_is_sound_and_its_report_is_written(
    old: Old, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old.run("status") == 0
    assert old.run("verify") == 0
    assert old.run("validate-submission", str(old.file("submission/*/submission.csv"))) == 0
    ratings = old.folder / "ratings.csv"
    ratings.write_text("t00000:0,0,1\nt00001:0,0,0\nt00002:5,1,1\nt00003:0,1,0\n")
    capsys.readouterr()
    assert old.run("report", "--ratings", str(ratings)) == 0
    assert "Golden mix" in capsys.readouterr().out


def scores_of(ranking: RankingReader, class_id: int) -> dict[int, float]:
    segments, scores = ranking.entries(class_id)
    return dict(zip(segments.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize("key", ["bert", "mix", "scorer"])
def test_f53_models_of_a_release_score_as_they_did(old: Old, key: str) -> None:
    made = old.store.making_again([Node("oof_predictions", key, 1).key])
    results = predict_cells(
        old.recipe, made, "oof", [(key, 1)], tracking=NullTracking(), progress=NullProgress(), run_tags={}
    )
    (result,) = results
    assert result.manifest.generation == 2
    before, after = (RankingReader(made.fetch(made.read_manifest(result.manifest.key, number))) for number in (1, 2))
    assert before.class_ids.tolist() == after.class_ids.tolist()
    for class_id in before.class_ids:
        then, now = (scores_of(each, class_id) for each in (before, after))
        assert now == pytest.approx(then, abs=1e-4)


def test_f53_a_training_goes_on_from_a_checkpoint_of_a_release(old: Old) -> None:
    expected = json.loads((old.folder / "losses.json").read_text())
    assert len(expected) == NUM_STEPS
    checkpoint = old.file(f"checkpoints/pretrained_model/half/step-*{STOPPED_AFTER}")
    assert pretrain_half(old.folder / "shards", old.store)[STOPPED_AFTER:] == pytest.approx(
        expected[STOPPED_AFTER:], rel=1e-4
    )
    assert old.store.require("pretrained_model/half").metadata["resumed_from_step"] == STOPPED_AFTER
    assert not checkpoint.exists()


def test_f53_an_unfinished_index_of_a_release_is_read(old: Old) -> None:
    found = ShardIndex.from_bytes((old.folder / "shards.index").read_bytes())
    made = build_index(str(old.folder / "shards" / INDEXED), Reading(feature_sizes=FEATURE_SIZES))
    assert found.to_bytes() == replace(made, uri=INDEXED).to_bytes()


def test_f53_the_runs_of_a_release_are_known(old: Old) -> None:
    runs = list(kept_runs(old.store))
    assert len({run.record.token for run in runs}) == NUM_RUNS
    assert {run.record.tags["package_version"] for run in runs} == {old.version}


@pytest.mark.slow
def test_f53_the_runs_of_a_release_are_made_on_a_server(
    old: Old, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    assert old.run("sync-mlflow") == 0
    assert f"{NUM_RUNS} made" in capsys.readouterr().out


def _later(path: Path, schema: int) -> None:
    """Let a JSON file say that it has another format."""
    values = json.loads(path.read_bytes())
    values["schema"] = schema
    if values.pop("checksum", None):
        values["checksum"] = sha256_text(canonical_json(values))
    path.write_text(json.dumps(values))


def test_f53_a_store_of_a_later_version_is_refused_by_name_and_left_alone(
    old: Old, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = old.file("finetuned_model/mix/manifest-000001.json")
    _later(manifest, 2)
    content = manifest.read_bytes()
    for command in (["status"], ["materialize"], ["gc"], ["verify"], ["predict", "--models", "mix"]):
        assert old.run(*command) == 1
        assert f"{manifest}: written as schema 2, this version reads 1; {WAY_OUT}" in capsys.readouterr().err
    assert manifest.read_bytes() == content


def test_f53_beside_what_a_later_version_wrote_nothing_is_removed(old: Old) -> None:
    _later(old.file("oof_ranking/mix/manifest-000001.json"), 2)
    store = ArtifactStore(old.store.root_uri, keep_generations=2)
    for number in range(2, 6):
        with store.publish("holdout_ratings", fingerprint=str(number)) as publication:
            (publication.path / "file").write_text(str(number))
    assert store.numbers("holdout_ratings") == [1, 2, 3, 4, 5]


READERS: dict[str, Callable[[Path], object]] = {
    "segment_shards/*/shards.json": ShardManifest.read,
    "finetuned_model/mix/*/model.json": lambda path: ModelSpec.read(path.parent),
    "finetuned_model/mix/*/training.json": read_json,
}


@pytest.mark.parametrize("pattern", READERS)
def test_f53_a_file_of_a_later_version_is_refused_by_name(old: Old, pattern: str) -> None:
    path = old.file(pattern)
    READERS[pattern](path)
    _later(path, 9)
    with pytest.raises((DataError, CorruptArtifactError), match=f"{path}: written as schema 9, .*{WAY_OUT}"):
        READERS[pattern](path)


def test_f53_a_checkpoint_of_a_later_version_is_refused_by_name(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yt8m_assets.training.checkpoint.SCHEMA", 0)
    with pytest.raises(CheckpointMismatchError, match=rf"schema: the checkpoint has 1, this run has 0[\s\S]*{WAY_OUT}"):
        pretrain_half(old.folder / "shards", old.store)
