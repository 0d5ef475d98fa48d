"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

torch.set_num_threads(1)  # the suite runs on all cores already


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; skips where RBL_DATA names none."""
    folder = os.environ.get("RBL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data: RBL_DATA names no folder")
    return Path(folder)


class Server:
    """Serves ``folder`` over http at ``url``. requests: the paths asked for with GET."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        requests = self.requests = list[str]()

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path.lstrip("/"))
                with suppress(ConnectionError):  # torchvision asks, looks at the address alone, and hangs up
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server of this test, reached without any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(tmp_path / "served")
    yield running
    running.stop()
