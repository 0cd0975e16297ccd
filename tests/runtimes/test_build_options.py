"""Checks of build options that hold for every runtime."""

from __future__ import annotations

from typing import Any

import pytest

from edgevit.errors import UsageError
from edgevit.runtimes.base import MAX_BATCH, BatchRange, BuildOptions


@pytest.mark.parametrize("options", [{"batch": MAX_BATCH}, {"dynamic_batch": BatchRange(1, 8, MAX_BATCH)}])
def test_the_largest_batch_is_accepted(options: dict[str, Any]) -> None:
    assert max(BuildOptions(**options).batch_sizes) == MAX_BATCH


@pytest.mark.parametrize("options", [{"batch": MAX_BATCH + 1}, {"dynamic_batch": BatchRange(1, 8, MAX_BATCH + 1)}])
def test_a_batch_is_refused_if_no_manifest_could_be_read_with_it(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"at most {MAX_BATCH} images, not {MAX_BATCH + 1}"):
        BuildOptions(**options)
