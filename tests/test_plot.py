"""`litlm plot`: the curves are those of the files, labels say what differs, problems are named."""

from __future__ import annotations

import csv
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml

from litlm.settings import PlotCommand
from litlm.train.plot import Run, draw, labels, plot_command, plot_loss, read_runs

HEADER = "step,loss,val_loss,lr,tokens,seconds\n"


def _make(path: Path, n: int = 12, settings: dict[str, Any] | None = None, factor: float = 1.0) -> str:
    path.mkdir(parents=True)
    rows = [f"{i},{factor * (3 - i / 10)},{factor * 2.5 + i / 100 if i % 4 == 0 else ''},0.1,{50 * i},{i / 2}\n"
            for i in range(1, n + 1)]  # fmt: skip
    (path / "metrics.csv").write_text(HEADER + "".join(rows))
    if settings is not None:
        (path / "settings.yaml").write_text("# litlm finetune\n" + yaml.safe_dump(settings, sort_keys=False))
    return str(path)


def _settings(out: str, *, lr: float = 1e-3, **method: Any) -> dict[str, Any]:
    return {"model": "m", "train": {"lr": lr, "betas": [0.9, 0.95]}, "method": method, "out_dir": out, "resume": out}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    return (
        _make(tmp_path / "a", settings=_settings("a", r=8)),
        _make(tmp_path / "b", n=7, settings=_settings("b", lr=5e-4, r=16), factor=2.0),
    )


def test_the_lines_are_the_files(runs: tuple[str, str]) -> None:
    found = read_runs(runs)
    figure = draw(found, ["one", "two"], PlotCommand(runs=runs, metrics=("loss", "val_loss", "lr")))
    panels = figure.axes
    assert [axes.get_ylabel() for axes in panels] == ["loss", "val_loss", "lr"]
    assert panels[-1].get_xlabel() == "step"
    for axes in panels:
        assert [line.get_label() for line in axes.lines] == ["one", "two"]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    one, two = panels[0].lines
    assert list(one.get_xdata()) == list(range(1, 13))
    assert list(one.get_ydata()) == pytest.approx([3 - i / 10 for i in range(1, 13)])
    assert list(two.get_ydata()) == pytest.approx([2 * (3 - i / 10) for i in range(1, 8)])
    assert list(panels[1].lines[0].get_xdata()) == [4, 8, 12]
    assert list(panels[1].lines[0].get_ydata()) == pytest.approx([2.54, 2.58, 2.62])
    assert panels[1].lines[0].get_marker() == "o"


def test_smoothing_and_other_axes(runs: tuple[str, str]) -> None:
    for x, factor in (("tokens", 50), ("seconds", 0.5)):
        figure = draw(read_runs(runs), ["one", "two"], PlotCommand(runs=runs, x=x, smooth=3))  # type: ignore[arg-type]
        raw, smooth, *_ = figure.axes[0].lines
        assert list(smooth.get_xdata()) == pytest.approx([factor * i for i in range(1, 13)])
        loss = [3 - i / 10 for i in range(1, 13)]
        parts = [loss[max(0, i - 2) : i + 1] for i in range(12)]
        assert list(raw.get_ydata()) == pytest.approx(loss)
        assert list(smooth.get_ydata()) == pytest.approx([sum(p) / len(p) for p in parts])
        assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["one", "two"]
        assert list(figure.axes[1].lines[0].get_ydata()) == pytest.approx([2.54, 2.58, 2.62])  # validation as it is


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_pictures_and_the_table(
    kind: str, runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / f"runs.{kind}"
    plot_command(PlotCommand(runs=runs, out=str(out), smooth=2))
    names = ["lr=0.001, method.r=8", "lr=0.0005, method.r=16"]
    if kind == "svg":
        texts = ["".join(e.itertext()).strip() for e in ET.parse(out).iter() if e.tag.endswith("}text")]
        assert {*names, "loss", "val_loss", "step"} <= set(texts)
    else:
        picture = matplotlib.image.imread(out)
        assert picture.shape[:2] == (912, 960)
        assert picture[..., :3].std() > 0.05
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "loss", "best", "val", "steps", "tokens/s", "time"]
    assert lines[1].split("  ")[0] == names[0]
    assert lines[1].removeprefix(names[0]).split() == ["1.8500", "2.5400", "12", "100", "0:06", "min"]
    assert lines[2].removeprefix(names[1]).split() == ["4.7000", "5.0400", "7", "100", "0:04", "min"]
    assert lines[-1] == f"Drawn to {out}"


def test_labels_fall_back_to_directories_and_paths(tmp_path: Path) -> None:
    same = _settings("x", r=8)
    paths = [_make(tmp_path / name, settings=same) for name in ("a/run", "b/run", "c", "d")]
    assert labels(read_runs((paths[0], paths[2]))) == ["run", "c"]
    assert labels(read_runs((paths[0], paths[1]))) == [paths[0], paths[1]]
    assert labels(read_runs((paths[0],))) == ["run"]
    assert labels(read_runs((paths[2] + "/", paths[3] + "/metrics.csv"))) == ["c", "d"]
    other = _make(tmp_path / "e", settings=_settings("x", r=4))
    assert labels(read_runs((paths[2], paths[3], other))) == ["c", "d", "e"]  # two of them have one label
    assert labels(read_runs((paths[2], other))) == ["method.r=8", "method.r=4"]
    bare = _make(tmp_path / "f")
    assert labels(read_runs((paths[2], bare))) == ["c", "f"]
    long = _make(tmp_path / "g", settings=same | {"model": "m" * 99 + "1", "added": True})
    assert labels(read_runs((paths[2], long)))[1] == f"model=…{'m' * 38}1, added=True"


def test_labels_that_matplotlib_would_read_as_its_own(tmp_path: Path) -> None:
    runs = tuple(_make(tmp_path / name) for name in ("_hidden", "a$b$^", "c$"))
    figure = draw(read_runs(runs), labels(read_runs(runs)), PlotCommand(runs=runs))
    figure.savefig(tmp_path / "x.png")
    assert len(figure.axes[0].get_legend().get_texts()) == 3


def test_no_torch(runs: tuple[str, str]) -> None:
    """Comparing runs is quick: reading and drawing load nothing that computes."""
    code = (
        "import sys, types, litlm\n"
        "sys.modules['litlm.train'] = package = types.ModuleType('litlm.train')\n"  # the package's own file loads all
        "package.__path__ = [f'{litlm.__path__[0]}/train']\n"
        "from litlm.settings import PlotCommand\n"
        "from litlm.train.plot import draw, labels, read_runs, table\n"
        "runs = read_runs(sys.argv[1:])\n"
        "names = labels(runs)\n"
        "draw(runs, names, PlotCommand(runs=tuple(sys.argv[1:])))\n"
        "print(table(runs, names))\n"
        "assert not {'torch', 'lightning', 'litlm.train.report'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *runs], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "lr=0.001, method.r=8" in done.stdout


def test_problems_are_named_together(tmp_path: Path) -> None:
    good = _make(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    started = tmp_path / "started"
    started.mkdir()
    (started / "metrics.csv").write_text(HEADER + "1,2")
    binary = tmp_path / "weights.safetensors"
    binary.write_bytes(bytes(range(256)) * 20)
    wide = tmp_path / "wide.csv"
    wide.write_text("x" * 200_000 + "\n")
    csv.field_size_limit(2**17)  # Python's own, which reading of data raises for the process
    broken = _make(tmp_path / "broken")
    (tmp_path / "broken" / "settings.yaml").write_text("a: [")
    with pytest.raises(ValueError) as e:
        read_runs((good, str(tmp_path / "no"), str(tmp_path / "empty"), str(started), str(binary), str(wide), broken))
    told = str(e.value).splitlines()[1:]
    for line, words in zip(
        told,
        (
            "no does not exist", "empty is not a run: there is no metrics.csv", "started/metrics.csv has no steps yet",
            "weights.safetensors has no steps yet, or is not", "wide.csv can't be read", "settings.yaml is not valid",
        ),
        strict=True,
    ):  # fmt: skip
        assert words in line


def test_unknown_metrics_and_pictures(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no run has mfu, accuracy; there are loss, lr, seconds, step, tokens, val_loss"
    ):
        plot_command(PlotCommand(runs=runs, metrics=("loss", "mfu", "accuracy")))
    with pytest.raises(ValueError, match=r"out=x\.jpeg must end in \.png or \.svg"):
        plot_command(PlotCommand(runs=runs, out="x.jpeg"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.csv").write_text("step,loss\n1,2.0\n")
    only = (str(tmp_path / "c"),)
    with pytest.raises(ValueError, match="x=tokens: no run has it; there are loss, step"):
        plot_command(PlotCommand(runs=only, x="tokens"))
    assert len(draw(read_runs(only), ["c"], PlotCommand(runs=only)).axes) == 1  # a run without validation
    both = (runs[0], only[0])
    figure = draw(read_runs(both), ["a", "c"], PlotCommand(runs=both, x="tokens"))
    assert [line.get_label() for line in figure.axes[0].lines] == ["a"]


def test_the_loss_curve_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    rows = [{"step": i, "loss": 4.0 / i} | ({"val_loss": 2.0} if i == 3 else {}) for i in range(1, 6)]
    plot_loss(rows, tmp_path / "loss.png", "mine · a/model_$1$")
    each, mean, val = figures[0].axes[0].lines
    assert list(each.get_ydata()) == [4.0 / i for i in range(1, 6)]
    assert list(mean.get_ydata()) == pytest.approx([4, 3, (2 + 4 / 3) / 2, (4 / 3 + 1) / 2, 0.9])
    assert (list(val.get_xdata()), list(val.get_ydata())) == ([3], [2.0])
    assert matplotlib.image.imread(tmp_path / "loss.png").shape[:2] == (480, 840)
    axes = figures[0].axes[0]
    assert axes.get_title() == r"mine · a/model_\$1\$"
    assert all(tick == int(tick) for tick in axes.get_xticks())
    low, high = axes.get_ylim()
    assert low < 0.8
    assert 4 < high < 5
    plot_loss(rows, tmp_path / "b.png", f"run · /{'long/' * 40}model\n東京")  # no warning of the font's, either
    title = figures[1].axes[0].title
    assert title.get_text().startswith("run · /long/")
    assert title.get_text().endswith("model 東京")
    box = title.get_window_extent(figures[1].canvas.get_renderer())
    assert (box.x0, box.x1) > (0, 0)
    assert box.x0 >= 0
    assert box.x1 <= 840


def test_an_outlier_does_not_flatten_the_loss_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), Path(path).write_text("x")))
    rows = [{"step": i, "loss": 1e5 if i == 30 else 2 + 1 / i, "seconds": i / 4} for i in range(1, 101)]
    plot_loss(rows, tmp_path / "loss.png")
    (axes,) = figures[0].axes
    assert axes.get_ylim() == pytest.approx((2.01 - 0.05 * 0.99, 3 + 0.05 * 0.99))
    assert [t.get_text() for t in axes.texts] == ["1 value is beyond the axis"]
    run = Run("a", tmp_path, rows, {})
    (axes,) = draw([run], ["a"], PlotCommand(runs=("a",), x="seconds", metrics=("loss",))).axes
    assert axes.get_ylim()[1] == pytest.approx(3 + 0.05 * 0.99)
