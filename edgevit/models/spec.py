"""What is known of a model before it is built: its name, its configuration, its input and its paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from edgevit.images import Preprocessing
from edgevit.models.downloads import PublishedWeights

StateDict: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFigures:
    """What the authors report. Accuracy in percent on ImageNet-1k; None where they give no figure."""

    top1: float | None = None
    params_m: float | None = None
    macs_g: float | None = None
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One registered model.

    `factory` takes the keyword options of `options`, and `num_classes`; options that the user gives replace them.
    Where the factory has an `img_size` parameter the model is bound to one input size and is told it; where it has
    none, the model takes any size, and `img_size` only says what the export is made for.
    `adapt` turns an official state dict into one that the model loads strictly: it renames keys and drops buffers
    that the model computes for itself. `weights_options` reads configuration off a state dict (several generations
    of a checkpoint can exist under one name). `included_weights` names a checkpoint under edgevit/data, `published`
    says where the authors' own lies.
    """

    name: str
    family: str
    factory: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_classes: int = 1000
    classes: str = "imagenet"  # whose class names the logits carry: a file edgevit/data/<classes>_classes.tsv
    paper: PaperFigures
    adapt: Callable[[StateDict], StateDict] | None = None
    weights_options: Callable[[StateDict], Mapping[str, Any]] | None = None
    included_weights: str | None = None
    published: PublishedWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What `create_model` writes on the module it made (`module.card`), so that an export knows what it exports."""

    name: str
    family: str
    options: Mapping[str, Any]
    preprocessing: Preprocessing
    num_classes: int
    classes: str | None
    weights: str  # "random", or where they came from
    weights_sha256: str | None
