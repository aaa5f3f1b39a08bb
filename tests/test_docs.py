"""Every command of README and docs is run: here, or by the test that is named beside it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, draw_folder, draw_volumes
from omegaconf import OmegaConf
from pydantic import BaseModel

from medray.cli_bench import bench
from medray.config import PACKAGE, PLUGIN_FOLDERS, Experiment, load_plugin, parse, plugins
from medray.imaging.writer import write_png
from medray.tuning.parse import parse as parse_space

DOCS = REPOSITORY / "docs"
FILES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES = {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
TEXT = "\n".join(PAGES.values())
LARGEST_PICTURE, ALL_PICTURES = 120_000, 1_000_000
"""In bytes: who clones the repository waits for them."""

COMMANDS = "jobs/test_serving_commands.py"
CONFIG = f"{COMMANDS}::test_a_config_for_a_cluster_a_key_a_rollback_and_the_record"
SEVERAL = f"{COMMANDS}::test_several_models_and_what_is_asked_of_them"
SLURM = "deploy/test_slurm.py::test_a_command_joins_rays_own_cluster_and_it_outlives_the_command"
KEY = "jobs/test_access_verbs.py::test_the_life_of_a_key"
SOMEWHERE_ELSE = {
    "uv run pytest": "this run",
    "uv run pytest -m slow": "this run",
    "ray start --head": "jobs/test_on_ray.py::head",
    "export RAY_AUTH_MODE=token": "jobs/test_on_ray.py::head",
    "ray job submit -- python jobs/train.py": "jobs/test_on_ray.py::test_submitted_jobs",
    "ray job submit --working-dir . -- python jobs/train.py": "jobs/test_on_ray.py::test_submitted_jobs",
    "uv run jobs/train.py my.yaml": (
        "jobs/test_interrupted_runs.py::test_the_same_command_goes_on_and_comes_to_the_same_end"
    ),
    "uv run jobs/train.py my.yaml scaling.workers=[2,8]": (
        "chaos/test_chaos_of_workers.py::test_a_lost_node_is_replaced_and_without_another_the_run_shrinks"
    ),
    "sbatch --gpus-per-node=1 deploy/slurm.sh python jobs/train.py my.yaml": SLURM,
    "sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 deploy/slurm.sh python jobs/train.py my.yaml": (SLURM),
    "uv run jobs/train.py my.yaml train.profile=true": (
        "training/test_profile.py::test_a_training_leaves_trace_table_and_lines"
    ),
    "uv run medray sync": "jobs/test_sync_verb.py::test_all_that_is_missing_is_delivered_once",
    "uv run --group peers jobs/benchmark.py loop": "jobs/test_bench_verb.py::test_the_job_is_there",
    "uv run medray bench": "jobs/test_bench_verb.py::test_without_a_name_it_lists_what_can_be_run",
    "uv run jobs/benchmark.py faults": "jobs/test_bench_verb.py::test_the_job_is_there",
    "uv run jobs/serve.py --follow champion": (
        "test_benchmarks_lossless.py::test_nothing_is_lost_over_updates_and_kills"
    ),
    "uv run jobs/serve.py --model chest@champion --model liver@2": SEVERAL,
    "uv run jobs/serve.py --model chest@champion --canary chest@candidate --share 0.1": (
        f"{COMMANDS}::test_a_canary_answers_for_its_share"
    ),
    "uv run jobs/serve.py --build serve.yaml": CONFIG,
    "serve deploy serve.yaml": f"{COMMANDS}::test_a_config_for_a_cluster_is_deployed",
    "medray key add ward7 --role user": CONFIG,
    "medray key add ward7 --role user --days 90": KEY,
    "medray key list": KEY,
    "medray key remove ward7": KEY,
    'medray rollback chest --reason "worse on portable films"': CONFIG,
    "medray audit verify": CONFIG,
    'curl -F file=@scan.nii.gz "http://127.0.0.1:8000/v1/predict?model=liver"': SEVERAL,
    'curl -F file=@scan.nii.gz -o mask.nii.gz "http://127.0.0.1:8000/v1/predict?output=mask"': SEVERAL,
    'curl -H "Prefer: respond-async" -F file=@series.zip http://127.0.0.1:8000/v1/predict': SEVERAL,
    "curl http://127.0.0.1:8000/metrics": SEVERAL,
    'medray promote chest@candidate --reason "..."': "jobs/test_cli.py::test_train_predict_promote_resume",
}
"""Command -> the test that runs it."""


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands() -> list[str]:
    """The lines of all bash blocks without their comments and what only sets up."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line.removeprefix("pip install uv && ") for line in lines if line]


def inline() -> list[str]:
    """What else stands in back quotes, without the parts of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M))


def inline_commands() -> list[str]:
    """Those that are more than the beginning of a command of a block."""
    found = [code for code in inline() if re.match(r"uv run |medray \w+ |ray get|serve deploy", code)]
    return [code for code in found if not any(f"{line} ".startswith(f"{code} ") for line in commands())]


def said_in_tests() -> set[str]:
    """All texts in the functions of this file."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.value for function in functions for node in ast.walk(function) if isinstance(node, ast.Constant)}


def test_every_command_has_a_test() -> None:
    there = {*commands(), *inline_commands()}
    assert not sorted(there - SOMEWHERE_ELSE.keys() - said_in_tests()), "run it here, or name the test that does"
    assert not sorted(SOMEWHERE_ELSE.keys() - there), "no page says it"
    for name in SOMEWHERE_ELSE.values():
        file, _, function = name.partition("::")
        assert not function or f"def {function}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), name


def test_the_map_names_every_file() -> None:
    readme = PAGES["README.md"]
    files = [file for file in PACKAGE.rglob("*.py") if file.stem != "__init__" and file.parent.name != "networks"]
    files += [file for folder in ("jobs", "deploy") for file in (REPOSITORY / folder).glob("*") if file.is_file()]
    assert not [file.name for file in files if file.name not in readme]
    assert not [name for name in plugins("networks") if name not in readme]
    assert not [file.name for file in DOCS.glob("*.md") if f"](docs/{file.name})" not in readme]


def test_benchmarks_can_be_run_by_their_names() -> None:
    names = re.findall(r"^\| `(\w+)` \|", PAGES["docs/benchmarks.md"], re.M)
    assert names
    assert set(names) <= {line.split()[0] for line in bench().splitlines()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)]+))?\)", PAGES[page]):
        if "://" in target:
            continue
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_pictures_are_shown_and_small() -> None:
    pictures = list((DOCS / "pictures").iterdir())
    shown = {Path(target).name for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)}
    assert {file.name for file in pictures} == shown
    assert max(file.stat().st_size for file in pictures) < LARGEST_PICTURE
    assert sum(file.stat().st_size for file in pictures) < ALL_PICTURES


def inner(section: type[BaseModel], name: str) -> list[type[BaseModel]] | None:
    """The sections that a setting holds, None where there is no such setting."""
    if name not in section.model_fields:
        return None
    found = [section.model_fields[name].annotation]
    for annotation in found:
        found += [part for part in get_args(annotation) if part not in found]
    return [part for part in found if isinstance(part, type) and issubclass(part, BaseModel)]


def exists(key: str) -> bool:
    """Whether an experiment, with some plug-in, has the setting."""
    first, *rest = key.split(".")
    if first in PLUGIN_FOLDERS:
        folder = PLUGIN_FOLDERS[first]
        sections = [load_plugin(folder, name).Config for name in plugins(folder)]
    else:
        sections = inner(Experiment, first) or []
    for name in rest:
        found = [inner(section, name) for section in sections]
        if all(part is None for part in found):
            return False
        sections = [section for part in found if part for section in part]
    return True


def test_settings_exist() -> None:
    names = "|".join(Experiment.model_fields)
    said = [*inline(), *commands()]
    keys = {key for code in said for key in re.findall(rf"(?<![\w./-])((?:{names})(?:\.[a-z_]+)+)(?![\w/(])", code)}
    keys = {key for key in keys if key.rpartition(".")[2] not in ("py", "json", "yaml", "md")}
    assert len(keys) > 40
    assert not sorted(key for key in keys if not exists(key))


def trees() -> list[dict[str, Any]]:
    """The YAML blocks, as medray reads them."""
    return [cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(block))) for block in blocks("yaml")]


def yaml_of(name: str) -> dict[str, Any]:
    """The experiment of that name that a page shows."""
    return next(tree for tree in trees() if tree.get("name") == name)


def test_yaml_blocks_are_experiments() -> None:
    """Whole ones as they are, parts in my.yaml; the one with plug-ins is run by their test."""
    base = yaml_of("chest")
    experiments = [parse(tree if "dataset" in tree else base | tree) for tree in trees() if tree.get("name") != "cells"]
    (searched,) = [experiment for experiment in experiments if experiment.tune.trials == 40]
    assert list(parse_space(searched)) == ["optimizer.lr", "train.batch_size", "network"]


def test_python_blocks_compile_and_what_they_import_is_there() -> None:
    for block in blocks("python"):
        compile(block, "block", "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("medray."):
                exec(compile(ast.Module([node], []), "import", "exec"), {})  # noqa: S102


def my_yaml(folder: Path) -> Path:
    """The experiment of the page on classification, as it is shown."""
    shown = next(block for block in blocks("yaml") if block.startswith("name: chest\n"))
    (folder / "my.yaml").write_text(shown, encoding="utf-8")
    return folder / "my.yaml"


def run(line: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command of a page, with this environment's programs in the place of `uv run`'s and parts of it changed.

    `data` is the folder that stands for /data, `more` what is added; other words are replaced, PATH for path.
    """
    assert line in {*commands(), *inline()}, "no page says it"
    line = line.replace("/data/", f"{changes.pop('data', '/data')}/") + f" {changes.pop('more', '')}"
    for word, other in changes.items():
        assert word in line
        line = line.replace(word, other)
    jobs = Path(os.environ.get("PYTHONPATH") or REPOSITORY) / "jobs"
    line = line.replace("uv run jobs/", f"{sys.executable} {jobs}/")
    line = re.sub(r"^(uv run )?(medray|mlflow|ray) ", rf"{Path(sys.executable).parent}/\2 ", line)
    return subprocess.run(["sh", "-c", line], cwd=cwd, capture_output=True, text=True, check=False, timeout=500)


def last(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert found.returncode == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def few(experiment: Path, **train: object) -> None:
    """A few steps stand for the whole time."""
    tree = yaml.safe_load(experiment.read_text(encoding="utf-8"))
    tree["train"] |= train
    experiment.write_text(yaml.safe_dump(tree), encoding="utf-8")


@pytest.mark.slow
def test_from_images_to_a_served_model(tmp_path: Path) -> None:
    """README's commands on a folder of images; then the service is asked. `test_data` has the check."""
    images = draw_folder(tmp_path / "chest", cases=40, size=32)
    line = (
        "uv run jobs/train.py name=chest dataset.name=auto dataset.path=/data/chest "
        "'preprocess.intensity={method: percentile}'"
    )
    assert last(run(line, tmp_path, data=str(tmp_path)))["model"] == "chest/1"
    shutil.copy(next(images.rglob("*.png")), tmp_path / "some_image.png")
    with serving("uv run jobs/serve.py") as service:
        deadline = time.monotonic() + 120
        asked = "curl -F file=@some_image.png http://127.0.0.1:8000/v1/predict"
        while "probability" not in (answer := run(asked, tmp_path, curl="curl -s").stdout):
            assert time.monotonic() < deadline, answer
            assert service.poll() is None
            time.sleep(1)
        assert json.loads(answer)["model"]["name"] == "chest"


def serving(line: str) -> subprocess.Popen[bytes]:
    """The service, which ends with the block."""

    class Service(subprocess.Popen[bytes]):
        def __exit__(self, *error: Any) -> None:
            self.terminate()
            super().__exit__(*error)

    assert line in commands()
    program = [sys.executable, REPOSITORY / line.removeprefix("uv run ")]
    return Service(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_tour(tmp_path: Path, home: Path) -> None:
    """Train, predict and tune, exactly as the page says it; the model is good and the phantom is hard."""
    trained = last(run("uv run jobs/train.py", tmp_path))
    assert trained["metrics"]["test/auroc"] >= 0.95
    assert trained["model"] == "phantom/1"
    assert {file.stem for file in (home / "runs" / trained["run"] / "shared" / "figures").iterdir()} > {
        *("curves", "roc", "worst")
    }
    shutil.copy(next((home / "phantoms").rglob("*.png")), tmp_path / "some_image.png")
    assert last(run("uv run jobs/predict.py some_image.png", tmp_path))["model"] == "phantom/1"
    tuned = last(run("uv run jobs/tune.py", tmp_path))
    assert tuned["trials"] == 12
    assert tuned["model"] == "phantom/2"


@pytest.mark.slow
def test_classification(tmp_path: Path, home: Path) -> None:
    """my.yaml on a folder of images; one epoch stands for fifty, and small pictures for large ones."""
    my_yaml(tmp_path)
    draw_folder(tmp_path / "chest", cases=30, size=32)
    line = "uv run jobs/train.py my.yaml dataset.path=/data/chest network.name=resnet network.depth=50 train.epochs=50"
    small = "'preprocess.size=[32, 32]'"
    changes = {"data": str(tmp_path), "more": small, "train.epochs=50": "train.epochs=1"}
    trained = last(run(line, tmp_path, **changes))
    assert trained["model"] == "chest/1"
    assert "depth: 50" in (home / "runs" / trained["run"] / "experiment.yaml").read_text()
    assert last(run('medray promote chest@candidate --reason "..."', tmp_path))["model"] == "chest/1"
    assert last(run("uv run jobs/train.py --resume RUN", tmp_path, RUN=trained["run"]))["run_id"] == trained["run_id"]
    small += f" tune.trials=2 tune.concurrent=1 train.epochs=1 dataset.path={tmp_path}/chest"
    tuned = last(run("uv run jobs/tune.py my.yaml tune.trials=40", tmp_path, **{"tune.trials=40": small}))
    assert (tuned["trials"], tuned["model"]) == (2, "chest/2")
    place = {"~/medray/runs/STUDY": str(home / "runs" / tuned["run"])}
    again = last(run("uv run medray train ~/medray/runs/STUDY/best.yaml", tmp_path, **place))
    assert again["metrics"]["val/auroc"] == pytest.approx(tuned["metrics"]["val/auroc"], abs=1e-3)
    planned = last(run("uv run jobs/plan.py /data/chest", tmp_path, data=str(tmp_path)))
    assert planned["task"] == "classification"
    few(tmp_path / "plan-chest.yaml", epochs=1)
    assert last(run("uv run jobs/train.py plan-chest.yaml", tmp_path))["model"] == "chest/4"


def test_data(tmp_path: Path) -> None:
    """Checked, listed, de-identified and erased; the images of the folder are noise, each of its own."""
    images = tmp_path / "chest"
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24), np.uint8)
        (images / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        write_png(images / f"class{number % 2}" / f"{number}.png", pixels)
    checked = last(run("uv run jobs/check.py /data/chest", tmp_path, data=str(tmp_path)))
    assert checked["ready"]
    assert (tmp_path / "check-chest" / "check.html").is_file()
    line, names = "medray check DATA --manifest FILE", {"DATA": str(images), "FILE": "MANIFEST.sha256"}
    assert last(run(line, tmp_path, **names))["ready"]
    assert len((tmp_path / "MANIFEST.sha256").read_text().splitlines()) == 40
    assert last(run(line, tmp_path, **names, **{"--manifest ": "dataset.manifest="}))["ready"]
    line, names = "uv run jobs/deid.py /data/export /data/clean", {"/data/export": str(images)}
    cleaned = last(run(line, tmp_path, **names, **{"/data/clean": f"{tmp_path}/clean"}))
    assert (cleaned["written"], cleaned["refused"]) == (40, {})
    assert not last(run("uv run jobs/erase.py --subject PAT042", tmp_path))["found"]


@pytest.mark.slow
def test_segmentation(tmp_path: Path, home: Path) -> None:
    """Plan, train, predict and evaluate balls in small volumes; a few steps stand for the whole time."""
    draw_volumes(tmp_path / "liver", cases=14)
    more = {"data": str(tmp_path), "more": "dataset.name=decathlon"}
    assert last(run("uv run jobs/plan.py /data/liver", tmp_path, **more))["task"] == "segmentation"
    few(tmp_path / "plan-liver.yaml", epochs=2, steps_per_epoch=3)
    trained = last(run("uv run jobs/train.py plan-liver.yaml", tmp_path))
    assert trained["model"] == "liver/1"
    assert "val/dice" in trained["metrics"]
    assert (home / "runs" / trained["run"] / "shared" / "figures" / "dice.png").is_file()
    (tmp_path / "new").mkdir()
    for file in sorted((tmp_path / "liver" / "images").iterdir())[:3]:
        shutil.copy(file, tmp_path / "new")
    predicted = last(run("uv run jobs/predict.py /data/new --out predicted", tmp_path, data=str(tmp_path)))
    assert (predicted["images"], predicted["refused"]) == (3, 0)
    assert len(list((tmp_path / "predicted").rglob("mask.nii.gz"))) == 3
    evaluated = last(run("uv run jobs/evaluate.py --out report", tmp_path))
    assert evaluated["refused"] == 0
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.slow
def test_inside_a_model(tmp_path: Path) -> None:
    """Explained, its features taken, exported."""
    images = draw_folder(tmp_path / "chest", cases=60, size=32)
    settings = f"name=chest dataset.name=folder dataset.path={images} network.name=plain train.epochs=3"
    more = f"{settings} train.batch_size=8 'preprocess.size=[32, 32]'"
    last(run("uv run jobs/train.py", tmp_path, more=more))
    shutil.copy(next(images.rglob("*.png")), tmp_path / "some_image.png")
    last(run("uv run jobs/explain.py some_image.png --out heat", tmp_path))
    assert list((tmp_path / "heat").glob("*.png"))
    taken = last(run("uv run jobs/features.py --out features", tmp_path))
    assert (tmp_path / "features" / "features.parquet").is_file()
    assert taken["refused"] == 0
    exported = last(run("uv run jobs/export.py --to onnx --out model.onnx", tmp_path))
    assert exported["parity"]["largest"] < 1e-4
    assert (tmp_path / "model.onnx").is_file()


def draw_cells(folder: Path, cases: int = 60) -> list[int]:
    """Bright spots on noise; how many each image has."""
    draw = np.random.default_rng(0)
    counts = draw.integers(0, 7, cases).tolist()
    folder.mkdir()
    for number, count in enumerate(counts):
        image = draw.integers(0, 60, (32, 32), np.uint8)
        for row, column in draw.integers(2, 29, (count, 2)):
            image[row - 1 : row + 2, column - 1 : column + 2] = 250
        write_png(folder / f"{count}-P{number // 2:03d}-{number}.png", image)
    return counts


@pytest.mark.slow
def test_regression(tmp_path: Path) -> None:
    """age.yaml, as it is shown, but for one epoch of a small network on small images."""
    counts = draw_cells(tmp_path / "images")
    files = sorted((tmp_path / "images").iterdir(), key=lambda file: int(file.stem.split("-")[2]))
    rows = [f"images/{file.name},P{number // 2},{counts[number]}" for number, file in enumerate(files)]
    (tmp_path / "age.csv").write_text("\n".join(["image,subject,age", *rows]) + "\n")
    tree = yaml_of("age")
    tree["dataset"]["path"] = str(tmp_path / "age.csv")
    changed = {"preprocess": tree["preprocess"] | {"size": [32, 32]}, "network": {"name": "plain"}}
    (tmp_path / "age.yaml").write_text(yaml.safe_dump(tree | changed | {"train": {"epochs": 1}}))
    trained = last(run("uv run jobs/train.py age.yaml", tmp_path))
    assert trained["model"] == "age/1"
    assert "val/mae" in trained["metrics"]


@pytest.mark.slow
def test_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three files are written into a copy of medray, which trains with them and answers."""
    copy = tmp_path / "copy"
    for folder in ("medray", "jobs"):
        shutil.copytree(REPOSITORY / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "web"))
    written = [block for block in blocks("python") if block.startswith("# medray/")]
    assert len(written) == 3
    for block in written:
        name, text = block.removeprefix("# ").split("\n", 1)
        (copy / name).write_text(text, encoding="utf-8")
    draw_cells(tmp_path / "cells")
    tree = yaml_of("cells")
    tree["dataset"]["path"] = str(tmp_path / "cells")
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("PYTHONPATH", str(copy))
    assert "named" in run("uv run medray config list", tmp_path).stdout
    assert last(run("uv run jobs/train.py cells.yaml", tmp_path))["model"] == "cells/1"
    shutil.copy(next((tmp_path / "cells").iterdir()), tmp_path / "some_image.png")
    assert last(run("uv run jobs/predict.py some_image.png", tmp_path))["scores"]["cells"] > 0


def test_config_commands(tmp_path: Path) -> None:
    my_yaml(tmp_path)
    for line in ("uv run medray config show my.yaml", "uv run medray config list", "uv run medray config schema"):
        found = run(line, tmp_path)
        assert found.returncode == 0, found.stderr
        assert "resnet" in found.stdout or "network" in found.stdout


@pytest.mark.slow
def test_mlflow_ui_shows_the_runs(home: Path) -> None:
    from medray.tracking.run import client, start

    start(client(None), "shown", "run").finish("FINISHED")
    line = "uv run mlflow ui --backend-store-uri sqlite:///$HOME/medray/mlflow.db"
    assert line in inline()
    line = line.replace("$HOME/medray", str(home)) + " --port 5017"
    program = Path(sys.executable).parent / "mlflow"
    arguments = line.replace("uv run mlflow ", "").split()
    with subprocess.Popen(
        [program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            url = "http://127.0.0.1:5017/api/2.0/mlflow/experiments/get-by-name?experiment_name=shown"
            deadline = time.monotonic() + 90
            ask = ["curl", "-s", url]
            while '"shown"' not in subprocess.run(ask, capture_output=True, text=True, check=False).stdout:
                assert time.monotonic() < deadline
                time.sleep(1)
        finally:
            subprocess.run(["pkill", "-TERM", "-s", str(server.pid)], check=False)


@pytest.mark.slow
def test_a_token_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    found = run("ray get-auth-token --generate", tmp_path)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / ".ray" / "auth_token").is_file()
