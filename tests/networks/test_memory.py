"""The memory forecast against what a process really takes, and what is said when there is too little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medray.config import ConfigError, load_plugin
from medray.networks import memory
from medray.networks.memory import GB, Memory, available_bytes, forecast, require_memory
from medray.types import NetworkIO

STEP = """
import copy, ctypes, gc, json, sys
from pathlib import Path
import torch
from medray.config import load_plugin
from medray.networks.memory import forecast
from medray.types import NetworkIO
from torch.nn import functional

name, settings, io, batch, optimizer = json.loads(sys.argv[1])
io = NetworkIO(*io)
family = load_plugin("networks", name)
order = torch.channels_last_3d if io.spatial_dims == 3 else torch.channels_last

def resident(fact):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(fact))

with torch.device("meta"):
    network = family.build(family.Config(**settings), io)
    forecast(network, io, batch)  # imports what it needs
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS:")
network = family.build(family.Config(**settings), io).to(memory_format=order)
best = copy.deepcopy(network.state_dict())
kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
updates = kind(network.parameters(), lr=1e-9, **({} if optimizer == "adamw" else {"momentum": 0.9}))
for _ in range(2):
    answer = network(torch.randn(batch, io.in_channels, *io.size).contiguous(memory_format=order))
    loss = 0
    for head in answer if isinstance(answer, list) else [answer]:
        target = torch.zeros(len(head), *head.shape[2:], dtype=torch.int64)
        loss = loss + functional.cross_entropy(head, target)
        if io.dense:
            share = head.softmax(1)
            truth = torch.zeros_like(head).scatter_(1, target[:, None], 1.0)
            loss = loss + 1 - 2 * (share * truth).sum() / (share + truth).sum()
    loss.backward()
    updates.step()
    updates.zero_grad(set_to_none=True)
print(json.dumps([resident("VmHWM:") - before, forecast(network, io, batch, "fp32", optimizer).total]))
"""
UNET = {"filters": [16, 32, 64, 128], "strides": [[1], [2], [2], [2]], "deep_supervision": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "io", "batch", "optimizer"),
    [
        ("plain", {}, (1, (64, 64), 3, False), 256, "adamw"),
        ("plain", {}, (1, (32, 32, 32), 3, False), 36, "sgd"),
        ("resnet", {}, (3, (96, 96), 3, False), 32, "adamw"),
        ("resnet", {"stem": "small"}, (1, (28, 28, 28), 3, False), 2, "adamw"),
        ("dynunet", UNET, (1, (40, 56, 40), 3, True), 2, "sgd"),
        ("dynunet", UNET, (3, (192, 192), 2, True), 4, "adamw"),
    ],
)
def test_a_real_step_takes_what_was_foretold(
    name: str, settings: dict[str, object], io: tuple[object, ...], batch: int, optimizer: str
) -> None:
    """Resident memory of a process of its own, which rises to within a quarter of the forecast."""
    job = json.dumps([name, settings, io, batch, optimizer])
    done = subprocess.run([sys.executable, "-c", STEP, job], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    peak, foretold = json.loads(done.stdout)
    assert peak == pytest.approx(foretold, rel=0.25)


def build(name: str, io: NetworkIO, **settings: object) -> torch.nn.Module:
    family = load_plugin("networks", name)
    with torch.device("meta"):
        network: torch.nn.Module = family.build(family.Config(**settings), io)
    return network


def test_each_activation_counts_once() -> None:
    """conv -> batch norm -> ReLU in place -> pool: counted by hand, in floats, for one case."""
    io = NetworkIO(1, (16, 16), 3)
    network = build("plain", io, widths=[4])
    convolved = normalised = 4 * 16 * 16
    pooled, places = 4 * 8 * 8, 2 * 4 * 8 * 8
    image, mean, logits = 16 * 16, 4, 3
    smallest = 4 * (image + convolved + normalised + places)
    gradient = 4 * 3 * convolved
    found = forecast(network, io, 1).backward
    assert smallest < found <= smallest + gradient + 4 * (pooled + 4 * mean + 4 * logits) + 200


def test_it_grows_as_it_should() -> None:
    io = NetworkIO(1, (32, 32, 32), 3, dense=True)
    network = build("dynunet", io, filters=[8, 16, 32], strides=[[1], [2], [2]])
    learned = 4 * sum(parameter.numel() for parameter in network.parameters())
    one, two, four = (forecast(network, io, batch) for batch in (1, 2, 4))
    assert four.backward - two.backward == pytest.approx(2 * (two.backward - one.backward), rel=0.01)
    assert one.states == 2 * learned
    assert forecast(network, io, 1, optimizer="sgd").states == learned
    # The network and its best weights so far, and with an average of the weights that too.
    assert one.weights == 2 * learned
    assert forecast(network, io, 1, ema=True).weights == 3 * learned
    assert forecast(network, io, 1, device="cuda").weights == learned
    half = forecast(network, io, 4, precision="bf16").backward
    assert 0.45 * four.backward < half < 0.7 * four.backward


def test_frozen_weights_have_no_gradient() -> None:
    io = NetworkIO(1, (16, 16), 3)
    network = build("plain", io)
    for parameter in list(network.parameters())[:-2]:
        parameter.requires_grad_(False)
    learned = 4 * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert forecast(network, io, 1).states == 2 * learned


def test_the_network_is_as_before() -> None:
    io = NetworkIO(1, (16, 16), 3)
    network = load_plugin("networks", "plain").build(load_plugin("networks", "plain").Config(), io)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    forecast(network, io, 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


NEED = Memory(weights=GB, states=GB, backward=GB, runtime=0)


def test_too_little_is_an_error_that_says_what_to_do() -> None:
    require_memory(NEED, "cpu", available=4 * GB)
    with pytest.raises(ConfigError, match=r"needs 3\.30 GB .* cpu has 3\.00 GB free; lower train\.batch_size, window"):
        require_memory(NEED, "cpu", available=3 * GB)
    with pytest.raises(ConfigError, match=r"in each of 2 workers"):
        require_memory(NEED, "cpu", workers=2, available=4 * GB)
    with pytest.raises(ConfigError, match=r"cpu has"):
        require_memory(Memory(1 << 60, 0, 0, 0), "cpu")


def test_a_container_has_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_bytes("cpu") > 0
    limit, usage = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "CGROUPS", ((str(limit), str(usage)),))
    limit.write_text("max\n")
    usage.write_text("5\n")
    assert available_bytes("cpu") > 1000
    limit.write_text("1005\n")
    assert available_bytes("cpu") == 1000
    usage.write_text("2000\n")
    assert available_bytes("cpu") == 0
