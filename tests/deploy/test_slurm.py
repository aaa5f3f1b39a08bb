"""deploy/slurm.sh: with commands of Slurm that do what Slurm would, in a space of processes of its own.

Ray's own clean-up stops every Ray of the user, so these tests never run it where other processes can be seen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "deploy" / "slurm.sh"
ALONE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
SRUN = """#!/usr/bin/env bash
echo "$*" >"$LOGS/srun"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = '#!/usr/bin/env bash\necho "$*" >>"$LOGS/scontrol"\n'
# As `ray symmetric-run` does on the head: it runs what follows `--`, and says 0 where Ray did not start.
RAY = """#!/usr/bin/env bash
echo "$*" >"$LOGS/ray"
[[ -z ${RAY_IS_BROKEN:-} ]] || exit 0
echo -e "2026\tVINFO scripts.py -- Send termination request"
while [[ $1 != -- ]]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node of Slurm: what its commands were asked lies in the folder."""
    job = str(os.getpid() * 1000 + time.time_ns() % 1000)
    for key in [key for key in os.environ if key.startswith(("SLURM_", "RAY_"))]:
        monkeypatch.delenv(key)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        write_command(commands / name, text)
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LOGS", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    subprocess.run(["rm", "-rf", f"/tmp/medray-{job}"], check=True)  # noqa: S108


def write_command(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture
def pretended_ray(logs: Path) -> Path:
    write_command(logs / "commands" / "ray", RAY)
    return logs


def submit(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT, *command], capture_output=True, text=True, timeout=20)


def asked(logs: Path, command: str) -> str:
    file = logs / command
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_jobs_exit_code_is_the_commands(pretended_ray: Path, code: int) -> None:
    ended = submit("sh", "-c", f"echo out; echo err >&2; exit {code}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "out\n", "err\n")
    assert asked(pretended_ray, "scontrol") == "", "nobody asked it to stop"


@pytest.mark.usefixtures("pretended_ray")
def test_arguments_arrive_as_they_are() -> None:
    given = ["a b", "scaling.workers=[2,8]", "$HOME", "*"]
    assert submit("printf", "%s\\n", *given).stdout.splitlines() == given


@pytest.mark.usefixtures("pretended_ray")
def test_a_ray_that_does_not_start_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_IS_BROKEN", "yes")
    assert submit("true").returncode == 1


def warned(logs: Path, command: str) -> tuple[int, str]:
    """Exit code and stdout of a job whose batch script is sent SIGTERM, as `--signal=B:TERM@180` does."""
    with subprocess.Popen(["bash", SCRIPT, "bash", "-c", command], stdout=subprocess.PIPE, text=True) as job:
        try:
            wait_for(logs / "started")
            job.send_signal(signal.SIGTERM)
            said, _ = job.communicate(timeout=20)
        finally:
            job.kill()
            (logs / "over").touch()
    return job.returncode, said


def test_a_warning_reaches_the_command_and_its_75_the_queue(pretended_ray: Path) -> None:
    saves = "trap 'echo saved; exit 75' TERM; touch started; until [[ -e over ]]; do sleep 0.1; done"
    assert warned(pretended_ray, saves) == (75, "saved\n")
    assert asked(pretended_ray, "scontrol") == f"requeue {os.environ['SLURM_JOB_ID']}"


def test_a_command_that_ends_well_after_the_warning_is_not_queued_again(pretended_ray: Path) -> None:
    ends = "trap 'exit 0' TERM; touch started; until [[ -e over ]]; do sleep 0.1; done"
    assert warned(pretended_ray, ends) == (0, "")
    assert asked(pretended_ray, "scontrol") == ""


def test_ray_gets_what_slurm_gave(pretended_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "24")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "24")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    submit("true")
    options = asked(pretended_ray, "ray").split(" -- ")[0].split()
    assert {"--num-cpus=24", "--num-gpus=4", "--min-nodes=1", "--object-store-memory=314572800"} <= set(options)
    assert "--dashboard-host=127.0.0.1" in options
    assert "--cpus-per-task=24" in asked(pretended_ray, "srun").split()


@pytest.mark.usefixtures("pretended_ray")
def test_only_the_user_can_read_the_jobs_token(home: Path) -> None:
    shown = submit("sh", "-c", 'stat -c "%a %s" "$RAY_AUTH_TOKEN_PATH"; echo "$RAY_AUTH_MODE"').stdout
    assert shown == "600 64\ntoken\n"
    assert list((home / "slurm").iterdir()) == [], "it ends with the job"


def test_two_jobs_on_a_node_share_neither_ports_nor_folders(
    pretended_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for job in (811, 812):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        ended = submit("sh", "-c", 'echo "$RAY_ADDRESS" "$RAY_TMPDIR"')
        address, folder = ended.stdout.split()
        assert address.startswith("127.0.0.1:"), "one node needs no network"
        ports = [word.split("=")[1] for word in asked(pretended_ray, "ray").split() if "-port=" in word]
        seen.append({folder, address.split(":")[1], *ports})
    assert len(seen[0]) == len(seen[1]) == 5
    assert not seen[0] & seen[1]


def test_outside_slurm_it_says_what_to_type() -> None:
    bare = subprocess.run(["env", "-i", "/bin/bash", SCRIPT, "true"], capture_output=True, text=True)
    assert bare.returncode != 0
    assert "sbatch" in bare.stderr


def wait_for(file: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"no {file.name} after {seconds:g} s"
        time.sleep(0.05)


JOINS = """
import signal, sys, time
from pathlib import Path
from medray import cluster
cluster.prepare_environment()
cluster.connect()
import ray
print("CPUs", ray.cluster_resources()["CPU"], flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75 if ray.nodes()[0]["Alive"] else 1))
Path("started").touch()
time.sleep(60)
"""


@pytest.mark.slow
def test_a_command_joins_rays_own_cluster_and_it_outlives_the_command(logs: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user have a space of processes")
    inside = [
        *ALONE,
        "bash",
        "-c",
        'until [[ -e started ]]; do sleep 0.2; done && sleep 0.5 && kill -TERM "$1" & exec bash "$2" python -c "$3"',
        "test",
    ]
    # PID 1 of the space is the batch script: `kill 1` is the warning that Slurm sends.
    ended = subprocess.run([*inside, "1", SCRIPT, JOINS], capture_output=True, text=True, timeout=120)
    assert "CPUs 2.0" in ended.stdout, ended.stderr
    assert ended.returncode == 75
    assert asked(logs, "scontrol").startswith("requeue ")
