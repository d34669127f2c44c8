"""The settings of a custom job, their precedence, and the request made of them."""

import json

import pytest

from orchestration.launchers.vertex_job import CONFIG_TAG, build_custom_job, environment, parse_tag, resolve_settings

GPU = {"machine_type": "g2-standard-8", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}


def tag(**settings: object) -> dict[str, str]:
    return {CONFIG_TAG: json.dumps(settings)}


def build(settings: dict, **config: str):
    return build_custom_job(
        config, settings, args=["dagster", "api"], image="image:1", run_id="r-1", job_name="__ASSET_JOB", attempt=2
    )


def test_a_step_overrides_the_configuration_and_the_run_overrides_both():
    config = {"project": "p", "machine_type": "e2-standard-4", "boot_disk_size_gb": 150, "image": "base"}
    settings = resolve_settings(config, [None, tag(**GPU, boot_disk_size_gb=200)], tag(image="other"))
    assert settings == {**GPU, "boot_disk_size_gb": 200, "image": "other", "env_vars": [], "labels": {}}


def test_among_steps_the_machine_with_most_accelerators_wins_whole():
    steps = [
        tag(machine_type="e2-highmem-16", scheduling_strategy="SPOT"),
        tag(**GPU),
        tag(machine_type="n1-standard-4"),
    ]
    for order in (steps, steps[::-1]):
        settings = resolve_settings({}, order, {})
        assert settings["machine_type"] == "g2-standard-8"
        assert "scheduling_strategy" not in settings


def test_another_machine_does_not_inherit_accelerators():
    settings = resolve_settings(GPU, [tag(machine_type="e2-standard-8")], {})
    assert settings["machine_type"] == "e2-standard-8"
    assert "accelerator_type" not in settings


def test_environment_and_labels_are_joined_with_the_last_word_to_the_run(monkeypatch: pytest.MonkeyPatch):
    config = {"env_vars": ["A=1", "B=1"], "labels": {"team": "video", "cost": "x"}}
    settings = resolve_settings(config, [], tag(env_vars=["B=2=3", "HOME"], labels={"cost": "y"}))
    monkeypatch.setenv("HOME", "/somewhere")
    assert environment(settings["env_vars"]) == {"A": "1", "B": "2=3", "HOME": "/somewhere"}
    assert settings["labels"] == {"team": "video", "cost": "y"}


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(ValueError, match="env_vars: NOT_SET_HERE is not set"):
        environment(["NOT_SET_HERE"])


@pytest.mark.parametrize("value", ["{", '{"machine": "x"}', '{"accelerator_count": "many"}', "[1]"])
def test_a_wrong_tag_is_refused_by_name(value: str):
    with pytest.raises(ValueError, match=f"tag {CONFIG_TAG}: "):
        parse_tag({CONFIG_TAG: value})


def test_the_request_carries_machine_container_schedule_and_labels():
    settings = {**GPU, "timeout_seconds": 3600, "max_wait_seconds": 600, "scheduling_strategy": "FLEX_START"}
    settings |= {"env_vars": ["A=1"], "labels": {"Team": "Video & Audio"}, "boot_disk_type": "pd-ssd"}
    job = build(settings, service_account="a@b", network_attachment="n", kms_key_name="k")
    pool = job.job_spec.worker_pool_specs[0]
    assert job.display_name == "dagster-run-r-1-2"
    assert dict(job.labels) == {
        "team": "video---audio",
        "dagster-run-id": "r-1",
        "dagster-attempt": "2",
        "dagster-job": "__asset_job",
    }
    assert (list(pool.container_spec.args), pool.container_spec.image_uri) == (["dagster", "api"], "image:1")
    assert (pool.disk_spec.boot_disk_type, pool.disk_spec.boot_disk_size_gb) == ("pd-ssd", 100)
    scheduling = job.job_spec.scheduling
    assert (scheduling.timeout.seconds, scheduling.max_wait_duration.seconds) == (3600, 600)
    assert scheduling.strategy.name == "FLEX_START"
    assert scheduling.disable_retries
    assert not scheduling.restart_job_on_worker_restart
    assert job.job_spec.psc_interface_config.network_attachment == "n"
    assert job.encryption_spec.kms_key_name == "k"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator_type": "nvidia-l4"}, "accelerator_type = 'nvidia-l4': not an AcceleratorType"),
        ({"scheduling_strategy": "ON_DEMAND"}, "scheduling_strategy = 'ON_DEMAND': choose one of STANDARD, SPOT"),
        ({"boot_disk_size_gb": 20}, "boot_disk_size_gb = 20: 100 to 64000"),
        ({"boot_disk_size_gb": 70000}, "boot_disk_size_gb = 70000: 100 to 64000"),
        ({"machine_type": "a3-highgpu-1g"}, "machine_type = a3-highgpu-1g: set scheduling_strategy to SPOT"),
        ({"scheduling_strategy": "CHEAP"}, "scheduling_strategy = 'CHEAP': choose one of STANDARD, SPOT"),
    ],
)
def test_what_the_api_does_not_know_is_refused_before_it_is_sent(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(settings)
