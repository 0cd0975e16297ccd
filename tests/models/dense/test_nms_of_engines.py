"""The detections that an engine selects are those that the device half selects from its boxes and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.dense.nms import nms
from edgevit.models.dense.nms import IN_GRAPH
from edgevit.types import Array, OutputForm
from tests.models.dense.test_systems import small_model

pytestmark = pytest.mark.large
KEPT = 20
FORMS: tuple[OutputForm, ...] = ("boxes", "nms")
Bundles: TypeAlias = dict[tuple[OutputForm, str], Bundle]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """One RetinaNet on a small ShiftViT, for images of 64 x 64, in both forms and for both runtimes."""
    found: Bundles = {}
    for form in FORMS:
        model = small_model(
            "shiftvit_t_light_retinanet", img_size=(64, 64), stacked_convs=1, max_detections=KEPT, outputs=form
        )
        made = edgevit.export(model.module, fmt=("ort", "openvino"), verify=False, out=tmp_path_factory.mktemp(form))
        found |= {(form, bundle.manifest.runtime.fmt): bundle for bundle in made}
    return found


def run(bundle: Bundle, images: Array) -> dict[str, Array]:
    with edgevit.load(bundle) as engine:
        return {name: array[0] for name, array in engine.run({engine.inputs[0].name: images}).items()}


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_an_engine_selects_what_the_device_half_selects(fmt: str, bundles: Bundles) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    candidates, selected = (run(bundles[form, fmt], images) for form in FORMS)
    options = replace(IN_GRAPH, kept=KEPT)
    expected = nms(candidates["boxes"], candidates["scores"], options)
    best = nms(candidates["boxes"], candidates["scores"], replace(options, max_iou=1))
    count = int(selected["num"][0])
    assert len(set(expected.labels)) > 1
    assert not np.array_equal(expected.scores, best.scores), "nothing is suppressed"
    assert 3 < len(expected) == count
    np.testing.assert_allclose(selected["boxes"][:count], expected.boxes, atol=1e-3)
    np.testing.assert_allclose(selected["scores"][:count], expected.scores, atol=1e-5)
    np.testing.assert_array_equal(selected["labels"][:count], expected.labels)
    assert (selected["labels"][count:] == -1).all()
