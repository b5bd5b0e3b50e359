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

function panel(title) {
  const box = document.createElement("div");
  box.className = "chart";
  box.innerHTML = `<h3></h3>`;
  box.firstChild.textContent = title;
  document.getElementById("charts").append(box);
  return box;
}

// A plot as wide as its box, in the page's colours. What `axis` and `scale` say of x comes before the usual.
function plotted(box, columns, {height = 280, axis = {}, scale = {}, ...options}) {
  const css = getComputedStyle(document.documentElement);
  const usual = {stroke: css.getPropertyValue("--soft"), grid: {stroke: css.getPropertyValue("--grid"), width: 1}, ticks: {show: false}};
  const size = () => ({width: box.clientWidth - 20, height});
  const plot = new uPlot({
    ...size(),
    scales: {x: {time: false, ...scale}, y: {range: (u, low, high) => low == null ? [0, 1] : low === high ? [Math.min(0, low), Math.max(1, high)] : uPlot.rangeNum(low, high, 0.1, true)}},
    axes: [{...usual, values: (u, vs) => vs.map(place), space: 70, ...axis}, {...usual, size: 56, values: (u, vs) => vs.map(v => +v.toPrecision(6))}],
    ...options,
  }, columns, box);
  new ResizeObserver(() => plot.setSize(size())).observe(box);
}
