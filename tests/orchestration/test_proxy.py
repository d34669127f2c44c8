"""The proxy example in a real nginx, without its certificates: what a browser's saved login is not added to."""

import base64
import getpass
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestration.servers import HOST, listens, process, wait_for
from tests.ports import free_port

EXAMPLE = Path(__file__).parents[2] / "orchestration" / "deploy" / "proxy-nginx.conf"
LOGIN = {"Authorization": f"Basic {base64.b64encode(b'alice:secret').decode()}"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")

pytestmark = pytest.mark.skipif(
    NGINX is None, reason="needs nginx: apt-get install --no-install-recommends nginx-light"
)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the example, before a server that answers `behind` to everything."""
    folder = tmp_path_factory.mktemp("nginx")
    port, behind = free_port(), free_port()
    (folder / "htpasswd").write_text("alice:{PLAIN}secret\n")
    text = re.sub(r"listen 443 ssl( default_server)?;", rf"listen {HOST}:{port}\1;", EXAMPLE.read_text())
    text = re.sub(r"ssl_certificate\w*\s.*;|add_header Strict.*;", "", text)
    text = text.replace("/etc/nginx/yt8m.htpasswd", str(folder / "htpasswd"))
    text = re.sub(r"proxy_pass http://127\.0\.0\.1:\d+;", f"proxy_pass http://{HOST}:{behind};", text)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    upstream = f'server {{ listen {HOST}:{behind}; location / {{ return 200 "behind"; }} }}'
    config = folder / "nginx.conf"
    config.write_text(
        f"user {getpass.getuser()}; daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{text}\n{upstream} }}\n"
    )
    assert NGINX is not None
    checked = subprocess.run([NGINX, "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with process([NGINX, "-c", str(config)], {}, folder / "log"):
        wait_for(lambda: listens(port), 10, "nginx")
        yield port


def status(port: int, host: str, path: str = "/", method: str = "GET", **headers: str) -> int:
    named = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.read() == b"behind"
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_what_reaches_the_servers(port: int) -> None:
    dagster, mlflow = "dagster.example.org", "mlflow.example.org"
    assert status(port, dagster) == status(port, mlflow) == 401
    assert status(port, "evil.example", **LOGIN) == 421
    for host in (dagster, mlflow):
        assert status(port, host, **LOGIN) == 200
        assert status(port, host, method="POST", Origin=f"https://{host}", Sec_Fetch_Site="same-origin", **LOGIN) == 200
        assert status(port, host, Sec_Fetch_Site="cross-site", **LINK, **LOGIN) == 200
        for foreign in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": f"https://{host}.evil.example"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
            {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        ):
            assert status(port, host, **foreign, **LOGIN) == 403
        assert status(port, host, method="POST", Sec_Fetch_Site="cross-site", **LINK, **LOGIN) == 403
    assert status(port, dagster, "/graphql?query=mutation%7Bwipe%7D", **LOGIN) == 405
    assert status(port, dagster, "/graphql", "POST", **LOGIN) == 200
