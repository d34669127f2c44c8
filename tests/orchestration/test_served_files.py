"""Files of artifacts that the pages hand out: what is published, as it was published, and nothing else."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestration.guard import Guard
from orchestration.served_files import ArtifactFiles
from yt8m_assets.storage import ArtifactStore, Manifest

KEY = "oof_predictions/one/shift+1"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def manifest(store: ArtifactStore) -> Manifest:
    with store.publish(KEY, fingerprint="f") as publication:
        (publication.path / "submission.csv").write_text("a,b\n")
        (publication.report_path / "page.html").write_text("<script>alert(1)</script>")
    assert publication.manifest is not None
    return publication.manifest


class Client:
    """Asks the guard with the files behind it; nothing here is for Dagster's pages."""

    def __init__(self, store: ArtifactStore, **options: Any) -> None:
        async def pages(*_: object) -> None:
            raise AssertionError("not for Dagster's pages")

        guard: Any = Guard(pages, files=ArtifactFiles(store), **options)
        self.transport = httpx.ASGITransport(guard)

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://127.0.0.1:3000") as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.request(method, path, headers=named)

        return asyncio.run(answer())


@pytest.fixture
def client(store: ArtifactStore) -> Client:
    return Client(store)


def test_a_table_is_downloaded_and_a_page_opens_without_scripts(client: Client, manifest: Manifest) -> None:
    table = client.ask("GET", manifest.page("submission.csv"))
    assert (table.status_code, table.text) == (200, "a,b\n")
    assert table.headers["content-disposition"] == 'attachment; filename="submission.csv"'
    page = client.ask("GET", manifest.page("report/page.html"))
    assert page.headers["content-disposition"].startswith("inline")
    assert page.headers["content-security-policy"].startswith("sandbox allow-popups; default-src 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.ask("HEAD", manifest.page("submission.csv")).headers["content-length"] == "4"


def test_only_what_a_manifest_lists_is_there(client: Client, manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "store" / KEY / manifest.folder
    (folder / "unlisted.txt").write_text("secret")
    (tmp_path / "store" / "other.txt").write_text("secret")
    base = f"/yt8m/files/{KEY}/"
    for path in (
        f"{base}{manifest.folder}/unlisted.txt",
        f"{base}{manifest.folder}/report",
        f"{base}{manifest.folder}/",
        f"{base}{manifest.folder}",
        f"{base}manifest-000001.json",
        f"{base}000002-00000000/submission.csv",
        f"{base}000001-00000000/submission.csv",
        f"{base}{manifest.folder}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/other.txt",
        "/yt8m/files/%2e%2e/other.txt",
        "/yt8m/files//etc/passwd",
        "/yt8m/files/other.txt",
        "/yt8m/files/a%00b/000001-00000000/x",
    ):
        assert client.ask("GET", path).status_code == 404, path
        assert "secret" not in client.ask("GET", path).text


def test_files_are_only_read_and_only_from_here(client: Client, manifest: Manifest) -> None:
    path = manifest.page("submission.csv")
    assert client.ask("POST", path).status_code == client.ask("DELETE", path).status_code == 405
    assert client.ask("GET", path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status_code == 403
    assert client.ask("GET", path, Host="evil.example").status_code == 421


def test_a_damaged_file_is_not_handed_out(client: Client, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "store" / KEY / manifest.folder / "submission.csv").write_text("a,c\n")
    answer = client.ask("GET", manifest.page("submission.csv"))
    assert answer.status_code == 404
    assert "its manifest says" in answer.text


def test_links_of_a_page_lead_to_the_mlflow_of_now(store: ArtifactStore) -> None:
    """Kept when MLflow had another port; whoever asks for a part of the page gets all of it."""
    run = "/#/experiments/1/runs/0123456789abcdef0123456789abcdef?workflowType=machine_learning"
    with store.publish("leaderboard", fingerprint="f") as publication:
        (publication.path / "page.html").write_text(f"<a href='http://127.0.0.1:5000{run}'>run</a>")
        (publication.path / "page.csv").write_text(f"http://127.0.0.1:5000{run}")
    assert publication.manifest is not None
    client = Client(store, mlflow_url="http://127.0.0.1:5070")
    page = client.ask("GET", publication.manifest.page("page.html"), Range="bytes=3-9")
    assert page.text == f"<a href='http://127.0.0.1:5070{run}'>run</a>"
    assert client.ask("HEAD", publication.manifest.page("page.html")).status_code == 200
    assert ":5000/" in client.ask("GET", publication.manifest.page("page.csv")).text
