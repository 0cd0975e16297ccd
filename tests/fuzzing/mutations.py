"""Random damage to bytes, text, JSON and protobuf messages. The same Random makes the same damage."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    30_000,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    10**30,
)
TEXTS = (
    "", " ", ".", "..", "/", "../../etc/passwd", "/dev/zero", "\0", "\n", "a" * 5000, "é" * 300, "\u202e", "\U0001f600",
    "-1", "--", "nan", "inf", "1e999", "0x10", "1_000", "²", "\uff19", "%s%n", "{}", "[red]", ":smile:",
    "a/b\\c", "b/evil.py:build",
)  # fmt: skip
_BLOCK_BYTES = 64


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Return other bytes: a few of them changed, removed, inserted, repeated or cut off."""
    if random.random() < 0.05:
        return random.choice([b"", b"\0", random.randbytes(100), content + content, content[::-1]])
    changed = content
    while changed == content:
        for _ in range(random.randint(1, 4)):
            changed = _damaged_once(changed, random)
    return changed


def _damaged_once(content: bytes, random: Random) -> bytes:
    start = random.randint(0, max(len(content) - 1, 0))
    end = start + random.choice([1, 1, 1, 2, 4, 8, random.randint(1, _BLOCK_BYTES)])
    block = content[start:end]
    replacement = random.choice(
        [
            random.randbytes(len(block)),
            bytes(byte ^ 1 << random.randint(0, 7) for byte in block),
            b"\xff" * len(block),
            b"\0" * len(block),
            b"",
            block + block,
            block + random.randbytes(random.randint(1, _BLOCK_BYTES)),
            block * 200,
        ]
    )
    if random.random() < 0.1:
        return content[:start]
    return content[:start] + replacement + content[end:]


def damaged_text(text: str, random: Random) -> bytes:
    """Return a text with lines removed, repeated, swapped or replaced, or in another encoding."""
    lines = text.splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.randint(0, len(lines))
        lines[place : place + 1] = random.choice(
            [
                [],
                lines[place : place + 1] * 2,
                [random.choice(TEXTS)],
                [random.choice(TEXTS), *lines[place:]],
                lines[::-1],
            ]
        )
    changed = "\n".join(lines)
    encodings: list[Callable[[str], bytes]] = [
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("latin-1", "replace") + b"\xe9\xff",
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: damaged_bytes(text.encode(), random),
    ]
    return changed.encode() if random.random() < 0.6 else random.choice(encodings)(changed)


def hostile_value(random: Random) -> Any:
    """Return a JSON value that a field hardly expects."""
    nested: Any = []
    for _ in range(random.choice([1, 5, 500])):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    choices: list[Callable[[], Any]] = [
        lambda: random.choice(INTEGERS),
        lambda: random.choice(TEXTS),
        lambda: random.choice([None, True, False, [], {}, [None], {"": None}]),
        lambda: random.choice([0.5, -0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf")]),
        lambda: [random.choice(INTEGERS) for _ in range(random.choice([1, 2, 3, 4, 1000]))],
        lambda: "\ud800" + random.choice(TEXTS),
        lambda: nested,
    ]
    return random.choice(choices)()


def damaged_json(content: Any, random: Random) -> Any:
    """Return a copy of a JSON value in which one to three places are replaced, removed, added or exchanged."""
    holder = [copy.deepcopy(content)]
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        places = list(_places(holder))
        container, key = random.choice(places)
        action = random.randint(0, 9)
        if action <= 5:
            container[key] = hostile_value(random)
        elif action == 6 and container is not holder:
            del container[key]
        elif action == 7:
            other, its_key = random.choice(places)
            container[key] = copy.deepcopy(other[its_key])
        elif isinstance(container[key], dict):
            container[key][random.choice(TEXTS)] = hostile_value(random)
        elif isinstance(container[key], list):
            container[key] = container[key] * random.choice([0, 2, 50])
    return holder[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container below a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def damage_message(message: Any, random: Random, *, words: tuple[str, ...] = ()) -> None:
    """Change one to three fields of a protobuf message or of messages below it. `words` are further strings to set."""
    for _ in range(random.choice([1, 1, 2, 3])):
        messages = [message, *_messages(message)]
        _damage_field(random.choice(messages), messages, random, words)


def _messages(message: Any) -> Iterator[Any]:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for each in value if _is_repeated(descriptor) else [value]:
            yield each
            yield from _messages(each)


def _damage_field(message: Any, messages: list[Any], random: Random, words: tuple[str, ...]) -> None:
    fields = list(message.DESCRIPTOR.fields)
    present = [descriptor for descriptor, _ in message.ListFields()]
    descriptor = random.choice(present) if present and random.random() < 0.8 else random.choice(fields)
    name = descriptor.name
    if not _is_repeated(descriptor):
        if random.random() < 0.15:
            message.ClearField(name)
        elif descriptor.message_type is not None:
            getattr(message, name).CopyFrom(_like(descriptor, messages, random))
        else:
            setattr(message, name, _scalar(descriptor, getattr(message, name), random, words))
        return
    values = getattr(message, name)
    place = random.randint(0, len(values))
    action = random.randint(0, 3)
    if action == 0 and values:
        del values[place % len(values)]
    elif action == 1:
        kept = list(values)
        random.shuffle(kept)
        del values[:]
        values.extend(kept)
    elif descriptor.message_type is not None:
        values.add().CopyFrom(_like(descriptor, messages, random))
    elif action == 2 and values:
        values[place % len(values)] = _scalar(descriptor, values[place % len(values)], random, words)
    else:
        values.append(_scalar(descriptor, None, random, words))


def _like(descriptor: Any, messages: list[Any], random: Random) -> Any:
    """Return a message for a field: a copy of one from elsewhere, or a new one."""
    known = [each for each in messages if each.DESCRIPTOR.full_name == descriptor.message_type.full_name]
    made = copy.deepcopy(random.choice(known)) if known else _new(descriptor)
    if random.random() < 0.3:
        _damage_field(made, [made], random, ())
    return made


def _new(descriptor: Any) -> Any:
    message_factory = importlib.import_module("google.protobuf.message_factory")  # without type stubs
    return message_factory.GetMessageClass(descriptor.message_type)()


def _scalar(descriptor: Any, value: Any, random: Random, words: tuple[str, ...]) -> Any:
    kind = descriptor.cpp_type
    if kind == descriptor.CPPTYPE_STRING and descriptor.type == descriptor.TYPE_BYTES:
        return damaged_bytes(value or b"abc", random)
    if kind == descriptor.CPPTYPE_STRING:
        return random.choice([*words, *words, *TEXTS])
    if kind == descriptor.CPPTYPE_ENUM:
        return random.choice([each.number for each in descriptor.enum_type.values])
    if kind in (descriptor.CPPTYPE_FLOAT, descriptor.CPPTYPE_DOUBLE):
        return random.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    bits = 31 if kind in (descriptor.CPPTYPE_INT32, descriptor.CPPTYPE_UINT32) else 63
    least = 0 if kind in (descriptor.CPPTYPE_UINT32, descriptor.CPPTYPE_UINT64) else -(2**bits)
    return random.choice([each for each in INTEGERS if least <= each < 2**bits])


def _is_repeated(descriptor: Any) -> bool:
    known = getattr(descriptor, "is_repeated", None)  # protobuf 6 and newer; `label` is gone in 7
    return bool(descriptor.label == descriptor.LABEL_REPEATED if known is None else known)
