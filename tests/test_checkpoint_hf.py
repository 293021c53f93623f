"""What goes wrong with checkpoint directories: bad files, full disks, killed saves; and the memory loading takes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity import cases
from parity.cases import raw_tensors
from safetensors.torch import load_file, save_file

from litlm.checkpoint.hf import INDEX, SafetensorsSource, save_weights, weight_files
from litlm.config import Config
from litlm.io.writing import atomic_file, write_text
from litlm.model import GPT

LLAMA, NEOX = cases.by_name("llama-mha-biases"), cases.by_name("gpt_neox-parallel")
WEIGHTS = "model.safetensors"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(shutil.copytree(cases.write(LLAMA), tmp_path / "llama"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    cases.build(LLAMA).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    return tmp_path / "sharded"


def _refused(path: Path, *wrong: str) -> str:
    """Loading is a ValueError that names the place and everything in `wrong`."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as e:
        cases.load(path)
    for text in wrong:
        assert text in str(e.value)
    return str(e.value)


def _edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


# --- tensors that don't fit ----------------------------------------------------------------------------------------


def test_all_tensors_that_do_not_fit_are_listed(llama: Path) -> None:
    def change(t: dict[str, torch.Tensor]) -> None:
        del t["model.layers.1.mlp.up_proj.weight"], t["model.norm.weight"]
        t["model.layers.3.mlp.up_proj.weight"] = torch.zeros(56, 48)
        t["model.layers.0.self_attn.q_norm.weight"] = torch.zeros(12)
        t["lora.weight"] = torch.zeros(2, 3)
        t["model.layers.2.self_attn.k_proj.weight"] = torch.zeros(24, 48)
        t["model.embed_tokens.weight"] = torch.zeros(61)

    _edit(llama, change)
    message = _refused(
        llama,
        "model.layers.1.mlp.up_proj.weight is missing",
        "model.norm.weight is missing",
        "model.layers.3.mlp.up_proj.weight [56, 48] has no place",
        "model.layers.0.self_attn.q_norm.weight [12] is not part of a llama model",
        "lora.weight [2, 3] is not part of a llama model",
        "model.layers.2.self_attn.k_proj.weight has shape [24, 48], the config asks for [48, 48]",
        "model.embed_tokens.weight has shape [61], the config asks for [61, 48]",
    )
    assert message.count("\n- ") == 7


def test_fused_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path = Path(shutil.copytree(cases.write(NEOX), tmp_path / "neox"))

    def change(t: dict[str, torch.Tensor]) -> None:
        qkv = "gpt_neox.layers.{}.attention.query_key_value.{}"
        t[qkv.format(0, "weight")] = torch.zeros(100, 48)
        t[qkv.format(1, "weight")] = torch.zeros(144, 40)
        del t[qkv.format(2, "bias")]
        t["gpt_neox.layers.1.attention.bias"] = torch.zeros(1, 1, 8, 8)  # an old buffer: no weight, no problem

    _edit(path, change)
    message = _refused(
        path,
        "layers.0.attention.query_key_value.weight has shape [100, 48], which does not fit",
        "layers.1.attention.query_key_value.weight has shape [48, 40], the config asks for [48, 48]",
        "layers.2.attention.query_key_value.bias is missing",
    )
    assert "attention.bias" not in message


def test_weights_of_another_family(llama: Path) -> None:
    shutil.copy(cases.write(NEOX) / WEIGHTS, llama / WEIGHTS)
    _refused(llama, "gpt_neox.embed_in.weight [59, 48] is not part of a llama model", "and 51 more")


def test_quantized_values_are_refused(llama: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _edit(llama, lambda t: t.__setitem__(name, t[name].to(torch.int8)))
    _refused(llama, name, "int8")


def test_tied_checkpoints_may_store_the_head(tmp_path: Path) -> None:
    case = cases.by_name("llama-mqa-tied")
    path = Path(shutil.copytree(cases.write(case), tmp_path / "tied"))
    _edit(path, lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone()))
    ids = cases.tokens(case, 1, 5)
    with torch.no_grad():
        cases.close(cases.load(path)(ids), cases.hf_logits(case, ids))


# --- files ---------------------------------------------------------------------------------------------------------


def test_truncated_files(llama: Path) -> None:
    data = (llama / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for keep in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        (llama / WEIGHTS).write_bytes(data[:keep])
        _refused(llama, "truncated or corrupt", WEIGHTS)


def test_corrupt_files(llama: Path) -> None:
    data = (llama / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for bad in (
        b"\xff" * 8 + data[8:],
        data[:8] + b"[" + data[9:],
        data[:8] + data[8:header].replace(b"data_offsets", b"data_offsetz") + data[header:],
        data[:8] + data[8:header].replace(b'"F32"', b'"Q32"') + data[header:],
        data + b"more",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n",
        b"<html>404</html>",
    ):
        (llama / WEIGHTS).write_bytes(bad)
        _refused(llama, "truncated or corrupt")


def test_missing_files(llama: Path, sharded: Path, tmp_path: Path) -> None:
    (llama / WEIGHTS).unlink()
    _refused(llama, "has no weights", WEIGHTS, INDEX)
    for name in ("pytorch_model.bin", "consolidated.00.pth"):
        (llama / name).write_bytes(b"never unpickled")
        _refused(llama, name, "pickle", "safetensors")
        (llama / name).unlink()
    _refused(tmp_path / "nowhere", "does not exist")
    shards = weight_files(sharded)
    assert len(shards) > 3
    shards[1].unlink()
    shards[2].unlink()
    _refused(sharded, "incomplete", shards[1].name, shards[2].name)


def test_bad_index(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    for bad in (
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": []}}',
        '{"weight_map": {"a": 1, "b": "c"}}',
    ):
        (sharded / INDEX).write_text(bad)
        _refused(sharded, INDEX, "not valid JSON" if bad == "{" else "JSON object" if bad == "[]" else "weight_map")
    # A shard whose tensors the index does not name, because the save was another one's.
    lost = weight_files_of(index)[-1]
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != lost}
    (sharded / INDEX).write_text(json.dumps(index))
    _refused(sharded, "is missing")


def weight_files_of(index: dict[str, dict[str, str]]) -> list[str]:
    return sorted(set(index["weight_map"].values()))


def test_bad_config(llama: Path) -> None:
    (llama / "config.json").write_text("{")
    _refused(llama, "config.json", "not valid JSON")
    (llama / "config.json").unlink()
    _refused(llama, "config.json", "does not exist; a checkpoint directory needs a config.json")
    (llama / "adapter_config.json").touch()
    _refused(llama, "config.json", "holds an adapter: give its model here")
    (llama / "b.gguf").touch()
    _refused(llama, "config.json", f"holds b.gguf: name that file ({llama / 'b.gguf'})")


# --- writing -------------------------------------------------------------------------------------------------------


def test_atomic_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "old")
    assert target.read_text() == "old"

    def fail(error: BaseException) -> None:
        with atomic_file(target) as part:
            part.write_text("half")
            (part.parent / ".tmp123").write_text("a library's own")
            raise error

    with pytest.raises(KeyError):
        fail(KeyError("a mistake elsewhere"))
    with pytest.raises(ValueError, match="file.txt could not be written .No space left on device.; .*untouched"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("limit", [10**9, 20_000], ids=["single", "sharded"])
def test_disk_full(limit: int, llama: Path) -> None:
    """The system refuses to write on (here by a limit on a file's size): everything is as it was before."""
    import resource

    before = cases.load(llama)
    other = {name: torch.zeros_like(t) for name, t in before.state_dict().items()}
    save_weights(before.state_dict(), before.config, llama, max_shard_bytes=limit)
    files = {p.name: p.read_bytes() for p in llama.iterdir()}
    sizes = sorted({len(data) for name, data in files.items() if name.endswith(".safetensors")})
    assert (len(sizes) > 1) == (limit < 10**9)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in sizes:  # fails at the first shard, at a later one, ...
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, unlimited[1]))
        try:
            with pytest.raises(ValueError, match=r"could not be written \(.*File too large.*untouched"):
                save_weights(other, before.config, llama, max_shard_bytes=limit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert {p.name: p.read_bytes() for p in llama.iterdir()} == files
    save_weights(other, before.config, llama, max_shard_bytes=limit)
    assert not any(t.any() for t in cases.load(llama).state_dict().values())


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    model = cases.ours(LLAMA)
    with pytest.raises(ValueError, match="could not be written"):
        save_weights(model.state_dict(), model.config, tmp_path / "file")
    with pytest.raises(ValueError, match="could not be written"):
        save_weights(model.state_dict(), model.config, tmp_path / "file" / "below")


def test_litter_of_a_killed_save_goes_with_the_next(llama: Path) -> None:
    (llama / ".model.safetensors.abc.part").mkdir()
    (llama / ".model.safetensors.abc.part" / ".tmp123").write_bytes(b"half")
    model = cases.load(llama)
    save_weights(model.state_dict(), model.config, llama)
    assert not list(llama.glob(".*"))


def test_mixed_precision_is_kept(llama: Path, tmp_path: Path) -> None:
    """The config then names the checkpoint's own precision; each tensor keeps its own."""
    model = cases.load(llama)
    state = {n: t.bfloat16() if "mlp" in n else t for n, t in model.state_dict().items()}
    save_weights(state, model.config, tmp_path / "out")
    assert {d for d, _, _ in raw_tensors(tmp_path / "out").values()} == {"BF16", "F32"}
    assert Config.from_hf(tmp_path / "out").dtype == "float32"


KILLED = """
import os, signal, sys, time, torch
from pathlib import Path
from litlm.checkpoint.hf import save_weights
from litlm.config import Config
from litlm.model import GPT

torch.set_num_threads(1)
path, limit = Path(sys.argv[1]), int(sys.argv[2])
config = Config.from_hf(path)
state = {name: torch.empty_like(t) for name, t in GPT(config).state_dict().items()}
value = 0
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        while True:
            value += 1
            for t in state.values():
                t.fill_(value)
            save_weights(state, config, path, max_shard_bytes=limit)
    time.sleep(float(line))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    value += 1000
    print("killed", flush=True)
"""


@pytest.mark.parametrize("limit", [10**9, 400_000], ids=["single", "sharded"])
def test_killed_while_saving(limit: int, tmp_path: Path) -> None:
    """SIGKILL at random moments while saves overwrite each other: what is there always loads."""
    config = Config(vocab_size=512, n_layer=4, n_embd=64, n_head=2, intermediate_size=512)  # 1.9 MB
    state = {name: torch.zeros_like(t) for name, t in GPT(config).state_dict().items()}
    save_weights(state, config, tmp_path, max_shard_bytes=limit)
    start = time.monotonic()
    save_weights(state, config, tmp_path, max_shard_bytes=limit)
    rnd, duration = random.Random(limit), time.monotonic() - start
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(limit)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        kills, litter, newest = 0, 0, 0.0
        # Until enough of them hit a save to prove something; later and later, as the machine may have become slower.
        while kills < 10 or litter < 2 or newest == 0:
            assert kills < 200
            child.stdin.write(f"{rnd.uniform(0, 6 * duration) * (1 + kills / 10)}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "killed\n"
            kills += 1
            litter += len(list(tmp_path.glob(".*.part"))) > 0
            found = [t.unique() for t in cases.load(tmp_path).state_dict().values()]
            assert all(len(values) == 1 for values in found)  # no tensor is half written
            values = {values.item() for values in found}
            if limit == 10**9:  # shards are renamed one after the other, so two saves can meet in that instant
                assert len(values) == 1
            assert min(values) >= newest or limit < 10**9
            newest = max(values)
        child.stdin.close()
    save_weights(state, config, tmp_path, max_shard_bytes=limit)
    assert not list(tmp_path.glob(".*"))


# --- memory --------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, threading, torch
from pathlib import Path
from litlm.checkpoint.base import load_model
from litlm.checkpoint.hf import SafetensorsSource
from litlm.config import Config

def private():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], private())

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
torch.ones(10) @ torch.ones(10)
base, peak, done = private(), [0], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
model = load_model(Config.from_hf(path), SafetensorsSource(path), device=torch.device("cpu"), dtype=dtype)
peak[0] = max(peak[0], private())
done.set()
thread.join()
print(peak[0] - base, sum(p.nbytes for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1.1 GB bf16 checkpoint in three shards."""
    path = tmp_path_factory.mktemp("big")
    config = Config(vocab_size=32000, n_layer=9, n_embd=2048, n_head=16, n_kv_head=4, dtype="bfloat16")
    with torch.device("meta"):
        model = GPT(config)
    state = {n: torch.randn(p.shape, dtype=torch.bfloat16) for n, p in model.named_parameters()}
    save_weights(state, config, path, max_shard_bytes=500 * 10**6)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_memory_of_loading(dtype: str, big: Path) -> None:
    assert sum(p.stat().st_size for p in big.glob("*.safetensors")) > 10**9
    out = subprocess.run([sys.executable, "-c", MEASURE, str(big), dtype], check=True, capture_output=True, text=True)
    peak, size = map(int, out.stdout.split())
    print(f"{dtype}: peak private memory {peak / 1e9:.3f} GB for {size / 1e9:.3f} GB of weights: {peak / size:.3f}")
    assert peak <= 1.3 * size


def test_shapes_come_from_headers_alone(llama: Path) -> None:
    source = SafetensorsSource(llama)
    assert source.shapes() == {name: tuple(shape) for name, (_, shape, _) in raw_tensors(llama).items()}
