"""Find objects and segment photos with a bundle, in the photos' own pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import open_engine
from edgevit.bundles.predict import image_files, run_one
from edgevit.dense.nms import DEFAULT_NMS, Detections, NmsOptions
from edgevit.dense.outputs import detections, segmentation
from edgevit.errors import UsageError
from edgevit.images import OnSkip, Preprocessing, each_readable, to_array
from edgevit.runtimes.base import BuildOptions
from edgevit.types import Array, OutputForm, RunnableEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseModel:
    """An open detector or segmentation model, and how its inputs and outputs are to be read."""

    engine: RunnableEngine
    options: BuildOptions
    preprocessing: Preprocessing
    form: OutputForm

    def detect(self, photo: Image.Image, options: NmsOptions = DEFAULT_NMS) -> Detections:
        """Return the objects in a photo."""
        return detections(self._run(photo), self.form, self.preprocessing.place(photo), options)

    def segment(self, photo: Image.Image) -> Array:
        """Return the class of each pixel of a photo, (H, W)."""
        return segmentation(self._run(photo), self.form, self.preprocessing.place(photo))

    def _run(self, photo: Image.Image) -> dict[str, Array]:
        return run_one(self.engine, to_array(photo, self.preprocessing)[None], self.options)


Work: TypeAlias = Callable[[DenseModel, Path, Image.Image], None]  # for the photo at a path


def dense_model(bundle: Bundle, engine: RunnableEngine) -> DenseModel:
    """Return the model of a bundle whose engine is open. Raises UsageError if its photos are cropped."""
    preprocessing = bundle.preprocessing
    if preprocessing.resize == "crop":
        raise UsageError(
            f"{bundle.name} crops its photos, so that boxes and masks cannot be mapped back; "
            "export it again with --resize-mode fit, stretch or shorter_side"
        )
    record = bundle.manifest.model
    return DenseModel(engine=engine, options=bundle.options, preprocessing=preprocessing, form=record.output_form)


def each_photo(
    bundle: Bundle,
    images: Sequence[Path],
    work: Work,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    on_skip: OnSkip | None = None,
) -> int:
    """Call `work` with the open model and each photo, one after the other, and return the number of photos read.

    A folder in `images` means all images below it. Photos that cannot be read are left out and reported to `on_skip`.
    Raises ImageError if there is no `on_skip` for them, or if none can be read.
    """
    paths = image_files(images)
    done = 0
    with open_engine(bundle, threads=threads, cache_dir=cache_dir) as engine:
        model = dense_model(bundle, engine)
        for path, photo in each_readable(paths, on_skip):
            work(model, path, photo)
            done += 1
    return done
