"""Names from outside that would write to the terminal, in the output of every command."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli import cli
from pipeline.console.command_table import COMMANDS
from tests.conftest import TINY_MODEL, Small

Run = Callable[..., Result]
# A title (OSC ... BEL), colors (ESC, C1), a line of its own, text from right to left, and a byte that is not UTF-8
HOSTILE = "\x1b]0;t\x07\x1b[31m\x9b1m\nError: \u202egpj\u2066\r\x7f\udcff"
ORDINARY = "사진 é 👍🏽"
NAME = f"{ORDINARY}{HOSTILE}"
PRINTED = rf"{ORDINARY}\x1b]0;t\x07\x1b[31m\x9b1m\nError: \u202egpj\u2066\r\x7f\udcff"
UTF_8 = NAME.removesuffix("\udcff")  # as files of captions and of weights need it
UNPRINTABLE = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small dataset with everything in a folder of a hostile name, and photographs and captions of hostile names."""
    base = tmp_path_factory.mktemp("hostile") / UTF_8
    base.mkdir()
    made = Small(source=base / "synth", shards=base / "shards", features=base / "features", run=base / "run")
    for before, after in zip(vars(small).values(), vars(made).values(), strict=True):
        shutil.copytree(before, after)
    images = made.source / "images"
    shutil.copy(images / "scene_000000.jpg", images / f"{NAME}.jpg")
    shutil.copy(images / "scene_000000.jpg", images / f"{UTF_8}.jpg")
    rows = [{"image": f"{UTF_8}.jpg", "caption": "a dog"}, {"image": f"{UTF_8}.none.jpg", "caption": f"a cat {UTF_8}"}]
    (base / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


ARGUMENTS: dict[str, list[list[str]]] = {
    "download": [["coco2014", "--root", "{b}", "--parts", NAME]],
    "synth": [["{b}/new", "--images", "10", "--workers", "1"], ["{b}/captions.jsonl", "--images", "10", "--workers", "1"]],
    "shard": [
        ["--images", "{s}/images", "--captions", "{b}/captions.jsonl", "--out", "{b}/sharded", "--workers", "1"],
        ["--images", "{s}/images", "--captions", "{b}/captions.jsonl", "--out", "{b}/sharded2", "--split", NAME],
        ["--images", "{s}/none", "--captions", "{b}/captions.jsonl", "--out", "{b}/sharded2"],
        ["--images", "{s}/images", "--captions", "{b}/captions.jsonl", "--out", "{b}", "--workers", "1"],
        ["--images", "{s}/images", "--captions", "{b}/captions.jsonl", "--out", "{b}/sharded2", "--column", f"{NAME}=x"],
    ],
    "index": [["{s}", "--resize", "squash"], ["{b}/none", "--resize", "squash"], ["{s}", "--resize", NAME]],
    "verify": [["{sh}", "--workers", "1"], ["{f}"], ["{b}/none"], ["{s}"]],
    "stats": [["{sh}"], ["{sh}", "--json"], ["{f}"], ["{b}/none"], ["{s}"]],
    "vocab": [["--shards", "{sh}", "--out", "{b}/v.json", "--min-count", "1"], ["--shards", "{s}", "--out", "{b}/v.json"]],
    "backbones": [[NAME]],
    "cache-features": [
        ["--shards", "{s}", "--out", "{b}/f2"],
        ["--shards", "{sh}", "--out", "{b}/f2", "--backbone", NAME],
        ["--shards", "{sh}", "--out", "{b}/f2", "--backbone", "resnet18", "--weights", "{b}/none.pth"],
    ],
    "import-features": [["--npy", "{b}/none.npy", "--captions", "{b}/captions.jsonl", "--out", "{b}/f2"]],
    "train": [
        ["--features", "{f}", "--out", "{b}/run2", "--epochs", "1", *(f"--{name.replace('_', '-')}={value}" for name, value in TINY_MODEL.items())],
        ["--features", "{s}", "--out", "{b}/run3"],
        ["--features", "{f}", "--out", "{b}/run3", "--from", "{b}/none"],
        ["--features", "{f}", "--out", "{b}/run3", "--recipe", NAME],
    ],
    "curves": [["{r}", "--out", "{b}/c.png"], ["{b}/none", "--out", "{b}/c.png"]],
    "caption": [
        ["--run", "{r}", f"{{s}}/images/{NAME}.jpg", "none.jpg", "{b}/captions.jsonl"],
        ["--run", "{r}", f"{{s}}/images/{NAME}.jpg", "none.jpg", "--json"],
        ["--run", "{b}/none", "x.jpg"],
        ["--run", "{r}", "{f}"],
    ],
    "evaluate": [
        ["--run", "{r}", "--features", "{f}", "--out", "{b}/s.json", "--no-java"],
        ["--run", "{r}", "--features", "{b}/none"],
        ["--captions", "{b}/none.json", "--references", "{b}/captions.jsonl"],
    ],
    "report": [["{r}", "--out", "{b}/r.html"], ["{b}/none", "--out", "{b}/r.html"]],
    "demo": [["--out", "{b}/captions.jsonl"]],
    "doctor": [["--root", "{b}"], ["--root", "{b}", "--json"]],
}


def test_every_command_has_arguments_here() -> None:
    assert list(ARGUMENTS) == list(COMMANDS) == list(cli.commands)


@pytest.mark.parametrize("form", ["plain", "log-json"])
@pytest.mark.parametrize("command", list(ARGUMENTS))
def test_what_a_command_prints_about_hostile_names_is_escaped_and_ordinary_characters_stay(
    run_cli: Run, hostile: Small, command: str, form: str
) -> None:
    places = {"b": hostile.source.parent, "s": hostile.source, "sh": hostile.shards, "f": hostile.features, "r": hostile.run}
    named = 0
    for arguments in ARGUMENTS[command]:
        before = ["--log-json"] if form == "log-json" else []
        result = run_cli(*before, command, *(argument.format(**places) for argument in arguments))
        printed = result.stdout + result.stderr
        assert not UNPRINTABLE.findall(printed), (arguments, printed)
        assert "\nError: \N{RIGHT-TO-LEFT OVERRIDE}" not in printed
        named += ORDINARY in printed
        for line in result.stderr.splitlines() if form == "log-json" else []:
            assert json.loads(line)["text"]
    assert named, "no line names what was hostile"


def test_a_hostile_name_is_one_line_and_can_be_recognized(run_cli: Run, hostile: Small) -> None:
    image = hostile.source / "images" / f"{NAME}.jpg"
    result = run_cli("caption", "--run", hostile.run, image, image, "none.jpg")
    lines = result.stdout.splitlines()
    assert len(lines) == 2, result.output
    assert f"/images/{PRINTED}.jpg: " in lines[0]
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["No caption", "Error"]
    first = json.loads(run_cli("caption", "--run", hostile.run, image, "--json").stdout)
    assert first["image"] == str(image)


def test_arguments_of_wrong_usage_are_escaped(run_cli: Run) -> None:
    for arguments in (
        [NAME],
        [f"--{NAME}"],
        ["train", f"--{NAME}"],
        ["train", "--out", "x", NAME],
        ["train", "--schedule", NAME],
        ["--config", NAME, "train"],
    ):
        result = run_cli(*arguments)
        assert result.exit_code == 2
        assert not UNPRINTABLE.findall(result.output), arguments
        assert ORDINARY in result.output


def test_a_run_needs_a_folder_whose_name_is_utf_8(run_cli: Run, small: Small, tmp_path: Path) -> None:
    result = run_cli("train", "--features", small.features, "--out", tmp_path / "\udcff")
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}/\\udcff: the name of a run's folder must be valid UTF-8. Choose another --out.\n"
