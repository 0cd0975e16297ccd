"""Check that official weights are downloaded whole or not at all, and come from the cache the second time.

A server on 127.0.0.1 takes the place of the authors'.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import edgevit
from edgevit.cli import main as cli
from edgevit.errors import CheckpointError, MissingError, UsageError
from edgevit.models import registry
from edgevit.models.downloads import PublishedWeights, download

CONTENT = hashlib.shake_256(b"weights").digest(1_500_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "weights.pth"


@dataclass
class Site:
    """Content and status of the server's responses, and the number of requests."""

    content: bytes = CONTENT
    status: int = 200
    sent: int | None = None  # bytes after which the connection is cut
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def weights(self, sha256: str | None = None) -> PublishedWeights:
        return PublishedWeights(url=self.url, filename=NAME, sha256=sha256)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        site = self.server.site
        site.requests.append(self.path)
        self.send_response(site.status)
        self.send_header("Content-Length", str(len(site.content)))
        self.end_headers()
        self.wfile.write(site.content[: site.sent])

    def log_message(self, *_arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, site: Site) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = site


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with Server(site) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/{NAME}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield site
        server.shutdown()


def test_the_second_download_comes_from_the_cache(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        path = download(site.weights(DIGEST[:8]), cache=tmp_path / "cache")
        assert path.read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_a_cached_file_with_another_hash_is_downloaded_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"other")
    assert download(site.weights(DIGEST[:8]), cache=tmp_path).read_bytes() == CONTENT


def test_a_file_with_another_hash_is_refused(site: Site, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not the authors' file"):
        download(site.weights("0" * 8), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_connection_leaves_nothing(site: Site, tmp_path: Path) -> None:
    site.sent = 1000
    with pytest.raises(MissingError):
        download(site.weights(DIGEST[:8]), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server_is_one_line(status: int, site: Site, tmp_path: Path) -> None:
    site.status = status
    with pytest.raises(MissingError, match=rf"cannot download .*{status}.*--weights FILE"):
        download(site.weights(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_is_one_line(tmp_path: Path) -> None:
    weights = PublishedWeights(url="http://127.0.0.1:1/weights.pth", filename=NAME)
    with pytest.raises(MissingError, match=r"cannot download .*--weights FILE"):
        download(weights, cache=tmp_path)


def test_a_cache_that_cannot_be_created_is_one_line(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="EDGEVIT_CACHE"):
        download(site.weights(), cache=tmp_path / "file" / "cache")
    assert site.requests == []


@pytest.fixture
def tiny(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Makes shiftvit_t_light small, and its authors' file one on the server, with these parameters."""
    spec = registry.get_spec("shiftvit_t_light")
    small = dataclasses.replace(
        spec,
        options={**spec.options, "embed_dim": 24, "depths": (1, 1, 1, 1)},
        preprocessing=dataclasses.replace(spec.preprocessing, input_size=(3, 32, 32)),
        published=site.weights(),
    )
    monkeypatch.setitem(registry.specs(), small.name, small)
    monkeypatch.setenv("EDGEVIT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    state = edgevit.create_model(small.name).state_dict()
    file = io.BytesIO()
    torch.save({"model": state, "epoch": 299}, file)  # as the authors save it
    site.content = file.getvalue()
    return state


def test_official_weights_are_the_authors(tiny: dict[str, torch.Tensor], site: Site) -> None:
    module = edgevit.create_model("shiftvit_t_light", weights="official")
    loaded = module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in tiny.items())
    assert module.model_info.weights == site.url  # type: ignore[union-attr]
    assert module.model_info.weights_sha256 == hashlib.sha256(site.content).hexdigest()  # type: ignore[union-attr]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("content", [b"<html>Sign in</html>", None])
def test_a_download_that_is_not_a_checkpoint_is_deleted(content: bytes | None, site: Site, tmp_path: Path) -> None:
    if content is None:
        site.sent = len(site.content) // 2
    else:
        site.content = content
    with pytest.raises(MissingError, match=r"no checkpoint .* was deleted"):
        edgevit.create_model("shiftvit_t_light", weights="official")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_the_command_line_downloads_and_records_it_in_the_manifest(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "shiftvit_t_light", "--fmt", "onnx", "--weights", "official"]
    assert cli.main([*command, "--no-verify", "--no-latency", "--out", str(tmp_path)]) == 0
    manifest = json.loads((tmp_path / "shiftvit_t_light-fp32-onnx" / "manifest.json").read_text())
    assert manifest["model"]["weights"] == site.url
    assert manifest["model"]["weights_sha256"] == hashlib.sha256(site.content).hexdigest()
    captured = capsys.readouterr()
    assert "random" not in captured.out


@pytest.mark.usefixtures("tiny")
def test_nothing_is_downloaded_unless_requested(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called `official` is passed as ./official or as a Path."""
    monkeypatch.chdir(tmp_path)
    Path("official").write_bytes(b"mine")
    edgevit.create_model("shiftvit_t_light")
    for mine in ("./official", Path("official")):
        with pytest.raises(CheckpointError, match=r"not a plain checkpoint|damaged"):
            edgevit.create_model("shiftvit_t_light", mine)
        with pytest.raises(CheckpointError, match=r"not a plain checkpoint|damaged"):
            edgevit.export("shiftvit_t_light", weights=mine)
    assert cli.main(["export", "shiftvit_t_light", "--fmt", "onnx", "--weights", "./official"]) == 2
    assert site.requests == []


@pytest.mark.usefixtures("tiny")
def test_other_classes_are_refused_before_anything_is_downloaded(site: Site) -> None:
    with pytest.raises(UsageError, match="1000 classes, not 10"):
        edgevit.create_model("shiftvit_t_light", "official", 10)
    assert site.requests == []


NOT_DOWNLOADABLE = {
    "mobileformer_294m": r"on Google Drive.*AAboys/MobileFormer.*--weights mobile-former-294m\.pth\.tar$",
    "vitae_t": r"on Google Drive.*ViTAE-Transformer.*--weights ViTAE-T\.pth\.tar$",
    "vitae_b": r"on Google Drive.*ViTAE-Transformer.*--weights FILE$",
    "vitaev2_s": r"on OneDrive.*ViTAE-Transformer.*--weights FILE$",
    "vitae_13m": r"published no weights.*--weights FILE",
    "shuffle_swin_t": r"published no weights.*--weights FILE",
    "vt_resnet18": r"published no weights.*--weights FILE",
    "shiftvit_cifar10": r"comes with its weights; omit --weights",
    "mine.py:build": r"pass the weights of mine\.py:build as a file",
}


@pytest.mark.parametrize("name", NOT_DOWNLOADABLE)
def test_weights_without_an_address_say_where_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("from torch import nn\n\ndef build():\n    return nn.Identity()\n")
    assert cli.main(["export", name, "--fmt", "onnx", "--weights", "official"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(NOT_DOWNLOADABLE[name], lines[0])


def test_exactly_these_models_have_an_address() -> None:
    addresses = {name: spec.published for name, spec in registry.specs().items() if spec.published}
    downloadable = {name for name, weights in addresses.items() if weights.url}
    assert downloadable == {
        "shiftvit_t", "shiftvit_s", "shiftvit_t_light", "shiftvit_s_light",
        "deit_t", "t2t_vit_7", "t2t_vit_10", "t2t_vit_12", "swin_t",
    }  # fmt: skip
    for name in downloadable:
        weights = addresses[name]
        assert weights.url is not None
        assert weights.url.startswith("https://")
        assert weights.url.endswith(f"/{weights.filename}")
        assert (weights.sha256 or "") in weights.filename
    assert len({addresses[name].filename for name in downloadable}) == len(downloadable)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"url": "file:///etc/passwd", "filename": NAME},
        {"url": "https://host/weights.pth"},
        {"url": "https://host/weights.pth", "filename": "../weights.pth"},
    ],
)
def test_published_weights_need_a_web_address_and_a_file_name(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        PublishedWeights(**fields)
