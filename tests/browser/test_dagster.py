"""A person at Dagster's pages: the lineage, a materialisation, a backfill of shifts, a plot, the way to MLflow."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Sites
from tests.browser.dagster_pages import (
    RUN_SECONDS,
    latest,
    metadata_row,
    open_lineage,
    toast_target,
    wait_for_run,
)
from tests.browser.recipe import RECIPE
from yt8m_assets.partitions import CELLS_A_RUN, OPTIONAL, optional_cells
from yt8m_assets.stages.nodes import ASSETS

pytestmark = pytest.mark.browser
Picture = Callable[[Page, str], Path]
GROUPS = ("data", "models", "predictions", "optional", "ensemble", "variants")
PATIENCE = RUN_SECONDS * 1000
MODEL = "bert_l2h12"


def test_the_lineage_shows_every_asset_in_its_group(page: Page, sites: Sites, picture: Picture) -> None:
    page.set_viewport_size({"width": 1440, "height": 1500})
    drawing = open_lineage(page, sites.dagster)
    absent = {"fold_ranking", "refitted_model"}  # the recipe has neither folds nor a refit
    for name in (*GROUPS, *(name for name in ASSETS if name not in absent)):
        expect(drawing.get_by_text(name, exact=True).first).to_be_visible()
    for name in OPTIONAL.values():  # the page shortens long names in their middle
        expect(drawing.get_by_text(re.compile(f"^{name[:5]}…{name[-12:]}$")).first).to_be_visible()
    page.wait_for_load_state("networkidle")
    picture(page, "lineage")
    drawing.get_by_text("ensemble_weights", exact=True).first.click()
    expect(page.get_by_text("shrunk by what unseen videos say").first).to_be_visible()


def test_an_asset_is_materialised(page: Page, sites: Sites, picture: Picture) -> None:
    before = latest(sites.dagster, "submission")["runId"]
    page.goto(f"{sites.dagster}/assets/submission")
    page.get_by_role("button", name="materialization Materialize", exact=True).click()
    run_id = toast_target(page, r"/runs/([0-9a-f-]{36})")
    expect(page.get_by_role("img", name="run_success").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("Errored (0)")).to_be_visible()
    picture(page, "materialised")
    assert wait_for_run(sites.dagster, run_id)["status"] == "SUCCESS"
    assert latest(sites.dagster, "submission")["runId"] == run_id != before
    page.goto(f"{sites.dagster}/assets/submission?view=checks&checkDetail=valid")
    expect(page.get_by_text("blocking", exact=False).first).to_be_visible()
    expect(page.get_by_text("Passed").first).to_be_visible()


def test_a_backfill_of_shifts_runs_to_its_end(page: Page, sites: Sites, picture: Picture) -> None:
    """Every shift that no ranking needs, of all models: as few runs as their memory allows."""
    asset = OPTIONAL["oof_predictions"]
    cells = optional_cells(RECIPE)
    before = {latest(sites.dagster, asset, cell)["runId"] for cell in cells}
    page.goto(f"{sites.dagster}/assets/{asset}?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog").first
    dialog.get_by_role("button", name="All", exact=True).last.click()
    expect(dialog).to_contain_text(f"{len(cells)} partitions")
    expect(page.get_by_text(f"with a maximum of {CELLS_A_RUN} partitions per run")).to_be_visible()
    picture(page, "backfill-dialog")
    page.get_by_role("button", name="Launch backfill").click()
    toast_target(page, r"/runs/b/([a-z]+)")
    expect(page.get_by_text("Status", exact=True).locator("xpath=..")).to_contain_text("Succeeded", timeout=PATIENCE)
    expect(page.get_by_text("100% completed")).to_be_visible()
    picture(page, "backfill")
    runs = {latest(sites.dagster, asset, cell)["runId"] for cell in cells}
    assert len(runs) == 2
    assert not runs & before
    assert {wait_for_run(sites.dagster, run)["status"] for run in runs} == {"SUCCESS"}
    page.goto(f"{sites.dagster}/assets/oof_predictions?view=partitions")
    page.get_by_text(f"{MODEL}|0", exact=True).first.click()
    expect(page).to_have_url(re.compile(r"partition=bert_l2h12%7C0"))
    expect(metadata_row(page, "map_at_100000")).to_be_visible()
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    picture(page, "partitions")


def test_a_plot_opens_in_the_metadata(page: Page, sites: Sites, picture: Picture) -> None:
    page.goto(f"{sites.dagster}/assets/ensemble_weights?view=overview")
    metadata_row(page, "plot: convergence").get_by_text("[Show Markdown]").click()
    plot = page.get_by_role("dialog").get_by_role("img", name="convergence")
    expect(plot).to_be_visible()
    width, height = plot.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert width > 400
    assert height > 200
    picture(page, "plot")


def test_the_metadata_leads_to_the_mlflow_run_and_back(page: Page, sites: Sites) -> None:
    recorded = latest(sites.dagster, "finetuned_model", MODEL)
    page.goto(f"{sites.dagster}/assets/finetuned_model?view=partitions&partition={MODEL}")
    link = metadata_row(page, "mlflow_url").get_by_role("link").first
    address = link.get_attribute("href")
    assert address == recorded["metadata"]["mlflow_url"]
    with page.context.expect_page() as opened:
        link.click()
    run_page = opened.value
    expect(run_page.get_by_role("heading", name="BERT (L2 H12) finetuning")).to_be_visible()
    shown = run_page.get_by_role("row", name="holdout/best_map_at_100000").first.get_by_role("cell").last.inner_text()
    assert float(shown) == pytest.approx(recorded["metadata"]["map_at_100000"], rel=1e-5)  # six digits are kept
    expect(run_page.get_by_text(recorded["runId"][:16]).first).to_be_visible()


def test_the_submission_is_downloaded_and_the_report_opens_from_their_pages(
    page: Page, sites: Sites, picture: Picture
) -> None:
    page.goto(f"{sites.dagster}/assets/submission")
    with page.expect_download() as download:
        metadata_row(page, "submission.csv").get_by_role("link").first.click()
    assert download.value.suggested_filename == "submission.csv"
    assert download.value.path().read_text().startswith("Class,Segments\n")
    page.goto(f"{sites.dagster}/assets/leaderboard")
    with page.context.expect_page() as opened:
        metadata_row(page, "leaderboard.html").get_by_role("link").first.click()
    report = opened.value
    expect(report.get_by_role("heading", name=f"Leaderboard: recipe {RECIPE.name}")).to_be_visible()
    assert report.get_by_role("img").first.evaluate("image => image.naturalWidth") > 400
    picture(report, "leaderboard-page")
    report.get_by_role("link").last.click()
    expect(report.get_by_role("heading", name="leaderboard")).to_be_visible()


def test_a_page_of_another_site_reaches_nothing(page: Page, sites: Sites) -> None:
    """A page of MLflow's server is one: same machine, another port."""
    refused = []
    page.on("response", lambda answer: refused.append(answer.status) if sites.dagster in answer.url else None)
    page.goto(f"{sites.mlflow}/version")
    page.evaluate(
        """async site => {
          const image = new Image(), query = encodeURIComponent("mutation { reloadWorkspace { __typename } }")
          await new Promise(done => {
            image.onload = image.onerror = done
            image.src = `${site}/graphql?query=${query}`
          })
          await fetch(`${site}/graphql`, { method: "POST", mode: "no-cors", body: '{"query": "{version}"}' })
        }""",
        sites.dagster,
    )
    assert refused == [403, 403]
