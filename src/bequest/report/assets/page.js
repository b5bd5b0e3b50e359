"use strict";

function chart(title, curves) {
  curves = curves.filter(c => c.xs.length && c.ys.some(y => y != null));
  if (!curves.length) return;
  const grid = gridOf(curves);
  plotted(panel(title), [grid, ...curves.map(c => interpolated(c.xs, c.ys, grid))], {
    series: [
      {label: chosen("axis").replace("_", " "), value: (u, v) => place(v)},
      ...curves.map(c => ({label: c.name, stroke: COLOURS[c.colour % COLOURS.length], width: c.thin ? 1 : 2, points: {show: false}, value: (u, v) => value(v)})),
    ],
  });
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
