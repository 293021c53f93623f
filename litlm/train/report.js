// What report.html does beyond what it shows without scripts: values under the pointer, other axes, a logarithm.
"use strict";
{
  const left = 52, right = 390, top = 8, bottom = 196, height = 220;
  const state = { x: "step", log: false };
  const charts = [...document.querySelectorAll(".chart")].map((card) => ({
    card, svg: card.querySelector("svg"), plot: card.querySelector("svg .plot"), axes: card.querySelector("svg .axes"),
    curves: JSON.parse(card.querySelector("script").textContent),
  }));
  const finite = (values) => values.filter((v) => v !== null);

  const ticks = (low, high) => {
    const rough = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= 0.7 * rough), found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return found;
  };
  const short = (v) => {
    for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(v) >= Math.max(size, 1e4)) return +(v / size).toPrecision(4) + unit;
    }
    return String(+v.toPrecision(4));
  };
  const time = (s) => {
    const m = Math.floor(s / 60);
    const two = (n) => String(n).padStart(2, "0");
    return m >= 60 ? `${Math.floor(m / 60)} h ${two(m % 60)} min` : `${m}:${two(Math.round(s % 60))} min`;
  };
  const unit = (x1) => (state.x !== "seconds" ? [1, ""] : x1 >= 7200 ? [3600, " h"] : x1 >= 120 ? [60, " min"] : [1, " s"]);

  const element = (name, attributes, content = "") => {
    const found = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    found.textContent = content;
    return found;
  };

  const draw = (chart) => {
    const { svg, curves } = chart;
    const x = curves.every((c) => c.x[state.x]) ? state.x : "step";
    const xs = curves.flatMap((c) => c.x[x]), ys = curves.flatMap((c) => finite(c.y));
    const log = state.log && ys.every((y) => y > 0);
    const x0 = xs.reduce((a, b) => Math.min(a, b)), x1 = Math.max(xs.reduce((a, b) => Math.max(a, b)), x0 + 1e-9);
    let y0 = +svg.dataset.y0, y1 = +svg.dataset.y1;
    if (log) {
      [y0, y1] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))].map(Math.log10);
      const margin = (y1 - y0) * 0.05 || 0.1;
      [y0, y1] = [y0 - margin, y1 + margin];
    }
    const px = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
    const py = (v) => {
      const at = bottom - (((log ? Math.log10(v) : v) - y0) / (y1 - y0)) * (bottom - top);
      return Math.max(-9999, Math.min(9999, at));
    };
    chart.place = { x, px, py, log };
    const marks = [];
    let levels = ticks(y0, y1);
    if (log) {
      const whole = levels.filter((v) => Math.abs(v - Math.round(v)) < 1e-9);
      levels = whole.length > 1 ? whole.map((v) => 10 ** Math.round(v)) : ticks(10 ** y0, 10 ** y1).filter((v) => v > 0);
    }
    for (const y of levels) {
      const at = py(y).toFixed(1);
      marks.push(element("line", { class: "axis", x1: left, x2: right, y1: at, y2: at }));
      marks.push(element("text", { x: left - 6, y: +at + 4, "text-anchor": "end" }, short(y)));
    }
    const [size, name] = unit(x1);
    for (const v of ticks(x0 / size, x1 / size)) {
      if (x === "step" && v !== Math.round(v)) continue;
      const at = px(v * size).toFixed(1);
      marks.push(element("text", { x: at, y: height - 6, "text-anchor": +at > right - 14 ? "end" : "middle" }, short(v) + name));
    }
    chart.axes.replaceChildren(...marks);
    const lines = [];
    for (const c of curves) {
      const points = c.y.map((y, i) => (y === null ? null : [px(c.x[x][i]).toFixed(2), py(y).toFixed(2)])).filter(Boolean);
      lines.push(element("polyline", { class: c.style, "data-name": c.name, points: points.map((p) => p.join()).join(" ") }));
      if (c.dots || points.length === 1) {
        lines.push(...points.map(([cx, cy]) => element("circle", { class: c.style, cx, cy, r: 2.5 })));
      }
    }
    chart.plot.replaceChildren(...lines);
    const clipped = chart.card.querySelector(".beyond");
    if (clipped) clipped.hidden = log;
  };

  const point = (chart, event) => {
    const box = chart.svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * 400;
    const { x, px, py } = chart.place;
    const first = chart.curves[0], said = [];
    const nearest = (values) => values.reduce((best, v, i) => (Math.abs(px(v) - at) < Math.abs(px(values[best]) - at) ? i : best), 0);
    const i = nearest(first.x[x]), here = px(first.x[x][i]);
    hide(chart);
    chart.svg.append(element("line", { class: "at", x1: here, x2: here, y1: top, y2: bottom }));
    said.push(`step ${first.x.step[i].toLocaleString("en")}`);
    if (first.x.tokens) said.push(`${short(first.x.tokens[i])} tokens`);
    if (first.x.seconds) said.push(time(first.x.seconds[i]));
    const lines = [said.join(" · ")];
    for (const c of chart.curves) {
      const k = nearest(c.x[x]);
      if (c.dots && Math.abs(px(c.x[x][k]) - here) > 12) continue;
      lines.push(`${c.name}: ${+c.y[k].toPrecision(6)}` + (c.x.step[k] === first.x.step[i] ? "" : ` (step ${c.x.step[k]})`));
      chart.svg.append(element("circle", { class: c.style.split(" ")[0] + " at", cx: px(c.x[x][k]), cy: py(c.y[k]), r: 3 }));
    }
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.textContent = lines.join("\n");
    chart.card.append(tip);
    const card = chart.card.getBoundingClientRect(), width = tip.getBoundingClientRect().width;
    const line = box.left - card.left + (here / 400) * box.width, side = here > 200 ? line - width - 8 : line + 8;
    tip.style.left = `${Math.max(0, Math.min(card.width - width, side))}px`;
    tip.style.top = `${box.top - card.top + 10}px`;
  };
  const hide = (chart) => chart.card.querySelectorAll(".at, .tip").forEach((e) => e.remove());

  for (const chart of charts) {
    draw(chart);
    for (const kind of ["pointermove", "pointerdown"]) chart.svg.addEventListener(kind, (event) => point(chart, event));
    chart.svg.addEventListener("pointerleave", () => hide(chart));
  }
  const controls = document.querySelector(".controls");
  if (controls) {
    controls.hidden = false;
    controls.addEventListener("change", () => {
      state.x = controls.elements.x.value;
      state.log = controls.elements.log.checked;
      charts.forEach((chart) => (hide(chart), draw(chart)));
    });
  }
}
