"""Arguments that name a model and its preprocessing, and the model that they give; of `export` and `tune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgevit.cli import argument_types
from edgevit.cli.parser import Arguments, Group, add_factory_arguments, add_input_shape
from edgevit.errors import UsageError
from edgevit.types import CROP_MODES, INTERPOLATIONS, OUTPUT_FORMS, PAD_SIDES, WHOLE_IMAGE_MODES

if TYPE_CHECKING:
    from edgevit.models.description import ModelDescription


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and the options that decide which module is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "model",
        metavar="MODEL",
        help="a registered name, timm:NAME, hf:NAME, package.module:factory, file.py:factory or FILE.onnx",
    )
    add_factory_arguments(group)
    group.add_argument(
        "--weights", metavar="FILE", help="a checkpoint file; the word official downloads the authors' checkpoint"
    )
    group.add_argument("--num-classes", type=int, metavar="N", help="number of classes (default: that of the model)")
    group.add_argument(
        "--outputs",
        choices=OUTPUT_FORMS,
        metavar="FORM",
        help="outputs of a registered model: logits or features of a classifier; boxes (default), nms, raw or features "
        "of a detector; logits (default), classes or features of a segmenter",
    )
    group.add_argument(
        "--img-size",
        type=argument_types.image_size,
        metavar="N|HxW",
        help="height and width of the input: 224, or 224x320",
    )
    add_input_shape(group, help_text="shape of one input of your own model, batch included; repeat it for each input")


def add_preprocessing_arguments(group: Group) -> None:
    """Add the options that replace what the model says of its preprocessing."""
    group.add_argument(
        "--mean",
        type=argument_types.channel_values,
        metavar="R,G,B",
        help="mean of the pixels, which are from 0 to 1",
    )
    group.add_argument(
        "--std", type=argument_types.channel_values, metavar="R,G,B", help="standard deviation of the pixels"
    )
    group.add_argument(
        "--input-range",
        type=argument_types.value_range,
        metavar="LOW:HIGH",
        help="values of a black and a white pixel, in which --mean and --std are: 0:255, or --input-range=-1:1",
    )
    group.add_argument("--resize", type=int, metavar="N", help="shorter side from which the input is cropped")
    group.add_argument("--crop-pct", type=float, metavar="P", help="side of the input over --resize, such as 0.875")
    group.add_argument("--crop-mode", choices=CROP_MODES, help="resize the shorter, both or the longer side")
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help="filter that resizes")
    group.add_argument(
        "--resize-mode",
        choices=WHOLE_IMAGE_MODES,
        help="show the whole image, for boxes and masks: as large as the input allows, as large as the input, or by "
        "--edges",
    )
    group.add_argument(
        "--edges",
        type=argument_types.edges,
        metavar="SHORTEST:LONGEST",
        help="edges of --resize-mode shorter_side, such as 800:1333",
    )
    group.add_argument(
        "--pad-color",
        type=argument_types.channel_values,
        metavar="R,G,B",
        help="color of the padding, in the units of --mean (default: the mean)",
    )
    group.add_argument("--pad-side", choices=PAD_SIDES, help="where the padding is (default: bottom_right)")
    group.add_argument(
        "--classes",
        type=argument_types.path,
        metavar="FILE",
        help="class names, one a line in the order of the logits",
    )


def load_model(arguments: Arguments) -> ModelDescription:
    """Load MODEL, with the preprocessing and the class names that the options set."""
    from edgevit.models.preprocessing import PreprocessingOptions
    from edgevit.pipeline.load_model import ModelOptions

    settings = PreprocessingOptions(
        mean=arguments.mean,
        std=arguments.std,
        input_range=arguments.input_range,
        resize=arguments.resize,
        crop_pct=arguments.crop_pct,
        crop_mode=arguments.crop_mode,
        interpolation=arguments.interpolation,
        resize_mode=arguments.resize_mode,
        edges=arguments.edges,
        pad_color=arguments.pad_color,
        pad_side=arguments.pad_side,
    )
    options = ModelOptions(
        weights=arguments.weights,
        num_classes=arguments.num_classes,
        img_size=arguments.img_size,
        batch=arguments.batch,
        input_shapes=dict(arguments.input_shape or ()),
        arguments=dict(arguments.arg),
        outputs=arguments.outputs,
        preprocessing=settings if settings.given else None,
        classes=arguments.classes,
    )
    return options.load(arguments.model, arguments.out)


def require_current_folder() -> None:
    """Raise UsageError if the current folder was deleted: PyTorch's libraries abort the process in that case."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder has been deleted; change to an existing one (cd)") from error
