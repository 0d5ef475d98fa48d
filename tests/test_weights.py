"""Where weights are found, what is checked before they are used, and what is said when there are none."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from robustbench_lite import DefenseSpec, MissingWeights, PluginError, UsageError
from robustbench_lite.records import Entry
from robustbench_lite.weights import (
    download,
    file_hash,
    find_weights,
    load_into,
    load_state,
    rbl_home,
    read_card,
    save_weights,
    trained_path,
    weights_name,
)

PACKAGE = "a_package_with_weights"


@dataclass(frozen=True, kw_only=True)
class Shield:
    """A defense with two parameters."""

    width: int = 4
    eps: float | None = None


class Server:
    """Answers GET with what ``files`` holds; ``cut`` files announce more bytes than they send."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *rest: Any) -> None:
        self.served = server
        super().__init__(*rest)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.served.requests.append(path)
        data = self.served.files.get(path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if path in self.served.cut else data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an importable plugin package."""
    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop(PACKAGE, None)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def entry(**fields: Any) -> Entry:
    spec = DefenseSpec(name="shield", factory=f"{PACKAGE}.models:Shield", kind="trained", **fields)
    return Entry(id="lab/shield", namespace="lab", spec=spec, distribution="lab", version="1", module=PACKAGE)


def card(dataset: str = "digits", defense: str = "lab/shield", **parameters: Any) -> dict[str, Any]:
    return {"defense": defense, "dataset": {"name": dataset}, "parameters": {"width": 4, "eps": None, **parameters}}


def save(path: Path, value: float = 0.0, card_: dict[str, Any] | None = None) -> Path:
    """A file of weights with a card."""
    save_weights(path, {"weight": torch.full((2, 3), value)}, card() if card_ is None else card_)
    return path


def find(home: Path, *, given: Path | None = None, instance: Shield | None = None, **fields: Any) -> tuple[float, str]:
    """The value and the origin of the weights that are found for digits."""
    found = find_weights(entry(**fields), instance or Shield(), "digits", given=given, home=home)
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest()
    return load_state(found.path)["weight"][0, 0].item(), found.origin


def test_places_are_searched_in_their_order(package: Path, home: Path, server: Server, tmp_path: Path) -> None:
    remote = save(tmp_path / "remote.safetensors", 4.0).read_bytes()
    server.files["/shield.safetensors"] = remote
    declared: dict[str, Any] = {
        "weights": {"digits": f"{server.url}/shield.safetensors"},
        "weights_sha256": {"digits": hashlib.sha256(remote).hexdigest()},
    }
    assert find(home, **declared) == (4.0, "downloaded")
    assert server.requests == ["/shield.safetensors"]
    save(package / "weights" / "digits" / "shield.safetensors", 3.0)
    assert find(home, **declared) == (3.0, "shipped")
    save(trained_path(entry(), Shield(), "digits", home), 2.0)
    assert find(home, **declared) == (2.0, "trained here")
    given = save(tmp_path / "given.safetensors", 1.0)
    assert find(home, given=given, **declared) == (1.0, "given")
    assert server.requests == ["/shield.safetensors"]


def test_variants_have_files_of_their_own(package: Path, home: Path) -> None:
    wide = Shield(width=8)
    names = {weights_name(entry(), d) for d in (Shield(), wide, Shield(eps=0.1), Shield(width=8, eps=0.1))}
    assert len(names) == 4
    assert weights_name(entry(), Shield(width=4)) == "shield"
    save(trained_path(entry(), Shield(), "digits", home), 1.0)
    with pytest.raises(MissingWeights):
        find(home, instance=wide)
    save(trained_path(entry(), wide, "digits", home), 2.0, card(width=8))
    assert find(home, instance=wide) == (2.0, "trained here")
    assert find(home) == (1.0, "trained here")


def test_weights_of_another_data_set_are_not_taken(package: Path, home: Path) -> None:
    save(trained_path(entry(), Shield(), "mnist", home), 1.0, card("mnist"))
    with pytest.raises(MissingWeights, match="shield has no weights for digits") as raised:
        find(home)
    assert raised.value.hint == "rbl train shield --dataset digits"


def test_what_is_missing_is_said_with_the_command_that_makes_it(package: Path, home: Path) -> None:
    with pytest.raises(MissingWeights, match=r"shield\[eps=0\.1\] has no weights for digits") as raised:
        find(home, instance=Shield(eps=0.1))
    assert raised.value.hint == "rbl train 'shield[eps=0.1]' --dataset digits"


def test_a_given_file_that_is_absent_is_an_error_even_where_others_exist(package: Path, home: Path, tmp_path: Path) -> None:
    save(trained_path(entry(), Shield(), "digits", home))
    with pytest.raises(UsageError, match=r"no weights file .*absent\.safetensors for lab/shield"):
        find(home, given=tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (card(defense="lab/sword"), "holds weights of lab/sword, not of lab/shield"),
        (card("mnist"), "was trained on mnist, not on digits"),
        (card(width=8), "with other parameters than asked for: width=8"),
        (card(depth=2), "with other parameters than asked for: depth=2"),
        (card() | {"version": 2}, "with version 2 of lab/shield, which is now version 1"),
        ({"defense": "lab/shield"}, "was trained on None, not on digits"),
    ],
)
def test_a_file_whose_card_does_not_fit_is_refused(
    package: Path, home: Path, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    for place in (trained_path(entry(), Shield(), "digits", home), tmp_path / "given.safetensors"):
        save(place, card_=wrong)
        with pytest.raises(UsageError, match=message) as raised:
            find(home, given=place if place.parent == tmp_path else None)
        assert str(place) in raised.value.message


def test_a_parameter_that_came_later_had_its_default(package: Path, home: Path, tmp_path: Path) -> None:
    older = save(tmp_path / "older.safetensors", card_=card() | {"parameters": {"width": 4}})
    assert find(home, given=older) == (0.0, "given")
    with pytest.raises(UsageError, match="with other parameters than asked for: eps=None"):
        find(home, given=older, instance=Shield(eps=0.1))


def test_a_file_without_a_card_is_taken_as_given(package: Path, home: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file({"weight": np.full((2, 3), 7.0, np.float32)}, plain)
    assert read_card(plain) == {}
    assert find(home, given=plain) == (7.0, "given")
    torch.save({"weight": torch.full((2, 3), 8.0)}, tmp_path / "plain.pt")
    assert find(home, given=tmp_path / "plain.pt") == (8.0, "given")


def test_the_card_is_in_the_file_and_beside_it(tmp_path: Path) -> None:
    content = {**card(width=9), "history": [{"epoch": 1, "loss": 0.5}]}
    path = tmp_path / "deep" / "folder" / "w.safetensors"
    digest = save_weights(path, {"weight": torch.eye(2)}, content)
    assert read_card(path) == content
    assert digest == file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(path.with_suffix(".json").read_text()) == {**content, "sha256": digest}
    save_weights(path, {"weight": torch.ones(2, 2)}, content)
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest() != digest


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_refused(package: Path, home: Path, damage: str) -> None:
    path = save(trained_path(entry(), Shield(), "digits", home))
    path.write_bytes({"cut": path.read_bytes()[:-5], "empty": b"", "text": b"404: not found"}[damage])
    for read in (read_card, load_state):
        with pytest.raises(UsageError, match="no readable safetensors file"):
            read(path)
    with pytest.raises(UsageError, match="no readable safetensors file"):
        find(home)


def test_a_card_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    for text, message in (("[1, 2]", "no JSON object"), ("{", "no readable safetensors file")):
        save_file({"w": np.zeros(2, np.float32)}, tmp_path / "w.safetensors", metadata={"card": text})
        with pytest.raises(UsageError, match=message):
            read_card(tmp_path / "w.safetensors")


# --------------------------------------------------------------------------------------------------------------- downloads


def test_a_download_is_kept_and_asked_for_once(home: Path, server: Server) -> None:
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()
    server.files["/w.safetensors"] = data
    first = download(f"{server.url}/w.safetensors?download=true", digest, home)
    assert (first.read_bytes(), first.suffix) == (data, ".safetensors")
    assert home in first.parents
    assert download(f"{server.url}/w.safetensors?download=true", digest, home) == first
    assert len(server.requests) == 1
    first.write_bytes(b"damaged")
    assert download(f"{server.url}/w.safetensors?download=true", digest, home).read_bytes() == data
    assert len(server.requests) == 2


def test_a_download_with_another_checksum_is_refused_and_not_kept(home: Path, server: Server) -> None:
    server.files["/w.safetensors"] = b"something else"
    wanted = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(MissingWeights, match=wanted) as raised:
        download(f"{server.url}/w.safetensors", wanted, home)
    assert hashlib.sha256(b"something else").hexdigest() in raised.value.message
    assert not [p for p in home.rglob("*") if p.is_file()]


def test_a_download_that_breaks_off_or_fails_says_where_to_put_the_file(home: Path, server: Server) -> None:
    server.files["/cut.safetensors"] = b"x" * 1000
    server.cut.add("/cut.safetensors")
    closed = Server()
    closed.http.shutdown()
    closed.http.server_close()
    digest = hashlib.sha256(b"x" * 1000).hexdigest()
    for url in (f"{server.url}/cut.safetensors", f"{server.url}/absent.safetensors", f"{closed.url}/w.safetensors", "nonsense"):
        with pytest.raises(MissingWeights, match="could not be fetched from") as raised:
            download(url, digest, home)
        assert str(home / "weights" / "downloads" / f"{digest}.safetensors") in raised.value.hint
    assert not [p for p in home.rglob("*") if p.is_file()]


def test_a_file_put_there_by_hand_is_used(package: Path, home: Path, server: Server, tmp_path: Path) -> None:
    data = save(tmp_path / "w.safetensors", 5.0).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    place = home / "weights" / "downloads" / f"{digest}.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    declared: dict[str, Any] = {"weights": {"digits": f"{server.url}/gone.safetensors"}, "weights_sha256": {"digits": digest}}
    assert find(home, **declared) == (5.0, "downloaded")
    assert server.requests == []


# --------------------------------------------------------------------------------------------------------------- state dicts


def test_state_dicts_are_read_in_the_shapes_that_people_save_them_in(tmp_path: Path) -> None:
    state = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    for content in (state, {"state_dict": state, "epoch": 3}, [state], ({"state_dict": state},)):
        torch.save(content, tmp_path / "w.pt")
        assert {k: v.tolist() for k, v in load_state(tmp_path / "w.pt").items()} == {k: v.tolist() for k, v in state.items()}


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="no file of weights only"):
        load_state(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"text")
    torch.save(torch.zeros(3), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UsageError, match=name):
            load_state(tmp_path / name)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    shared = torch.rand(3, 3)
    save_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared, "c": shared.T}, card())
    assert torch.equal(load_state(tmp_path / "w.safetensors")["b"], shared)
    assert torch.equal(load_state(tmp_path / "w.safetensors")["c"], shared.T)


def test_weights_that_do_not_fit_a_module_are_named(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors")
    layer = nn.Linear(3, 2, bias=False)
    load_into(layer, tmp_path / "w.safetensors", "Shield")
    assert layer.weight.abs().max() == 0
    for other in (nn.Linear(4, 2, bias=False), nn.Linear(3, 2)):
        with pytest.raises(PluginError, match=r"w\.safetensors do not fit Shield: .*(weight|bias)"):
            load_into(other, tmp_path / "w.safetensors", "Shield")


def test_home_is_a_cache_folder_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RBL_HOME", str(tmp_path))
    assert rbl_home() == tmp_path
    for unset in ("", None):
        monkeypatch.delenv("RBL_HOME") if unset is None else monkeypatch.setenv("RBL_HOME", unset)
        assert rbl_home().name == "robustbench-lite"
