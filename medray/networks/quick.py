"""torchvision without torch's compiler, whose import takes ten times as long as all the rest of it (torchvision 0.29).

One of its modules imports one function of `torch._dynamo`; it gets one that imports the compiler when it is called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

COMPILER, PART = "torch._dynamo", "torch._dynamo.utils"


def _is_compile_supported(device: Any) -> bool:
    """The compiler's own answer."""
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))


def import_torchvision() -> None:
    """Import it so; a torchvision that wants more of the compiler gets all of it."""
    if "torchvision" in sys.modules or COMPILER in sys.modules:
        return
    compiler, part = ModuleType(COMPILER), ModuleType(PART)
    compiler.__path__ = []
    vars(part)["is_compile_supported"] = _is_compile_supported
    sys.modules |= {COMPILER: compiler, PART: part}
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in (COMPILER, PART):
            sys.modules.pop(name, None)
