"""img2dataset itself, in an environment of its own: it wants an older webdataset than ours."""

import functools
import os
import subprocess
import threading
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from benchmarks.peers import FOLDER, NotInstalledError, interpreter


def installed() -> Path:
    """img2dataset's program, installed on the first use; without it the test is skipped, or fails where CAPSTREAM_REQUIRE_DATA is set."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(FOLDER / ".img2dataset.lock"):
            return Path(interpreter("img2dataset", install=True)).with_name("img2dataset")
    except NotInstalledError as problem:
        message = f"img2dataset cannot be installed here: {problem}"
        if os.environ.get("CAPSTREAM_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)


def download(images: Path, rows: Sequence[tuple[str, str]], options: Sequence[Sequence[str]]) -> None:
    """Let img2dataset fetch the files of a folder, served on 127.0.0.1, once with each of some options, side by side.

    Args:
        images: The folder that is served.
        rows: (name of a file, caption).
        options: Of the command, beside those of the list, which is written into ``images``' parent.
    """
    program = installed()
    handler = functools.partial(_Quiet, directory=str(images))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = images.parent / "urls.tsv"
        lines = [f"http://127.0.0.1:{server.server_port}/{name}\t{caption}\n" for name, caption in rows]
        urls.write_text("url\tcaption\n" + "".join(lines))
        common = ["--url_list", str(urls), "--input_format", "tsv", "--url_col", "url", "--caption_col", "caption", "--output_format", "webdataset"]
        common += ["--processes_count", "1", "--thread_count", "1"]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        running = [
            subprocess.Popen([str(program), *common, *each], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
            for each in options
        ]
        try:
            for process in running:
                said, _ = process.communicate(timeout=120)
                assert process.returncode == 0, said[-3000:]
        finally:
            for process in running:
                process.kill()
            server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass
