"""Publishing, overtaking, dying at any operation, reading and pruning in any order: old or new, never a mixture."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.storage.crash import dying_after
from tests.storage.places import Folder, Memory, Place, Strict, fake_bucket
from tests.storage.suite import contents, publish
from yt8m_assets.errors import PartitionBusyError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.manifest import sha256_text

KEYS = st.sampled_from(["asset/one", "asset/two"])
SIZES = st.lists(st.integers(0, 3), min_size=1, max_size=3)
OPERATIONS = st.integers(0, 40)
KEEP = 2


class StoreMachine(RuleBasedStateMachine):
    """A store, what was ever published in it, and what must be visible now."""

    def __init__(self, place: Place, machine: Path) -> None:
        super().__init__()
        self.place, self.machine = place, machine
        self.reader = self.process()
        self.made: dict[str, dict[str, bytes]] = {}
        """Fingerprint -> files."""
        self.visible: dict[str, list[tuple[int, str]]] = {}
        """Key -> (number, fingerprint) of the generations that must be there, rising."""
        self.died = False
        """Whether the last death came before the work was done."""

    def process(self) -> ArtifactStore:
        return ArtifactStore(self.place.root_uri, self.machine, keep_generations=KEEP)

    def draft(self, sizes: list[int]) -> tuple[str, dict[str, bytes]]:
        """A new fingerprint and files that no other artifact has."""
        fingerprint = f"f{len(self.made)}"
        self.made[fingerprint] = {f"part{n}": f"{fingerprint}-{n} ".encode() * size for n, size in enumerate(sizes)}
        return fingerprint, self.made[fingerprint]

    def found(self, key: str) -> list[tuple[int, str]]:
        """What lies there, read behind the store's back; each file of each manifest is looked at."""
        seen = []
        for name in self.place.names():
            if name.startswith(f"{key}/manifest-"):
                values = json.loads(self.place.read(name))
                checksum = values.pop("checksum")
                assert checksum == sha256_text(json.dumps(values, sort_keys=True, separators=(",", ":")))
                files = {file: self.place.read(f"{key}/{values['folder']}/{file}") for file in values["files"]}
                assert files == self.made[values["fingerprint"]], "a mixture"
                assert name.endswith(f"-{values['generation']:06d}.json")
                seen.append((values["generation"], values["fingerprint"]))
        return sorted(seen)

    @rule(key=KEYS, sizes=SIZES)
    def publish(self, key: str, sizes: list[int]) -> None:
        before, held = self.visible.get(key, []), self.reader.manifest(key)
        fingerprint, files = self.draft(sizes)
        manifest = publish(self.process(), key, fingerprint, files)
        assert manifest.generation > max((number for number, _ in before), default=0)
        self.visible[key] = [*before, (manifest.generation, fingerprint)][-KEEP:]
        if held is not None:
            assert contents(self.process(), held) == self.made[held.fingerprint], "it was current a moment ago"

    @rule(key=KEYS, sizes=SIZES, operations=OPERATIONS)
    def die_while_publishing(self, key: str, sizes: list[int], operations: int) -> None:
        before = self.visible.get(key, [])
        fingerprint, files = self.draft(sizes)
        with dying_after(operations, self.machine.parent) as died:
            publish(self.process(), key, fingerprint, files)
        after = self.found(key)
        new = (max((number for number, _ in before), default=0) + 1, fingerprint)
        possible = [before, *([*before, new][cut:] for cut in range(max(len(before) + 2 - KEEP, 1)))]
        self.died = died()
        assert after in possible if self.died else after == [*before, new][-KEEP:]
        self.visible[key] = after

    @rule(key=KEYS, sizes=SIZES, twin=st.booleans())
    def overtake(self, key: str, sizes: list[int], twin: bool) -> None:
        """Another process publishes while one is at it."""
        before = self.visible.get(key, [])
        slow, slow_files = self.draft(sizes)
        quick, quick_files = (slow, slow_files) if twin else self.draft(sizes)
        results = []
        try:
            with self.process().publish(key, fingerprint=slow) as publication:
                for name, content in slow_files.items():
                    (publication.path / name).write_bytes(content)
                try:
                    results.append(publish(self.process(), key, quick, quick_files))
                except PartitionBusyError:
                    assert not isinstance(self.place, Strict | Memory), "only a lock refuses at once"
            assert publication.manifest is not None
            results.append(publication.manifest)
        except PartitionBusyError:
            assert twin
        assert results
        number = max((number for number, _ in before), default=0)
        assert [manifest.generation for manifest in results] == [number + 1 + n for n in range(len(results))]
        new = [(manifest.generation, manifest.fingerprint) for manifest in results]
        self.visible[key] = [*before, *new][-KEEP:]

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.process().delete(key)
        self.visible[key] = []
        assert not [name for name in self.place.names() if name.startswith(f"{key}/")]

    @rule(key=KEYS, operations=OPERATIONS)
    def die_while_deleting(self, key: str, operations: int) -> None:
        before = self.visible.get(key, [])
        with dying_after(operations, self.machine.parent) as died:
            self.process().delete(key)
        self.visible[key] = self.found(key)
        assert self.visible[key] in [before[cut:] for cut in range(len(before) + 1)]
        assert died() or not self.visible[key]

    @precondition(lambda self: isinstance(self.place, Strict | Memory))
    @rule(key=KEYS, cut=st.booleans())
    def damage_the_copies(self, key: str, cut: bool) -> None:
        for path in (self.machine / "artifacts" / key).rglob("part*"):
            path.write_bytes(path.read_bytes()[:-1] if cut else b"rot")

    @rule(key=KEYS, operations=OPERATIONS)
    def die_while_reading(self, key: str, operations: int) -> None:
        store = self.process()
        with dying_after(operations, self.machine.parent):
            manifest = store.manifest(key)
            if manifest is not None:
                store.fetch(manifest, tuple(manifest.files))

    @invariant()
    def the_newest_is_current_and_whole(self) -> None:
        for key, visible in self.visible.items():
            assert self.found(key) == visible
            for store in (self.reader, self.process()):
                manifest = store.manifest(key)
                assert (manifest is None) == (not visible)
                if manifest is not None:
                    assert (manifest.generation, manifest.fingerprint) == visible[-1]
                    assert contents(self.process(), manifest) == self.made[manifest.fingerprint]
            assert self.reader.numbers(key) == [number for number, _ in visible]


def run(new_place: Callable[[str], Place], machine: Path, examples: int, steps: int = 12) -> None:
    def build() -> StoreMachine:
        name = f"run-{secrets.token_hex(4)}"
        return StoreMachine(new_place(name), machine / name / "cache")

    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(build, settings=options)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_death_at_each_operation_of_a_publication_leaves_old_or_new(tmp_path: Path, kind: str) -> None:
    seen = set()
    for operations in range(200):  # until all is done before it strikes
        folder = tmp_path / str(operations)
        name = f"each-{secrets.token_hex(4)}"
        run = StoreMachine(Folder(folder / "root") if kind == "folder" else Memory(f"{name}/root"), folder / "cache")
        for _ in range(2):
            run.publish("asset/one", [2, 0, 1])
        run.die_while_publishing("asset/one", [1, 3, 2], operations)
        run.the_newest_is_current_and_whole()
        seen.add(run.visible["asset/one"][-1][0])
        run.publish("asset/one", [1])
        run.the_newest_is_current_and_whole()
        if not run.died:
            break
    assert seen == {2, 3}, "some deaths came too early, some too late"


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_a_folder(tmp_path: Path, examples: int) -> None:
    run(lambda name: Folder(tmp_path / name / "root"), tmp_path, examples)


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_memory(tmp_path: Path, examples: int) -> None:
    run(lambda name: Memory(f"{name}/root"), tmp_path, examples)


@pytest.mark.parametrize("examples", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_bucket(tmp_path: Path, examples: int) -> None:
    with fake_bucket("") as bucket:
        run(lambda name: Strict(bucket.fake, f"{name}/root"), tmp_path, examples)
