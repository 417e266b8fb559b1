"""Output in S3, on a real S3-compatible server on 127.0.0.1."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pipeline.execution.array_tasks import ArrayTask
from shards import fetch as fetch_module
from shards.dataset import open_split
from shards.errors import InputError, OccupiedError, ResourceError
from shards.features import open_features
from shards.fetch import _file_system
from shards.output import Output, check_output, open_output
from shards.remote import localize
from tests import ROOT
from tests.caching import cache_features
from tests.conftest import TINY_MODEL
from tests.pipeline.short_runs import train_on_cpu
from tests.processes import run_python
from tests.servers import contents, draw, objects, s3_bucket, shard

NAMES = [f"{number}.jpg" for number in range(10)]
NETWORK: dict[str, Any] = {"backbone": "squeezenet1_1", "weights": "random", "device": "cpu", "precision": "fp32"}
Place = tuple[str, Any]
Run = Callable[..., Result]


@pytest.fixture
def place(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with s3_bucket(s3, monkeypatch) as (url, client):
        yield f"{url}/a/data", client


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, NAMES)
    shard(folder, folder / "whole")
    return folder


def written(client: Any, url: str) -> dict[str, Any]:
    """When each object was last written; an ETag would not change with equal content."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return {each["Key"]: each["LastModified"] for each in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]}


def test_shards_written_to_s3_are_those_of_a_folder_and_are_trained_on(place: Place, drawn: Path, tmp_path: Path) -> None:
    url, client = place
    assert shard(drawn, url + "/").shards == 4
    assert objects(client, url) == contents(drawn / "whole")
    folder = localize(url, cache=tmp_path / "cache")
    assert open_split(folder, "train").images == 10
    train_on_cpu(out=tmp_path / "run", shards=folder, settings={**TINY_MODEL, "epochs": 1}, backbone="squeezenet1_1", weights="random")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == url


def test_a_second_run_writes_nothing_and_fetches_no_tar(place: Place, drawn: Path) -> None:
    url, client = place
    shard(drawn, url)
    before = written(client, url)
    time.sleep(1.1)  # S3 tells seconds
    # As a command: worker processes of this one may be older than its credentials.
    command = ("shard", "--images", drawn / "images", "--captions", drawn / "c.json", "--out", url, "--size", 32, "--shard-size", 3, "--workers", 2)
    done = subprocess.run([sys.executable, "cli.py", *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "in 4 shards (all complete already, nothing written)" in done.stdout
    assert written(client, url) == before


def test_a_missing_shard_or_one_that_does_not_match_its_sidecar_is_made_again(place: Place, drawn: Path) -> None:
    url, client = place
    shard(drawn, url)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client.delete_object(Bucket=bucket, Key=f"{prefix}/train-000000.tar")
    whole = contents(drawn / "whole")
    client.put_object(Bucket=bucket, Key=f"{prefix}/train-000001.tar", Body=bytes(len(whole["train-000001.tar"])))  # as long, without the mark
    client.put_object(Bucket=bucket, Key=f"{prefix}/train-000002.json", Body=b"{")
    assert shard(drawn, url).kept == 1
    assert objects(client, url) == whole


def test_shards_beyond_the_end_of_an_uncommitted_plan_are_removed(place: Place, drawn: Path, tmp_path: Path) -> None:
    url, client = place
    shard(drawn, url, array_task=ArrayTask(task_id=0, num_tasks=1))
    shard(drawn, url, limit=4)
    shard(drawn, tmp_path / "few", limit=4)
    assert objects(client, url) == contents(tmp_path / "few")


def test_splits_and_rejects_add_up_in_s3(place: Place, drawn: Path, tmp_path: Path) -> None:
    url, client = place
    (tmp_path / "images").mkdir()
    for name in NAMES[2:]:
        (tmp_path / "images" / name).write_bytes((drawn / "images" / name).read_bytes())
    for out in (url, tmp_path / "local"):
        shard(drawn, out)
        assert shard(drawn, out, split="val", images=tmp_path / "images").rejects == {"missing_file": 2}
    assert objects(client, url) == contents(tmp_path / "local")
    with pytest.raises(InputError, match=rf"{url}: stopped: 2 of 10 .* line in {url}/rejects\.jsonl"):
        shard(drawn, url, split="more", images=tmp_path / "images", max_rejects=0.1)
    assert objects(client, url)["rejects.jsonl"].count(b'"more"') == 2


FAULT = """
import os, signal, sys
from pathlib import Path
from shards.output import Output
from tests.servers import shard
upload, count = Output.upload, 0
def dying(self, name, mark=""):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    upload(self, name, mark)
Output.upload = dying
shard(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize("fault", [2, 5, 9, 10])
def test_a_run_killed_between_two_files_leaves_complete_files_and_resumes_to_the_same_bytes(place: Place, drawn: Path, fault: int) -> None:
    url, client = place
    child = run_python(FAULT, drawn, url, fault)
    assert child.returncode == -signal.SIGKILL
    whole, there = contents(drawn / "whole"), objects(client, url)
    assert len(there) == fault - 1
    assert {name: whole[name] for name in there} == there
    assert "dataset.json" not in there
    assert shard(drawn, url).kept == (fault - 1) // 2
    assert objects(client, url) == whole


def test_an_interrupted_upload_of_a_large_file_leaves_no_object(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, client = place
    (tmp_path / "large").write_bytes(os.urandom(1000) * 110_000)  # 110 MB: more than one part
    code = (
        "import os, signal, sys, s3fs; from pathlib import Path; from shards.output import Output\n"
        "call = s3fs.S3FileSystem._call_s3\n"
        "async def dying(self, method, *args, **kwargs):\n"
        "    if method == 'complete_multipart_upload': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return await call(self, method, *args, **kwargs)\n"
        "s3fs.S3FileSystem._call_s3 = dying\n"
        "Output(folder=Path(sys.argv[1]), url=sys.argv[2]).upload('large', 'mark')"
    )
    child = run_python(code, tmp_path, url)
    assert child.returncode == -signal.SIGKILL
    output = Output(folder=tmp_path, url=url)
    assert (objects(client, url), output.stat("large"), output.names()) == ({}, None, [])
    output.upload("large", "mark")
    assert output.stat("large") == (110_000_000, "mark")


def test_array_tasks_write_to_s3_and_the_last_run_commits(place: Place, drawn: Path) -> None:
    url, client = place
    for number in (1, 0):
        shard(drawn, url, array_task=ArrayTask(task_id=number, num_tasks=2))
    assert "dataset.json" not in objects(client, url)
    assert shard(drawn, url).kept == 4
    assert objects(client, url) == contents(drawn / "whole")


def test_features_written_to_s3_are_those_of_a_folder(place: Place, drawn: Path, tmp_path: Path) -> None:
    url, client = place
    common: dict[str, Any] = {"shards": drawn / "whole", **NETWORK}
    cache_features(out=tmp_path / "local", **common)
    (summary,) = cache_features(out=url, **common)
    assert (summary.path, summary.images, summary.kept) == (f"{url}/train.h5", 10, False)
    assert objects(client, url) == contents(tmp_path / "local")
    before = written(client, url)
    time.sleep(1.1)
    assert cache_features(out=url, **common)[0].kept
    assert written(client, url) == before


def test_parts_in_s3_are_kept_and_joined_by_the_last_run(place: Place, drawn: Path, tmp_path: Path) -> None:
    url, client = place
    common: dict[str, Any] = {"shards": drawn / "whole", **NETWORK}
    cache_features(out=tmp_path / "local", **common)
    for number in (1, 0):
        (summary,) = cache_features(out=url, array_task=ArrayTask(task_id=number, num_tasks=2), **common)
        assert not summary.committed
    names = {f".train.parts/{index:06d}.h5" for index in range(4)}
    assert objects(client, url).keys() == names | {"backbone.safetensors"}
    before = written(client, url)
    time.sleep(1.1)
    cache_features(out=url, array_task=ArrayTask(task_id=1, num_tasks=2), **common)
    assert written(client, url) == before
    assert cache_features(out=url, **common)[0].images == 10
    assert objects(client, url) == contents(tmp_path / "local")
    (tmp_path / "again.h5").write_bytes(objects(client, url)["train.h5"])
    assert open_features(tmp_path / "again.h5").table.images == 10


def test_a_location_that_holds_something_else_is_refused_by_its_url(place: Place, drawn: Path) -> None:
    url, client = place
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{prefix}/thesis.tex", Body=b"x")
    with pytest.raises(OccupiedError, match=rf"{url}: holds something other than shards \(thesis\.tex\)"):
        shard(drawn, url)


def test_a_missing_bucket_is_named(place: Place, drawn: Path) -> None:
    with pytest.raises((InputError, ResourceError), match="s3://no-such-bucket-here/x"):
        shard(drawn, "s3://no-such-bucket-here/x")


def test_an_unreachable_server_is_named_with_the_failed_action(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = place
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # ours count
    monkeypatch.setattr(fetch_module, "BACKOFF_SECONDS", (0.01,))
    _file_system.cache_clear()
    (tmp_path / "x").write_bytes(b"1")
    output = Output(folder=tmp_path, url=url)
    for action, done in ((output.names, "looked up"), (lambda: output.stat("x"), "looked up"), (lambda: output.upload("x"), "written")):
        with pytest.raises(ResourceError, match=f"{url}.* could not be {done} in 2 attempts .* what was written is kept"):
            action()
    with pytest.raises(ResourceError, match=f"{url}/x: could not be removed in 2 attempts"):
        output.remove("x")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host/shards", "https:// cannot be written to. Give a folder, or a location in S3"),
        ("file:///data/shards", "file:// cannot be written to"),
        ("s3://bucket/a?b", "contains [?] or #"),
        ("s3://", "names no host or bucket"),
    ],
)
def test_a_url_that_cannot_be_written_to_is_refused(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_output(url)


def test_requests_run_in_parallel_and_return_in_order(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=10)

    def answer(item: int) -> int:
        together.wait()  # breaks where fewer than four are under way
        return 2 * item

    assert list(Output(folder=tmp_path, url="s3://bucket/x").map(answer, range(8))) == list(range(0, 16, 2))


def test_output_to_a_folder_stays_in_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with open_output(tmp_path) as output:
        assert (output.folder, output.names(), output.location("x")) == (tmp_path, ["x"], tmp_path / "x")
        output.upload("x")
        output.remove("x")
        output.remove("x")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_to_s3_and_prints_the_url(place: Place, drawn: Path, run_cli: Run) -> None:
    url, _ = place
    options = ["--images", drawn / "images", "--captions", drawn / "c.json", "--size", 32, "--workers", 1, "--out", url]
    result = run_cli("shard", *options, "--task-id", 0, "--num-tasks", 2)
    assert result.exit_code == 0, result.output
    assert "without --task-id and --num-tasks" in result.output.splitlines()[-1]
    result = run_cli("shard", *options)
    assert f"{url}: split train: 10 images" in result.output
    assert result.output.splitlines()[-1].startswith(f"Next: python cli.py vocab --shards {url} --out data/vocab.json")
    assert run_cli("shard", *options, "--task-id", 2).exit_code == 2
