// The charts of a result, drawn from the data in the page with what charts.js has.
const data = JSON.parse(document.getElementById("data").textContent);
const visible = new Set((data.runs || []).flatMap((run, place) => run.chosen ? [place] : []));
// The run whose timeline is shown: at first the one with the most output.
let inTime = (data.points || []).reduce((best, each, place, all) => each.output_tokens > all[best].output_tokens ? place : best, 0);

function colored(place) {
  return { color: `var(--s${place % 8})`, dash: DASHES[place % DASHES.length], shape: place };
}
// A run's looks. In a lone sweep they go from light to dark with what was swept.
function look(place) {
  const { ramp } = data.runs[place];
  if (ramp === null) return colored(place);
  return { ...colored(place), color: `color-mix(in oklab, var(--high) ${Math.round(ramp * 100)}%, var(--low))` };
}
function named(place) { return data.runs[place].label + (data.runs[place].simulated ? " (simulated)" : ""); }

function figure(parent, id, title, caption) {
  const made = node("figure", { id }, parent), words = node("figcaption", {}, made);
  node("b", {}, words, title);
  words.append(caption);
  return made;
}
function key(parent, items) {
  const row = node("div", { class: "key" }, parent);
  for (const [looks, text] of items) {
    const item = node("span", {}, row);
    swatch(looks, item);
    item.append(text);
  }
}

// Throughput against latency: the median hollow and the 99th percentile filled, an SLO as a line.
function latencies(values, slo) {
  const high = Math.max(...values, (slo || 0) * 1.05), low = Math.min(...values, slo || Infinity);
  return high / low > 20 ? { scale: powers, domain: [low / 1.3, high * 1.3] } : { scale: linear, domain: [0, roundedUp(high)] };
}
function against(parent, name, title) {
  const points = data.points.map((each, place) => ({ ...each, place, pair: each[name] })).filter((each) => each.pair);
  if (!points.length) return;
  // What a search kept, or else what a good request keeps.
  const [figured, slo] = data.kept[name] || ["", data.slo[name]];
  const made = figure(parent, "against-" + name, `${title} against throughput`, "hollow: median, filled: 99th percentile");
  const on = canvas(made, 300, `${title} against output tokens a second`, `${points.length} runs, each with its median and 99th percentile.`);
  const y = frame(on, 26, 300 - MARGIN.bottom, { ...latencies(points.flatMap((each) => each.pair), slo), format: tickDuration });
  const x = across(on, linear, [0, roundedUp(Math.max(...points.map((each) => each.output_tokens)) * 1.02)]);
  axis(on, x, tickNumber, "output tokens/s");
  if (slo) {
    node("line", { class: "bound", x1: on.left, x2: on.right, y1: y(slo), y2: y(slo) }, on.svg);
    node("text", { class: "bound", x: on.right, y: y(slo) - 4, "text-anchor": "end" }, on.svg, `${figured} bound ${duration(slo)}`.trim());
  }
  const at = (each, tail) => [x(each.output_tokens), y(each.pair[tail])];
  data.curves.forEach((curve, number_) => {
    const along = curve.runs.map((place) => points.find((each) => each.place === place)).filter(Boolean);
    for (const tail of [0, 1]) path(on, along.map((each) => at(each, tail)), { color: `var(--s${number_ % 8})`, dash: tail ? "" : "4 3" });
  });
  const swept = new Set(data.curves.flatMap((curve) => curve.runs)), targets = [];
  for (const each of points) {
    const of = data.curves.findIndex((curve) => curve.runs.includes(each.place));
    const looks = of >= 0 && data.curves.length > 1 ? colored(of) : { ...look(each.place), dash: "" };
    if (!swept.has(each.place)) path(on, [at(each, 0), at(each, 1)], looks);
    for (const tail of [0, 1]) {
      point(on, ...at(each, tail), looks, !tail);
      const rows = [[null, `${tail ? "p99" : "median"} ${duration(each.pair[tail])}`], [null, `${number(each.output_tokens)} tokens/s`]];
      targets.push({ x: at(each, tail)[0], y: at(each, tail)[1], title: named(each.place), rows });
    }
  }
  tags(on, points.filter((each) => swept.has(each.place)).map((each) => [...at(each, 1), short(each.value)]), slo ? [[on.right - 50, y(slo) + 5, 52]] : []);
  readout(on, targets);
}
// What a sweep set, above its points, where there is room. `taken` are the middle, height and half width of others.
function tags(on, marks, taken) {
  for (const [x, y, text] of marks) {
    const half = text.length * 3.3 + 3;
    if (taken.some(([middle, top, other]) => Math.abs(top - y) < 13 && Math.abs(middle - x) < half + other)) continue;
    taken.push([x, y, half]);
    node("text", { class: "name", x, y: y - 9, "text-anchor": "middle" }, on.svg, text);
  }
}

// What a sweep set against what it got: answers, and those within the SLO.
function swept(parent, curve, place) {
  const points = curve.runs.map((run) => ({ ...data.points[run], run })), values = points.map((each) => each.value);
  const rate = curve.axis === "rate", good = points.every((each) => each.goodput !== null);
  const made = figure(parent, "swept-" + place, `Answers by ${curve.axis}, ${curve.label}`, rate ? "the thin line is what was asked" : "");
  const answered = { color: `var(--s${place % 8})`, shape: 0 }, kept = { color: "var(--s2)", dash: "4 3", shape: 2 };
  key(made, [[answered, "answers/s"], ...(good ? [[kept, "within the bounds/s"]] : [])]);
  const on = canvas(made, 280, `Answers a second by ${curve.axis}`, `${points.length} runs.`);
  const most = Math.max(...points.map((each) => each.requests)), far = Math.max(...values), near = Math.min(...values);
  const y = frame(on, 26, 280 - MARGIN.bottom, { scale: linear, domain: [0, roundedUp(most)], format: tickNumber, name: "answers/s" });
  const x = !rate && far / near >= 16 ? across(on, powers, [near / 1.2, far * 1.2]) : across(on, linear, [0, roundedUp(far)]);
  axis(on, x, tickNumber, rate ? "requests/s asked" : "requests at once");
  if (rate) {
    const end = Math.min(far, roundedUp(most));
    node("line", { class: "grid", x1: x(0), y1: y(0), x2: x(end), y2: y(end) }, on.svg).style.stroke = "var(--soft)";
  }
  for (const [name, looks] of [["requests", answered], ...(good ? [["goodput", kept]] : [])]) {
    path(on, points.map((each) => [x(each.value), y(each[name])]), looks);
    for (const each of points) point(on, x(each.value), y(each[name]), looks, name === "goodput");
  }
  readout(on, points.map((each) => ({
    x: x(each.value), title: named(each.run),
    rows: [[answered, `${number(each.requests)} answers/s`], ...(good ? [[kept, `${number(each.goodput)}/s within the bounds, ${percent(each.good_share)}`]] : [])],
  })));
}

// Distributions: how many took so long, and how many took at most so long, over one axis of powers.
function upTo(run, value) {
  let level = 0;
  run.curve.forEach((each, place) => { if (each <= value) level = run.levels[place]; });
  return level;
}
function distribution(parent, name, title, noun) {
  const { edges, runs } = data.distributions[name];
  const shown = [...visible].sort((a, b) => a - b).filter((place) => runs[place]);
  const first = data.distributions[name].clipped ? ` (the first has all below ${duration(edges[0])}, too)` : "";
  const made = figure(parent, "distribution-" + name, title, `share of ${noun} in each of ${edges.length - 1} bins${first}; below, of those that took at most so long`);
  if (!shown.length) { node("p", {}, made, "No chosen run has any."); return; }
  const on = canvas(made, 350, `${title}: histogram and cumulative share`, shown.map((place) => {
    const run = runs[place];
    return `${named(place)}: median ${duration(run.p50)}, 99th percentile ${duration(run.p99)}, ${run.count} values.`;
  }).join(" "));
  const high = roundedUp(Math.max(...shown.flatMap((place) => runs[place].shares)));
  const share = frame(on, 58, 180, { scale: linear, domain: [0, high], format: tickPercent, name: "in each bin" });
  const sum = frame(on, 204, 350 - MARGIN.bottom, { scale: linear, domain: [0, 1], format: tickPercent, name: "at most so long" });
  const x = across(on, powers, [edges[0], edges[edges.length - 1]]);
  axis(on, x, tickDuration, "");
  for (const place of shown) {
    const run = runs[place], looks = shown.length > 1 ? look(place) : { ...look(place), dash: "" };
    if (shown.length === 1) {
      run.shares.forEach((part, bin) => {
        const bar = node("rect", { class: "bar", x: x(edges[bin]), width: Math.max(0.5, x(edges[bin + 1]) - x(edges[bin]) - 0.7), y: share(part), height: share(0) - share(part) }, on.svg);
        bar.style.fill = looks.color;
      });
    } else path(on, [...run.shares.map((part, bin) => [x(edges[bin]), share(part)]), [on.right, share(run.shares[run.shares.length - 1])]], looks, true);
    const climb = run.curve.map((value, step) => [x(value), sum(run.levels[step])]);
    path(on, [[on.left, sum(0)], [climb[0][0], sum(0)], ...climb, [on.right, sum(1)]], looks, true).classList.add("climb");
  }
  const alone = shown.length === 1 ? runs[shown[0]] : null;
  const marks = alone ? ["p50", "p99"].map((level) => ({ value: alone[level], text: `${level} ${duration(alone[level])}`, kind: "rule" })) : [];
  const bound = name === "itl" ? undefined : data.slo[name];  // of a gap, the bound is on each request's own percentile
  if (bound >= edges[0] && bound <= edges[edges.length - 1]) marks.push({ value: bound, text: `bound ${duration(bound)}`, kind: "bound" });
  rules(on, x, marks);
  readout(on, edges.slice(1).map((edge, bin) => ({
    x: x(edge), title: `up to ${duration(edge)}`,
    rows: shown.map((place) => {
      const words = `${percent(upTo(runs[place], edge))}, ${percent(runs[place].shares[bin])} in the bin`;
      return [look(place), shown.length > 1 ? `${named(place)}: ${words}` : words];
    }),
  })));
}

function legend(parent) {
  const row = node("div", { class: "legend", role: "group", "aria-label": "Runs shown" }, parent);
  data.runs.forEach((_, place) => {
    const button = node("button", { type: "button", "aria-pressed": visible.has(place) }, row);
    swatch(look(place), button);
    button.append(named(place));
    button.addEventListener("click", () => {
      if (!visible.delete(place)) visible.add(place);
      draw();
      document.querySelectorAll(".legend button")[place].focus();
    });
  });
}

const QUANTITIES = [
  ["ttft", "Time to the first token (TTFT)", "requests"],
  ["itl", "Time between tokens (ITL)", "gaps"],
  ["e2e", "Time to the last token (end to end)", "requests"],
];
function section(parent, title) {
  node("h2", {}, parent, title);
  return node("div", { class: "charts" }, parent);
}
function draw() {
  drawComparisons();
  const charts = document.getElementById("charts");
  if (!charts) return;  // a comparison has none of these
  charts.replaceChildren();
  if (data.runs.length > 1) {
    const part = section(charts, "Throughput against latency");
    for (const [name, title] of QUANTITIES.slice(0, 2)) against(part, name, title);
    data.curves.forEach((curve, place) => swept(part, curve, place));
  }
  node("h2", {}, charts, "Latencies");
  if (data.runs.length > 1) legend(charts);
  const part = node("div", { class: "charts" }, charts);
  for (const [name, title, noun] of QUANTITIES) if (data.distributions[name].edges.length) distribution(part, name, title, noun);
  timelines(charts);
}
