"""img2dataset itself, in an environment of its own: it wants an older webdataset than ours."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

VERSION = "1.47.0"
INSTALL_SECONDS = 540
PLACE = Path(__file__).parent.parent / ".venv" / "peers" / "img2dataset"


def installed() -> Path:
    """img2dataset's program, installed on the first use; without it the test is skipped, or fails where CAPSTREAM_REQUIRE_DATA is set."""
    program, ready = PLACE / "bin" / "img2dataset", PLACE / f".ready-{VERSION}"
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(PLACE.parent / ".img2dataset.lock"):
        if not ready.is_file():
            pip = [str(PLACE / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"img2dataset=={VERSION}"]
            for command in ([sys.executable, "-m", "venv", "--clear", str(PLACE)], pip):
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
                    problem = done.stderr[-500:] if done.returncode else ""
                except subprocess.TimeoutExpired:
                    problem = f"took more than {INSTALL_SECONDS} s"
                if problem:
                    message = f"img2dataset {VERSION} cannot be installed here: {problem}"
                    if os.environ.get("CAPSTREAM_REQUIRE_DATA"):
                        pytest.fail(message)
                    pytest.skip(message)
            ready.touch()
    return program


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
