"""A person at MLflow's pages: filters the fine-tuning runs, ticks the nine and compares them."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Sites
from tests.browser.recipe import RECIPE
from yt8m_assets.tracking.view import EXPERIMENT_TAGS, runs_page

pytestmark = pytest.mark.browser
Picture = Callable[[Page, str], Path]
FINETUNING = quote("tags.kind = 'finetuning'")
SETTLE_MILLISECONDS = 1500
"""A drawing that is there may still be moving; only the pictures mind."""
MAP = "holdout/best_map_at_100000"


def tidy(page: Page) -> None:
    """Fold away what is not about the runs."""
    page.get_by_role("button", name="Toggle sidebar").click()
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count():
        close.first.click()


def choose(page: Page, number: int, name: str) -> None:
    """Pick one entry in a list of the comparison's chart."""
    box = page.get_by_role("tabpanel").get_by_role("combobox").nth(number)
    box.click(force=True)  # an input without a size of its own lies over the list's head
    page.get_by_title(name, exact=True).last.click()
    box.press("Escape")


def test_the_nine_runs_are_ticked_and_compared(page: Page, sites: Sites, picture: Picture) -> None:
    page.goto(f"{sites.mlflow}/#/experiments")
    page.get_by_role("link", name="yt8m", exact=True).first.click()
    expect(page).to_have_url(re.compile("/experiments/1"))
    page.goto("about:blank")  # the experiment's page chooses a tab when it has loaded: not while ours is on its way
    page.goto(f"{sites.mlflow}/#/experiments/1/runs?searchFilter={FINETUNING}")
    boxes = page.get_by_role("checkbox", name="Press Space to toggle row selection")
    expect(boxes).to_have_count(len(RECIPE.models))
    for number in range(len(RECIPE.models)):
        boxes.nth(number).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_role("heading", name=f"Comparing {len(RECIPE.models)} Runs from 1 Experiment")).to_be_visible()
    for model in RECIPE.models:
        expect(page.get_by_role("cell", name=f"{model.title} finetuning").first).to_be_attached()
    tidy(page)
    page.get_by_role("button", name="Clear All").click()
    choose(page, 0, "architecture")
    choose(page, 1, MAP)
    expect(page.locator("svg text").filter(has_text=MAP).first).to_be_visible()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    picture(page, "mlflow-compare")
    address = page.get_by_role("link", name=MAP, exact=True).get_attribute("href") or ""
    assert len(set(re.findall("[0-9a-f]{32}", address))) == len(RECIPE.models)


def test_the_runs_open_with_the_columns_that_matter(page: Page, sites: Sites, picture: Picture) -> None:
    page.goto(runs_page(sites.mlflow, "1", EXPERIMENT_TAGS))
    tidy(page)
    for name in ("ensemble/map_at_100000", "holdout/best_gap_at_20", MAP, "holdout/map_at_100000"):
        expect(page.get_by_role("columnheader", name=name, exact=True).first).to_be_visible()
    expect(page.get_by_text("YouTube-8M segment classification").first).to_be_visible()
    picture(page, "mlflow-runs")


def test_the_curves_of_the_nine_runs_are_drawn_together(page: Page, sites: Sites, picture: Picture) -> None:
    page.goto(f"{sites.mlflow}/#/experiments/1/runs?searchFilter={FINETUNING}&compareRunsMode=CHART")
    tidy(page)
    expect(page.get_by_role("heading", name=MAP, exact=True)).to_be_visible()
    for model in RECIPE.models:
        name = re.compile(rf"^{re.escape(model.title)} finetuning, {RECIPE.name} [0-9a-f]{{6}} \({MAP}\)$")
        expect(page.get_by_text(name)).to_be_attached()
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    picture(page, "mlflow-charts")


def test_kept_checkpoints_and_the_ensemble_stand_with_their_scores_by_data_set(
    page: Page, sites: Sites, picture: Picture
) -> None:
    page.set_viewport_size({"width": 1800, "height": 1000})  # the page draws the columns of its window alone
    page.goto(f"{sites.mlflow}/#/experiments/1/models?workflowType=machine_learning")
    tidy(page)
    expect(page.get_by_role("columnheader", name=re.compile("Dataset: holdout_ratings"))).to_be_visible()
    expect(page.get_by_role("columnheader", name="holdout/map_at_100000", exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="leaderboard-ensemble", exact=True)).to_be_visible()
    for model in RECIPE.models:
        expect(page.get_by_role("link", name=re.compile(f"^{model.key}-finetuning-step-")).first).to_be_visible()
    expect(page.get_by_role("link", name=re.compile(f"^yt8m-{RECIPE.name}-")).first).to_be_visible()
    picture(page, "mlflow-models")
