"""The project's own training steps in pods: a GPU asset end to end, its pod lost on the way."""

from pathlib import Path

import dagster as dg
import pytest

from tests.graph import QUIET
from tests.orchestration.launchers.deployment import deploy, wait_for
from tests.orchestration.launchers.kubernetes_api import KubernetesApi
from tests.orchestration.launchers.real_graph import RECIPE
from tests.orchestration.launchers.test_kubernetes import run_launcher, step_pods
from yt8m_assets.stages.data import make_holdout_ratings, make_shards
from yt8m_assets.storage import ArtifactStore

pytestmark = [pytest.mark.cloud, pytest.mark.xdist_group("kubernetes")]


def test_a_model_is_trained_in_gpu_pods_though_one_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environment = {
        "YT8M_EXECUTOR": "k8s",
        "YT8M_STATE": str(tmp_path / "state"),
        "YT8M_STORAGE": str(tmp_path / "state" / "artifacts"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = ArtifactStore(environment["YT8M_STORAGE"], tmp_path / "cache")
    for asset in ("pretraining_shards", "segment_shards"):
        make_shards(RECIPE, store, asset, progress=QUIET)
    make_holdout_ratings(RECIPE, store, progress=QUIET)
    with KubernetesApi(tmp_path) as api:
        launcher = run_launcher(api, "k8s")
        launcher["config"]["env_vars"] = [f"{name}={value}" for name, value in environment.items()]
        with deploy(tmp_path / "home", launcher, module="tests.orchestration.launchers.real_graph") as deployment:
            run_id = deployment.start("train", {}, {"dagster/partition": "one"})
            (pod,) = wait_for(lambda: step_pods(api, run_id, "pretrained_model"))
            wait_for(lambda: list((tmp_path / "state").rglob("*checkpoint*/**/*.safetensors")), what="a checkpoint")
            api.lose_pod(pod)
            assert deployment.wait(run_id, seconds=600) == dg.DagsterRunStatus.SUCCESS
            assert len(step_pods(api, run_id, "pretrained_model")) == 2
    for name in ("pretrained_model", "finetuned_model"):
        manifest = api.manifests[step_pods(api, run_id, name)[-1]]
        limits = manifest["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "1"
        assert store.manifest(f"{name}/one") is not None
