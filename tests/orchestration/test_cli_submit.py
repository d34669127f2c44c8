"""`yt8m submit`: a command as one job on a rented machine, over a stand-in of Vertex AI and an emulated bucket."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.orchestration.conftest import Graph, Run
from tests.orchestration.launchers.deployment import wait_for
from tests.orchestration.launchers.real_graph import RECIPE as LONG
from tests.orchestration.launchers.vertex_api import VertexApi
from tests.tiny import tiny_recipe
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.locating import file_digest, vocabulary_digest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

SCHEMA = json.loads((Path(__file__).parents[1] / "golden" / "skypilot" / "task_schema.json").read_text())
TRAIN = ("materialize", "--models", "one", "--until", "finetuned_model")


@pytest.fixture
def api(tmp_path: Path, emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexApi]:
    """A stand-in whose machines reach the bucket, and a laptop that is told of both."""
    with VertexApi(tmp_path, {"STORAGE_EMULATOR_HOST": emulator}) as server:
        for name, value in {
            "STORAGE_EMULATOR_HOST": emulator,
            "YT8M_STORAGE": f"gs://yt/{tmp_path.name}",
            "YT8M_VERTEX_EMULATOR_HOST": server.address,
            "YT8M_GCP_PROJECT": "tiny-project",
            "YT8M_GCP_LOCATION": "europe-west4",
            "YT8M_GCP_SERVICE_ACCOUNT": "yt8m@tiny-project.iam.gserviceaccount.com",
            "YT8M_IMAGE": "europe-west4-docker.pkg.dev/tiny-project/yt8m/cuda:1",
            "YT8M_WATCH_SECONDS": "0.2",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


def bucket(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"gs://yt/{tmp_path.name}", tmp_path / "cache")


def submit(run: Run, tmp_path: Path, *arguments: object, recipe: str | None = None) -> tuple[int, str, str]:
    """`yt8m submit` with the recipe where it belongs: before the command that is to run."""
    chosen = ("--recipe", recipe or tmp_path / "tiny.py", "--state", tmp_path / "laptop")
    return run("submit", *chosen, *arguments, recipe="")


def real_recipe(folder: Path) -> str:
    """The challenge's, with class lists on this machine."""
    files = {"segment_classes_uri": "Index\n3\n7\n", "vocabulary_uri": "Index,Name\n3,Dog\n7,Cat\n"}
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    data = {name: f"{name}.csv" for name in files}
    (folder / "real.json").write_text(json.dumps({"base": "challenge", "data": data}))
    return str(folder / "real.json")


def test_a_slurm_script_is_bash_and_asks_for_what_the_step_needs(run: Run, tmp_path: Path) -> None:
    options = ("--print", "slurm", "--hours", "30.5", "--image", "r.io/yt8m/cuda:1")
    code, script, error = submit(run, tmp_path, *options, "--gpu", "a100", *TRAIN)
    assert (code, error) == (0, "")
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    assert asked["gpus"] == "a100:1"
    assert asked["time"] == "1-06:30:00"
    assert asked["mem"] == "26624M"
    assert asked["cpus-per-task"] == "7"
    assert 'srun apptainer exec --nv --bind "$state" docker://r.io/yt8m/cuda:1 yt8m materialize --models one' in script
    _, without, _ = submit(run, tmp_path, "--print", "slurm", *TRAIN)
    assert "gpus" not in without, "a simulated data set needs no GPU"
    assert "srun yt8m materialize" in without


@pytest.mark.processes
def test_a_slurm_script_does_the_work_where_it_is_run(run: Run, tmp_path: Path) -> None:
    """With a `srun` that runs what it is given: the recipe sent is the one here, so what it makes is current."""
    _, script, _ = submit(run, tmp_path, "--print", "slurm", "materialize", "--until", "holdout_ratings")
    (tmp_path / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "yt8m", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[2])
    subprocess.run(
        ["bash"], input=script.encode(), env={**slurm, "PATH": path, "PYTHONPATH": root}, check=True, cwd="/"
    )
    store = ArtifactStore(str(tmp_path / "laptop" / "artifacts"), tmp_path / "cache")
    assert Lineage(tiny_recipe(), store).state(Node("holdout_ratings")) == "current"
    assert (tmp_path / "yt8m-7" / "dagster" / "dagster.yaml").is_file(), "its own state, not this machine's"


def test_a_skypilot_task_has_the_schema_of_skypilot(run: Run, tmp_path: Path, api: VertexApi) -> None:
    code, text, error = submit(run, tmp_path, "--print", "skypilot", "--spot", "doctor", recipe=real_recipe(tmp_path))
    assert (code, error) == (0, "")
    task = yaml.safe_load(text)
    jsonschema.validate(task, SCHEMA["task"])
    jsonschema.validate(task["resources"], SCHEMA["resources"])
    assert task["resources"]["accelerators"] == "L4:1"
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["infra"] == "gcp/europe-west4"
    assert set(task["envs"]) >= {"YT8M_STORAGE", "YT8M_REQUIRE_GPU"}
    assert task["run"].startswith("timeout --signal TERM 24h docker run --rm --init --network host --gpus all")
    assert "gcloud auth configure-docker europe-west4-docker.pkg.dev" in task["setup"]
    subprocess.run(["bash", "-n"], input=(task["setup"] + task["run"]).encode(), check=True)
    assert not api.jobs


def test_what_is_sent_has_the_files_it_names_and_the_fingerprints_of_here(
    run: Run, tmp_path: Path, api: VertexApi
) -> None:
    """Class lists go into the bucket with the recipe; the graph over them is the same one, file by file."""
    name = real_recipe(tmp_path)
    code, text, error = submit(run, tmp_path, "--print", "vertex", "doctor", recipe=name)
    assert (code, error) == (0, "")
    args = json.loads(text)["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["args"]
    uri = args[args.index("--recipe") + 1]
    sent, here = load_recipe(uri), load_recipe(name)
    assert sent.data.segment_classes_uri == uri.replace("recipe.json", "segment_label_ids.csv")
    assert sent.models == here.models
    store = bucket(tmp_path)
    assert vocabulary_digest(sent, store) == vocabulary_digest(here, store)
    uris = (sent.data.segment_classes_uri, here.data.segment_classes_uri)
    assert len({file_digest(each, "", store) for each in uris}) == 1
    again = submit(run, tmp_path, "--print", "vertex", "doctor", recipe=name)[1]
    assert again == text, "the same is sent to the same place"


def test_price_and_limit_are_said_before_anything_is_made(run: Run, tmp_path: Path, api: VertexApi) -> None:
    code, out, error = submit(run, tmp_path, "--price", "1.25", "--hours", "8", "--gpu", "a100", "--spot", *TRAIN)
    assert code == 1
    assert error == "yt8m: submit: nobody is there to be asked; --yes submits it\n"
    assert "recipe tiny: 5 to be made (pretraining_shards, segment_shards, holdout_ratings, pretrained_model/one" in out
    assert "machine: a Spot a2-highgpu-1g with 1 x NVIDIA_TESLA_A100 in europe-west4, for 8 hours at most" in out
    assert "price: 10.00 at most, at 1.25 an hour" in out
    assert not api.jobs


def test_a_job_asks_for_its_machine_and_its_limit_and_is_ended_by_a_cancel(
    run: Run, tmp_path: Path, api: VertexApi
) -> None:
    api.hold = True
    options = ("--yes", "--hours", "2", "--spot", "--gpu", "l4")
    results: list[tuple[int, str, str]] = []
    watching = threading.Thread(target=lambda: results.append(submit(run, tmp_path, *options, *TRAIN)))
    watching.start()
    (name,) = wait_for(lambda: list(api.jobs))
    watched = wait_for(lambda: ("GET", f"/v1/{name}") in api.requests)
    assert watched
    code = submit(run, tmp_path, "--cancel", *options, *TRAIN)[0]
    watching.join(timeout=60)
    assert code == 0
    ((ended, out, error),) = results
    assert ended == 1
    assert "the job ended as JOB_STATE_CANCELLED; the same command goes on from what is in the bucket" in out + error
    spec = api.jobs[name].job_spec
    pool = spec.worker_pool_specs[0]
    assert (pool.machine_spec.machine_type, pool.machine_spec.accelerator_type.name) == ("g2-standard-8", "NVIDIA_L4")
    assert spec.scheduling.timeout.total_seconds() == 7200
    assert (spec.scheduling.strategy.name, spec.scheduling.disable_retries) == ("SPOT", False)
    assert spec.service_account == "yt8m@tiny-project.iam.gserviceaccount.com"
    assert {item.name: item.value for item in pool.container_spec.env}["YT8M_STORAGE"] == f"gs://yt/{tmp_path.name}"


def test_mistakes(run: Run, tmp_path: Path, api: VertexApi, monkeypatch: pytest.MonkeyPatch) -> None:
    local = {"base": "challenge", "data": {"test": ["/data/test*.tfrecord"]}}
    (tmp_path / "local.json").write_text(json.dumps(local))
    for arguments, message in {
        (): "submit: say what is to run: one of materialize, predict, doctor",
        ("ui",): "submit: say what is to run",
        ("doctor", "--recipe", "demo"): "submit: --recipe and --state go before the command",
        ("materialize", "--models", "three"): "unknown model 'three'",
        ("predict", "--shifts=7"): "unknown shift 7",
        ("--hours", "999", *TRAIN): "--hours 999: more than 0, and at most 168",
        ("--cancel", *TRAIN): "submit: no job of this command is waiting or running",
    }.items():
        code, _, error = submit(run, tmp_path, *arguments)
        assert code == 1
        assert error.startswith(f"yt8m: {message}"), error
    _, _, error = submit(run, tmp_path, "doctor", recipe=str(tmp_path / "local.json"))
    assert "data.test = '/data/test*.tfrecord' is on this machine alone" in error
    for variable, message in {
        "YT8M_IMAGE": "submit: --image, or YT8M_IMAGE: not given",
        "YT8M_STORAGE": "a job elsewhere cannot reach it; set it to gs://bucket/folder",
    }.items():
        monkeypatch.delenv(variable)
        assert message in submit(run, tmp_path, *TRAIN)[2]
    assert not api.jobs


def test_what_is_up_to_date_needs_no_machine(run: Run, graph: Graph, tmp_path: Path) -> None:
    chosen = ("--recipe", tmp_path / "tiny.py", "--state", graph.state.root)
    code, out, _ = run("submit", *chosen, "materialize", recipe="")
    assert (code, out) == (0, "recipe tiny: everything that this would make is up to date; no machine is needed\n")


@pytest.mark.cloud
def test_a_model_is_trained_elsewhere_and_seen_here(run: Run, tmp_path: Path, api: VertexApi) -> None:
    """No database, no server: lines come back while it runs, artifacts lie in the bucket, MLflow is completed here."""
    code, out, error = submit(run, tmp_path, "--yes", *TRAIN)
    assert (code, error) == (0, "")
    assert re.search(r"-- running\n(.*\n)*finetuning one: 3 steps(.*\n)*-- succeeded\n2 runs in .*: 2 made\n", out), out
    assert Lineage(tiny_recipe(), bucket(tmp_path)).state(Node("finetuned_model", "one")) == "current"
    assert "no machine is needed" in submit(run, tmp_path, "--yes", *TRAIN)[1]


@pytest.mark.slow
def test_ctrl_c_asks_and_the_same_command_goes_on(tmp_path: Path, api: VertexApi) -> None:
    """At a terminal: no leaves the job alone and the command watches it again, yes cancels it, a third goes on."""
    (tmp_path / "long.py").write_text("from tests.orchestration.launchers.real_graph import RECIPE\n")
    command = ["submit", "--recipe", str(tmp_path / "long.py"), "--state", str(tmp_path / "laptop"), *TRAIN]

    def trained(recipe: Recipe = LONG) -> bool:
        return Lineage(recipe, bucket(tmp_path)).state(Node("finetuned_model", "one")) == "current"

    with Terminal(command) as first:
        first.expect("submit it? [y/N]").type("y\n").expect("pretraining one").type("\x03")
        first.expect("cancel the job?").type("n\n").expect("the job goes on")
        assert first.wait() == 130
    with Terminal(command) as second:
        second.expect("this runs already, and is watched").expect("pretraining one: [0-9]+/120 steps")
        second.type("\x03").expect("cancel the job?").type("y\n").expect("-- cancelled")
        assert second.wait() == 1
    assert len(api.jobs) == 1
    assert not trained()
    with Terminal(command) as third:
        third.expect("submit it?").type("y\n").expect(r"resum|goes on|from step").expect("-- succeeded", seconds=240)
        assert third.wait() == 0
    assert trained()


class Terminal:
    """`yt8m` at a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        ours, theirs = pty.openpty()
        yt8m = shutil.which("yt8m", path=str(Path(sys.executable).parent))
        self._process = subprocess.Popen(
            [str(yt8m), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        os.close(theirs)
        self._terminal, self.text, self._seen = ours, "", 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.text += os.read(self._terminal, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                return

    def expect(self, pattern: str, seconds: float = 120) -> "Terminal":
        """Wait for what matches, after what was waited for before."""
        plain = re.escape(pattern) if "?" in pattern else pattern
        found = wait_for(lambda: re.search(plain, self.text[self._seen :]), seconds, f"{pattern!r} in {self.text}")
        self._seen += found.end()
        return self

    def type(self, keys: str) -> "Terminal":
        os.write(self._terminal, keys.encode())
        return self

    def wait(self) -> int:
        return self._process.wait(timeout=120)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)
        os.close(self._terminal)


def _take_terminal() -> None:
    """Be in the terminal's foreground, where Ctrl-C goes."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
