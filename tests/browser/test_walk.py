"""A person's whole day at the pages, from an empty state in the morning: each step goes on from the one before."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser import quick_ui
from tests.browser.conftest import Sites, serve
from tests.browser.dagster_pages import (
    RUN_SECONDS,
    latest,
    metadata_row,
    partition_keys,
    staleness,
    toast_target,
)
from yt8m_assets.assets.models import AFRESH_TAG

pytestmark = pytest.mark.browser
PATIENCE = RUN_SECONDS * 1000
RECIPE = """from dataclasses import replace
from tests.tiny import tiny_recipe
one, two = tiny_recipe().models
fine = replace(one.finetuning, num_steps={num_steps})
RECIPE = tiny_recipe(name="walk", models=(replace(one, finetuning=fine), two))
"""
FAR_TOO_MANY = 100_000


@dataclass(frozen=True)
class Day:
    """A person at the pages."""

    page: Page
    sites: Sites
    state: Path
    recipe: Path

    def write_recipe(self, num_steps: int) -> None:
        """Fine-tune model `one` for so many steps, and let the pages read it."""
        self.recipe.write_text(RECIPE.format(num_steps=num_steps))
        self.open("locations/yt8m/asset-groups/models/lineage")
        self.page.get_by_role("button", name="Reload definitions").click()
        self.page.get_by_text("Definitions reloaded!").wait_for()

    def damage_model(self, key: str) -> None:
        """One bit of the published weights is lost."""
        (path,) = (self.state / "artifacts" / "finetuned_model" / key).rglob("weights.safetensors")
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)

    def open(self, where: str) -> None:
        """Go to a page of Dagster."""
        self.page.goto(f"{self.sites.dagster}/{where}")

    def open_partition(self, asset: str, key: str) -> None:
        """Go to the page of a partition, and wait until it shows what there is."""
        self.open(f"assets/{asset}?view=partitions&partition={key}")
        expect(metadata_row(self.page, "recipe")).to_be_visible()

    def dialog(self) -> Locator:
        """The dialog that *Materialize* opens for assets with partitions."""
        self.page.get_by_role("button", name="Materialize").first.click()
        return self.page.get_by_role("dialog").first

    def run_ends(self, status: str) -> None:
        """The page of a run shows that it has ended so."""
        ended = self.page.get_by_role("img", name=re.compile("^run_(success|failed|canceled)$")).first
        expect(ended).to_be_visible(timeout=PATIENCE)
        expect(ended).to_have_accessible_name(f"run_{status}")

    def launched_run(self, status: str = "success") -> None:
        """Follow the notice of a launch to its run, and wait for its end."""
        toast_target(self.page, r"/runs/([0-9a-f-]{36})")
        self.run_ends(status)

    def launched_backfill(self, status: str = "Succeeded") -> str:
        """Follow the notice of a launch to its backfill, and wait for its end; the backfill's id."""
        backfill_id = toast_target(self.page, r"/runs/b/([a-z]+)")
        shown = self.page.get_by_text("Status", exact=True).locator("xpath=..")
        expect(shown).to_contain_text(re.compile("Succeeded|Failed|Canceled"), timeout=PATIENCE)
        expect(shown).to_contain_text(status)
        return backfill_id

    def cells(self, model: str) -> list[str]:
        """A model's cells on the page of the predictions."""
        return [key for key in partition_keys(self.sites.dagster, "oof_predictions") if key.startswith(f"{model}|")]

    def runs(self, model: str) -> set[str]:
        """The runs that made a model's cells."""
        return {latest(self.sites.dagster, "oof_predictions", key)["runId"] for key in self.cells(model)}

    def bring_up_to_date(self, made: int, found: int, left: int) -> None:
        """Launch the job of this name; it says how many artifacts it made, found made before, and left alone."""
        self.open("locations/yt8m/jobs/bring_up_to_date/playground")
        self.page.get_by_role("button", name="Launch Run").click()
        expect(self.page).to_have_url(re.compile(r"/runs/[0-9a-f-]{36}"))
        self.run_ends("success")
        for name, count in {"made": made, "found": found, "up_to_date": left}.items():
            expect(metadata_row(self.page, name).get_by_role("cell").last).to_have_text(str(count))

    def open_check(self) -> None:
        """Go to the page where the submission says whether all is up to date."""
        self.open("assets/submission?view=checks&checkDetail=up_to_date")


@pytest.fixture
def day(page: Page, tmp_path: Path) -> Iterator[Day]:
    recipe, state = tmp_path / "recipe.py", tmp_path / "state"
    recipe.write_text(RECIPE.format(num_steps=3))
    with serve(state, recipe, Path(quick_ui.__file__), YT8M_EXECUTOR="in_process") as sites:
        yield Day(page, sites, state, recipe)


@pytest.mark.timeout(1800)
def test_a_whole_day(day: Day, page: Page) -> None:
    materialize_data_and_models(day, page)
    backfill_cells_of_which_some_fail(day, page)
    day.bring_up_to_date(made=12, found=2, left=11)  # two cells came from a run that failed, and have no verdict yet
    see_what_a_changed_recipe_makes_stale(day, page)
    cancel_what_would_take_too_long(day, page)
    run_what_is_stale(day, page)
    everything_is_current(day, page)


def materialize_data_and_models(day: Day, page: Page) -> None:
    day.open("locations/yt8m/asset-groups/data/lineage")
    page.get_by_role("button", name="Materialize all").click()
    day.launched_run()
    expect(page.get_by_text("Errored (0)")).to_be_visible()
    day.open("locations/yt8m/asset-groups/models/lineage")
    dialog = day.dialog()
    dialog.get_by_role("button", name="Missing", exact=True).click()
    expect(dialog).to_contain_text("2 partitions")
    dialog.get_by_role("button", name="Launch backfill").click()
    day.launched_backfill()
    day.open_partition("finetuned_model", "two")
    with page.context.expect_page() as opened:
        metadata_row(page, "mlflow_url").get_by_role("link").first.click()
    expect(opened.value.get_by_role("heading", name="Tiny two finetuning, walk")).to_be_visible()
    opened.value.close()


def backfill_cells_of_which_some_fail(day: Day, page: Page) -> None:
    """The weights of `two` are damaged: its cells fail and say why; mended, they alone are made again."""
    one, two = day.cells("one"), day.cells("two")
    day.damage_model("two")
    day.open("assets/oof_predictions?view=partitions")
    dialog = day.dialog()
    every = dialog.get_by_role("button", name="All", exact=True)
    every.first.wait_for()
    for button in every.all():  # one for each dimension
        button.click()
    expect(dialog).to_contain_text(f"{len(one + two)} partitions")
    dialog.get_by_role("button", name="Launch backfill").click()
    backfill_id = day.launched_backfill("Failed")
    made = day.runs("one")
    page.get_by_role("tab", name="Runs").click()
    page.get_by_role("img", name="run_failed").locator("xpath=following::a[contains(., 'View')][1]").click()
    reason = page.get_by_text("ParentMismatchError: oof_predictions/two").last
    expect(reason).to_contain_text(re.compile(r"finetuned_model/two/.*weights\.safetensors: sha256 .* materialise it"))
    day.open("assets/oof_predictions?view=partitions")
    expect(page.get_by_text(f"Failed ({len(two)})")).to_be_visible()
    expect(page.get_by_text(f"Materialized ({len(one)})")).to_be_visible()
    day.open_partition("finetuned_model", "two")
    day.dialog().get_by_role("button", name="Launch 1 run").click()
    day.launched_run()
    day.open(f"runs/b/{backfill_id}")
    page.get_by_role("button", name="expand_more").click()
    page.get_by_role("menuitem", name="Re-execute from failure").click()
    assert day.launched_backfill() != backfill_id
    for cell in one + two:
        expect(page.get_by_text(cell, exact=True)).to_have_count(int(cell in two))
    day.open("assets/oof_predictions?view=partitions")
    expect(page.get_by_text(f"Materialized ({len(one + two)})")).to_be_visible()
    assert day.runs("one") == made
    assert not made & day.runs("two")


def see_what_a_changed_recipe_makes_stale(day: Day, page: Page) -> None:
    """The badge of the partition, and the check that names the field and all that follows from it."""
    day.open_partition("finetuned_model", "one")
    expect(page.get_by_text("Unsynced")).to_have_count(0)
    day.open_check()
    expect(page.get_by_text("24 checked, all well")).to_be_visible()
    day.write_recipe(FAR_TOO_MANY)
    day.open_partition("finetuned_model", "one")
    page.get_by_text("Unsynced (1)").hover()
    expect(page.get_by_text("has a new code version")).to_be_visible()
    day.open_check()
    page.get_by_role("button", name="execute Execute", exact=True).click()
    expect(page.get_by_text("9 wrong: ")).to_be_visible(timeout=PATIENCE)
    metadata_row(page, "problems").get_by_text("[Show Markdown]").click()
    problems = page.get_by_role("dialog").get_by_role("listitem")
    expect(problems).to_have_count(9)
    expect(problems.filter(has_text=f"finetuned_model/one: training.num_steps: 3 -> {FAR_TOO_MANY}")).to_have_count(1)
    assert not any("two" in text for text in problems.all_inner_texts())


def cancel_what_would_take_too_long(day: Day, page: Page) -> None:
    day.open_partition("finetuned_model", "one")
    day.dialog().get_by_role("button", name="Launch 1 run").click()
    toast_target(page, r"/runs/([0-9a-f-]{36})")
    link = page.get_by_role("link", name=day.sites.mlflow).first
    link.wait_for(timeout=PATIENCE)
    expect(page.get_by_text(f"finetuning one: {FAR_TOO_MANY} steps")).to_be_visible()
    with page.context.expect_page() as opened:
        link.click()
    tracked = opened.value
    expect(tracked.get_by_text("Running", exact=True)).to_be_visible()
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate 1 run").click()
    day.run_ends("canceled")
    expect(page.get_by_text("its checkpoint is saved, run again to continue").first).to_be_visible()
    tracked.reload()
    expect(tracked.get_by_text("Killed", exact=True)).to_be_visible()
    tracked.close()


def run_what_is_stale(day: Day, page: Page) -> None:
    """The checkpoint of the mistake is given up by a tag; `two` is found up to date, and what follows `one` is made."""
    day.write_recipe(4)
    before = {model: day.runs(model) for model in ("one", "two")}
    day.open_partition("finetuned_model", "one")
    dialog = day.dialog()
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_text("Tags", exact=True).click()
    dialog.get_by_role("button", name="Add tags").click()
    tags = page.get_by_role("dialog").last
    tags.get_by_placeholder("Tag Key").fill(AFRESH_TAG)
    tags.get_by_placeholder("Tag Value").fill("true")
    tags.get_by_role("button", name="Apply").click()
    expect(dialog).to_contain_text("1 tag")
    dialog.get_by_role("button", name="Launch backfill").click()
    day.launched_backfill()
    for model, newest in ("one", "manifest-000002.json"), ("two", "manifest-000002.json"):
        found = (day.state / "artifacts" / "finetuned_model" / model).glob("manifest-*.json")
        assert max(path.name for path in found) == newest  # of `two`, the one that mended the damage
    day.bring_up_to_date(made=9, found=0, left=16)
    assert day.runs("two") == before["two"]
    assert not day.runs("one") <= before["one"]


def everything_is_current(day: Day, page: Page) -> None:
    day.open_check()
    expect(page.get_by_text("24 checked, all well")).to_be_visible()
    for asset in ("submission", "leaderboard", "ensemble_weights"):
        assert staleness(day.sites.dagster, asset) == "FRESH"
    for asset in ("pretrained_model", "finetuned_model", "oof_ranking", "test_ranking"):
        assert {staleness(day.sites.dagster, asset, key) for key in ("one", "two")} == {"FRESH"}
    day.open_partition("finetuned_model", "one")
    expect(metadata_row(page, "steps").get_by_role("cell").nth(1)).to_have_text("4")
    expect(page.get_by_text("Unsynced")).to_have_count(0)
