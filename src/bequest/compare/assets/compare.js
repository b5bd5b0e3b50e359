"use strict";
const others = SWEEP.arms.filter(arm => !arm.baseline);
const shown = new Set(SWEEP.arms);
const colourOf = arm => arm.baseline ? getComputedStyle(document.documentElement).getPropertyValue("--ink").trim() : COLOURS[others.indexOf(arm) % COLOURS.length];
const dashOf = arm => others.indexOf(arm) >= COLOURS.length ? [6, 4] : [];
const last = list => list[list.length - 1];
const mean = list => list.reduce((a, b) => a + b) / list.length;
const said = new Map();

function add(parent, tag, properties) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}

// What an arm says beside its name: a value, its result where none is pointed at, or why there is none.
function tell(arm, axis, found) {
  const why = !arm.runs.length ? "diverged" : arm.runs.some(r => !r[axis]) ? "cost unknown" : "";
  const result = arm.runs.filter(r => r.result).map(r => last(r.loss));
  said.get(arm).textContent = why || (shown.has(arm) && result.length ? value(found === undefined ? mean(result) : found) : "");
}

// A plot beside whose legend stands what is pointed at, one column of values per arm.
function pointed(title, axis, arms, values, columns, options) {
  const box = panel(`${title} against ${SWEEP.axes[axis]} `), where = add(box.firstChild, "small");
  const follow = u => {
    const at = u.cursor.idx;
    where.textContent = at == null ? "" : `at ${place(u.data[0][at])}`;
    arms.forEach((arm, i) => tell(arm, axis, at == null ? undefined : values[i][at]));
  };
  plotted(box, columns, {height: innerWidth < 600 ? 300 : 440, legend: {show: false}, hooks: {setCursor: [follow]}, ...options});
}

function drawCurves(axis, part) {
  const curvesOf = arm => arm.runs.filter(r => r.result && r[axis]).map(r => ({xs: r[axis], ys: r.loss}));
  const arms = SWEEP.arms.filter(arm => shown.has(arm) && curvesOf(arm).length);
  if (!arms.length) return;
  const curves = arms.flatMap(curvesOf), first = Math.min(...curves.map(c => last(c.xs)));
  const grid = gridOf(curves).filter(x => x >= first * (1 - part)); // of every arm its last part at least
  const spreads = arms.map(arm => {
    const seeds = curvesOf(arm).map(c => interpolated(c.xs, c.ys, grid));
    const over = f => grid.map((_, i) => seeds.some(s => s[i] == null) ? null : f(seeds.map(s => s[i])));
    return [over(mean), over(vs => Math.min(...vs)), over(vs => Math.max(...vs))];
  });
  const edge = {points: {show: false}};
  pointed(SWEEP.measure, axis, arms, spreads.map(s => s[0]), [grid, ...spreads.flat()], {
    series: [{}, ...arms.flatMap(arm => [{stroke: colourOf(arm), dash: dashOf(arm), width: 2, points: {show: false}}, edge, edge])],
    bands: arms.map((arm, i) => ({series: [3 * i + 3, 3 * i + 2], fill: colourOf(arm) + "26"})),
  });
}

// Where every run ended, and a line through the means of an arm's budgets.
function drawEnds(axis) {
  const arms = SWEEP.arms.filter(arm => shown.has(arm) && arm.runs.length && arm.runs.every(r => r[axis]));
  if (!arms.length) return;
  const dots = arms.flatMap(arm => [...new Set(arm.runs.map(r => r.budget))].flatMap(budget => {
    const ends = arm.runs.filter(r => r.budget === budget).map(r => ({arm, x: last(r[axis]), y: last(r.loss)}));
    return [...ends, {arm, middle: true, x: Math.exp(mean(ends.map(e => Math.log(e.x)))), y: mean(ends.map(e => e.y))}];
  })).sort((a, b) => a.x - b.x);
  const column = which => dots.map(d => which(d) ? d.y : null);
  const columns = arms.flatMap(arm => [column(d => d.arm === arm && !d.middle), column(d => d.arm === arm && d.middle)]);
  pointed(`ends of budgets, logarithmic: ${SWEEP.measure}`, axis, arms, arms.map(arm => column(d => d.arm === arm)), [dots.map(d => d.x), ...columns], {
    scale: {distr: 3, range: (u, low, high) => [low / 1.1, high * 1.1]},
    axis: {
      splits: (u, _, low, high) => [0, 1, 2, 3, 4].map(i => +(low * (high / low) ** ((i + .5) / 5)).toPrecision(2)),
      filter: (u, splits) => splits,
    },
    series: [{}, ...arms.flatMap(arm => [
      {stroke: colourOf(arm), paths: () => null, points: {show: true, size: 7, fill: colourOf(arm)}},
      {stroke: colourOf(arm), dash: dashOf(arm), width: 1, spanGaps: true, points: {show: false}},
    ])],
  });
}

function draw() {
  const axis = chosen("axis");
  document.getElementById("charts").replaceChildren();
  SWEEP.arms.forEach(arm => tell(arm, axis));
  drawCurves(axis, +chosen("part"));
  if (SWEEP.arms.some(arm => arm.runs.some(r => r.budget !== arm.runs[0].budget))) drawEnds(axis);
}

function switches() {
  for (const [axis, words] of Object.entries(SWEEP.axes)) {
    const label = add(document.getElementById("axis"), "label");
    add(label, "input", {type: "radio", name: "axis", value: axis, checked: axis === "tokens"});
    label.append(` ${words}`);
  }
  const legend = document.getElementById("legend"), all = legend.querySelector("input");
  const boxes = SWEEP.arms.map(arm => {
    const label = add(legend, "label"), box = add(label, "input", {type: "checkbox", checked: true});
    add(label, "i").style.background = arm.baseline ? "var(--ink)" : colourOf(arm);
    add(label, "span", {textContent: arm.name});
    said.set(arm, add(label, "output"));
    return box;
  });
  legend.addEventListener("change", event => {
    if (event.target === all) for (const box of boxes) box.checked = all.checked;
    boxes.forEach((box, i) => shown[box.checked ? "add" : "delete"](SWEEP.arms[i]));
    all.checked = boxes.every(box => box.checked);
    draw();
  });
  for (const name of ["axis", "part"]) document.getElementById(name).addEventListener("change", draw);
  dark.addEventListener("change", draw);
}

switches();
draw();
