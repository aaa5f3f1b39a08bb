"""A service as people run it: it follows the registry, loses nothing when processes die, and grows under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from conftest import REPOSITORY
from job_runner import descendants, wait_for, wait_until_gone
from prediction_phantom import classifier, pictures, segmenter

from medray.client import Client
from medray.inference.predictor import Predictor
from medray.serving.audit import verify
from medray.tracking import registry
from medray.tracking.registry import Standing
from medray.tracking.run import client, start

pytestmark = pytest.mark.slow
PORT = 8019
URL = f"http://127.0.0.1:{PORT}"
STANDING = Standing("val/auroc", 0.9, 1, "data", "split")
SETTINGS = ("max_replicas=2", "upscale_delay_s=1", "downscale_delay_s=3", "target_ongoing_requests=1", "keep_s=60")


@dataclass
class Service:
    """What runs, and what it said."""

    process: subprocess.Popen[str]
    said: Path
    home: Path
    image: Path
    volume: Path
    bundles: list[Path] = field(default_factory=list)

    def processes(self, part: str) -> dict[int, str]:
        """Replicas of a deployment, or the proxy."""
        return {pid: title for pid, title in descendants(self.process.pid).items() if title.startswith(part)}

    def models(self) -> dict[int, str]:
        return self.processes("ray::ServeReplica:medray:model")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two versions of a classifier in a registry, of which the first is served and followed, and a segmentation."""
    folder = tmp_path_factory.mktemp("service")
    home = folder / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_HOME", str(home))
        mlflow = client(None)
        bundles = [classifier(folder / str(number) / "net", number).folder for number in (1, 2)]
        for bundle in bundles:
            registry.register(start(mlflow, "exp", "run"), "net", bundle, STANDING)
        registry.promote(mlflow, "net", "1", "the first")
        organs = segmenter(folder / "organs", 3)
        registry.register(start(mlflow, "exp", "run"), "organs", organs.folder, STANDING)
        registry.promote(mlflow, "organs", "1", "the first")
        image = next(iter(sorted(pictures(folder / "images", 1).iterdir())))
        volume = folder / "volume.nii.gz"
        voxels = np.random.default_rng(0).integers(-900, 2900, (96, 96, 64)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), volume)
        said = folder / "said"
        command = [str(REPOSITORY / "jobs" / "serve.py"), "--model", "net@champion", "--model", "organs@champion"]
        settings = [f"serve.{one}" for one in (f"port={PORT}", *SETTINGS)]
        with said.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, *command, "--follow", "champion", *settings],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        wait_for(said, "try: curl", process)
        try:
            yield Service(process, said, home, image, volume, bundles)
        finally:
            family = {process.pid: "", **descendants(process.pid)}
            process.kill()
            process.wait()
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@dataclass
class Load:
    """Clients that ask again and again, and what came of it."""

    statuses: Counter[int | str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    slowest: float = 0.0


@contextmanager
def load(content: bytes, clients: int = 4) -> Iterator[Load]:
    found, stop = Load(), threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=120) as http:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    answer = http.post(f"{URL}/v1/predict", content=content)
                except httpx.HTTPError as error:
                    found.statuses[type(error).__name__] += 1
                    continue
                found.slowest = max(found.slowest, time.monotonic() - began)
                found.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    said = answer.json()["model"]
                    found.models[answer.headers["x-medray-model"]] += 1
                    found.mixed += f"{said['name']}/{said['version']}" != answer.headers["x-medray-model"]

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)


def until(truth: Callable[[], Any], timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := truth()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return found


def promoted(service: Service, *arguments: str) -> None:
    subprocess.run(
        [str(Path(sys.executable).with_name("medray")), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "MEDRAY_HOME": str(service.home)},
    )


def test_answers_are_the_predictors(service: Service) -> None:
    expected = Predictor(service.bundles[0]).predict(service.image)
    with Client(URL) as medray:
        answer = medray.predict(service.image)
    assert answer.model == "net/1"
    np.testing.assert_allclose(list(answer.probabilities.values()), expected.scores, atol=1e-5)


def test_a_volume_has_files(service: Service, tmp_path: Path) -> None:
    with Client(URL) as medray:
        answer = medray.predict(service.volume, model="organs")
        answer.save(tmp_path, "mask")
    mask = nib.load(next(tmp_path.glob("*.nii.gz")))
    assert mask.shape == (96, 96, 64)
    assert set(answer.volumes) == {"organ", "lesion"}


def test_a_job_outlives_the_replica_that_runs_it(service: Service) -> None:
    with Client(URL) as medray:
        job = medray.predict(service.volume, model="organs", wait=False)
        until(lambda: job.status()["state"] == "running")
        for pid in service.models():
            os.kill(pid, signal.SIGKILL)
        answer = job.wait(timeout_s=120)
    assert answer.model == "organs/1"


def test_no_request_is_lost_when_a_replica_is_killed(service: Service) -> None:
    with load(service.image.read_bytes()) as found:
        time.sleep(2)
        for pid in service.models():
            os.kill(pid, signal.SIGKILL)
        before = sum(found.statuses.values())
        until(lambda: sum(found.statuses.values()) > before + 50)
    assert set(found.statuses) == {200}
    assert found.mixed == 0


def test_a_new_champion_takes_over_without_loss_and_the_old_one_comes_back(service: Service) -> None:
    replicas = set(service.models())
    with load(service.image.read_bytes()) as found:
        promoted(service, "promote", "net@2", "--reason", "better")
        until(lambda: found.models["net/2"] > 20)
        promoted(service, "rollback", "net", "--reason", "worse")
        seen = found.models["net/1"]
        until(lambda: found.models["net/1"] > seen + 20)
    assert set(found.statuses) == {200}
    assert set(found.models) == {"net/1", "net/2"}
    assert found.mixed == 0
    assert replicas & set(service.models()), "no replica was replaced for it"
    said = service.said.read_text()
    assert len(re.findall(r"net/2, organs/1 answers now", said)) == 1


def test_a_candidate_that_is_no_good_changes_nothing(service: Service, tmp_path: Path) -> None:
    """Its golden answer is that of other weights: only who loads it finds that out."""
    from medray import bundle as bundles

    broken = classifier(tmp_path / "net", 3).folder
    with np.load(broken / "golden.npz") as golden:
        window, scores = golden["window"], golden["scores"]
    np.savez_compressed(broken / "golden.npz", window=window, scores=scores[:, ::-1] * 0.5)
    sums = (broken / bundles.SUMS).read_text().splitlines()
    sums = [f"{bundles._sha256(broken / line.split('  ')[1])}  {line.split('  ')[1]}" for line in sums]
    (broken / bundles.SUMS).write_text("\n".join(sums) + "\n")
    mlflow = client(f"sqlite:///{service.home / 'mlflow.db'}")
    version = registry.register(start(mlflow, "exp", "run"), "net", broken, STANDING)
    with load(service.image.read_bytes()) as found:
        promoted(service, "promote", f"net@{version}", "--reason", "a mistake")
        until(lambda: "is not taken" in service.said.read_text())
        before = found.models["net/1"]
        until(lambda: found.models["net/1"] > before + 20)
    assert set(found.statuses) == {200}
    assert set(found.models) == {"net/1"}
    promoted(service, "rollback", "net", "--reason", "it was one")


def test_replicas_go_up_under_load_and_down_after_it(service: Service) -> None:
    until(lambda: len(service.models()) == 1, 120)
    with load(service.image.read_bytes(), clients=8) as found:
        until(lambda: len(service.models()) == 2, 120)
    until(lambda: len(service.models()) == 1, 120)
    assert set(found.statuses) == {200}


def test_the_service_listens_again_after_its_ingress_or_proxy_is_killed(service: Service) -> None:
    for part in ("ray::ServeReplica:medray:ingress", "ray::ProxyActor"):
        for pid in service.processes(part):
            os.kill(pid, signal.SIGKILL)

        def answers() -> bool:
            try:
                return (
                    httpx.post(f"{URL}/v1/predict", content=service.image.read_bytes(), timeout=30).status_code == 200
                )
            except httpx.HTTPError:
                return False

        until(answers, 60)


def test_it_ends_in_good_order_and_its_record_is_whole(service: Service) -> None:
    family = descendants(service.process.pid)
    service.process.send_signal(signal.SIGTERM)
    out, _ = service.process.communicate(timeout=90)
    assert service.process.returncode == 0
    assert json.loads(out.splitlines()[-1])["url"] == URL
    wait_until_gone(family)
    verdict = verify(service.home / "audit")
    assert verdict.faults == ()
    assert verdict.lines > 500
