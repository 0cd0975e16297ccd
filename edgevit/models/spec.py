"""Descriptions of registered models: ModelSpec before one is built, ModelInfo on the built module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from edgevit.images import Preprocessing
from edgevit.models.downloads import PublishedWeights
from edgevit.models.features import Backbone
from edgevit.types import OutputForm, Task

StateDict: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFigures:
    """Figures that the authors report: top-1 in percent on ImageNet-1k, parameters, MACs; None if not reported."""

    top1: float | None = None
    params_m: float | None = None
    macs_g: float | None = None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One registered model.

    `factory` is called with the keyword arguments `options` and `num_classes`; the user's options replace single ones.
    If the factory has an `img_size` parameter, the model is bound to that input size. Otherwise it accepts any size,
    and `img_size` only sets the size to export for.
    `convert_state_dict` turns an official state dict into one that loads strictly: it renames keys and drops buffers
    that the model computes itself. `weights_options` infers options from a state dict, for checkpoints of several
    generations of one architecture. `class_count` reads the number of classes from a state dict in which it is not the
    first axis of the last layer. `included_weights` names a checkpoint under edgevit/data; `published` says where
    the authors publish theirs. `backbone` turns the network into one that returns feature maps, and may have options of
    its own; `backbone_options` are options that the network needs for that.
    """

    name: str
    family: str
    factory: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_classes: int = 1000
    task: Task = "classification"
    classes: str | None = None  # class names of the logits: edgevit/data/<classes>_classes.tsv; None: see class_dataset
    paper: PaperFigures
    convert_state_dict: Callable[[StateDict], StateDict] | None = None
    weights_options: Callable[[StateDict], Mapping[str, Any]] | None = None
    class_count: Callable[[StateDict], int | None] | None = None
    backbone: Callable[..., Backbone] | None = None
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    included_weights: str | None = None
    published: PublishedWeights | None = None

    @property
    def class_dataset(self) -> str | None:
        """Name of the dataset whose classes the logits have: `classes`, or ImageNet for 1000 unnamed classes."""
        has_imagenets = self.task == "classification" and self.num_classes == 1000
        return self.classes or ("imagenet" if has_imagenets else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Description that `create_model` sets on the module it returns (`module.model_info`); an export reads it."""

    name: str
    family: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    num_classes: int | None  # None for feature maps
    classes: str | None
    weights: str  # "random", "random (seed 0)", or the file or address they were read from
    weights_key: str | None = None  # container in the checkpoint, such as "model_ema"; None at the top level
    weights_tensors: int = 0
    weights_sha256: str | None = None
    task: Task = "classification"
    output_form: OutputForm = "logits"
