"""What sources of data have in common, for records and for text: patterns of file names, parquet files, and datasets on
the Hugging Face hub, with what goes wrong explained.

The last two need libraries of the extra `data`, imported where needed.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from litlm.data.named import list_datasets
from litlm.io.errors import error_reason

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([^:/\\]+))?", re.ASCII)
_HUB_SECONDS = 4.0  # a hub that has not answered by then counts as unreachable; the library would retry for long
_SAID = 300  # characters of a library's message


def expand(sources: Sequence[str]) -> list[str]:
    """Patterns such as texts/*.jsonl (** is any depth) as the files and folders they match, in order of their names."""
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
    return found


def split_hub_id(text: str) -> tuple[str, str | None] | None:
    """`org/name` or `org/name:config` as (org/name, config); None if it is neither."""
    found = _HUB_ID.fullmatch(text)
    return (found[1], found[2]) if found else None


@contextmanager
def open_parquet(path: str | Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile, to be read within the block."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path}: reading .parquet needs pyarrow: pip install 'litlm[data]', or convert the file to .jsonl"
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
    """The rows of a dataset: all of them, fetched or from a copy that was fetched before, or one by one (streaming).

    file: the one that holds the split, for repositories that the library can't read as a whole.
    """
    try:
        import datasets
        import datasets.config
    except ImportError:
        raise ValueError(
            f"{hub_id}: there is no such file, and reading it from the Hugging Face hub needs the datasets library: "
            "pip install 'litlm[data]', or save it as a .jsonl file and name that"
        ) from None
    place, options = hub_id, dict[str, Any](split=split)
    if file is not None:
        place, options = "json", dict[str, Any](split="train", data_files=f"hf://datasets/{hub_id}/{file}")
    if revision is not None:
        options["revision"] = revision
    if streaming:
        with hub_errors(hub_id, config, split):
            return datasets.load_dataset(place, config, **options, streaming=True)
    switches: Any = datasets.config
    before = switches.HF_HUB_OFFLINE
    offline = switches.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        with hub_errors(hub_id, config, split, offline=offline):
            return datasets.load_dataset(place, config, **options)
    finally:
        switches.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(hub_id: str, config: str | None, split: str, *, offline: bool = False) -> Iterator[None]:
    """What the libraries raise in the block, with what to do about it. offline: nothing was fetched."""
    try:
        yield
    except Exception as e:  # of many unrelated types, by the version of the library
        subset = f", subset {config!r}" if config else ""
        why = _remedy(e, hub_id, offline)
        raise ValueError(f"{hub_id}: the hub dataset (split {split!r}{subset}) can't be read: {why}") from e


def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # of the HTTP library, which differs by version
        return False
    return True


def _remedy(error: Exception, hub_id: str, offline: bool) -> str:
    from huggingface_hub.errors import GatedRepoError

    text = " ".join(str(error).split())
    said = text[:_SAID].removesuffix(".") or type(error).__name__
    page = f"https://huggingface.co/datasets/{hub_id}"
    gated = any(dataset.gated and dataset.hub_id == hub_id for dataset in list_datasets())
    if isinstance(error, GatedRepoError) or "is a gated" in text or (gated and "401" in text):
        return f"{said}. Ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, ConnectionError) or (offline and not isinstance(error, ValueError)):
        fetched = ", and it was not fetched before" if offline else ""
        return (
            f"no hub answers{fetched} ({said}). Check the network (HF_ENDPOINT names another hub), or get its files "
            f"from {page} elsewhere and name one of them. No file or folder here has that name"
        )
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{text} Write the one you want behind the id: {hub_id}:CONFIG"
    if "split" in said.lower():
        return f"{said}. Choose one with --data.split (litlm prepare: --split)"
    if "scripts are no longer supported" in text:
        return f"{said}; it holds a program in place of data. Get its files from {page} and name one of them"
    return f"{said}. Is the name right (no file or folder has it), and do you have access? See {page}"
