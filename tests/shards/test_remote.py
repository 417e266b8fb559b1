"""Shards at URLs, from a real web server on 127.0.0.1."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import Result

from model.encoder import with_crop
from model.networks import random_info
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.features.pixel_batches import _without_samples
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, training_batches
from pipeline.loading.sources import ShardSource
from shards.caption_table import table_of_split
from shards.dataset import DatasetFile, Split, open_split, read_dataset_file
from shards.errors import CapstreamError, DamageError, InputError, ResourceError
from shards.fetch import _file_system
from shards.layout import DATASET_FILE, MIRROR_FILE, records_path, sidecar_path
from shards.remote import check_cache_holds, localize, mirror_name, origin
from shards.tar import open_readable_split
from tests.conftest import Small
from tests.pipeline.short_runs import train_on_cpu
from tests.processes import start_python
from tests.shards.shard_server import LARGE, Server, largest, opened, tar_bytes, wait_until

Run = Callable[..., Result]


def read_all(split: Split) -> list[bytes]:
    contents = []
    for shard in split.shards:
        with shard.open() as file:
            contents.append(file.read())
    return contents


def batches_of(split: Split, epochs: int = 2) -> list[CaptionBatch]:
    table = table_of_split(split)
    source = ShardSource(split, table, with_crop(random_info(64), size=64, mode="squash", filter="lanczos"), "tutorial")
    encoded = EncodedCaptions(table, vocabulary_of(table, min_count=1).vocabulary)
    return [batch for epoch in range(epochs) for batch in training_batches(source, encoded, seed=3, epoch=epoch, batch_size=16, captions_per_image=5)]


def assert_same(found: list[CaptionBatch], wanted: list[CaptionBatch]) -> None:
    assert len(found) == len(wanted) > 2
    for one, other in zip(found, wanted, strict=True):
        assert (one.images == other.images).all()
        assert (one.tokens == other.tokens).all()


def test_a_local_path_stays_as_it_is(fine: Path) -> None:
    assert localize(fine) == fine
    assert localize(str(fine)) == fine
    assert origin(fine) == str(fine.resolve())


def test_a_mirror_has_the_datasets_files_and_no_tar_yet(server: Server, fine: Path, tmp_path: Path) -> None:
    folder = localize(server.url + "/", cache=tmp_path, cache_bytes=LARGE)
    assert folder.parent == tmp_path
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {MIRROR_FILE, DATASET_FILE} | {sidecar_path(tar).name for tar in fine.glob("*.tar")}
    assert origin(folder) == server.url
    assert localize(origin(folder), cache=tmp_path, cache_bytes=LARGE) == folder


def test_each_tar_is_fetched_once_and_gives_the_batches_of_the_local_folder(server: Server, fine: Path, tmp_path: Path) -> None:
    assert_same(batches_of(opened(server, tmp_path)), batches_of(open_split(fine, "train")))
    assert server.tar_gets() == {tar.name: 1 for tar in fine.glob("train-*.tar")}


def test_a_second_start_fetches_only_dataset_json(server: Server, tmp_path: Path) -> None:
    read_all(opened(server, tmp_path))
    before = Counter(server.gets)
    table_of_split(opened(server, tmp_path))
    read_all(opened(server, tmp_path))
    assert server.gets - before == Counter({DATASET_FILE: 2})


def test_a_small_bound_holds_at_all_times_and_gives_the_same_batches(server: Server, fine: Path, tmp_path: Path) -> None:
    bound = 5 * largest(fine)
    split = opened(server, tmp_path, bound)
    done = threading.Event()

    def watch() -> int:
        found = 0
        while not done.wait(0.001):
            found = max(found, tar_bytes(split.folder))
        return found

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        try:
            batches = batches_of(split)
        finally:
            done.set()
        most = watched.result()
    assert_same(batches, batches_of(open_split(fine, "train")))
    assert 0 < most <= bound
    assert max(server.tar_gets().values()) > 1


def test_the_least_recently_used_tar_is_removed_first(server: Server, fine: Path, tmp_path: Path) -> None:
    split = opened(server, tmp_path, 3 * largest(fine))
    for shard in split.shards[:3]:
        shard.open().close()
    for age, shard in zip((300, 200, 100), split.shards, strict=False):
        os.utime(shard.path, (time.time() - age,) * 2)
    split.shards[0].open().close()  # counts as a use
    split.shards[3].open().close()
    assert [shard.path.is_file() for shard in split.shards[:4]] == [True, False, True, True]


def test_a_smaller_bound_holds_from_the_start(server: Server, tmp_path: Path) -> None:
    split = opened(server, tmp_path)
    read_all(split)
    bound = tar_bytes(split.folder) // 3
    localize(server.url, cache=tmp_path, cache_bytes=bound)
    assert 0 < tar_bytes(split.folder) <= bound


def test_reading_captions_fetches_each_tar_once_with_any_bound(server: Server, fine: Path, tmp_path: Path) -> None:
    bound = 2 * largest(fine)
    local = table_of_split(open_split(fine, "train"))
    for _ in range(2):
        table = table_of_split(opened(server, tmp_path, bound))
        assert (table.texts, table.keys) == (local.texts, local.keys)
    assert set(server.tar_gets().values()) == {1}


def test_a_damaged_records_file_is_made_again(server: Server, tmp_path: Path) -> None:
    split = opened(server, tmp_path)
    wanted = table_of_split(split).texts
    path = records_path(split.shards[2].path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"x" + whole[1:], b""):
        path.write_bytes(damaged)
        assert table_of_split(split).texts == wanted
        assert path.read_bytes() == whole


def test_wrong_bytes_are_refused_with_both_digests(server: Server, fine: Path, tmp_path: Path) -> None:
    server.root = shutil.copytree(fine, tmp_path / "damaged")
    tar = server.root / "train-000001.tar"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    split = opened(server, tmp_path / "cache")
    shard = split.shards[1]
    with pytest.raises(DamageError) as error:
        shard.open()
    assert f"{server.url}/train-000001.tar" in str(error.value)
    assert shard.sidecar.tar_sha256 in str(error.value)
    assert server.gets["train-000001.tar"] == 1
    assert not tar_bytes(split.folder)
    left_out = open_readable_split(split.folder, "train", "skip")
    assert left_out.images == split.images - 2
    assert "train-000001.tar" in str(left_out.skipped_note())


@pytest.mark.parametrize("times", [1, 3])
def test_a_broken_connection_is_retried(server: Server, fine: Path, tmp_path: Path, times: int) -> None:
    server.truncated["train-000000.tar"] = server.truncated[DATASET_FILE] = server.truncated["train-000003.json"] = times
    split = opened(server, tmp_path)
    with split.shards[0].open() as file:
        assert file.read() == (fine / "train-000000.tar").read_bytes()
    assert server.gets["train-000000.tar"] == times + 1


def test_a_connection_that_breaks_every_time_is_an_error_that_names_the_url(server: Server, tmp_path: Path) -> None:
    server.truncated["train-000000.tar"] = 99
    split = opened(server, tmp_path)
    with pytest.raises(ResourceError, match=rf"{server.url}/train-000000\.tar: could not be fetched in 4 attempts .* Run the same command again"):
        split.shards[0].open()
    assert not list(split.folder.glob(".*.tmp"))


def test_an_unreachable_server_is_an_error_that_names_the_url(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(ResourceError, match=rf"{server.url}/dataset\.json: could not be fetched"):
        opened(server, tmp_path)


def test_never_more_is_written_than_the_sidecar_lists(server: Server, tmp_path: Path) -> None:
    server.longer.add("train-000000.tar")
    split = opened(server, tmp_path)
    with pytest.raises(DamageError, match=r"train-000000\.tar: sends more than the \d+ bytes that its sidecar lists"):
        split.shards[0].open()
    assert not tar_bytes(split.folder)


def test_missing_files_are_named_by_their_url(server: Server, fine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{server.url}/no/dataset\.json: no such file"):
        localize(server.url + "/no", cache=tmp_path, cache_bytes=LARGE)
    server.root = shutil.copytree(fine, tmp_path / "part")
    (server.root / "train-000002.json").unlink()
    with pytest.raises(InputError, match=rf"{server.url}/train-000002\.json: no such file"):
        opened(server, tmp_path / "cache")
    with pytest.raises(InputError, match="not a shard dataset"):  # dataset.json comes last
        read_dataset_file(tmp_path / "cache" / mirror_name(server.url))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", ""])
def test_a_split_whose_name_leads_elsewhere_is_refused(server: Server, fine: Path, tmp_path: Path, name: str) -> None:
    there = read_dataset_file(fine)
    server.root = tmp_path / "hostile"
    DatasetFile(config=there.config, splits={name: there.splits["train"]}).write(server.root)
    with pytest.raises(DamageError, match=rf"{server.url}/dataset\.json: damaged .* is not a valid split name"):
        opened(server, tmp_path / "cache")
    assert set(server.gets) == {DATASET_FILE}


def test_damage_in_a_sidecar_is_named_by_its_url(server: Server, fine: Path, tmp_path: Path) -> None:
    server.root = shutil.copytree(fine, tmp_path / "damaged")
    path = server.root / "train-000004.json"
    path.write_text(path.read_text().replace('"tar_bytes": ', '"tar_bytes": 1'))
    with pytest.raises(DamageError, match=rf"{server.url}/train-000004\.json: damaged"):
        opened(server, tmp_path / "cache")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host/shards?key=1", "without"),
        ("https://me:secret@host/shards", "without [?], # or a password"),
        ("https:///shards", "names no host"),
        ("nothing://host/shards", "Supported are"),
    ],
)
def test_an_invalid_url_is_refused(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        localize(url, cache=tmp_path, cache_bytes=LARGE)


def test_a_missing_package_is_named_with_what_installs_it(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    _file_system.cache_clear()
    with pytest.raises(InputError, match=r"pip install '\.\[remote\]'"):
        opened(server, tmp_path)


def test_a_changed_remote_dataset_is_fetched_again(server: Server, small: Small, fine: Path, tmp_path: Path) -> None:
    old = opened(server, tmp_path)
    table_of_split(old)
    server.root = small.shards
    new = opened(server, tmp_path)
    assert new.folder == old.folder
    assert read_all(new) == read_all(open_split(small.shards, "train"))
    assert table_of_split(new).texts == table_of_split(open_split(small.shards, "train")).texts
    assert len(list(new.folder.glob("train-*.json"))) == len(new.shards) < len(old.shards)
    with pytest.raises(CapstreamError, match=server.url):  # whoever has the old one open is told
        old.shards[-1].open()


def test_a_remote_shard_is_sent_to_a_worker_in_a_few_bytes(server: Server, tmp_path: Path) -> None:
    shard = _without_samples(opened(server, tmp_path).shards[0])
    content = pickle.dumps(shard)
    assert len(content) < 2000
    with pickle.loads(content).open() as file:
        assert len(file.read()) == shard.sidecar.tar_bytes


READ = """
import sys
from pathlib import Path
from shards.dataset import open_split
from shards.remote import localize
split = open_split(localize(sys.argv[1], cache=Path(sys.argv[2]), cache_bytes=10**9), "train")
for shard in split.shards:
    with shard.open() as file:
        assert len(file.read()) == shard.sidecar.tar_bytes
print(split.digest)
"""


def test_concurrent_processes_fetch_each_tar_once(server: Server, fine: Path, tmp_path: Path) -> None:
    processes = [start_python(READ, server.url, tmp_path) for _ in range(3)]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output.strip() == open_split(fine, "train").digest
    assert server.tar_gets() == {tar.name: 1 for tar in fine.glob("train-*.tar")}


def test_a_kill_in_the_middle_of_a_tar_does_no_harm(server: Server, tmp_path: Path) -> None:
    server.hang.add("train-000000.tar")
    folder = tmp_path / mirror_name(server.url)
    process = start_python(READ, server.url, tmp_path)
    wait_until(lambda: bool(list(folder.glob(".train-000000.tar.tmp"))) and server.gets["train-000000.tar"] == 1, 30)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    server.released.set()
    assert list(folder.glob(".*.tmp"))
    assert not list(folder.glob("*.tar"))
    split = opened(server, tmp_path)
    split.shards[1].open().close()  # another tar clears it away
    assert not list(folder.glob(".*.tmp"))
    split.shards[0].open().close()
    assert server.gets["train-000000.tar"] == 2


def test_a_cache_too_small_for_a_window_is_refused_with_the_size_it_needs(server: Server, fine: Path, tmp_path: Path) -> None:
    split = opened(server, tmp_path, 400_000)
    sizes = sorted((shard.sidecar.tar_bytes for shard in split.shards), reverse=True)
    check_cache_holds(open_split(fine, "train"), 17)
    check_cache_holds(dataclasses.replace(split, shards=split.shards[:3]), 17)
    with pytest.raises(InputError, match=rf"`shard_cache_gb` 0\.0001 .* {sum(sizes[:17])} bytes\. Give at least 0\.001"):
        train_on_cpu(out=tmp_path / "run", shards=localize(server.url, cache=tmp_path, cache_bytes=100_000))
    with pytest.raises(InputError, match=r"more than `shard_cache_gb` 1e-06 allows"):
        opened(server, tmp_path, 1000).shards[0].open()


def test_a_run_on_remote_shards_resumes_from_its_url(server: Server, tmp_path: Path, run_cli: Run) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    options = ["--shard-cache", cache, "--device", "cpu"]
    first = ["--backbone", "squeezenet1_1", "--weights", "random", "--captions-per-image", 5, "--batch-size", 16, "--hidden-dim", 16]
    result = run_cli("train", "--shards", server.url, "--out", out, "--epochs", 1, "--min-count", 1, *first, *options)
    assert result.exit_code == 0, result.output
    assert f"evaluate --run {out}" in result.output.splitlines()[-1]
    assert json.loads((out / "config.json").read_text())["data"] == server.url
    result = run_cli("train", "--out", out, "--resume", "--epochs", 2, *options)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["data"] == server.url
    assert set(server.tar_gets().values()) == {1}
    result = run_cli("evaluate", "--run", out, "--shards", server.url, "--out", tmp_path / "scores.json", *options)
    assert result.exit_code == 0, result.output
    result = run_cli("vocab", "--shards", server.url, "--out", tmp_path / "vocab.json", "--shard-cache", cache)
    assert result.exit_code == 0, result.output
    assert f"--shards {server.url} --out data/features" in result.output
    assert set(server.tar_gets().values()) == {1}


def test_the_cache_follows_xdg_cache_home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = run_cli("vocab", "--shards", server.url, "--out", tmp_path / "vocab.json")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "capstream" / mirror_name(server.url) / DATASET_FILE).is_file()
