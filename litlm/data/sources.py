"""Sources of records and of text: file name patterns, parquet files and Hugging Face datasets, with helpful errors.

Parquet and the hub need the libraries of the extra `data`, which are imported on use.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litlm.data.named import list_datasets
from litlm.io.errors import error_reason

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:/\\]+))?", re.ASCII)
_HUB_TIMEOUT = 4.0  # seconds until the hub counts as unreachable; the library would retry for much longer
_MAX_MESSAGE = 300  # characters of a library's message


def expand_patterns(sources: Sequence[str]) -> list[str]:
    """The sources, with patterns such as texts/*.jsonl (** is any depth) replaced by their matches, sorted.

    Raises ValueError for a pattern without matches, and for a source that is named twice.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        if not glob.has_magic(source) or path.exists():
            found.append(source)
            continue
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise ValueError(f"{source} matches no file")
        found += matches
    refuse_repeated(found)
    return found


def refuse_repeated(sources: Sequence[str]) -> None:
    """Raises ValueError for sources that are named twice, also by other spellings of a path."""
    places = [os.path.abspath(Path(source).expanduser()) for source in sources]
    if repeated := [source for i, source in enumerate(sources) if places[i] in places[:i]]:
        names = ", ".join(list(dict.fromkeys(repeated))[:3]) + (", ..." if len(set(repeated)) > 3 else "")
        raise ValueError(f"{names} would be read twice; name it once, alone or by a pattern or its folder")


def split_hub_id(text: str) -> tuple[str, str | None] | None:
    """`org/name` or `org/name:config` as (org/name, config); None if it is neither."""
    found = _HUB_ID.fullmatch(text)
    return (found[1], found[2]) if found else None


@contextmanager
def open_parquet(path: str | Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. Its errors in the block are raised as ValueError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path}: reading .parquet needs pyarrow: pip install pyarrow, or convert the file to .jsonl"
        ) from None
    try:
        with ParquetFile(path) as file:
            yield file
    except ArrowException as e:
        raise ValueError(f"{path} is no valid parquet file ({e}); copy or download it again") from None
    except OSError as e:
        raise ValueError(f"{path} can't be read: {error_reason(e)}") from None


def load_hub(
    hub_id: str,
    config: str | None,
    split: str,
    *,
    file: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Any:
    """A hub dataset, from the network or the local cache, or as a stream.

    file: holds the split, for repositories that the library can't read as a whole. Raises ValueError on failure.
    """
    try:
        import datasets
        import datasets.config
    except ImportError:
        raise ValueError(
            f"{hub_id}: there is no such file, and reading it from the Hugging Face hub needs the datasets library: "
            "pip install datasets, or save it as a .jsonl file and name that"
        ) from None
    path, options = hub_id, dict[str, Any](split=split)
    if file is not None:
        path, options = "json", dict[str, Any](split="train", data_files=f"hf://datasets/{hub_id}/{file}")
    if revision is not None:
        options["revision"] = revision
    if streaming:
        with hub_errors(hub_id, config, split):
            return datasets.load_dataset(path, config, **options, streaming=True)
    library_config: Any = datasets.config
    before = library_config.HF_HUB_OFFLINE
    offline = library_config.HF_HUB_OFFLINE = before or not _hub_is_reachable()
    try:
        with hub_errors(hub_id, config, split, offline=offline):
            return datasets.load_dataset(path, config, **options)
    finally:
        library_config.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(hub_id: str, config: str | None, split: str, *, offline: bool = False) -> Iterator[None]:
    """Raise the libraries' errors in the block as ValueError that says what to do. offline: the hub was not asked."""
    try:
        yield
    except Exception as e:  # many unrelated types, which differ by version
        subset = f", subset {config!r}" if config else ""
        why = _explain(e, hub_id, offline)
        raise ValueError(f"{hub_id}: the hub dataset (split {split!r}{subset}) can't be read: {why}") from e


def _hub_is_reachable() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT)
    except Exception:  # the HTTP library differs by version
        return False
    return True


def _explain(error: Exception, hub_id: str, offline: bool) -> str:
    from huggingface_hub.errors import GatedRepoError

    text = " ".join(str(error).split())
    message = text[:_MAX_MESSAGE].removesuffix(".") or type(error).__name__
    page = f"https://huggingface.co/datasets/{hub_id}"
    gated = any(dataset.gated and dataset.hub_id == hub_id for dataset in list_datasets())
    if isinstance(error, GatedRepoError) or "is a gated" in text or (gated and "401" in text):
        return f"{message}. Ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, ConnectionError) or (offline and not isinstance(error, ValueError)):
        fetched = ", and the dataset is not cached" if offline else ""
        return (
            f"the hub does not answer{fetched} ({message}). Check the network (HF_ENDPOINT names another hub), or "
            f"download its files from {page} elsewhere and name one of them. No file or folder here has that name"
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{text} Name the one you want: {hub_id}:CONFIG"
    if "split" in message.lower():
        return f"{message}. Choose one with --data.split (litlm prepare: --split)"
    if "scripts are no longer supported" in text:
        return f"{message}; it holds a loading script, not data. Download its files from {page} and name one of them"
    return f"{message}. Is the name right (no file or folder has it), and do you have access? See {page}"
