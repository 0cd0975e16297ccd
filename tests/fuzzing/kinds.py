"""The kinds of attempts: each prepares random damage to one of the things that edgevit reads."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from tests.fuzzing.mutations import (
    INTEGERS,
    TEXTS,
    damage_message,
    damaged_bytes,
    damaged_json,
    damaged_text,
    hostile_value,
)
from tests.fuzzing.sandbox import Attempt
from tests.fuzzing.tiny_bundle import CLASSES, SIDE, TINY_MODEL, repair_hash, write_tiny_bundle

PHOTO = "edgevit-photo.png"
_BUILD = ["build", "bundle", "--no-latency"]
_OUT = frozenset({"bundle", "out", "result.json"})
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """The undamaged files, kept in memory: the tiny bundle, and ONNX graphs with unusual features."""

    bundle: Mapping[str, bytes]
    graphs: Sequence[bytes]
    photo: Image.Image

    @classmethod
    def make(cls, folder: Path) -> Samples:
        write_tiny_bundle(folder / "bundle")
        bundle = {path.name: path.read_bytes() for path in (folder / "bundle").iterdir()}
        noise = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
        return cls(bundle, [bundle["model.onnx"], *_graphs()], Image.fromarray(noise))

    def write_bundle(self, folder: Path) -> Path:
        bundle = folder / "bundle"
        bundle.mkdir()
        for name, content in self.bundle.items():
            (bundle / name).write_bytes(content)
        return bundle

    @cached_property
    def png(self) -> bytes:
        return _encoded(self.photo, "PNG")

    @cached_property
    def manifest(self) -> Json:
        content: Json = json.loads(self.bundle["manifest.json"])
        return content


def _graphs() -> list[bytes]:
    """ONNX files with a function, a subgraph, external data, and the operators of vision transformers."""
    import onnx

    texts = [
        """<ir_version: 10, opset_import: ["" : 17, "own" : 1]>
        calls (float[1, 4] x) => (float[1, 4] y) { z = own.twice(x) y = own.twice(z) }
        <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""",
        """<ir_version: 10, opset_import: ["" : 17]>
        branch (bool c, float[1, 4] x) => (float[1, 4] y) {
            y = If(c) <then_branch = yes () => (float[1, 4] p) { p = Relu(x) },
                       else_branch = no () => (float[1, 4] q) { q = Neg(x) }>
        }""",
        """<ir_version: 10, opset_import: ["" : 20]>
        mixed (float[1, 3, 16, 16] x) => (float[1, 4, 64] y)
        <int64[3] shape = {1, 4, -1}, int64[8] pads = {0, 0, 0, 0, 0, 1, 0, 0}, int64[1] start = {0},
         int64[1] end = {1}, int64[1] axis = {1}>
        {
            part = Slice(x, start, end, axis)
            padded = Pad(part, pads)
            flat = Reshape(part, shape)
            scores = MatMul(flat, turned)
            turned = Transpose <perm = [0, 2, 1]> (flat)
            p = Softmax <axis = -1> (scores)
            mixed = MatMul(p, flat)
            y = Gelu(mixed)
        }""",
    ]
    models = [onnx.parser.parse_model(text) for text in texts]
    nodes = models[2].graph.node
    nodes.sort(key=lambda node: node.output[0] not in ("part", "padded", "flat", "turned"))
    external = onnx.ModelProto()
    external.CopyFrom(models[1])
    external.graph.initializer.append(
        onnx.TensorProto(
            name="w",
            dims=[4, 4],
            data_type=onnx.TensorProto.FLOAT,
            data_location=onnx.TensorProto.EXTERNAL,
            external_data=[
                onnx.StringStringEntryProto(key=key, value=value)
                for key, value in {"location": "weights.bin", "offset": "0", "length": "64"}.items()
            ],
        )
    )
    return [model.SerializeToString() for model in [*models, external]]


Prepare: TypeAlias = Callable[[Random, Path, Samples], Attempt]

# Manifest


def _commands(random: Random) -> list[str]:
    """Return a command that reads a bundle."""
    return random.choice(
        [
            ["verify", "bundle"],
            ["verify", "bundle", "--json", "result.json"],
            ["run", "bundle", PHOTO],
            ["run", "bundle", PHOTO, "--top", "2"],
            _BUILD,
            [*_BUILD, "--fmt", "onnx"],
            ["lint", "bundle", "--target", "trt"],
            ["plan", "bundle"],
            ["eval", "bundle", "--data", "data"],
            ["latency", "bundle", "--baseline", "missing.json"],
        ]
    )


def _prepared(folder: Path, samples: Samples) -> Path:
    """Write the bundle, a photo and a labeled folder; return the bundle."""
    (folder / PHOTO).write_bytes(samples.png)
    for name in CLASSES[:2]:
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "a.png").write_bytes(samples.png)
    return samples.write_bundle(folder)


def manifest(random: Random, folder: Path, samples: Samples) -> Attempt:
    path = _prepared(folder, samples) / "manifest.json"
    way = random.random()
    if way < 0.75:
        content = json.dumps(damaged_json(samples.manifest, random)).encode("utf-8", "surrogatepass")
    elif way < 0.95:
        content = damaged_bytes(samples.bundle["manifest.json"], random)
    else:
        deep = random.choice([100, 5000, 100_000])
        content = random.choice([b"[" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"1" * deep, b'"' + b"x" * deep])
    path.write_bytes(content)
    others = frozenset({place.name for place in folder.iterdir() if place.name != "data"} | {"tiny-fp32-onnx"})
    return Attempt(target=_commands(random), may_leave=_OUT | others | _named_bundles(content))


def _named_bundles(content: bytes) -> frozenset[str]:
    """Names of the bundles that `build --fmt` writes: the manifest names the model."""
    try:
        name = json.loads(content)["model"]["name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return frozenset()
    return frozenset({f"{name}-fp32-onnx"})


# reference.npz


def reference(random: Random, folder: Path, samples: Samples) -> Attempt:
    bundle = _prepared(folder, samples)
    content = samples.bundle["reference.npz"]
    content = _odd_npz(random) if random.random() < 0.5 else damaged_bytes(content, random)
    (bundle / "reference.npz").write_bytes(content)
    repaired = random.random() < 0.9
    if repaired:
        repair_hash(bundle, "reference.npz")
    command = random.choice([["verify", "bundle"], _BUILD, [*_BUILD, "--fmt", "onnx"]])
    return Attempt(target=command, must_fail=not repaired, may_leave=_OUT | {"tiny-fp32-onnx"})


def _odd_npz(random: Random) -> bytes:
    """An archive of arrays with odd keys, types, shapes, headers and compression."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", random.choice([0, 8, 8, 12, 14])) as archive:
        for key in random.sample(
            [
                "noise/input/image",
                "noise/output/logits",
                "noise/output/",
                "noise",
                "/",
                "photos/input/image",
                "a" * 9000,
            ]
            + [f"noise/{text}/{text}" for text in TEXTS[:8]],
            random.choice([1, 2, 2, 3, 5]),
        ):
            archive.writestr(f"{key}.npy", _odd_array(random, key))
    content = file.getvalue()
    if random.random() < 0.3:  # lies in the headers of members
        content = damaged_bytes(content, random)
    if random.random() < 0.1:
        content = content.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0")  # encrypted
    return content


def _odd_array(random: Random, key: str) -> bytes:
    if random.random() < 0.1:
        return random.choice(
            [b"", b"\x93NUMPY", pickle.dumps({"a": 1}), damaged_bytes(b"\x93NUMPY\x01\0v\0" * 9, random)]
        )
    shape: Any = (2, 3, SIDE, SIDE) if "input" in key else (2, 4)
    if random.random() < 0.5:
        shape = random.choice([(), (0,), (0, 4), (2,), (2, 0), (1, 4), (3, 3, SIDE, SIDE), (2,) * 20, (1, 1, 1, 1)])
    dtype = random.choice(["f4", "f4", "f4", "f8", "f2", "i8", "u1", "?", "c8", "S3", "U2", "M8[s]", "V4", "O", ">f4"])
    array = np.zeros(shape, dtype)
    if dtype in ("f4", "f8") and random.random() < 0.5:
        array += random.choice([np.nan, np.inf, -np.inf, 1e30, 1.0])
    output = io.BytesIO()
    np.lib.format.write_array(output, array, allow_pickle=True)
    content = output.getvalue()
    if random.random() < 0.3:  # a header that lies about the shape
        lie = random.choice(
            [b"(2**60,)", b"(9999999,)", b"(-1,)", b"((2,),)", b"([2],)", b"(True,)", b"('a',)", b"None"]
        )
        start = content.find(b"'shape': ") + 9
        content = content[:start] + lie + content[start + len(lie) :]
    return content


# classes.txt


def classes(random: Random, folder: Path, samples: Samples) -> Attempt:
    bundle = _prepared(folder, samples)
    text = samples.bundle["classes.txt"].decode()
    content = damaged_text(text, random)
    if random.random() < 0.02:
        content = b"x" * (17 << 20)
    (bundle / "classes.txt").write_bytes(content)
    repaired = random.random() < 0.9
    if repaired:
        repair_hash(bundle, "classes.txt")
    command = random.choice([["run", "bundle", PHOTO], ["eval", "bundle", "--data", "data"]])
    changed = content != samples.bundle["classes.txt"]
    return Attempt(target=command, must_fail=changed and not repaired, may_leave=_OUT)


# model.onnx


def damaged_onnx(random: Random, samples: Samples) -> bytes:
    """A damaged ONNX file: as bytes, or field by field."""
    import onnx

    content = random.choice(samples.graphs)
    if random.random() < 0.25:
        return damaged_bytes(content, random)
    model = onnx.load_model_from_string(content)
    names = [value for node in model.graph.node for value in (*node.input, *node.output)]
    operators = random.choices(_OPERATORS, k=3)
    with contextlib.suppress(UnicodeError, ValueError):  # the damage is nothing that protobuf can write
        damage_message(model, random, words=(*names[:20], *operators, "own", "com.microsoft", "axis", "weights.bin"))
        return bytes(model.SerializeToString())
    return damaged_bytes(content, random)


_OPERATORS = (
    "Add", "Conv", "Gather", "Reshape", "Slice", "Pad", "Loop", "Scan", "If", "Resize", "Constant", "ConstantOfShape",
    "Expand", "Range", "Tile", "TopK", "NonZero", "Einsum", "GridSample", "DequantizeLinear", "QuantizeLinear",
    "LayerNormalization", "GroupNormalization", "BatchNormalization", "Concat", "Split", "Shape", "Cast", "Squeeze",
    "SequenceConstruct", "Optional", "StringNormalizer", "Attention", "RMSNormalization", "nothing", "",
)  # fmt: skip


def lint(random: Random, folder: Path, samples: Samples) -> Attempt:
    (folder / "model.onnx").write_bytes(damaged_onnx(random, samples))
    if random.random() < 0.03:
        _odd_file(random, folder, "model.onnx")
    if random.random() < 0.9:
        (folder / "weights.bin").write_bytes(bytes(64))
    elif random.random() < 0.5:
        (folder / "weights.bin").symlink_to("/dev/zero")
    target = random.choice(["trt", "trt:8.5", "trt-rtx", "openvino", "ort", "onnx"])
    command = ["lint", "model.onnx", "--target", target] if random.random() < 0.9 else ["plan", "model.onnx"]
    return Attempt(target=command)


def build(random: Random, folder: Path, samples: Samples) -> Attempt:
    bundle = _prepared(folder, samples)
    content = damaged_onnx(random, samples)
    (bundle / "model.onnx").write_bytes(content)
    repaired = random.random() < 0.9
    if repaired:
        repair_hash(bundle, "model.onnx")
    changed = content != samples.bundle["model.onnx"]
    command = random.choice(
        [
            _BUILD,
            [*_BUILD, "--fmt", "onnx"],
            ["verify", "bundle"],
            ["run", "bundle", PHOTO],
        ]
    )
    return Attempt(target=command, must_fail=changed and not repaired, may_leave=_OUT | {"tiny-fp32-onnx"})


def convert(random: Random, folder: Path, samples: Samples) -> Attempt:
    """OpenVINO's conversion, in a process of its own: about a second for each."""
    bundle = _prepared(folder, samples)
    (bundle / "model.onnx").write_bytes(damaged_onnx(random, samples))
    repair_hash(bundle, "model.onnx")
    command = [*_BUILD, "--fmt", "openvino"]
    return Attempt(target=command, may_leave=_OUT | {"tiny-fp32-openvino"}, limit_s=60)


# Baselines


def baseline(random: Random, folder: Path, samples: Samples) -> Attempt:
    from tests.helpers.samples import noisy, report

    del samples
    from edgevit.cli.console import Console
    from edgevit.latency.baseline import check_baseline, first_failure, read_baseline
    from edgevit.latency.compare import latency_json

    now = report(noisy(10, seed=1, runs=64), name="tiny")
    content = {"latency": latency_json([now])}
    if random.random() < 0.8:
        text = json.dumps(damaged_json(content, random)).encode("utf-8", "surrogatepass")
    else:
        text = damaged_bytes(json.dumps(content).encode(), random)
    if random.random() < 0.03:
        text = random.choice([b"[" * 100_000, b'{"latency":' * 5000, b'{"latency": [1]}', b"1" * 6000])
    path = folder / "baseline.json"
    path.write_bytes(text)

    def compare() -> int:
        checks = check_baseline([now], read_baseline(path, ["tiny"]), max_slowdown=0.1)
        sentences = [check.sentence for check in checks]
        sys.stdout.write(json.dumps([sentences, [check.to_json() for check in checks]], allow_nan=False))
        failure = first_failure(checks)
        return 0 if failure is None else Console().fail(failure)

    return Attempt(target=compare, note=repr(text[:200]))


# Images


def image(random: Random, folder: Path, samples: Samples) -> Attempt:
    samples.write_bundle(folder)
    names = [_write_image(random, folder, samples, number) for number in range(random.choice([1, 1, 2]))]
    command = ["run", "bundle", *names] + ["--strict"] * (random.random() < 0.3)
    return Attempt(target=command, note=str(names))


_ENCODERS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "SGI", "DDS", "MPO")


def _encoded(photo: Image.Image, encoder: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, encoder, **options)
    return file.getvalue()


def _write_image(random: Random, folder: Path, samples: Samples, number: int) -> str:
    suffix = random.choice(["png", "jpg", "gif", "tif", "webp", "bmp", "heic", "txt", "PNG"])
    path = folder / f"photo{number}.{suffix}"
    mode = random.choice(["RGB", "L", "RGBA", "P", "CMYK", "1", "I", "F", "I;16", "LA", "YCbCr", "LAB", "HSV"])
    photo = samples.photo
    try:
        photo = photo.convert(mode)
        content = _encoded(photo, random.choice(_ENCODERS))
    except (OSError, ValueError, KeyError):
        content = samples.png
    way = random.random()
    if way < 0.7:
        content = damaged_bytes(content, random)
    elif way < 0.8:
        content = _png_of_size(random)
    elif way < 0.85:
        content = b"P6 %d %d 255\n" % (random.choice(INTEGERS), random.choice(INTEGERS)) + bytes(300)
    elif way < 0.9:
        return _odd_file(random, folder, path.name)
    path.write_bytes(content)
    return path.name


def _png_of_size(random: Random) -> bytes:
    """A PNG of a few hundred bytes that claims any size."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    sizes = [0, 1, 16, 65_535, 65_536, 9000, 2**31 - 1]
    bits, color = random.choice([(8, 2), (1, 0), (16, 6), (8, 3), (16, 0), (3, 7)])
    header = struct.pack(
        ">IIBBBBB", random.choice(sizes), random.choice(sizes), bits, color, 0, 0, random.choice([0, 1])
    )
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22))) if random.random() < 0.2 else b""
    data = zlib.compress(bytes(random.choice([10, 1 << 16, 1 << 22])))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Checkpoints


def checkpoint(random: Random, folder: Path, samples: Samples) -> Attempt:
    _prepared(folder, samples)
    (folder / "tiny.py").write_text(TINY_MODEL)
    suffix = random.choice(["pt", "pth", "safetensors", "ckpt", "SAFETENSORS"])
    name = f"weights.{suffix}"
    way = random.random()
    if way < 0.1:
        name = _odd_file(random, folder, name)
    else:
        content = _checkpoint(random, safe=suffix.lower() == "safetensors")
        (folder / name).write_bytes(damaged_bytes(content, random) if way < 0.6 else content)
    if random.random() < 0.3:
        name += ":" + random.choice(["model", "ema", "state_dict", *TEXTS]).replace("\0", "0")
    model = random.choice(["tiny.py:build", "tiny.py:build", "shiftvit_cifar10"])
    command = ["verify", "bundle", "--images", "data", "--model", model, "--weights", name]
    return Attempt(target=command, limit_s=30)


def _checkpoint(random: Random, *, safe: bool) -> bytes:
    import torch
    from safetensors.torch import save

    tensors: dict[str, Any] = {
        "conv.weight": torch.zeros(8, 3, 4, 4),
        "head.weight": torch.zeros(4, 8),
        "head.bias": torch.zeros(4),
    }
    for key in list(tensors):
        if random.random() < 0.2:
            dtype = random.choice(
                [torch.float16, torch.int64, torch.bool, torch.complex64, torch.float64, torch.bfloat16]
            )
            shape = tensors[key].shape
            tensors[key] = random.choice(
                [
                    torch.zeros(shape, dtype=dtype),
                    torch.zeros(3, dtype=dtype),
                    torch.zeros(0),
                    torch.full(shape, float("nan")),
                    torch.zeros(()),
                ]
            )
    if random.random() < 0.3:
        tensors[random.choice(TEXTS)] = torch.zeros(2)
    if random.random() < 0.2:
        del tensors[random.choice(list(tensors))]
    if safe:
        return bytes(save(tensors))
    content: Any = tensors
    if random.random() < 0.2:
        content[random.choice(["head.bias", "other"])] = random.choice(
            [torch.zeros(4).to_sparse(), torch.zeros(4, device="meta"), 3, None, "text", [1], {}, {"a": torch.zeros(1)}]
        )
    for _ in range(random.choice([0, 0, 1, 2])):
        name: Any = random.choice(["model", "ema", "state_dict", "module", "x", 3])
        content = random.choice([{name: content}, {name: content, "epoch": 3}, [content], (content,)])
    if random.random() < 0.1:
        content = random.choice([None, 3, "text", [], {}, torch.zeros(3), _Runs(), {"model": _Runs()}])
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=random.random() < 0.7)
    return file.getvalue()


class _Runs:
    """An object whose unpickling leaves a file behind: the code must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("code-ran",))


# Labels and data folders


def labels(random: Random, folder: Path, samples: Samples) -> Attempt:
    _prepared(folder, samples)
    data = folder / "data"
    if random.random() < 0.7:
        shutil.rmtree(data)
        data.mkdir()
        for name in ("a.png", "b c.png"):
            (data / name).write_bytes(samples.png)
        text = random.choice(
            [
                "a.png cat\nb c.png 1\n",
                "path,label\na.png,0\nb c.png,dog\n",
                "# a\na.png\tfish\n",
                '"b c.png";3\na.png;2',
            ]
        )
        name = random.choice(["labels.txt", "labels.csv", "val.txt", "val.tsv"])
        if random.random() < 0.1:
            _odd_file(random, data, name)
        elif random.random() < 0.05:
            (data / name).write_bytes(random.choice([b"a.png 0\n" * 1_000_000, b"a" * (70 << 20), b"\0" * (1 << 20)]))
        else:
            (data / name).write_bytes(damaged_text(text, random))
    for _ in range(random.choice([0, 1, 2, 3])):
        name = random.choice(["cat", "dog", "7", "-1", "nobody", ".hidden", "x/y", "1", "a.png", "val.txt", "é" * 100])
        place = data / name
        if place.parent.is_dir() and not os.path.lexists(place):
            _odd_file(random, data, name) if random.random() < 0.5 else place.mkdir()
    limit = ["--limit", str(random.choice([*INTEGERS, 1, 2]))] if random.random() < 0.2 else []
    return Attempt(target=["eval", "bundle", "--data", "data", *limit])


# Layout


def _odd_file(random: Random, folder: Path, name: str) -> str:
    """Put something that is not a plain file at a name, and return the name."""
    path = folder / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    way = random.randint(0, 8)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.symlink_to(path.name)
    elif way == 2:
        devices = ["/dev/zero", "/dev/full", "/dev/null", "/dev/random", "/proc/self/mem", "/proc/kmsg"]
        path.symlink_to(random.choice(devices))
    elif way == 3:
        path.mkdir()
    elif way == 4:
        path.symlink_to("..")
    elif way == 5:
        path.symlink_to("nowhere")
    elif way == 6:
        with path.open("wb") as file:
            file.truncate(random.choice([0, 1 << 33, 1 << 45]))  # sparse
    elif way == 7 and len(name) < 50:  # the limit of a socket's address
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    else:
        path.symlink_to("/proc/self/fd/0")
    return name


def layout(random: Random, folder: Path, samples: Samples) -> Attempt:
    bundle = _prepared(folder, samples)
    choices = ["bundle", *(f"bundle/{name}" for name in samples.bundle), "data", "data/cat", PHOTO]
    note = []
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice(choices)
        if (folder / name).parent.is_dir():
            note.append(name)
            _odd_file(random, folder, name)
    if random.random() < 0.3:  # the remains of a killed process, or something that looks like them
        staging = folder / ".edgevit-x"
        staging.mkdir()
        for name in random.sample([".lock", "bundle.replaced", "bundle", "model.onnx", ".lock.part"], 2):
            _odd_file(random, staging, name)
        note.append(".edgevit-x")
    if random.random() < 0.2 and bundle.is_dir() and not bundle.is_symlink():
        _odd_file(random, bundle, random.choice(["extra", "é", "\udcff", "model.onnx.data", "latency.json"]))
    command = _commands(random)
    return Attempt(target=command, note=str(note), may_leave=_OUT | {"tiny-fp32-onnx", ".edgevit-x"})


# A full disk


def disk(random: Random, folder: Path, samples: Samples) -> Attempt:
    """No file may exceed a size: writing fails as on a full disk."""
    _prepared(folder, samples)
    limit = random.choice([2500, 3000, 4000, 5000, 7000])  # more than what is printed, less than the files
    command = random.choice([_BUILD, [*_BUILD, "--fmt", "onnx"], _commands(random)])
    may_leave = _OUT | {"tiny-fp32-onnx"}
    return Attempt(target=command, note=f"{limit} bytes", may_leave=may_leave, file_bytes=limit)


# Command lines

_WORDS = (
    "bundle", "bundle", "data", PHOTO, "tiny.py:build", "tiny.py:nothing", "tiny.py", "shiftvit_cifar1",
    "missing", "bundle/model.onnx", "bundle/manifest.json", "fifo", "loop", "/dev/null", "/dev/zero", "/dev/full",
    "/proc/self/mem", "ort", "onnx", "ort,onnx", "trt", "openvino", "x" * 300, "x/" * 3000, "a,b,c", ",", ":", "::",
    "1:2:4", "224", "224x320", "images=1,3,16,16", "=", "50%", "1e-320", "86,89", "official", "torch", "-", "\udcff",
    "$(touch code-ran)", "`touch code-ran`", "bash", "17", "20", "0.01",
)  # fmt: skip


def arguments(random: Random, folder: Path, samples: Samples) -> Attempt:
    _prepared(folder, samples)
    (folder / "tiny.py").write_text(TINY_MODEL)
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    from edgevit.cli.main import command_line
    from edgevit.cli.parser import subcommands

    words = _command_line(*random.choice(list(subcommands(command_line()))), random)
    if random.random() < 0.05:
        words.insert(random.randint(0, len(words)), random.choice(TEXTS))
    words = [word for word in words if "\0" not in word]
    if words[:1] != ["export"]:  # a pipe for --json waits for its reader, as pipes do
        words = ["missing" if word == "fifo" else word for word in words]
    written = frozenset(word.split("/")[0] for word in words if word)  # --json writes to any path
    return Attempt(target=words, may_leave=_OUT | written | {"tiny-fp32-onnx", "tiny-fp32-openvino"}, limit_s=60)


def _command_line(name: str, parser: argparse.ArgumentParser, random: Random) -> list[str]:
    """Return a command with its positional arguments, its required options and a few others."""
    words = [name]
    options = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "out")]
    for action in parser._actions:
        if random.random() < 0.03:
            continue
        if not action.option_strings:
            words += [_value(action, random) for _ in range(random.choice([1, 1, 1, 2]) if action.nargs else 1)]
        elif action.required:
            words += [random.choice(action.option_strings), _value(action, random)]
    for action in random.sample(options, min(len(options), random.choice([0, 1, 1, 2, 3]))):
        words.append(random.choice(action.option_strings))
        if action.nargs != 0 and random.random() < 0.97:
            words.append(_value(action, random))
    if name == "export":
        words += ["--out", random.choice(["out", "out/deep", "bundle", "fifo", PHOTO, "/dev/null"])]
    if name in ("export", "build") and "--latency-time" not in words:
        words.append("--no-latency")
    return words


def _value(action: argparse.Action, random: Random) -> str:
    """Return a value for an option: mostly of its kind, sometimes of another."""
    if action.choices and random.random() < 0.6:
        return str(random.choice(list(action.choices)))
    way = random.random()
    if action.type in (int, float) and way < 0.8:
        return str(random.choice([*INTEGERS, 0.5, 1e308, "nan", "inf", "-inf", "1e999", "1" * 5000, 1, 2]))
    if way < 0.8:
        return random.choice(_WORDS)
    if way < 0.9:
        return random.choice(TEXTS)
    return json.dumps(hostile_value(random))[:3000]


@dataclass(frozen=True)
class Kind:
    """A kind of attempt: how it is prepared, its share of all, and whether it needs PyTorch."""

    name: str
    prepare: Prepare
    weight: int
    needs_torch: bool = False


KINDS = (
    Kind("manifest", manifest, 2500),
    Kind("reference", reference, 1500),
    Kind("classes", classes, 600),
    Kind("lint", lint, 1800),
    Kind("build", build, 1000),
    Kind("convert", convert, 30),
    Kind("baseline", baseline, 1000),
    Kind("image", image, 800),
    Kind("labels", labels, 600),
    Kind("layout", layout, 700),
    Kind("disk", disk, 300),
    Kind("arguments", arguments, 500, needs_torch=True),
    Kind("checkpoint", checkpoint, 500, needs_torch=True),
)
