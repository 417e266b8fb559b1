"""The networks there are; published weights by torchvision's own download, from a real HTTP server."""

import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result

from model.torchvision_loading import torchvision_models
from pipeline.backbones import Network, open_backbone, read_weights, reopen_backbone
from shards.errors import InputError, MismatchError, ResourceError

RESIZE = {"size": 256, "mode": "squash", "filter": "lanczos"}
NAME = "mobilenet_v2_tf2ptq-2d2ba5d1.pth"  # the name carries the file's hash, as torchvision's own do


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a server on 127.0.0.1 offers, where MobileNetV2's published weights are looked for."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    shutil.copy(data / "weights" / NAME, folder / NAME)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    published = torchvision_models().get_model_weights("mobilenet_v2")["IMAGENET1K_V1"]
    monkeypatch.setattr(published.value, "url", f"http://127.0.0.1:{server.server_port}/{NAME}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()
    server.server_close()


def fetch(tmp_path: Path) -> Network:
    network, _ = open_backbone(backbone="mobilenet_v2", weights="IMAGENET1K_V1", resize=RESIZE, kept=tmp_path / "kept", sample=lambda _: [])
    return network


def test_published_weights_are_downloaded_once_and_recorded_by_digest(mirror: Path, data: Path, tmp_path: Path) -> None:
    network = fetch(tmp_path)
    assert (network.weights, network.preprocessing.crop, network.preprocessing.mean) == ("IMAGENET1K_V1", 224, (0.485, 0.456, 0.406))
    (mirror / NAME).unlink()
    assert fetch(tmp_path) == network
    by_path, _ = open_backbone(
        backbone="mobilenet_v2", weights=str(data / "weights" / NAME), resize=RESIZE, kept=tmp_path / "kept", sample=lambda _: []
    )
    assert by_path.weights_sha256 == network.weights_sha256


def test_a_download_without_its_hash_is_refused_and_not_kept(mirror: Path, tmp_path: Path) -> None:
    whole = (mirror / NAME).read_bytes()
    (mirror / NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ResourceError, match=r"could not be downloaded.*invalid hash value"):
        fetch(tmp_path)
    (mirror / NAME).write_bytes(whole)
    assert fetch(tmp_path).weights == "IMAGENET1K_V1"


def test_a_missing_download_names_the_other_choices(mirror: Path, tmp_path: Path) -> None:
    (mirror / NAME).unlink()
    with pytest.raises(ResourceError, match=r"404.*--weights PATH.*--weights random"):
        fetch(tmp_path)


def test_a_run_finds_moved_weights_and_refuses_others(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    shutil.copy(data / "weights" / NAME, path)
    network, frozen = open_backbone(backbone="mobilenet_v2", weights=str(path), resize=RESIZE, kept=tmp_path / "kept", sample=lambda _: [])
    path.rename(tmp_path / "moved.pth")
    with pytest.raises(InputError, match=f"{network.weights_sha256}.*--weights PATH"):
        reopen_backbone(network, kept=tmp_path / "kept")
    again = reopen_backbone(network, kept=tmp_path / "kept", weights=str(tmp_path / "moved.pth"))
    image = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert torch.equal(again(image), frozen(image))
    state = read_weights(tmp_path / "moved.pth")
    state["classifier.1.bias"] += 1
    torch.save(state, path)
    with pytest.raises(MismatchError, match=network.weights_sha256):
        reopen_backbone(network, kept=tmp_path / "kept")


def test_backbones_lists_what_there_is(run_cli: Callable[..., Result]) -> None:
    result = run_cli("backbones", "resnet1")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["resnet101", "resnet152", "resnet18", "wide_resnet101_2"]
    assert lines[2].split() == ["resnet152", "2,048", "58.1", "M", "IMAGENET1K_V1,", "IMAGENET1K_V2"]
    assert lines[-1].startswith("Next: python cli.py cache-features")
