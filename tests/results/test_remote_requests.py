"""Addresses that cannot be used, and a bucket that can."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from addresses import Faulty, Told, lying, publish, put
from fsspec.registry import _registry as REGISTERED
from stores import files

from robbench.results.store import Store

pytest_plugins = ("addresses",)


# --- requests


def denied(path: str, found: object) -> object:
    raise PermissionError("Access Denied")


def unknown(path: str, found: object) -> object:
    raise type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")


def unauthorized(path: str, found: object) -> object:
    error = RuntimeError("401 Client Error")
    error.response = SimpleNamespace(status_code=401)  # type: ignore[attr-defined]
    raise error


@pytest.mark.parametrize("option", ["--from", "--to"])
@pytest.mark.parametrize("denial", [denied, unknown, unauthorized])
def test_missing_credentials_are_told(denial: Callable[..., Any], option: str, folder: Path, told: Told) -> None:
    put(folder)
    Faulty.happens["ls"] = denial
    words = ("faulty://theirs",) if option == "--to" else (folder / "site", option, "faulty://theirs")
    line = told(publish(Store(folder / "runs"), *words))
    assert f'{option}: "faulty://theirs": no permission' in line
    assert not (folder / "site").exists()


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("faulty://nowhere", '"faulty://nowhere" does not exist'),
        ("faulty://theirs/toys/board.json", "holds no published board"),
        ("hf://datasets", "cannot be used"),
        ("s4://bucket/boards", '"s4" is no kind of address; did you mean "s3"?'),
        pytest.param(
            "http://user:secret@127.0.0.1:1/boards",
            '"http://127.0.0.1:1/boards" cannot be reached',
            marks=pytest.mark.skipif(
                not find_spec("aiohttp") or not find_spec("requests"), reason="nothing reads http"
            ),
        ),
    ],
)
def test_addresses_that_hold_nothing_are_told(address: str, part: str, folder: Path, told: Told) -> None:
    put(folder)
    line = told(publish(Store(folder / "runs"), folder / "site", "--from", address))
    assert part in line
    assert "secret" not in line
    assert not (folder / "site").exists()


@pytest.mark.parametrize(("scheme", "module"), [("s3", "s3fs"), ("hf", "huggingface_hub")])
def test_a_missing_extra_is_told(
    scheme: str, module: str, folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(REGISTERED, scheme, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    line = told(publish(Store(folder / "runs"), f"{scheme}://us/boards"))
    assert "pip install 'robbench[remote]'" in line


def test_a_place_cannot_be_read_and_written(folder: Path, told: Told) -> None:
    put(folder)
    for other in ("faulty://theirs", "faulty://theirs/toys"):
        assert "publish to another place" in told(publish(Store(folder / "runs"), "faulty://theirs", "--from", other))


def test_an_address_cannot_be_a_board_itself(folder: Path, told: Told) -> None:
    put(folder)
    before = lying("/theirs")
    assert "is a published board itself" in told(publish(Store(folder / "runs"), "faulty://theirs/toys"))
    assert lying("/theirs") == before


# --- a bucket


@pytest.mark.end_to_end
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_bucket_holds_what_a_directory_holds(folder: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = Store(folder / "runs")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        assert "AWS_ACCESS_KEY_ID" in told(publish(store, "s3://lab/boards"))
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert '"s3://lab/boards" does not exist' in told(publish(store, "s3://lab/boards"))
        s3fs.S3FileSystem().mkdir("lab")
        for words in ((), ("--from", folder / "theirs")):
            assert publish(store, folder / "site", *words) == publish(store, "s3://lab/boards", *words) == 0
        fs = s3fs.S3FileSystem()
        fs.invalidate_cache()
        assert {path.removeprefix("lab/boards/"): fs.cat_file(path) for path in fs.find("lab/boards")} == files(
            folder / "site"
        )
        assert publish(store, folder / "again", "--from", "s3://lab/boards") == 0
        assert files(folder / "again") == files(folder / "site")
        assert "does not exist" in told(publish(store, folder / "x", "--from", "s3://lab/nothing"))
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
