"use strict";
// Every curve is drawn on one common grid, so that pointing anywhere gives a value for every run.
const GRID = 800;
const COLOURS = ["#3b82f6", "#e4572e", "#17a673", "#a855f7", "#d99a00", "#0ea5b7", "#e0569b", "#7c8a00", "#8d6e63", "#6478ff", "#c2410c", "#64748b"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = name => document.querySelector(`input[name=${name}]:checked`).value;
const short = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 4});
const place = v => v == null ? "" : Math.abs(v) < 1e15 ? short.format(v) : v.toExponential(2);
const value = v => v == null ? "–" : v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(2) : v.toPrecision(5);

function interpolated(xs, ys, grid) {
  let next = 0;
  return grid.map(x => {
    while (next < xs.length && xs[next] < x) next++;
    if (next >= xs.length || (next === 0 && xs[0] > x)) return null;
    if (xs[next] === x || next === 0) return ys[next];
    const [a, b] = [ys[next - 1], ys[next]];
    return a == null || b == null ? null : a + (b - a) * (x - xs[next - 1]) / (xs[next] - xs[next - 1]);
  });
}

function gridOf(curves) {
  const end = Math.max(...curves.map(c => c.xs[c.xs.length - 1]));
  const inner = Array.from({length: GRID + 1}, (_, i) => end * i / GRID);
  const ends = curves.flatMap(c => [c.xs[0], c.xs[c.xs.length - 1]]);
  return [...new Set([...inner, ...ends])].sort((a, b) => a - b);
}

function chart(title, curves) {
  curves = curves.filter(c => c.xs.length && c.ys.some(y => y != null));
  if (!curves.length) return;
  const box = document.createElement("div");
  box.className = "chart";
  box.innerHTML = `<h3></h3>`;
  box.firstChild.textContent = title;
  document.getElementById("charts").append(box);
  const css = getComputedStyle(document.documentElement);
  const axis = {stroke: css.getPropertyValue("--soft"), grid: {stroke: css.getPropertyValue("--grid"), width: 1}, ticks: {show: false}};
  const grid = gridOf(curves);
  const size = () => ({width: box.clientWidth - 20, height: 280});
  const plot = new uPlot({
    ...size(),
    scales: {x: {time: false}, y: {range: (u, low, high) => low == null ? [0, 1] : low === high ? [Math.min(0, low), Math.max(1, high)] : uPlot.rangeNum(low, high, 0.1, true)}},
    axes: [{...axis, values: (u, vs) => vs.map(place), space: 70}, {...axis, size: 56, values: (u, vs) => vs.map(v => +v.toPrecision(6))}],
    series: [
      {label: chosen("axis").replace("_", " "), value: (u, v) => place(v)},
      ...curves.map(c => ({label: c.name, stroke: COLOURS[c.colour % COLOURS.length], width: c.thin ? 1 : 2, points: {show: false}, value: (u, v) => value(v)})),
    ],
  }, [grid, ...curves.map(c => interpolated(c.xs, c.ys, grid))], box);
  new ResizeObserver(() => plot.setSize(size())).observe(box);
}

function draw() {
  const axis = chosen("axis"), measure = document.getElementById("measure") ? chosen("measure") : "loss";
  document.getElementById("charts").replaceChildren();
  const words = {loss: "loss (nats per token)", bits_per_byte: "bits per byte"};
  for (const source of new Set(RUNS.flatMap(r => Object.keys(r.sources))))
    chart(`validation ${words[measure]}: ${source}`, RUNS.map((r, i) => ({name: r.name, colour: i, xs: r.valid[axis], ys: r.sources[source]?.[measure] ?? []})));
  for (const [column, title] of [["loss", "training loss, as weighted by the method"], ["rate", "inheritance rate"], ["lr", "learning rate"]])
    chart(title, RUNS.map((r, i) => ({name: r.name, colour: i, thin: column === "loss", xs: r.train[axis], ys: r.train[column]})));
}

if (!RUNS.some(r => Object.values(r.sources).some(s => s.bits_per_byte.some(v => v != null))))
  document.getElementById("measure").remove();
else document.getElementById("measure").addEventListener("change", draw);
document.getElementById("axis").addEventListener("change", draw);
dark.addEventListener("change", draw);
draw();
