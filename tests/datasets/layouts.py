"""What the tests of several layouts share."""

import pytest

from medray.datasets.scan import scan
from medray.sections.base import DatasetSection
from medray.types import InputError


def refused(cfg: DatasetSection, code: str) -> str:
    """The message with which a layout is refused; fails where its code is another."""
    with pytest.raises(InputError) as caught:
        scan(cfg)
    assert caught.value.code == code
    return str(caught.value)
