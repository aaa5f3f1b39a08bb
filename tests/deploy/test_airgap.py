"""deploy/wheelhouse.sh and deploy/install.sh: a small project goes from one to the other, with no network at all."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
# As pip would: the wheel of uv, and what else the requirements name. Fetching them is all that it stands for.
UVX = """#!/usr/bin/env bash
while [[ $1 != --wheel-dir ]]; do shift; done
cp "$WHEELS"/*.whl "$2"
cp "$4" "$WHEELS/asked.txt"
"""
PROJECT = """
[project]
name = "tiny"
version = "1.0"
requires-python = ">=3.11"
[project.scripts]
tiny = "tiny:main"
[build-system]
requires = ["uv_build>=0.1,<99"]
build-backend = "uv_build"
[tool.uv.build-backend]
module-root = ""
"""


@pytest.fixture(scope="module")
def uv() -> Path:
    """The program itself, not what stands for it on the PATH."""
    if shutil.which("uv") is None:
        pytest.skip("no uv on the PATH")
    told = [shutil.which("uv") or "", "run", "--offline", "--no-project", "--python", sys.executable, "python", "-c"]
    found = subprocess.run([*told, "import os; print(os.environ['UV'])"], capture_output=True, text=True, check=True)
    return Path(found.stdout.strip())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, uv: Path) -> Path:
    """A project of one module and no dependencies, with medray's scripts."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DEPLOY, folder / "deploy")
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (folder / "tiny").mkdir()
    (folder / "tiny" / "__init__.py").write_text("def main():\n    print('works')\n", encoding="utf-8")
    (folder / "commands").mkdir()
    (folder / "commands" / "uv").symlink_to(uv)
    (folder / "commands" / "uvx").write_text(UVX, encoding="utf-8")
    (folder / "commands" / "uvx").chmod(0o755)
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / f"uv-{version_of(uv)}-py3-none-manylinux_2_17_x86_64.whl", "w") as wheel:
        wheel.write(uv, f"uv-{version_of(uv)}.data/scripts/uv")
        wheel.writestr(f"uv-{version_of(uv)}.dist-info/METADATA", f"Name: uv\nVersion: {version_of(uv)}\n")
        wheel.writestr(f"uv-{version_of(uv)}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
        wheel.writestr(f"uv-{version_of(uv)}.dist-info/RECORD", "")
    return folder


def version_of(uv: Path) -> str:
    return subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def make(checkout: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    own = {"UV_OFFLINE": "1", "UV_PYTHON": sys.executable, "WHEELS": str(checkout / "wheels")}
    path = {"PATH": f"{checkout / 'commands'}:{os.environ['PATH']}"}
    command = ["bash", checkout / "deploy" / "wheelhouse.sh", folder, *options]
    return subprocess.run(command, env=plain | own | path, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheelhouse(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "wheelhouse"
    made = make(checkout, folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture
def carried(wheelhouse: Path, tmp_path: Path) -> Path:
    """The folder, brought to another machine."""
    return Path(shutil.copytree(wheelhouse, tmp_path / "carried"))


def install(folder: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    """With the folder's own script, and no network where this system lets users have none."""
    away = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*away, "true"], capture_output=True).returncode:
        away = []
    bare = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(venv.parent)}
    command = [*away, "bash", folder / "install.sh", folder, venv]
    return subprocess.run(command, env=bare, capture_output=True, text=True)


def test_what_one_script_gathers_the_other_installs(carried: Path, tmp_path: Path) -> None:
    installed = install(carried, tmp_path / "venv")
    assert installed.returncode == 0, installed.stderr
    said = subprocess.run([tmp_path / "venv" / "bin" / "tiny"], capture_output=True, text=True, check=True)
    assert said.stdout == "works\n"
    assert (tmp_path / "venv" / "bin" / "uv").exists()
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("venv")) == ["venv"]


def test_the_folder_says_what_it_was_made_for(wheelhouse: Path) -> None:
    version, machine, glibc = (wheelhouse / "MADE_FOR").read_text(encoding="utf-8").split()
    assert version == "{}.{}".format(*sys.version_info)
    assert (machine, glibc) == (platform.machine(), "2.17")


def test_the_newest_glibc_of_any_wheel_counts_and_of_a_wheel_its_oldest(checkout: Path, tmp_path: Path) -> None:
    wheels = checkout / "wheels"
    added = [wheels / f"a-1-cp311-cp311-{tags}.whl" for tags in ("manylinux_2_24_x86_64.manylinux_2_28_x86_64", "any")]
    for file in added:
        file.touch()
    try:
        assert make(checkout, tmp_path / "made").returncode == 0
    finally:
        for file in added:
            file.unlink()
    assert (tmp_path / "made" / "MADE_FOR").read_text(encoding="utf-8").split()[2] == "2.24"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("3.99 {machine} 2.17", "made for Python 3.99"),
        ("{python} riscv64 2.17", "this machine is"),
        ("{python} {machine} 2.999", "with glibc 2.999 or later; here is glibc"),
    ],
)
def test_another_machine_is_refused(carried: Path, tmp_path: Path, other: str, said: str) -> None:
    text = other.format(python="{}.{}".format(*sys.version_info), machine=platform.machine())
    (carried / "MADE_FOR").write_text(text + "\n", encoding="utf-8")
    refused = install(carried, tmp_path / "venv")
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not (tmp_path / "venv").exists()


def test_a_flipped_bit_on_the_way_is_noticed(carried: Path, tmp_path: Path) -> None:
    wheel = next(carried.glob("tiny-*.whl"))
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    wheel.write_bytes(content)
    refused = install(carried, tmp_path / "venv")
    assert refused.returncode == 1
    assert wheel.name in refused.stdout + refused.stderr
    assert not (tmp_path / "venv").exists()


def test_what_was_not_copied_is_noticed(carried: Path, tmp_path: Path) -> None:
    next(carried.glob("tiny-*.whl")).unlink()
    assert install(carried, tmp_path / "venv").returncode == 1


def test_nothing_that_is_there_is_overwritten(checkout: Path, carried: Path, tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    assert "is there already" in install(carried, tmp_path / "venv").stderr
    assert "is not empty" in make(checkout, carried).stderr


def test_a_torch_for_cuda_is_refused_where_one_for_cpus_was_asked_for(checkout: Path, tmp_path: Path) -> None:
    torch = checkout / "wheels" / "torch-9.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    torch.touch()
    try:
        refused = make(checkout, tmp_path / "made", "--cpu")
    finally:
        torch.unlink()
    assert refused.returncode == 1
    assert "CPU builds" in refused.stderr
