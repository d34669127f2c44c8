"""Resource hints: checks, translation to Kubernetes and Vertex AI, and their way onto assets."""

import dataclasses

import dagster as dg
import pytest

from orchestration.hints import (
    RESOURCE_HINTS,
    ClusterOptions,
    ResourceHints,
    apply_hints,
    hints_for,
    k8s_config,
    tags_for,
    vertex_config,
)
from tests.orchestration.launchers.kubernetes_api import schema_errors
from yt8m_assets.errors import ConfigError
from yt8m_assets.lineage import ASSETS
from yt8m_assets.recipes import load_recipe

GPU = ResourceHints(num_gpus=2, gpu_type="a100", num_cpus=20, memory_gib=100, shared_memory_gib=16, spot=True)


def manifest(hints: ResourceHints, options: ClusterOptions | None = None) -> dict:
    """The Kubernetes job that dagster-k8s makes of a hint, as JSON."""
    import kubernetes
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="image:1", dagster_home="/opt/dagster/dagster_home"),
        args=["dagster", "api", "execute_step"],
        job_name="dagster-step-1",
        user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(k8s_config(hints, options)),
    )
    return kubernetes.client.ApiClient().sanitize_for_serialization(job)


def test_every_asset_has_a_hint():
    assert set(RESOURCE_HINTS) == set(ASSETS)


@pytest.mark.parametrize("asset", ASSETS)
def test_every_manifest_is_valid_by_the_published_schema(asset: str):
    assert schema_errors(manifest(RESOURCE_HINTS[asset])) == []


def test_the_schema_notices_a_wrong_manifest():
    wrong = manifest(GPU)
    wrong["spec"]["template"]["spec"]["nodeSelectors"] = {"a": "b"}
    wrong["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] = ["nvidia.com/gpu"]
    assert len(schema_errors(wrong)) == 2


def test_gpu_spot_and_shared_memory_reach_the_pod():
    options = ClusterOptions(service_account="trainer", node_selector={"pool": "big"})
    pod = manifest(GPU, options)["spec"]["template"]["spec"]
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


def test_another_cluster_may_name_its_gpu_nodes_otherwise():
    labels = {"a100": "NVIDIA-A100-PCIE-40GB"}
    options = ClusterOptions(gpu_node_label="nvidia.com/gpu.product", gpu_node_values=labels)
    assert k8s_config(GPU, options)["pod_spec_config"]["node_selector"]["nvidia.com/gpu.product"] == labels["a100"]
    bare = dataclasses.replace(GPU, spot=False)
    assert "node_selector" not in k8s_config(bare, ClusterOptions(gpu_node_label=None))["pod_spec_config"]


def test_vertex_gets_machine_accelerator_and_strategy():
    assert vertex_config(GPU) == {
        "machine_type": "a2-highgpu-2g",
        "accelerator_type": "NVIDIA_TESLA_A100",
        "accelerator_count": 2,
        "boot_disk_size_gb": 100,
        "scheduling_strategy": "SPOT",
    }
    assert vertex_config(RESOURCE_HINTS["finetuned_model"])["machine_type"] == "g2-standard-8"
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
    assert tags_for("finetuned_model", executor) == {}
    assert tags_for("unknown_asset", "k8s") == {}


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


def test_applied_hints_keep_everything_else_of_an_asset():
    partitions = dg.StaticPartitionsDefinition(["a", "b"])

    class Options(dg.Config):
        steps: int = 3

    @dg.asset(
        partitions_def=partitions,
        retry_policy=dg.RetryPolicy(max_retries=2),
        pool="gpu",
        code_version="7",
        op_tags={"own": "tag"},
        check_specs=[dg.AssetCheckSpec("finite", asset="finetuned_model")],
        metadata={"paper": "x"},
    )
    def finetuned_model(context: dg.AssetExecutionContext, config: Options, storage: dg.ResourceParam[str]):
        """Doc."""
        yield dg.MaterializeResult(
            metadata={"seen": f"{context.partition_key} {config.steps} {storage}"},
            check_results=[dg.AssetCheckResult(passed=True, check_name="finite")],
        )

    (tagged,) = apply_hints([finetuned_model], "vertex")
    assert set(tagged.op.tags) == {"own", "vertex-ai/config"}
    assert (tagged.op.pool, tagged.op.retry_policy) == ("gpu", dg.RetryPolicy(max_retries=2))
    assert tagged.get_asset_spec().replace_attributes() == finetuned_model.get_asset_spec().replace_attributes()
    assert tagged.check_keys == finetuned_model.check_keys
    result = dg.materialize([tagged], partition_key="b", resources={"storage": "s"})
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["seen"].value == "b 3 s"
    assert apply_hints([finetuned_model], "in_process") == [finetuned_model]
