// Charts as SVG: scales, frames with axes, marks, and a readout that follows the pointer or the arrow keys.
// A canvas is one SVG; frames are stacked in it and share its horizontal axis. All text is set as text, never as HTML.
"use strict";

const MARGIN = { left: 54, right: 14, bottom: 34 };
const DASHES = ["", "6 3", "2 2", "8 3 2 3"];

function node(name, attributes, parent, text) {
  const html = ["div", "figure", "figcaption", "b", "span", "button", "select", "option", "label", "h2", "p"];
  const made = html.includes(name) ? document.createElement(name) : document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Numbers: three digits that count, as in the page's tables.
function number(value) {
  if (value === null || !isFinite(value)) return "–";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  if (Math.abs(rounded) >= 100) return Math.round(value).toLocaleString("en-US");
  return rounded.toFixed(2 - Math.floor(Math.log10(Math.abs(rounded)) + 1e-12));
}
function duration(seconds) {
  if (Math.abs(seconds) < 0.9995) return number(seconds * 1000) + " ms";
  return seconds < 120 ? number(seconds) + " s" : number(seconds / 60) + " min";
}
function percent(share) { return (share * 100).toFixed(share > 0.995 && share < 1 ? 2 : 1) + "%"; }
function short(value) { return String(parseFloat(value.toPrecision(3))); }  // a tick needs no trailing zeros
function tickNumber(value) {
  if (value >= 1e6) return short(value / 1e6) + "M";
  return value >= 1e4 ? short(value / 1e3) + "k" : short(value);
}
function tickDuration(seconds) {
  if (seconds === 0) return "0";
  return seconds < 1 ? short(seconds * 1000) + " ms" : tickNumber(seconds) + " s";
}
function tickPercent(share) { return short(share * 100) + "%"; }
function tickSeconds(seconds) { return tickNumber(seconds) + " s"; }

// Scales: from a value to pixels. A scale's ticks are [value, labelled].
function linear(domain, range) {
  const scale = (value) => range[0] + (value - domain[0]) / (domain[1] - domain[0]) * (range[1] - range[0]);
  scale.ticks = (most) => {
    const rough = (domain[1] - domain[0]) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((base) => base * power).find((size) => size >= rough * 0.999);
    const ticks = [];
    for (let at = Math.ceil(domain[0] / step - 1e-9); at * step <= domain[1] * (1 + 1e-9); at++) ticks.push([at * step, true]);
    return ticks;
  };
  return scale;
}
function powers(domain, range) {
  const low = Math.log(domain[0]), high = Math.log(domain[1]);
  const scale = (value) => range[0] + (Math.log(Math.max(value, domain[0])) - low) / (high - low) * (range[1] - range[0]);
  scale.ticks = (most) => {
    const wide = Math.log10(domain[1] / domain[0]), ticks = [];
    if (wide < 0.5) return linear(domain, range).ticks(most);
    const named = wide < 1 ? [1, 1.5, 2, 3, 4, 5, 7] : wide < 2.6 ? [1, 2, 5] : [1];
    for (let power = Math.floor(Math.log10(domain[0])); power <= Math.log10(domain[1]); power++) {
      for (const base of wide < 1 ? [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9] : [1, 2, 3, 4, 5, 6, 7, 8, 9]) {
        const value = base * 10 ** power;
        if (value >= domain[0] * 0.9999 && value <= domain[1] * 1.0001) ticks.push([value, named.includes(base)]);
      }
    }
    return ticks;
  };
  return scale;
}
// A rounded end for an axis that starts at zero.
function roundedUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((base) => base * power >= value * 0.9999) * power;
}

// One SVG in a figure, as wide as the figure is.
function canvas(figure, height, title, description) {
  const width = Math.max(240, Math.floor(figure.getBoundingClientRect().width));
  const svg = node("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${title}. ${description}` }, figure);
  return { figure, svg, width, height, left: MARGIN.left, right: width - MARGIN.right, frames: [] };
}

// A frame with its vertical axis. `y` is {scale, domain, format, name}; x is a scale made with `across`.
function frame(on, top, bottom, y) {
  const scale = y.scale(y.domain, [bottom, top]);
  for (const [value, labelled] of scale.ticks((bottom - top) / 32)) {
    if (!labelled) continue;
    node("line", { class: "grid", x1: on.left, x2: on.right, y1: scale(value), y2: scale(value) }, on.svg);
    node("text", { x: on.left - 6, y: scale(value) + 4, "text-anchor": "end" }, on.svg, y.format(value));
  }
  if (y.name) node("text", { class: "name", x: on.left, y: top - 7 }, on.svg, y.name);
  on.frames.push({ top, bottom });
  return scale;
}
function across(on, make, domain) { return make(domain, [on.left, on.right]); }

// The horizontal axis under the lowest frame, with only as many labels as there is room for.
function axis(on, x, format, name) {
  const bottom = Math.max(...on.frames.map((each) => each.bottom));
  node("line", { class: "axis", x1: on.left, x2: on.right, y1: bottom, y2: bottom }, on.svg);
  let free = -Infinity;
  for (const [value, labelled] of x.ticks((on.right - on.left) / 70)) {
    const at = x(value), text = format(value), half = text.length * 3.2;
    const shown = labelled && at - half > free && at + half < on.width;
    node("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + (shown ? 5 : 3) }, on.svg);
    if (!shown) continue;
    node("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, on.svg, text);
    free = at + half + 6;
  }
  if (name) node("text", { class: "name", x: on.right, y: bottom + 31, "text-anchor": "end" }, on.svg, name);
}

// Looks: {color, dash, shape}. A run's are the same in every chart.
function path(on, points, look, stepped) {
  let drawn = "", pen = "M", before = null;
  for (const point of points) {
    if (point === null) { pen = "M"; before = null; continue; }  // a gap: nobody knows
    const [x, y] = point.map((value) => value.toFixed(1));
    drawn += stepped && before !== null ? `H${x}V${y}` : `${pen}${x},${y}`;
    pen = "L";
    before = y;
  }
  const line = node("path", { class: "mark", d: drawn || "M0,0", "stroke-dasharray": look.dash || "none" }, on.svg);
  line.style.stroke = look.color;
  return line;
}
const SHAPES = [
  "M-4,0A4,4 0 1 0 4,0A4,4 0 1 0 -4,0Z", "M-3.6,-3.6H3.6V3.6H-3.6Z", "M0,-4.8L4.5,3.4H-4.5Z", "M0,-5L5,0L0,5L-5,0Z",
  "M0,4.8L4.5,-3.4H-4.5Z", "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
];
function point(on, x, y, look, hollow) {
  const made = node("path", { class: "point", d: SHAPES[look.shape % SHAPES.length], transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` }, on.svg);
  made.style.stroke = look.color;
  made.style.fill = hollow ? "var(--back)" : look.color;
  made.style.strokeWidth = "1.6";
  return made;
}

// Upright lines through every frame, their labels above the first one in rows that do not touch.
function rules(on, x, marks) {
  const top = Math.min(...on.frames.map((each) => each.top)), ends = [];
  for (const { value, text, kind } of marks.slice().sort((a, b) => a.value - b.value)) {
    const at = x(value), size = text.length * 6.5;
    const start = Math.max(on.left, Math.min(at - size / 2, on.width - size));
    let row = 0;
    while (ends[row] !== undefined && ends[row] > start) row++;
    ends[row] = start + size + 6;
    for (const each of on.frames) node("line", { class: kind, x1: at, x2: at, y1: each.top, y2: each.bottom }, on.svg);
    node("text", { class: kind === "bound" ? "bound" : "name", x: start, y: top - 20 - 13 * row }, on.svg, text);
  }
}

function swatch(look, parent) {
  const svg = node("svg", { width: 26, height: 12, "aria-hidden": "true" }, parent);
  const line = node("path", { d: "M0,6H26", "stroke-dasharray": look.dash || "none", "stroke-width": 2.2 }, svg);
  line.style.stroke = look.color;
  if (look.shape !== undefined) point({ svg }, 13, 6, look);
  return svg;
}

// The readout. `targets` are {x, y?, title, rows: [[look, text]]} in pixels: the nearest is shown, by both coordinates
// where all have both, with a line through every frame where they have only x.
function readout(on, targets) {
  if (!targets.length) return;
  const tip = node("div", { class: "tip", hidden: "", role: "status" }, on.figure);
  const mark = targets[0].y === undefined
    ? on.frames.map((each) => node("line", { class: "cross", y1: each.top, y2: each.bottom, visibility: "hidden" }, on.svg))
    : [node("circle", { class: "halo", r: 8, visibility: "hidden" }, on.svg)];
  let current = -1;
  const show = (place) => {
    const target = targets[current = place];
    tip.replaceChildren(node("b", {}, null, target.title));
    for (const [look, text] of target.rows) {
      const row = node("span", {}, tip);
      if (look) swatch(look, row);
      row.append(text);
    }
    tip.hidden = false;
    for (const each of mark) {
      for (const key of ["x1", "x2", "cx"]) each.setAttribute(key, target.x);
      if (target.y !== undefined) each.setAttribute("cy", target.y);
      each.setAttribute("visibility", "visible");
    }
    const room = on.width - target.x - 14;
    const left = room > tip.offsetWidth ? target.x + 12 : Math.max(0, target.x - tip.offsetWidth - 12);
    tip.style.left = left + "px";
    const down = on.svg.getBoundingClientRect().top - on.figure.getBoundingClientRect().top;
    tip.style.top = down + on.frames[0].top + 4 + "px";
  };
  const hide = () => { tip.hidden = true; current = -1; for (const each of mark) each.setAttribute("visibility", "hidden"); };
  on.svg.addEventListener("pointermove", (event) => {
    const box = on.svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const far = targets.map((target) => Math.hypot(target.x - x, target.y === undefined ? 0 : target.y - y));
    show(far.indexOf(Math.min(...far)));
  });
  on.svg.addEventListener("pointerleave", hide);
  on.svg.addEventListener("blur", hide);
  on.svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(targets.length - 1, current < 0 ? (step > 0 ? 0 : targets.length - 1) : current + step)));
  });
}
