"""Train the detector and the segmenter of shapes that come with edgevit, and write labeled pictures of shapes.

    python -m tests.tools.train_dense shiftvit_shapes_semfpn --epochs 4 --out edgevit/data    # minutes on one core
    python -m tests.tools.train_dense shiftvit_shapes_retinanet --out edgevit/data
    python -m tests.tools.train_dense --write DIR --pictures 200                   # for edgevit eval --data DIR

Training and the written pictures have different seeds: no picture is in both. The weights in the package are of
1200 pictures: 4 epochs of the segmenter, 5 of the detector, with torch 2.13; another run wrote the same bytes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevit.dense.masks import IGNORED
from edgevit.models.dense.anchors import MAX_LOG_SCALE
from edgevit.models.dense.retinanet import RetinaNet, by_anchor, level_anchors
from edgevit.models.dense.shapes import PREPROCESSING, SPECS
from tests.helpers.shapes import Scene, scene, write_shapes

TRAINING_SEED = 0
SIDE = PREPROCESSING.input_size[1]
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.4  # of an anchor with a shape; anchors between them are not trained
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
BOX_LOSS_WEIGHT = 2.0

Loss = Callable[[nn.Module, Tensor, Sequence[Scene]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long and how fast to train."""

    pictures: int
    epochs: int
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 0.02


def train(module: nn.Module, loss_of: Loss, scenes: Sequence[Scene], plan: Plan) -> None:
    """Train with AdamW and a one-cycle learning rate; print the mean loss of each epoch."""
    random = np.random.default_rng(TRAINING_SEED)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=plan.weight_decay)
    steps = len(scenes) // plan.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, epochs=plan.epochs, steps_per_epoch=steps, pct_start=0.1
    )
    module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # twice as fast on a CPU
    for epoch in range(plan.epochs):
        start, total = time.perf_counter(), 0.0
        order = random.permutation(len(scenes))
        for step in range(steps):
            chosen = [turned(scenes[index], random) for index in order[step * plan.batch : (step + 1) * plan.batch]]
            loss = loss_of(module, as_input([each.image for each in chosen]), chosen)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    module.eval()


def training_scene(index: int) -> Scene:
    """Return a picture with the padding that a photo of its shape gets; the padding has no class."""
    random = np.random.default_rng((TRAINING_SEED, index, 1))
    shorter = SIDE if random.random() < 0.3 else int(random.integers(SIDE * 6 // 10, SIDE))
    size = (SIDE, shorter) if random.random() < 0.5 else (shorter, SIDE)
    drawn = scene((TRAINING_SEED, index), size)
    mean = np.rint(np.multiply(PREPROCESSING.mean, 255)).astype(np.uint8)
    image = np.broadcast_to(mean, (SIDE, SIDE, 3)).copy()
    mask = np.full((SIDE, SIDE), IGNORED, np.uint8)
    image[: size[0], : size[1]], mask[: size[0], : size[1]] = drawn.image, drawn.mask
    return Scene(image, mask, drawn.boxes, drawn.labels)


def turned(drawn: Scene, random: np.random.Generator) -> Scene:
    """Return the square picture or its mirror image, turned by a multiple of 90 degrees."""
    image, mask, boxes = drawn.image, drawn.mask, drawn.boxes
    if random.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
        boxes = np.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], 1)
    for _ in range(random.integers(4)):  # x, y becomes y, SIDE - x
        image, mask = np.rot90(image), np.rot90(mask)
        boxes = np.stack([boxes[:, 1], SIDE - boxes[:, 2], boxes[:, 3], SIDE - boxes[:, 0]], 1)
    return Scene(image, mask, boxes, drawn.labels)


def as_input(images: Sequence[np.ndarray]) -> Tensor:
    """Return pictures (H, W, 3) uint8 as the input of the network."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def segmentation_loss(module: nn.Module, images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Return the cross entropy of all pixels, the logits resized to the picture."""
    masks = torch.from_numpy(np.stack([each.mask for each in scenes])).long()
    logits = F.interpolate(module(images)["logits"], scale_factor=4, mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, masks, ignore_index=IGNORED)


def detection_loss(module: nn.Module, images: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Return focal loss of the classes and L1 loss of the boxes, over the number of anchors on shapes."""
    assert isinstance(module, RetinaNet)
    maps = module(images)
    logits = torch.cat(by_anchor([each for name, each in maps.items() if "cls" in name], module.num_classes), 1)
    deltas = torch.cat(by_anchor([each for name, each in maps.items() if "reg" in name], 4), 1)
    anchors = torch.cat(level_anchors(module.img_size))
    targets = [assign(anchors, torch.from_numpy(each.boxes.copy()), torch.from_numpy(each.labels)) for each in scenes]
    labels, wanted = (torch.stack([each[part] for each in targets]) for part in (0, 1))
    trained, positive = labels != IGNORED, (labels >= 0) & (labels != IGNORED)
    one_hot = F.one_hot(labels.where(positive, 0), module.num_classes) * positive[..., None]
    class_loss = focal_loss(logits[trained], one_hot[trained].float())
    box_loss = F.smooth_l1_loss(deltas[positive], wanted[positive], beta=0.1, reduction="sum")
    return (class_loss + BOX_LOSS_WEIGHT * box_loss) / max(1, int(positive.sum()))


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss of RetinaNet's paper, summed."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    likeness = torch.exp(-entropy)  # probability of the right answer
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return (alpha * (1 - likeness) ** FOCAL_GAMMA * entropy).sum()


def assign(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each anchor's class (-1 for none, IGNORED for those not trained) and its deltas, (n,) and (n, 4).

    An anchor is on the shape that it overlaps most, if enough; each shape has at least the anchor that overlaps it
    most.
    """
    if not len(boxes):
        return torch.full((len(anchors),), -1), torch.zeros(len(anchors), 4)
    overlaps = ious(anchors, boxes)  # (n, shapes)
    best, shape = overlaps.max(1)
    for index in range(len(boxes)):
        closest = overlaps[:, index] >= overlaps[:, index].max() - 1e-6
        best, shape = best.masked_fill(closest, 1.0), shape.masked_fill(closest, index)
    found = labels[shape].masked_fill(best < POSITIVE_IOU, IGNORED).masked_fill(best < NEGATIVE_IOU, -1)
    return found, deltas_to(anchors, boxes[shape])


def deltas_to(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return the deltas that `anchors.decode` turns into the boxes."""
    sides, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    centers = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return torch.cat((centers / sides, (wanted / sides).log().clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)), 1)


def ious(one: Tensor, two: Tensor) -> Tensor:
    """Return the intersection over union of each pair of boxes, (n, 4) and (m, 4) -> (n, m)."""
    low, high = torch.maximum(one[:, None, :2], two[:, :2]), torch.minimum(one[:, None, 2:], two[:, 2:])
    both = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, two)]
    return both / (areas[0][:, None] + areas[1] - both)


def trained(name: str, plan: Plan) -> nn.Module:
    """Return a registered model of shapes, trained from random weights."""
    spec = next(each for each in SPECS if each.name == name)
    torch.manual_seed(TRAINING_SEED)
    detector = spec.task == "detection"
    module = spec.factory(img_size=(SIDE, SIDE), num_classes=spec.num_classes, outputs="raw" if detector else "logits")
    scenes = [training_scene(index) for index in range(plan.pictures)]
    train(module, detection_loss if detector else segmentation_loss, scenes, plan)
    return module


def main() -> None:
    """Train a model, or write labeled pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=[spec.name for spec in SPECS])
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder of the weights")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write labeled pictures there")
    parser.add_argument("--pictures", type=int, default=1200, help="number of pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures that are written; training has 0")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.write is not None:
        write_shapes(arguments.write, arguments.pictures, seed=arguments.seed)
    if arguments.model is not None:
        torch.set_num_threads(1)  # the sums of one thread are the same each time
        module = trained(arguments.model, Plan(pictures=arguments.pictures, epochs=arguments.epochs))
        tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, arguments.out / f"{arguments.model}.safetensors")


if __name__ == "__main__":
    main()
