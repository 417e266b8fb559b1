"""The networks there are; published weights by torchvision's own download, from a real HTTP server."""

import functools
import hashlib
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from model.networks import random_state
from model.torchvision_loading import torchvision_models
from pipeline.backbone.backbones import Network, open_backbone, reopen_backbone
from pipeline.backbone.weights_files import read_weights
from shards.errors import InputError, MismatchError, ResourceError
from tests.processes import run_python

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
    assert (network.weights, network.declared_preprocessing().crop, network.declared_preprocessing().mean) == (
        "IMAGENET1K_V1",
        224,
        (0.485, 0.456, 0.406),
    )
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
    with pytest.raises(ResourceError, match=r"404.*set `weights` to the path.*or to random"):
        fetch(tmp_path)


def test_a_run_finds_moved_weights_and_refuses_others(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    shutil.copy(data / "weights" / NAME, path)
    network, frozen = open_backbone(backbone="mobilenet_v2", weights=str(path), resize=RESIZE, kept=tmp_path / "kept", sample=lambda _: [])
    path.rename(tmp_path / "moved.pth")
    with pytest.raises(InputError, match=f"{network.weights_sha256}.*set `weights` to its new path"):
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


# timm: weights by the hub's own client, from a real HTTP server that answers as the hub does

HUB_FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
FETCH = """
import sys
from pathlib import Path
from pipeline.backbone.backbones import open_backbone
resize = {"size": 192, "mode": "squash", "filter": "lanczos"}
for weights in (None, *sys.argv[1:]):
    network, _ = open_backbone(backbone="timm:test_resnet", weights=weights, resize=resize, kept=Path("none"), sample=lambda _: [])
    print(network.weights, network.weights_sha256, network.preprocessing.crop)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    content = b""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if self.answer():
            self.wfile.write(self.content)

    def answer(self) -> bool:
        self.asked.append(f"{self.command} {self.path}")
        found = self.path.partition("?")[0] == HUB_FILE
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        if found:
            self.send_header("ETag", '"' + hashlib.sha256(self.content).hexdigest() + '"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return found

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.full
def test_timms_weights_come_from_the_hub_once_and_are_the_same_by_path(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)  # with its classifier, as published
    Hub.content = path.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    for name in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE"):
        environment.pop(name, None)

    done = run_python(FETCH, path, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    by_name, by_path = (line.split() for line in done.stdout.splitlines())
    assert by_name[0] == "r160_in1k"
    assert by_name[1:] == by_path[1:]
    assert by_name[2] == "160"
    whole = f"GET {HUB_FILE}"
    assert Hub.asked.count(whole) == 1
    assert run_python(FETCH, path, environment=environment).stdout == done.stdout
    assert Hub.asked.count(whole) == 1
    Hub.content = b""
    shutil.rmtree(tmp_path / "hub")
    server.shutdown()
    server.server_close()
    failed = run_python(FETCH, path, environment=environment)
    assert "ResourceError" in failed.stderr
    assert "could not be downloaded" in failed.stderr


def test_timms_weights_with_other_keys_are_refused_with_their_names(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    state = timm.create_model("test_resnet").state_dict()
    state["layer9.weight"] = state.pop("conv1.weight" if "conv1.weight" in state else next(iter(state)))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"do not fit timm:test_resnet\. missing keys: .*unexpected keys: layer9\.weight"):
        open_backbone(backbone="timm:test_resnet", weights=str(tmp_path / "w.safetensors"), resize=RESIZE, kept=tmp_path / "k", sample=lambda _: [])


def test_weights_of_another_network_list_the_keys(tmp_path: Path) -> None:
    save_file(random_state("alexnet", seed=0), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"do not fit resnet18\. missing keys: conv1\.weight, .* more; unexpected keys: features\.0\.bias"):
        open_backbone(backbone="resnet18", weights=str(tmp_path / "w.safetensors"), resize=RESIZE, kept=tmp_path / "k", sample=lambda _: [])


def test_backbones_lists_timms_networks_too(run_cli: Callable[..., Result]) -> None:
    pytest.importorskip("timm")
    result = run_cli("backbones", "timm:test_resnet")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1].split()[0] == "timm:test_resnet"
    assert "r160_in1k" in result.output


def _with_first(state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(iter(state))
    return {**state, name: change(state[name])}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensor: tensor.to_sparse(), r"features\.0\.weight is sparse \(sparse_coo\)\. Save it dense: tensor\.to_dense\(\)"),
        (lambda tensor: tensor.to("meta"), r"features\.0\.weight has no data \(it is on PyTorch's meta device\)"),
        (lambda tensor: tensor.to(torch.complex64), "has values of type complex64. Save the weights as float32, float16 or bfloat16"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "has values of type float8_e4m3fn"),
    ],
)
def test_tensors_that_no_network_computes_with_are_named_and_not_taken_for_too_small_images(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], says: str
) -> None:
    torch.save(_with_first(random_state("squeezenet1_1", seed=0), change), tmp_path / "w.pth")
    with pytest.raises(InputError, match=says) as refused:
        read_weights(tmp_path / "w.pth")
    assert "`size`" not in str(refused.value)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code in a weights file ran",))


def test_a_file_that_is_no_state_dict_is_refused_without_the_advice_to_load_it_anyway(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random_state("squeezenet1_1", seed=0)
    torch.save({"a": _Hostile()}, tmp_path / "code.pth")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "nested.pth")
    (tmp_path / "other.pth").write_bytes(b"hello")
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:10_000])
    for name, says in {
        "code": "holds Python objects besides tensors, which could run code when loaded. Save the network's state_dict()",
        "nested": "not a state dict, but its entry 'state_dict' is one. Save that entry alone",
        "other": "is no file of tensors, or damaged",
        "cut": "is no file of tensors, or damaged",
    }.items():
        with pytest.raises(InputError, match=rf"{name}\.pth: .*{re.escape(says)}") as refused:
            read_weights(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(refused.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "value"), [("size", 5000), ("mode", "stretch"), ("filter", "nearest")])
def test_a_way_of_resizing_that_does_not_exist_is_refused_by_name(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"`{name}` {value}"):
        open_backbone(backbone="resnet18", weights="random", resize={**RESIZE, name: value}, kept=tmp_path / "kept", sample=lambda crop: [])
