"""What the tests do on Dagster's pages, and what its GraphQL interface says about the outcome."""

import json
import re
import time
import urllib.request
from typing import Any

from playwright.sync_api import Locator, Page, expect

RUN_SECONDS = 300
"""How long a run of the tiny graph may take on a busy machine."""


def ask(site: str, query: str, **variables: Any) -> Any:
    """The data of a GraphQL answer."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{site}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = json.load(answer)
    assert "errors" not in content, content["errors"]
    return content["data"]


def latest(site: str, asset: str, partition: str | None = None) -> dict[str, Any]:
    """The latest materialisation of an asset or of one of its partitions: run id, and metadata by label."""
    query = """query ($asset: AssetKeyInput!, $partitions: [String!]) { assetNodeOrError(assetKey: $asset) {
      ... on AssetNode { assetMaterializations(partitions: $partitions, limit: 1) { runId metadataEntries { label
        ... on UrlMetadataEntry { url } ... on FloatMetadataEntry { floatValue } } } } } }"""
    partitions = None if partition is None else [partition]
    answer = ask(site, query, asset={"path": [asset]}, partitions=partitions)
    found = answer["assetNodeOrError"]["assetMaterializations"]
    if not found:
        return {"runId": None, "metadata": {}}
    metadata = {entry["label"]: entry.get("url", entry.get("floatValue")) for entry in found[0]["metadataEntries"]}
    return {"runId": found[0]["runId"], "metadata": metadata}


def partition_keys(site: str, asset: str) -> list[str]:
    """The partitions of an asset that its page offers."""
    query = "query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } } }"
    return list(ask(site, query, key={"path": [asset]})["assetNodeOrError"]["partitionKeys"])


def staleness(site: str, asset: str, partition: str | None = None) -> str:
    """FRESH, STALE or MISSING: how Dagster marks an asset or one of its partitions."""
    query = """query ($key: AssetKeyInput!, $partition: String) { assetNodeOrError(assetKey: $key) {
      ... on AssetNode { staleStatus(partition: $partition) } } }"""
    answer = ask(site, query, key={"path": [asset]}, partition=partition)
    return str(answer["assetNodeOrError"]["staleStatus"])


def wait_for_run(site: str, run_id: str) -> dict[str, Any]:
    """A run once it has ended: status and tags."""
    query = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        run: dict[str, Any] = ask(site, query, id=run_id)["runOrError"]
        if run["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            return run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
        assert time.monotonic() < deadline, f"run {run_id} is {run['status']} after {RUN_SECONDS} s"
        time.sleep(1)


def open_lineage(page: Page, site: str) -> Locator:
    """The global lineage with all groups expanded and the side bars away: the drawing."""
    page.goto(site)
    page.get_by_role("link", name="Lineage").click()
    page.get_by_role("button", name="Hide navigation").click()
    page.get_by_role("textbox", name="Search and filter assets").wait_for()
    page.get_by_role("button", name="panel_show_right").last.click()
    page.get_by_role("button", name="settings", exact=True).last.click()
    page.get_by_role("menuitem", name="Expand all groups").click()
    expect(page).to_have_url(re.compile("expanded="))
    drawing = page.locator("svg").filter(has=page.locator("foreignObject")).first
    drawing.get_by_text("leaderboard", exact=True).first.wait_for(state="attached")
    page.keyboard.press("Escape")
    expect(page.get_by_role("menuitem")).to_have_count(0)
    assert page.viewport_size is not None
    bottom = page.viewport_size["height"]
    for _ in range(3):  # the page draws what its window holds, and nothing else
        page.get_by_role("button", name="zoom_out").last.click()
        page.wait_for_timeout(700)
    page.mouse.move(1000, bottom - 75)
    page.mouse.down()
    page.mouse.move(1000, bottom, steps=5)
    page.mouse.up()
    return drawing


def toast_target(page: Page, pattern: str) -> str:
    """What the notice after a launch leads to, once it has been followed: the id in the address."""
    page.get_by_role("region", name="Notifications").get_by_role("link", name="View").click()
    expect(page).to_have_url(re.compile(pattern))
    found = re.search(pattern, page.url)
    assert found is not None
    return found[1]


def metadata_row(page: Page, key: str) -> Locator:
    """The row of one metadata entry."""
    return page.get_by_role("row").filter(has=page.get_by_role("cell", name=key, exact=True)).first
