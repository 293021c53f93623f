"""Models of the Hugging Face hub: what to download, from the hub or its local cache. No torch.

A hub that can't be reached is a normal case: a probe decides within seconds, and models in the cache then load without
asking again for some minutes. Transfers, logins and mirrors are left to `huggingface_hub`. Pickled weights are never
downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from fnmatch import fnmatch
from pathlib import Path

from litlm.checkpoint.local_copy import LocalCopy, cache_root, discard, verify
from litlm.io.errors import unreadable
from litlm.io.format import format_bytes
from litlm.io.writing import write_text

PROBE_SECONDS = 4.0  # a hub that has not answered a HEAD request by then counts as unreachable
PROBE_AGAIN_SECONDS = 300.0  # how long a failed probe counts for models that are in the cache
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class NoHub(Exception):
    """The hub can't be reached and the cache does not have the model; the text says which hub and why."""


class NoRepo(Exception):
    """The hub answers, and has no such repository."""


@dataclass(frozen=True)
class _Listing:
    """One commit on the hub: each file's size in bytes and, for LFS files, sha256."""

    commit: str
    size: dict[str, int | None]
    sha256: dict[str, str]


def from_hub(repo: str, file: str | None, revision: str | None, token: str | None) -> LocalCopy:
    """A repository's model, or one .gguf file of it, downloaded unless the cache has it.

    Raises NoHub if the hub can't be reached and the cache lacks it, NoRepo if there is no such repository, and
    ValueError, with the remedy, for everything else.
    """
    try:
        listing = _list_files(repo, revision, token)
    except NoHub:
        found = from_cache(repo, file, revision)
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
            where, commit = f"{at} on the hub", listing.commit
            names = _choose(
                repo, where, listing.size, lambda: Path(hf_hub_download(repo, _INDEX, revision=commit, token=token))
            )
        else:
            names = [file]
        missing = [name for name in names if not _is_cached(repo, name, revision, listing)]
        if missing:
            total = sum(listing.size[name] or 0 for name in missing)
            print(
                f"Fetching {at} from the hub: {len(missing)} file{'s' * (len(missing) > 1)}, {format_bytes(total)}",
                file=sys.stderr,
            )
            # The revision, not the commit, so that the library records its commit for use without a hub.
            patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
            snapshot_download(repo, revision=revision, token=token, allow_patterns=patterns)
    except _Refusal:
        raise
    except Exception as err:  # the library and its HTTP clients raise many types
        raise _explain(err, repo, revision, token) from err

    paths = {name: _cache_lookup(repo, name, listing.commit) for name in names}
    lost = [name for name, path in paths.items() if path is None or not _size_matches(path, listing.size[name])]
    if lost:
        raise ValueError(f"{at}: the transfer ended without {', '.join(lost)}. Run the same command again")
    present = {name: path for name, path in paths.items() if path is not None}
    verify((path, listing.sha256[name]) for name, path in present.items() if name in listing.sha256)
    if file is not None:
        return LocalCopy(present[file], bool(missing))
    return LocalCopy(present["config.json"].parent, bool(missing), tuple(names))


def _list_files(repo: str, revision: str | None, token: str | None) -> _Listing:
    """Probe the hub, then ask for the file list. Raises NoHub if one of them is not answered."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as err:
        raise ValueError(f"{repo!r} does not exist on disk and is not a valid hub id: {err}") from err
    if constants.HF_HUB_OFFLINE:
        raise NoHub("Offline mode is on (HF_HUB_OFFLINE)")
    _probe()
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, token=token, timeout=30)
    except HfHubHTTPError as err:
        raise _explain(err, repo, revision, token) from err
    except Exception as err:  # the connection broke, or the login page of a network answered with HTML
        raise NoHub(f"{constants.ENDPOINT} gives no usable answer ({type(err).__name__})") from err
    if info.sha is None or info.siblings is None:
        raise NoHub(f"{constants.ENDPOINT} gives no usable answer (no commit, no files)")
    files = {file.rfilename: file for file in info.siblings}
    lfs = {name: file.lfs["sha256"] for name, file in files.items() if file.lfs}
    return _Listing(info.sha, {name: file.size for name, file in files.items()}, lfs)


def _probe() -> None:
    """Raises NoHub if the hub does not answer within PROBE_SECONDS, and remembers that."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[bool] = []

    def head() -> None:
        with contextlib.suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
            answers.append(True)

    # In a thread, because name resolution and each phase of a request have timeouts of their own, or none.
    thread = threading.Thread(target=head, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not answers:
        with contextlib.suppress(ValueError):  # a read-only cache only means probing again next time
            write_text(_probe_marker(), constants.ENDPOINT)
        raise NoHub(f"{constants.ENDPOINT} does not answer")


def _probe_marker() -> Path:
    return cache_root() / "hub_unreachable"


def probe_failed_recently() -> bool:
    """Whether the hub did not answer a few minutes ago."""
    from huggingface_hub import constants

    try:
        age = time.time() - _probe_marker().stat().st_mtime
        return age < PROBE_AGAIN_SECONDS and _probe_marker().read_text(encoding="utf-8") == constants.ENDPOINT
    except OSError:
        return False


class _Refusal(ValueError):
    """A repository holds no model that can be downloaded; distinct from a failed transfer."""


def _choose(repo: str, where: str, names: Collection[str], index: Callable[[], Path]) -> list[str]:
    """The files among `names` that make up the model: config, tokenizer and one copy of the weights (safetensors)."""
    top = [name for name in names if "/" not in name]  # folders hold other formats: original/, onnx/, gguf/
    shards = [name for name in top if name.endswith(".safetensors")]
    if _SINGLE in shards:
        weights = [_SINGLE]
    elif _INDEX in top:
        weight_map = json.loads(index().read_text(encoding="utf-8"))
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
    """Whether the cache has this commit's file and finds it by `revision` without a hub; removes one of wrong size."""
    path = _cache_lookup(repo, name, revision)
    if path is None or _cache_lookup(repo, name, listing.commit) != path:
        return False
    if _size_matches(path, listing.size[name]):
        return True
    discard(path)
    return False


def from_cache(repo: str, file: str | None, revision: str | None) -> LocalCopy | None:
    """The model in the Hugging Face cache, verified as far as possible without a hub; None if it is not complete."""
    path = _cache_lookup(repo, file or "config.json", revision)
    if path is None:
        return None
    folder, names = path.parent, [file] if file else []
    if file is None:
        try:
            present = [p.name for p in folder.iterdir() if p.is_file()]
            names = _choose(repo, f"The cached copy {folder}", present, lambda: folder / _INDEX)
        except ValueError:
            return None
        except OSError as e:
            raise unreadable(e.filename or folder, e) from None
    # The cache names the blob of an LFS file after its sha256, which allows a check offline.
    blobs = [(path if file else folder / name) for name in names]
    verify((blob, sha) for blob in blobs if re.fullmatch("[0-9a-f]{64}", sha := blob.resolve().name))
    return LocalCopy(path, False) if file else LocalCopy(folder, False, tuple(names))


def _explain(err: Exception, repo: str, revision: str | None, token: str | None) -> Exception:
    """The exception to raise for a failed hub request: ValueError with the remedy, NoHub or NoRepo."""
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
    # In old releases, "not in the local cache" is also an HfHubHTTPError, without a response.
    response = err.response if isinstance(err, errors.HfHubHTTPError) else None
    status = None if response is None else response.status_code
    if isinstance(err, errors.RepositoryNotFoundError) or (status == 401 and not signed_in):
        private = "or your token may not see it" if signed_in else f"if it is private, {login}"
        return NoRepo(f"The hub {constants.ENDPOINT} knows no model {repo!r} ({private})")
    if response is not None:
        message = response.headers.get("X-Error-Message")
        if status == 401 or (status == 403 and message):
            return ValueError(
                f"The hub refuses access to {repo}: {message or 'invalid token'}. To change the token, {login}"
            )
        return NoHub(f"{constants.ENDPOINT} answers HTTP {status}" + (f" ({message})" if message else ""))
    again = "and run the same command again: files that arrived are kept"
    link: BaseException | None = err
    while link is not None:
        full = isinstance(link, OSError) and link.errno in (ENOSPC, EDQUOT)
        if full or "No space left" in str(link):
            where = f"the disk of {constants.HF_HUB_CACHE} is full"
            return ValueError(f"{repo}: {where}. Free space there, or set HF_HOME to a larger disk, {again}")
        if isinstance(link, OSError) and link.filename is not None:  # about a local file
            where = f"the Hugging Face cache {constants.HF_HUB_CACHE} can't be used ({link.strerror}: {link.filename})"
            return ValueError(f"{repo}: {where}. Repair that, or set HF_HOME to another directory, {again}")
        link = link.__cause__ or link.__context__
    reason = next(iter(str(err).splitlines()), "")
    return ValueError(f"{repo}: the transfer broke off ({type(err).__name__}: {reason}). Check the connection {again}")
