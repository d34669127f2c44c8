"""The image's promise, without an image: user 1000, no capability, a root that is read only, two folders to write in.

A mount namespace stands for the container: the whole file system is mounted again read only, with fresh folders for
`/tmp` and `/var/lib/yt8m`, which orchestration/deploy mounts into every pod.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINER = """
set -euo pipefail
mount --make-rprivate / && mount --bind / /
mount -t tmpfs -o mode=755 tmpfs /mnt
kept=("$PYTHON" "$PWD" "$VENV")
for n in 0 1 2; do mkdir /mnt/$n && mount --bind "${kept[n]}" /mnt/$n; done
closed=()
for place in /root /home; do  # which user 1000 may not enter
  if [[ "${kept[*]/#/:}" == *":$place/"* ]]; then closed+=($place) && mount -t tmpfs -o mode=755 tmpfs $place; fi
done
mount -t tmpfs -o mode=755 tmpfs /var/lib && mkdir /var/lib/yt8m
mount -t tmpfs -o mode=755,uid=1000,gid=1000 tmpfs /var/lib/yt8m
mount -t tmpfs -o mode=1777 tmpfs /tmp
for n in 0 1 2; do
  [ -d "${kept[n]}" ] || mkdir -p "${kept[n]}"
  mount --bind /mnt/$n "${kept[n]}" && mount -o remount,ro,bind "${kept[n]}"
done
for place in "${closed[@]}" /var/lib; do mount -o remount,ro $place; done
mount -o remount,ro /mnt && mount -o remount,ro,bind /
exec setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env -i PATH="$PATH" PYTHONPATH="$PWD" HOME=/home/yt8m OMP_NUM_THREADS=1 YT8M_STATE=/var/lib/yt8m \
  YT8M_RECIPE="$PWD/tests/soak/recipe.py" MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
  MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false bash -euc "$1"
"""
NAMESPACES = "needs root, unshare and setpriv: mount namespaces of a user's own are refused on many machines"
REFUSED = """
[ "$(id -u)" = 1000 ] && grep -q 'CapEff:\t0000000000000000' /proc/self/status
for place in . /opt /root /home /var/lib /mnt; do ! touch $place/x 2>/dev/null; done
touch /tmp/x /var/lib/yt8m/x && echo held
"""
GRAPH = """
python -c '
from pathlib import Path; from tests.training.support import write_shards; write_shards(Path("/var/lib/yt8m/shards"))'
yt8m materialize
yt8m status
yt8m ui --port 3999 --mlflow-port 5999 > /tmp/ui.log & ui=$!
for _ in $(seq 120); do grep -q Ctrl-C /tmp/ui.log && break; sleep 1; done
for port in 3999 5999; do python -c "
import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:$port/', timeout=30).status)"; done
kill $ui && wait $ui  # SIGTERM: what a shell starts beside itself ignores SIGINT
! grep -i 'read-only file system' /var/lib/yt8m/logs/*.log
"""


def contained(script: str) -> str:
    """What a script says in the container; fails the test where it fails."""
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip(NAMESPACES)
    python = Path(sys.executable).resolve().parents[1]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    probe = ["unshare", "--mount", "mount", "--make-rprivate", "/"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(NAMESPACES)
    command = ["unshare", "--mount", "bash", "-c", CONTAINER, "bash", script]
    environment = {"PATH": path, "PYTHON": str(python), "VENV": sys.prefix}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_container_of_these_tests_holds() -> None:
    assert contained(REFUSED) == "held\n"


@pytest.mark.slow
def test_the_graph_and_the_pages_work_where_two_folders_can_be_written() -> None:
    said = contained(GRAPH)
    assert said.endswith("200\n200\n")
    assert "missing" not in said
    assert "stale" not in said
