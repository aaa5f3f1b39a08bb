"""The house rules of DESIGN, read from the code: who may import whom, and where heavy libraries live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from medray.config import PACKAGE

ROOMS = [
    {"types", "sections"},
    {"config"},
    {"cluster"},
    {"remote"},
    {"imaging", "networks", "metrics"},
    {"reports", "datasets", "tasks"},
    {"pipeline", "bundle"},
    {"inference", "tracking"},
    {"evaluation"},
    {"training"},
    {"tuning"},
    {"serving", "client"},
    {"benchmarks"},
    {"console"},
    {
        *("cli_access", "cli_data", "cli_evaluate", "cli_export", "cli_inference", "cli_plan", "cli_predict"),
        "cli_serve",
        "cli_sync",
        "cli_bench",
    },
    {"cli"},
]
"""From top to bottom: a room imports only rooms above it, and files of its own."""

HEAVY = {
    "ray": {"cluster", "benchmarks/nodes", "inference/batch", "training/launch", "tuning", "serving"},
    "mlflow": {"tracking"},
    "optuna": {"tuning/tpe"},
    "rich": {"tuning/watch"},
    "fastapi": {"serving", "benchmarks/plain_service"},
    "starlette": {"serving"},
    "prometheus_client": {"serving"},
    "swagger_ui_bundle": {"serving/pages"},
    "python_multipart": {"serving/upload"},
    "jwt": {"serving/tokens"},
    "httpx": {"serving/tokens", "client"},
    "pydicom": {"imaging"},
    "nibabel": {"imaging"},
    "highdicom": {"imaging"},
    "isal": {"imaging"},
    "PIL": {"imaging"},
    "simplejpeg": {"imaging"},
    "nrrd": {"imaging"},
    "dicomanonymizer": {"imaging"},
    "jinja2": {"reports"},
    "monai.transforms": {"imaging/preprocess"},
    "monai.networks": {"networks"},
    "torchvision": {"networks"},
    "monai.losses": {"tasks"},
    "monai.bundle": {"inference/monai_bundle"},
    "onnx": {"inference/export"},
    "onnxruntime": {"inference/export"},
    "onnxscript": {"inference/export"},
    "matplotlib": {"reports"},
    "fsspec": {"remote"},
    "importlib.import_module": {"config", "benchmarks/peers"},
}
FORBIDDEN = {"pickle", "torchvision.io", "lightning", "hydra", "gradio", "streamlit"}
FILES = sorted(file for file in PACKAGE.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").as_posix()


def room_of(module: str) -> int:
    first = module.split("/")[0]
    return next(level for level, names in enumerate(ROOMS) if first in names)


def imports(file: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(file: Path) -> set[str]:
    modules = {name_of(other) for other in FILES}
    names = {item.removeprefix("medray.").replace(".", "/") for item in imports(file) if item.startswith("medray.")}
    return names & modules


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_rooms_import_only_rooms_above(file: Path) -> None:
    if file.stem == "__init__":
        assert file.read_text(encoding="utf-8") == "", "an __init__.py is empty"
        return
    here = name_of(file)
    for other in own_imports(file):
        same_room = here.split("/")[0] == other.split("/")[0]
        assert same_room or room_of(other) < room_of(here), f"{here} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_heavy_libraries_have_one_room(file: Path) -> None:
    here = name_of(file)
    for item in imports(file):
        assert not any(item == word or item.startswith(f"{word}.") for word in FORBIDDEN), f"{here} imports {item}"
        for library, rooms in HEAVY.items():
            if item == library or item.startswith(f"{library}."):
                assert any(here == room or here.startswith(f"{room}/") for room in rooms), f"{here} imports {item}"


def test_no_import_cycles() -> None:
    graph = {name_of(file): own_imports(file) for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("folder", ["datasets", "networks", "tasks"])
def test_plugins_do_not_import_each_other(folder: str) -> None:
    from medray.config import plugins

    names = {f"{folder}/{name}" for name in plugins(folder)}
    for name in sorted(names):
        assert not own_imports(PACKAGE / f"{name}.py") & names


@pytest.mark.parametrize("file", [file for file in FILES if file.stem != "__init__"], ids=name_of)
def test_files_and_functions_are_small(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    assert text.count("\n") <= 300
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_unsafe_loading_is_nowhere() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for word in (
            "weights_only=False",
            "allow_pickle=True",
            "yaml.load(",
            "extractall",
            "shell=True",
            "load_model(",
        ):
            assert word not in text, f"{name_of(file)} has {word}"


def test_jobs_hold_no_logic() -> None:
    for file in sorted((PACKAGE.parent / "jobs").glob("*.py")):
        assert len(file.read_text(encoding="utf-8").splitlines()) < 40
