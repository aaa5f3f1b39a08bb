"""deploy/Dockerfile and deploy/medray.def: read as their builders read them, and their shell run as far as it goes."""

from __future__ import annotations

import json
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order: comments gone, lines put together."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def of(kind: str) -> list[str]:
    return [rest for name, rest in instructions() if name == kind]


def sections() -> dict[str, str]:
    """Those of the Apptainer definition, by name."""
    text = (DEPLOY / "medray.def").read_text(encoding="utf-8")
    parts = re.split(r"^%(\w+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def kept() -> list[str]:
    """What of the checkout a build sees: `*` is left out, and what follows a `!` is let in again."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


def test_nobody_in_the_image_is_root() -> None:
    names = [name for name, _ in instructions()]
    last_stage = instructions()[len(names) - names[::-1].index("FROM") :]
    assert [rest for name, rest in last_stage if name == "USER"] == ["medray"]
    (made,) = [rest for name, rest in last_stage if name == "RUN"]
    assert "useradd --uid 1000" in made
    assert names.index("CMD") > names.index("USER") > max(at for at, name in enumerate(names) if name == "RUN")


def test_the_environment_and_the_jobs_arrive_and_the_sources_do_not() -> None:
    assert of("COPY") == [". .", "--from=build /opt/medray /opt/medray", "jobs jobs"]
    assert any("PATH=/opt/medray/bin:$PATH" in environment for environment in of("ENV"))


def test_what_the_build_needs_is_let_in_and_nothing_of_patients() -> None:
    assert {"pyproject.toml", "README.md", "LICENSE", "medray", "jobs", "deploy", "wheelhouse"} == set(kept())
    for name in kept():
        assert name == "wheelhouse" or (REPOSITORY / name).exists(), name
    for name in ("data", "runs", ".git", ".venv", "uv.lock", "mlflow.db"):
        assert not any(fnmatch(name, pattern) for pattern in kept())


@pytest.mark.parametrize("line", of("CMD") + [line.split("CMD ", 1)[1] for line in of("HEALTHCHECK")])
def test_what_starts_is_no_shell(line: str) -> None:
    command = json.loads(line)
    assert command[0] in ("medray", "python")
    if command[0] == "python":
        compile(command[2], "healthcheck", "exec")


def test_the_healthcheck_asks_what_answers() -> None:
    (line,) = of("HEALTHCHECK")
    code = json.loads(line.split("CMD ", 1)[1])[2]
    nobody = subprocess.run(["python3", "-c", code.replace(":8000", ":9")], capture_output=True)
    assert nobody.returncode == 1, "where nobody answers it is not healthy"
    assert "/-/healthz" in code


def stand_ins(folder: Path, *names: str) -> Path:
    """Commands that write down how they were called."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$LOG"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("recipe", ["docker", "apptainer"])
@pytest.mark.parametrize("offline", [True, False])
def test_with_a_wheelhouse_nothing_is_fetched(tmp_path: Path, recipe: str, offline: bool) -> None:
    """The recipe's own shell, in a folder of its own, with commands that only tell."""
    shell = of("RUN")[0] if recipe == "docker" else sections()["post"]
    (tmp_path / "src").mkdir()
    for place in ("/opt", "/wheelhouse", "/src"):
        shell = re.sub(rf"(?<![\w$]){place}\b", f"{tmp_path}{place}", shell)
    commands = stand_ins(tmp_path / "commands", "bash", "python3", "rm")
    stand_ins(tmp_path / "opt", "unused")
    (tmp_path / "opt" / "uv").mkdir()
    stand_ins(tmp_path / "opt" / "uv" / "bin", "uv", "pip")
    if offline and recipe == "apptainer":
        (tmp_path / "wheelhouse").mkdir()
        (tmp_path / "wheelhouse" / "MADE_FOR").touch()
    told = {"PATH": f"{commands}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}
    told["WHEELHOUSE"] = "wheelhouse" if offline else ""
    subprocess.run(["/bin/sh", "-e", "-c", shell], cwd=tmp_path, env=told, check=True)
    done = (tmp_path / "log").read_text(encoding="utf-8").replace(str(tmp_path), "").splitlines()
    done = [line for line in done if not line.startswith("rm ")]
    if offline:
        assert done == [f"bash deploy/install.sh {'wheelhouse' if recipe == 'docker' else '/wheelhouse'} /opt/medray"]
    else:
        assert [line.split()[0] for line in done] == ["python3", "pip", "uv"]
        assert "sync" in done[-1]
        assert {"--no-dev", "--no-editable"} <= set(done[-1].split())


def test_the_apptainer_definition_copies_what_the_build_needs() -> None:
    copied = dict(line.split() for line in sections()["files"].splitlines() if line.strip())
    assert set(copied) == set(kept()) - {"wheelhouse"}
    for name in copied:
        assert (REPOSITORY / name).exists(), name
    for name in ("setup", "post", "environment", "test", "runscript"):
        subprocess.run(["sh", "-n", "-c", sections()[name]], check=True)


def test_every_variable_of_the_definition_has_a_default() -> None:
    text = (DEPLOY / "medray.def").read_text(encoding="utf-8")
    defaults = dict(line.strip().split("=") for line in sections()["arguments"].splitlines() if line.strip())
    assert set(re.findall(r"\{\{ (\w+) \}\}", text)) == set(defaults) == {"FROM", "BASE"}
    assert defaults["BASE"] == re.findall(r"^ARG BASE=(.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)[0]
