"""The benchmark of serving: what it compares with works, what it starts ends, its figures are those of what it saw."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prediction_phantom import classifier, pictures

from medray.benchmarks import lit_service, peers, plain_service, processes, report, serve, services
from medray.benchmarks.plain_service import Bare
from medray.benchmarks.processes import Process, Service, family, spent
from medray.benchmarks.report import Cells, Sheet
from medray.bundle import ModelBundle
from medray.imaging.isolation.decoder import Decoder
from medray.inference.predictor import Predictor
from medray.types import InputError

ECHO = """
import json, http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self): self.answer({})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"model": {"name": "x", "version": "1"}, "timings_ms": {"forward": 2.0}, "batch": 4})
    def answer(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *_): pass
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
subprocess.Popen(sleep, start_new_session=True)
subprocess.Popen(["/bin/sh", "-c", '"$0" "$@" &', *sleep])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return classifier(tmp_path_factory.mktemp("served") / "small")


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Service]:
    """A service with a process in a session of its own, and one whose parent has ended."""
    (tmp_path / "echo.py").write_text(ECHO)
    with Service("echo", [sys.executable, str(tmp_path / "echo.py"), "{port}"], tmp_path) as service:
        yield service


def test_the_plain_service_answers_as_the_predictor_and_in_batches(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(bundle.folder)
    files = sorted(pictures(tmp_path / "in", good=12, broken=1).iterdir())
    expected = [
        answer.scores.tolist() for answer in predictor.predict_all(files[1:]) if not isinstance(answer, Exception)
    ]
    sizes = []
    plain = predictor.predict_all

    def counted(cases: Any, batch_size: int = 32) -> Any:
        sizes.append(len(cases))
        time.sleep(0.05)
        return plain(cases, batch_size)

    monkeypatch.setattr(predictor, "predict_all", counted)

    async def ask(app: Any) -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plain") as client:
            assert (await client.get("/readyz")).status_code == 200
            asked = [client.post("/v1/predict", content=file.read_bytes()) for file in files]
            return list(await asyncio.gather(*asked))

    with Decoder() as decoder:
        refused, *answers = asyncio.run(ask(plain_service.application(predictor, [decoder])))
    assert (refused.status_code, refused.json()["code"]) == (422, "truncated")
    found = [list(answer.json()["predictions"].values()) for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sum(sizes) == len(answers)
    assert max(sizes) > 1


def test_what_breaks_in_a_batch_reaches_all_who_wait_and_the_next_is_answered(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    predictor = Predictor(bundle.folder)
    case = predictor.read(next(pictures(tmp_path / "in", good=1).iterdir()))
    batcher = plain_service.Batcher(predictor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "predict_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.ask(case).result(5)
    assert batcher.ask(case).result(5).labels


def test_an_mlflow_model_is_written_without_mlflow(bundle: ModelBundle, tmp_path: Path) -> None:
    plain_service.write_mlflow_model(tmp_path / "model", bundle.folder)
    flavor = json.loads((tmp_path / "model" / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavor["loader_module"] == plain_service.__name__
    window = bundle.golden()[0]
    found = plain_service._load_pyfunc(str(tmp_path / "model" / flavor["data"])).predict(window.tolist())
    np.testing.assert_allclose(found, bundle.golden()[1], atol=1e-5)


def test_a_service_is_measured_and_ends_with_all_its_processes(echo: Service, tmp_path: Path) -> None:
    image = next(pictures(tmp_path / "in", good=1).iterdir())
    plan = services.Plan(tmp_path, seconds=0.6)
    found = plan.measure(echo, [image], clients=2)
    assert found["statuses"] == {"200": found["answered"]}
    assert found["sent"] >= found["answered"] > 2
    assert found["stages"] == {"forward": 2.0, "batch": 4.0}
    assert {"echo.py", "(load generator)"} <= found["cpu_ms"].keys()
    assert sum(found["cpu_ms"].values()) > 0
    rated = plan.measure(echo, [image], "/v1/predict?model=x", rate=20)
    assert rated["requests"] == pytest.approx(9, abs=9)
    running = family(echo._process.pid)
    assert len([one for one in running if one.name]) == 3
    echo.__exit__()
    # What was killed has no command line any more; its entry stays until it is reaped.
    until = time.monotonic() + 5
    while any(one.name and processes._process(one.pid) == one for one in running):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    service = Service("broken", [sys.executable, "-c", "raise SystemExit('no such bundle')"], tmp_path)
    with pytest.raises(RuntimeError, match="broken does not start: no such bundle"):
        service.__enter__()


def test_cpu_time_is_told_by_what_processes_run() -> None:
    names = {
        "ray::ServeReplica:medray:model.handle_request": "ServeReplica:medray:model",
        "ray::ProxyActor": "ProxyActor",
        "/usr/bin/python3 -P -m medray.imaging.isolation.decoder 5 6": "medray.imaging.isolation.decoder",
        "/usr/bin/python3 -u /some/where/serve.py --bundle x": "serve.py",
        "/usr/lib/ray/gcs_server --port=1": "gcs_server",
    }
    assert [processes._name(words.split(" ")) for words in names] == list(names.values())
    before = {1: Process(1, 0, 1, 0, "a", 1.0), 2: Process(2, 1, 1, 0, "b", 5.0)}
    after = {1: Process(1, 0, 1, 0, "a", 1.5), 3: Process(3, 1, 1, 0, "a", 0.25), 2: Process(2, 1, 1, 0, "b", 5.0)}
    assert spent(before, after) == {"a": 0.75, "b": 0.0}


def test_the_bare_network_is_timed(bundle: ModelBundle) -> None:
    bare = Bare(bundle)
    assert len(bare.seconds(2, 3)) == 3
    found = bare.speed(4, 0.05)
    assert found["per_s"] > 0
    assert found["cpu_ms"]["network"] > 0


def test_rounds_are_interleaved_and_turned() -> None:
    calls: list[str] = []

    def ask(name: str) -> Cells:
        calls.append(name)
        return {"per_s": 2.0 if name == "a" else 1.0, "statuses": {"200": 1.0} if name == "a" else {}}

    ways = {name: lambda name=name: ask(name) for name in "ab"}
    runs = services.alternate(services.Plan(Path(), rounds=3), ways)
    assert "".join(calls) == "abbaab"
    found = services.against(runs["a"], runs["b"])
    assert (found.ratio, found.low, found.high, found.pairs) == (2.0, 2.0, 2.0, 3)
    assert services.middle(runs["a"], "per_s", "p50_ms") == {"per_s": 2.0}
    assert services.means([*runs["a"], *runs["b"]], "statuses") == {"200": 0.5}


def test_the_estimate_leaves_the_network_to_the_gpu() -> None:
    found = serve._estimate({"ProxyActor": 1.0, "ServeReplica:medray:model": 30.0}, network_ms=28.0)
    assert found[0] == {"": "ProxyActor", "CPU ms per image": 1.0, "cores": 2.0}
    assert found[1] == {"": "ServeReplica:medray:model, without the network", "CPU ms per image": 2.0, "cores": 4.0}


def test_the_command_takes_sections_and_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[services.Plan] = []

    def section(plan: services.Plan, sheet: Sheet) -> None:
        asked.append(plan)
        sheet.table("Slow uploads", [{"": "alone", "p50_ms": 1.5}])

    monkeypatch.setattr(serve, "SECTIONS", {**serve.SECTIONS, "slow": section})
    words = ["--quick", "--slow", "serve.max_batch=4", "--out", str(tmp_path)]
    found = report.run("serve", "", serve.measure, words, serve.options)
    assert (asked[0].settings, asked[0].rounds) == (("serve.max_batch=4",), 2)
    assert found.tables == {"Slow uploads": [{"": "alone", "p50_ms": 1.5}]}
    assert "serve.max_batch=4" in found.command


def test_litserve_is_asked_with_the_same_images(tmp_path: Path) -> None:
    file = next(pictures(tmp_path / "in", good=1).iterdir())
    (sent,) = services.lit_bodies([file])
    assert base64.b64decode(json.loads(sent.read_text())["image"]) == file.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(bool(peers.missing("litserve")), reason="litserve is not installed")
@pytest.mark.filterwarnings("ignore")
def test_litserve_decodes_and_answers_as_the_predictor(bundle: ModelBundle, tmp_path: Path) -> None:
    files = sorted(pictures(tmp_path / "in", good=2).iterdir())
    api = lit_service.api(bundle.folder)
    api.setup("cpu")
    requests = [json.loads(body.read_text()) for body in services.lit_bodies(files)]
    answers = [api.encode_response(one) for one in api.predict([api.decode_request(one) for one in requests])]
    expected = Predictor(bundle.folder).predict_all(files)
    for found, answer in zip(answers, expected, strict=True):
        assert not isinstance(answer, InputError)
        np.testing.assert_allclose(list(found["predictions"].values()), answer.scores, atol=1e-6)


@pytest.mark.slow
def test_the_sections_run_against_a_stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plain service in the place of `medray serve`, which would take as long to start as all of this."""

    def stand_in(plan: services.Plan, bundle: ModelBundle) -> Service:
        command = [sys.executable, "-m", "medray.benchmarks.plain_service", str(bundle.folder), "{port}"]
        return Service(services.MEDRAY, command, plan.folder)

    monkeypatch.setattr(services.Plan, "medray", stand_in)
    monkeypatch.setattr(serve, "HANGING", 20)
    monkeypatch.setattr(serve, "BATCHES", (1, 2))
    sheet = Sheet("serve")
    for number, section in enumerate((serve.overload, serve.slow, serve.speed)):
        (tmp_path / str(number)).mkdir()
        section(services.Plan(tmp_path / str(number), rounds=1, seconds=2.0, clients=(4,)), sheet)
    found = sheet.report()
    assert [row[""] for row in found.tables["Overload"]] == ["4 clients", "40 clients", "40 that wait as told"]
    assert found.tables["Slow uploads"][1]["open"] == 20
    peer = [] if peers.missing("litserve") else [services.LIT]
    named = [serve.BARE, services.MEDRAY, services.PLAIN, *peer, services.MLFLOW]
    assert [row[""] for row in found.tables["Saturation"]] == named
    assert all(row["per_s"] > 0 and row["CPU ms per image"] > 0 for row in found.tables["Saturation"])
    against = {row.what for row in found.rows if row.ratio}
    assert {f"at saturation, against {name}" for name in named if name != services.MEDRAY} <= against
