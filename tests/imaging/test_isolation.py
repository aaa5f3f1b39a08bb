"""Decoding in a worker: the same Case, the same refusals, and a crash, hang or bomb costs one file."""

from __future__ import annotations

import gc
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medray.imaging.isolation import exchange
from medray.imaging.isolation.decoder import Decoder, _own, read_isolated
from medray.imaging.limits import Limits
from medray.imaging.reader import read
from medray.imaging.writer import write_nifti, write_png
from medray.types import ArrayRef, Case, InputError, SeriesRef, Source

DRAW = np.random.default_rng(0)
AFFINE = np.array([[-1.0, 0, 0, 0.1], [0, -1.2, 0, 1 / 3], [0, 0, 2.5, -30], [0, 0, 0, 1]])
SITE = """
import medray.imaging.reader as reader
own = reader.read
def read(source, limits):
    if isinstance(source, bytes) and source.startswith(b"#evil"):
        exec(source, {})
    return own(source, limits)
reader.read = read
"""
"""In a sitecustomize.py on the worker's path: bytes that begin with '#evil' are run, as an attacker would wish."""


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as one:
        yield one


@pytest.fixture(scope="module")
def hijacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    """A decoder with little patience, whose worker runs what it is told."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        with Decoder(memory_bytes=256 << 20, cpu_s=1, deadline_s=20) as one:
            yield one


def evil(code: str) -> bytes:
    return b"#evil\n" + code.encode()


def refusal(decoder: Decoder | None, source: Source, limits: Limits | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        decoder.read(source) if decoder else read(source, limits or Limits())
    return caught.value


def png(edge: int = 8) -> bytes:
    stream = BytesIO()
    Image.fromarray(DRAW.integers(0, 255, (edge, edge), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def assert_works(decoder: Decoder) -> None:
    content = png()
    np.testing.assert_array_equal(decoder.read(content).image, read(content).image)


def end_worker(decoder: Decoder, how: signal.Signals) -> None:
    os.kill(decoder.worker_pid, how)
    os.waitid(os.P_PID, decoder.worker_pid, os.WEXITED | os.WNOWAIT)


def assert_equal(one: Case, other: Case) -> None:
    for field in fields(Case):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(theirs, np.ndarray):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs, field.name


def sources(folder: Path) -> list[Source]:
    """One of each kind."""
    write_png(folder / "grey.png", DRAW.integers(0, 255, (9, 7), np.uint8))
    colour = Image.fromarray(DRAW.integers(0, 255, (9, 7, 3), np.uint8))
    colour.save(folder / "colour.jpg")
    for dtype in ("i1", "i2", "u2", "i4", "f4"):
        write_nifti(folder / f"{dtype}.nii.gz", DRAW.integers(0, 99, (4, 5, 6)).astype(dtype), AFFINE)
    write_nifti(folder / "plain.nii", DRAW.normal(0, 1, (4, 5, 6)), AFFINE)
    np.save(folder / "image.npy", DRAW.integers(0, 2, (5, 6)).astype(bool))
    np.savez(folder / "rows.npz", images=DRAW.integers(0, 255, (3, 8, 8, 3), np.uint8))
    (folder / "wrong.png").write_bytes((folder / "colour.jpg").read_bytes())
    files = sorted(folder.iterdir())
    rows = [ArrayRef(folder / "rows.npz", "images", index) for index in (0, 2)]
    return [*(file for file in files if file.suffix != ".npz"), *rows, (folder / "i2.nii.gz").read_bytes(), png()]


def test_every_kind_is_the_same_case_as_in_process(decoder: Decoder, tmp_path: Path) -> None:
    for source in sources(tmp_path):
        assert_equal(decoder.read(source), read(source))
    assert_equal(decoder.read(str(tmp_path / "grey.png")), read(str(tmp_path / "grey.png")))


def test_a_relative_path_is_the_parents(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "here.png", np.eye(5, dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    assert decoder.read(Path("here.png")).case_id == "here"


def test_all_of_a_case_travels() -> None:
    """Each field, with a value that is not its default."""
    case = Case("a", np.ones((1, 2, 3), np.uint8), AFFINE, "mm", "CT", "p", {"sex": "F"}, ("x", "y"))
    assert all(getattr(case, field.name) is not field.default for field in fields(Case))
    bulk = exchange.Bulk()
    words = json.loads(json.dumps(exchange.answer(case, bulk)))
    assert_equal(exchange.case_of(words, bulk, most=6), case)
    with pytest.raises(ConnectionError):
        exchange.case_of(words, bulk, most=5)
    bulk.close()


@pytest.mark.parametrize(
    "source", [b"x", Path("/a"), ArrayRef(Path("/a"), "m", 3), SeriesRef((Path("/a"), Path("/b\udcff")), 2)]
)
def test_every_source_travels(source: Source) -> None:
    bulk = exchange.Bulk()
    assert exchange.source_of(json.loads(json.dumps(exchange.question(source, bulk))), bulk) == source
    bulk.close()


def test_refusals_are_the_same_as_in_process(tmp_path: Path) -> None:
    whole = (sources(tmp_path), (tmp_path / "i2.nii.gz").read_bytes())[1]
    limits = Limits(max_pixels=4000, max_voxels=10_000, max_decompressed_bytes=60_000, max_file_bytes=50_000)
    bad: list[Source] = [
        whole[:-20],
        whole[:-8] + b"xxxx" + whole[-4:],
        whole + b"junk",
        gzip.compress(b"no image"),
        b"",
        b"GIF89a",
        png()[:-30],
        png(100),
        bytes(60_000),
        tmp_path / "gone.png",
        ArrayRef(tmp_path / "rows.npz", "images", 7),
        ArrayRef(tmp_path / "rows.npz", "labels", 0),
    ]
    with Decoder(limits=limits) as one:
        pid = one.worker_pid
        for source in bad:
            mine, theirs = refusal(one, source), refusal(None, source, limits)
            assert (mine.code, mine.detail, mine.hint) == (theirs.code, theirs.detail, theirs.hint)
        assert one.worker_pid == pid, "a refusal is no failure of the worker"


def test_the_image_is_the_callers_own(decoder: Decoder, tmp_path: Path) -> None:
    voxels = DRAW.integers(0, 99, (40, 50, 60)).astype("i2")
    write_nifti(tmp_path / "a.nii", voxels, AFFINE)
    one, other = decoder.read(tmp_path / "a.nii").image, decoder.read(tmp_path / "a.nii").image
    one[:] = 7
    np.testing.assert_array_equal(other[0], voxels)
    assert (one == 7).all()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ctypes; ctypes.string_at(0)", "decoder_crashed"),
        ("import os; os.abort()", "decoder_crashed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "decoder_crashed"),
        ("import os; os._exit(0)", "decoder_crashed"),
        ("raise KeyError('a name of a patient')", "decoder_crashed"),
        ("while True: pass", "decoder_timeout"),
        ("kept = bytes(600 << 20)", "too_large_decompressed"),
        ("import numpy; numpy.ones(600 << 20, 'u1')", "too_large_decompressed"),
    ],
)
def test_what_ends_the_worker_costs_one_file(hijacked: Decoder, code: str, expected: str) -> None:
    started = time.monotonic()
    error = refusal(hijacked, evil(code))
    assert error.code == expected
    assert "patient" not in str(error)
    assert time.monotonic() - started < 15
    assert_works(hijacked)


def test_memory_within_the_limit_is_not_refused(hijacked: Decoder) -> None:
    for _ in range(5):
        assert refusal(hijacked, evil("kept = bytes(150 << 20)")).code == "unsupported_type"


def test_cpu_time_is_counted_per_file(hijacked: Decoder) -> None:
    for _ in range(4):
        code = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < 0.5: pass"
        assert refusal(hijacked, evil(code)).code == "unsupported_type"


def test_a_worker_that_hangs_is_replaced_at_the_deadline() -> None:
    with Decoder(deadline_s=0.3) as one:
        assert_works(one)
        pid = one.worker_pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert refusal(one, png()).code == "decoder_timeout"
        assert time.monotonic() - started < 1.5
        assert not Path(f"/proc/{pid}").exists(), "neither a process nor a zombie is left"


def test_a_worker_that_ended_between_files_costs_none() -> None:
    with Decoder() as one:
        assert_works(one)
        end_worker(one, signal.SIGSEGV)
        assert_works(one)


def test_a_bomb_under_raised_limits_meets_the_memory_limit(tmp_path: Path) -> None:
    write_nifti(tmp_path / "bomb.nii.gz", np.zeros((512, 512, 256), "i2"), np.eye(4))
    raised = Limits(max_decompressed_bytes=1 << 40, max_voxels=1 << 40)
    for memory_bytes, expected in ((50 << 20, "too_large_decompressed"), (500 << 20, None)):
        with Decoder(memory_bytes, limits=raised) as one:
            if expected:
                assert refusal(one, tmp_path / "bomb.nii.gz").code == expected
                assert_works(one)
            else:
                assert one.read(tmp_path / "bomb.nii.gz").image.size == 512 * 512 * 256


FORGED = """
import os, socket, sys, time
from medray.imaging.isolation import exchange
link, file = socket.socket(fileno=int(sys.argv[-3])), int(sys.argv[-2])
words = {"shape": [1, 2, 4], "dtype": "uint8", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
         "words": ["a", "px", "OT", ""], "attributes": {}, "warnings": []}
os.pwrite(file, bytes(range(100)), 0)
"""


@pytest.mark.parametrize(
    "code",
    [
        "link.sendall(b'junk that is no frame')",
        "link.sendall(bytes([0, 0, 0, 9]) + b'{'); os._exit(0)",
        "link.sendall(bytes([0, 0, 0, 4]) + b'null')",
        "link.sendall(bytes([0, 0, 195, 80]) + b'[' * 50000)",
        "exchange.send(link, {})",
        "exchange.send(link, {'refused': [1, 2, 3]})",
        "exchange.send(link, {**words, 'shape': [1, 2, 1 << 14]})",
        "os.truncate(file, 1 << 40); exchange.send(link, {**words, 'shape': [1, 2, 1 << 38]})",
        "exchange.send(link, {**words, 'shape': [-1, -2, 4]})",
        "exchange.send(link, {**words, 'shape': [1, 8]})",
        "exchange.send(link, {**words, 'shape': 8})",
        "exchange.send(link, {**words, 'dtype': 'O'})",
        "exchange.send(link, {**words, 'dtype': ['uint8']})",
        "exchange.send(link, {**words, 'affine': [[float('nan')] * 4] * 4})",
        "exchange.send(link, {**words, 'warnings': [{}]})",
        "exchange.send(link, {**words, 'attributes': 7})",
        "exchange.send(link, {**words, 'words': ['a', 'inch', 'OT', '']})",
    ],
)
def test_a_forged_answer_is_refused(hijacked: Decoder, code: str) -> None:
    raised = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))"
    error = refusal(hijacked, evil(f"{FORGED}{raised}\n{code}\ntime.sleep(30)"))
    assert (error.code, error.detail) == ("decoder_crashed", "the decoder broke down over this file")
    assert_works(hijacked)


def test_a_truthful_forgery_passes_and_its_memory_cannot_be_cut_short(hijacked: Decoder) -> None:
    """So the refusals above are each for what is wrong in them."""
    code = """
try:
    os.truncate(file, 0)
except PermissionError:
    exchange.send(link, words)
time.sleep(30)
"""
    case = hijacked.read(evil(FORGED + code))
    np.testing.assert_array_equal(case.image.ravel(), np.arange(8))
    hijacked._replace()


def test_shared_memory_is_given_back(decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "KEPT_BYTES", 1 << 20)
    voxels = DRAW.integers(0, 99, (128, 128, 128)).astype("i2")
    write_nifti(tmp_path / "a.nii", voxels, AFFINE)
    for source in (tmp_path / "a.nii", (tmp_path / "a.nii").read_bytes(), bytes(4 << 20)):
        if source == bytes(4 << 20):
            refusal(decoder, source)
        else:
            np.testing.assert_array_equal(decoder.read(source).image[0], voxels)
        held = 512 * os.fstat(decoder._worker.bulk.file).st_blocks
        assert 0 < held <= 2 << 20


@pytest.mark.parametrize(
    "code",
    [
        "open({file!r}, 'w')",
        "open({file!r} + '.new', 'w')",
        "import os; os.remove({file!r})",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.kill(os.getppid(), 0)",
    ],
)
def test_the_worker_gave_up_its_rights(hijacked: Decoder, tmp_path: Path, code: str) -> None:
    if not hijacked_is_confined(hijacked):
        pytest.skip("this kernel has no Landlock of version 6")
    (tmp_path / "kept").write_text("kept")
    error = refusal(hijacked, evil(code.format(file=str(tmp_path / "kept"))))
    assert "PermissionError" in error.detail
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def hijacked_is_confined(decoder: Decoder) -> bool:
    import ctypes

    return decoder is not None and ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6


def test_the_worker_knows_no_keys_and_ignores_ctrl_c(hijacked: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRAY_SECRET", "1")
    hijacked._replace()
    refusal(hijacked, evil("import os; assert 'MEDRAY_SECRET' not in os.environ"))
    assert refusal(hijacked, evil("import os; assert 'MEDRAY_SECRET' in os.environ")).detail.endswith("AssertionError")
    pid = hijacked.worker_pid
    os.kill(pid, signal.SIGINT)
    assert_works(hijacked)
    assert hijacked.worker_pid == pid
    assert os.getpgid(pid) != os.getpgid(0)


def test_the_worker_of_a_png_stays_light(hijacked: Decoder) -> None:
    assert_works(hijacked)
    names = "'torch', 'nibabel', 'pydicom', 'scipy', 'pydantic', 'ray'"
    hijacked._replace()
    assert_works(hijacked)
    code = f"import sys; heavy = [name for name in ({names}) if name in sys.modules]; assert not heavy"
    assert refusal(hijacked, evil(code)).code == "unsupported_type"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:medray")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", DRAW.integers(0, 99, (128, 128, 64)).astype("i2"), AFFINE)
    content = png()
    gc.collect()
    before, maps, shared = open_files(), mapped(), sorted(Path("/dev/shm").iterdir())  # noqa: S108
    with Decoder() as one:
        pid = one.worker_pid

        def resident(process: str | int) -> int:
            return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()

        def many(count: int) -> None:
            for _ in range(count):
                one.read(tmp_path / "a.nii.gz")
                one.read(content)
                refusal(one, b"nonsense")

        many(10)
        gc.collect()
        files, own, theirs = open_files(), resident("self"), resident(pid)
        worker_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        many(70)
        gc.collect()
        assert open_files() == files
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == worker_files
        assert resident("self") - own < 8 << 20
        assert resident(pid) - theirs < 8 << 20
        kept = one.read(tmp_path / "a.nii.gz").image
        assert one.worker_pid == pid
        end_worker(one, signal.SIGKILL)
        assert_works(one)
        assert kept.any()
        pids = [pid, one.worker_pid]
    assert not [one for one in pids if Path(f"/proc/{one}").exists()]
    assert open_files() == before
    assert mapped() == maps
    assert sorted(Path("/dev/shm").iterdir()) == shared  # noqa: S108


def test_threads_share_a_decoder_and_it_ends_once(tmp_path: Path) -> None:
    images = [DRAW.integers(0, 255, (16, 16), np.uint8) for _ in range(20)]
    for index, image in enumerate(images):
        write_png(tmp_path / f"{index}.png", image)
    with Decoder() as one:
        with ThreadPoolExecutor(8) as pool:
            cases = list(pool.map(one.read, [tmp_path / f"{index}.png" for index in range(20)]))
        for case, image in zip(cases, images, strict=True):
            np.testing.assert_array_equal(case.image[0], image)
        # The thread that started a worker may end; the worker may not.
        thread = threading.Thread(target=one._replace)
        thread.start()
        thread.join()
        pid = one.worker_pid
        time.sleep(0.2)
        assert_works(one)
        assert one.worker_pid == pid
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.read(png())


def test_an_interrupted_read_does_not_answer_the_next(hijacked: Decoder) -> None:
    assert_works(hijacked)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            hijacked.read(evil("import time; time.sleep(1)"))
    finally:
        signal.signal(signal.SIGALRM, old)
    assert_works(hijacked)


def test_a_worker_that_cannot_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Decoder() as one, pytest.raises(RuntimeError, match="does not start"):
        one.read(png())


@pytest.mark.parametrize("busy", [False, True])
def test_the_worker_ends_with_its_parent(tmp_path: Path, busy: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    program = f"""
import sys, threading, time
sys.path.insert(0, {str(tmp_path)!r})
from medray.imaging.isolation.decoder import Decoder, _own, read_isolated
decoder = Decoder()
decoder.read({png()!r})
print(decoder.worker_pid, flush=True)
{'decoder.read(b"#evil" + bytes([10]) + b"import time; time.sleep(60)")' if busy else "time.sleep(60)"}
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = Path(f"/proc/{int(parent.stdout.readline())}")
        time.sleep(0.3)
        assert worker.exists()
        parent.kill()
    ended = time.monotonic() + 10
    while worker.exists() and "State:\tZ" not in (worker / "status").read_text() and time.monotonic() < ended:
        time.sleep(0.02)
    assert not worker.exists() or "State:\tZ" in (worker / "status").read_text()


def test_a_process_keeps_one_decoder_of_its_own(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    for _ in range(2):
        np.testing.assert_array_equal(read_isolated(tmp_path / "a.png").image, read(tmp_path / "a.png").image)
    first = _own(os.getpid())
    os.kill(first.worker_pid, signal.SIGSEGV)
    with pytest.raises(InputError):
        read_isolated(tmp_path / "gone.png")
    assert _own(os.getpid()) is first
    first.close()
    _own.cache_clear()
