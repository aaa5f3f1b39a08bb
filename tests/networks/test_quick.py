"""torchvision is imported without torch's compiler, which comes when it is called for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from medray.networks.quick import import_torchvision
import_torchvision()
import torchvision.models
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
from torchvision.ops import roi_align
import torch
boxes = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
assert roi_align(torch.ones(1, 1, 4, 4), boxes, 2).shape == (1, 1, 2, 2)
import torch._dynamo
assert torch._dynamo.__file__ and callable(torch._dynamo.reset)
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False)
"""


def test_the_compiler_is_left_out_and_comes_when_it_is_called_for() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)


NETWORK = """
import sys
from medray.inference.features import Embedder
from medray.networks.build import build
from medray.networks.resnet import Config
from medray.types import NetworkIO
io = NetworkIO(1, (32, 32), 2)
Embedder(build(Config(), io, 0, known=True).network, io)
assert "torch._dynamo" not in sys.modules, "a served ResNet does without the compiler"
"""


def test_a_network_of_a_bundle_is_built_without_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", NETWORK], check=True, timeout=120)
