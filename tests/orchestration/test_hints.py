"""Resource hints: checks, translation to Kubernetes and Vertex AI, and their way onto assets."""

import dataclasses
import json
from pathlib import Path

import dagster as dg
import pytest

from orchestration.assets import build_assets
from orchestration.cluster import ClusterOptions, DeploymentOptions, read_deployment
from orchestration.definitions import build_definitions
from orchestration.hints import (
    ResourceHints,
    hints_for,
    k8s_config,
    resource_hints,
    step_tags,
    vertex_config,
)
from tests.orchestration.launchers.kubernetes_api import schema_errors
from yt8m_assets.assets.shell import untagged
from yt8m_assets.errors import ConfigError
from yt8m_assets.partitions import OPTIONAL
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.nodes import ASSETS

GPU = ResourceHints(num_gpus=2, gpu_type="a100", num_cpus=20, memory_gib=100, shared_memory_gib=16, spot=True)


def manifest(hints: ResourceHints, deployment: DeploymentOptions | None = None) -> dict:
    """The Kubernetes job that dagster-k8s makes of a hint, as JSON."""
    import kubernetes
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="image:1", dagster_home="/opt/dagster/dagster_home"),
        args=["dagster", "api", "execute_step"],
        job_name="dagster-step-1",
        user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(k8s_config(hints, deployment)),
    )
    return kubernetes.client.ApiClient().sanitize_for_serialization(job)


def test_every_asset_has_a_hint():
    assert set(resource_hints()) == {*ASSETS, *OPTIONAL.values(), "checks", "ablate"}


@pytest.mark.parametrize("asset", ASSETS)
def test_every_manifest_is_valid_by_the_published_schema(asset: str):
    assert schema_errors(manifest(resource_hints()[asset])) == []


def test_the_schema_notices_a_wrong_manifest():
    wrong = manifest(GPU)
    wrong["spec"]["template"]["spec"]["nodeSelectors"] = {"a": "b"}
    wrong["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = ["nvidia.com/gpu"]
    assert len(schema_errors(wrong)) == 2


def test_gpu_spot_and_shared_memory_reach_the_pod():
    cluster = ClusterOptions(service_account="trainer", node_selector={"pool": "big"})
    pod = manifest(GPU, DeploymentOptions(cluster=cluster))["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "102400Mi"}
    assert pod["nodeSelector"] == {
        "pool": "big",
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-spot": "true",
    }
    assert {item["key"] for item in pod["tolerations"]} == {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16384Mi"}
    assert pod["serviceAccountName"] == "trainer"
    assert {"name": "OMP_NUM_THREADS", "value": "10"} in container["env"]
    assert {"name": "YT8M_REQUIRE_GPU", "value": "1"} in container["env"]
    assert container["resources"]["requests"]["ephemeral-storage"] == "60Gi"


def test_another_cluster_may_name_its_gpu_nodes_otherwise():
    labels = {"a100": "NVIDIA-A100-PCIE-40GB"}
    product = ClusterOptions(gpu_node_label="nvidia.com/gpu.product", gpu_node_values=labels)
    pod = k8s_config(GPU, DeploymentOptions(cluster=product))["pod_spec_config"]
    assert pod["node_selector"]["nvidia.com/gpu.product"] == labels["a100"]
    other = dataclasses.replace(GPU, gpu_type="l4")
    with pytest.raises(ConfigError, match=r"cluster\.gpu_node_values has no l4; it has a100"):
        k8s_config(other, DeploymentOptions(cluster=product))
    bare = dataclasses.replace(GPU, spot=False)
    anywhere = DeploymentOptions(cluster=ClusterOptions(gpu_node_label=None))
    assert "node_selector" not in k8s_config(bare, anywhere)["pod_spec_config"]


def test_vertex_gets_machine_accelerator_and_strategy():
    assert vertex_config(GPU) == {
        "machine_type": "a2-highgpu-2g",
        "accelerator_type": "NVIDIA_TESLA_A100",
        "accelerator_count": 2,
        "boot_disk_size_gb": 100,
        "scheduling_strategy": "SPOT",
        "env_vars": ["YT8M_REQUIRE_GPU=1"],
    }
    assert "env_vars" not in vertex_config(GPU, DeploymentOptions(require_gpu=False))
    finetuned = vertex_config(resource_hints()["finetuned_model"])
    assert (finetuned["machine_type"], finetuned["boot_disk_size_gb"]) == ("g2-standard-8", 120)
    part = dataclasses.replace(GPU, gpu_type="h100", num_gpus=1)
    assert vertex_config(part)["machine_type"] == "a3-highgpu-1g"
    with pytest.raises(ConfigError, match="1 x h100 is offered as Spot or Flex-start only"):
        vertex_config(dataclasses.replace(part, spot=False))
    with pytest.raises(ConfigError, match="no machine has 200 vCPU"):
        vertex_config(ResourceHints(num_cpus=200))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"num_gpus": -1}, "num_gpus"),
        ({"num_gpus": 1}, "gpu_type"),
        ({"num_gpus": 1, "gpu_type": "v5"}, "gpu_type"),
        ({"num_cpus": 0}, "num_cpus"),
        ({"memory_gib": 4, "shared_memory_gib": 4}, "shared_memory_gib"),
    ],
)
def test_a_wrong_hint_names_its_field(wrong: dict, field: str):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        ResourceHints(**wrong)


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_local_executors_get_no_tags(executor: str):
    assert step_tags(executor, resource_hints())("finetuned_model") == {}
    assert step_tags("k8s", resource_hints())("unknown_asset") == {}


def test_hints_follow_the_recipe():
    demo = hints_for(load_recipe("demo"))
    assert not any(hint.num_gpus for hint in demo.values()), "a simulated recipe asks for no GPU"
    recipe = load_recipe("challenge")
    model = recipe.models[0]
    training = dataclasses.replace(model.finetuning, num_processes=4, batch_size=512)
    wider = dataclasses.replace(recipe, models=(dataclasses.replace(model, finetuning=training), *recipe.models[1:]))
    hints = hints_for(wider)
    assert (hints["finetuned_model"].num_gpus, hints["pretrained_model"].num_gpus) == (4, 1)
    assert vertex_config(hints["finetuned_model"])["machine_type"] == "g2-standard-48"


def test_a_deployment_changes_type_price_and_sizes_without_an_edit(tmp_path: Path):
    text = json.dumps(
        {
            "gpu_type": "a100",
            "spot": True,
            "pending_minutes": 5,
            "hints": {"submission": {"memory_gib": 24}, "checks": {"num_cpus": 1}},
            "cluster": {"gpu_node_label": None, "node_selector": {"team": "video"}},
        }
    )
    (tmp_path / "deployment.json").write_text(text)
    deployment = read_deployment(text)
    assert read_deployment(str(tmp_path / "deployment.json")) == deployment
    hints = hints_for(load_recipe("challenge"), deployment)
    assert (hints["finetuned_model"].gpu_type, hints["finetuned_model"].spot) == ("a100", True)
    assert not hints["submission"].spot
    assert (hints["submission"].memory_gib, hints["submission"].num_cpus, hints["checks"].num_cpus) == (24, 2, 1)
    assert step_tags("k8s", hints, deployment)("submission")["dagster-k8s/config"]["pod_spec_config"] == {
        "node_selector": {"team": "video"},
        "automount_service_account_token": False,
    }
    assert read_deployment(None) == read_deployment("") == DeploymentOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor the path"),
        ("/nowhere.json", "neither JSON nor the path"),
        ('{"gpu": "l4"}', "unknown field 'YT8M_DEPLOYMENT.gpu'; known: gpu_type, spot"),
        ('{"gpu_type": "v5"}', "gpu_type = 'v5': choose one of t4"),
        ('{"spot": "yes"}', r"YT8M_DEPLOYMENT\.spot = 'yes': must be of type bool"),
        ('{"cluster": {"label": "x"}}', r"unknown field 'YT8M_DEPLOYMENT\.cluster\.label'; known: gpu_node_label"),
        ('{"cluster": []}', r"YT8M_DEPLOYMENT\.cluster = \[\]: give an object of fields"),
        ('{"hints": {"model": {}}}', "hints: model is not known; known: pretraining_shards"),
        (
            '{"hints": {"submission": {"cpus": 1}}}',
            r"submission: unknown field 'submission\.cpus'; known: num_gpus",
        ),
        ('{"hints": {"submission": {"num_cpus": 0}}}', "hints: submission: num_cpus = 0"),
        ('{"hints": [1]}', r"YT8M_DEPLOYMENT\.hints = \[1\]: give an object"),
        ('{"hints": {"submission": 24}}', "hints: submission: submission = 24: give an object of fields"),
        ('{"hints": {"submission": {"memory_gib": "24"}}}', r"submission\.memory_gib = '24': must be of type float"),
        ('{"hints": {"submission": {"memory_gib": Infinity}}}', r"submission\.memory_gib = inf: must be finite"),
        ('{"hints": {"submission": {"spot": "no"}}}', r"submission\.spot = 'no': must be of type bool"),
        ('{"hints": {"submission": {"num_gpus": 1}}}', "hints: submission: gpu_type = None: choose one of t4"),
        (
            '{"hints": {"pretrained_model": {"num_gpus": 1.5}}}',
            r"model\.num_gpus = 1\.5: must be of type int",
        ),
        (
            '{"hints": {"pretrained_model": {"num_gpus": true}}}',
            r"model\.num_gpus = True: must be of type int",
        ),
        ('{"pending_minutes": NaN}', r"YT8M_DEPLOYMENT\.pending_minutes = nan: must be finite"),
        ('{"cluster": {"node_selector": {"team": 1}}}', r"cluster\.node_selector\.team = 1: must be of type str"),
        ('{"cluster": {"service_account": 1}}', r"cluster\.service_account = 1: must be of type str"),
        ('{"pending_minutes": -1}', "pending_minutes = -1"),
    ],
)
def test_a_wrong_deployment_names_the_field(text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        hints_for(load_recipe("challenge"), read_deployment(text))


def test_every_step_of_the_graph_has_hints_checks_and_ablate_too():
    from tests.tiny import tiny_recipe

    resources = dict.fromkeys(("store", "tracking", "progress"), dg.ResourceDefinition.none_resource())
    resolved = build_definitions(tiny_recipe(), resources, "k8s")
    steps = {}
    for job in resolved.resolve_all_job_defs():
        steps.update({node.name: node.definition.tags for node in job.nodes})
    assert len(steps) > len(ASSETS) + 10
    assert "compare_switches" in steps
    assert {name for name, tags in steps.items() if "dagster-k8s/config" not in tags} == set()


def test_hints_change_nothing_else_of_an_asset():
    from tests.tiny import tiny_recipe

    bare, tagged = (
        build_assets(tiny_recipe(), step_tags=tags) for tags in (untagged, step_tags("vertex", resource_hints()))
    )
    for one, other in zip(bare, tagged, strict=True):
        assert set(other.op.tags) - set(one.op.tags) == {"vertex-ai/config"}
        assert (other.op.pool, other.op.retry_policy) == (one.op.pool, one.op.retry_policy)
        assert other.get_asset_spec().replace_attributes() == one.get_asset_spec().replace_attributes()
