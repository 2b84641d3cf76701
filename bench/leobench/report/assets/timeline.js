// What happened when, in one run: frames over one axis of seconds. Then the page is drawn, and again when it is resized.
const PARTS = {
  running: { color: "var(--s0)" }, waiting: { color: "var(--s1)", dash: "6 3" }, in_flight: { color: "var(--s7)", dash: "2 2" },
  arrived: { color: "var(--s0)" }, finished: { color: "var(--s2)", dash: "6 3" }, failed: { color: "var(--bad)", dash: "2 2" },
  cache_usage: { color: "var(--s3)" }, preemptions: { color: "var(--s5)" }, output_tokens: { color: "var(--s0)" },
};

const CROSS = "M-3,-3L3,3M-3,3L3,-3";
const DOTS = ["M-2.2,0A2.2,2.2 0 1 0 2.2,0A2.2,2.2 0 1 0 -2.2,0Z", "M0,-3L2.6,2H-2.6Z", "M-2,-2H2V2H-2Z", "M0,-3L3,0L0,3L-3,0Z"];  // of groups

// A frame's title with the key of its lines beside it.
function titled(on, top, title, items) {
  let at = on.left + title.length * 6.2 + 14;
  node("text", { class: "name", x: on.left, y: top - 8 }, on.svg, title);
  for (const [looks, text] of items) {
    const wide = looks.mark ? 8 : 20;
    const line = node("path", { d: looks.mark || "M0,0H20", transform: `translate(${at + (looks.mark ? 4 : 0)},${top - 12})`, "stroke-dasharray": looks.mark ? "none" : looks.dash || "none", "stroke-width": 1.75 }, on.svg);
    line.style.stroke = line.style.fill = looks.color;
    node("text", { x: at + wide + 5, y: top - 8 }, on.svg, text);
    at += wide + 5 + text.length * 6.3 + 14;
  }
}

function timelines(charts) {
  node("h2", {}, charts, "What happened when");
  if (data.runs.length > 1) {
    const label = node("label", {}, charts, "Run: "), choice = node("select", {}, label);
    data.runs.forEach((_, place) => node("option", { value: place }, choice, named(place)));
    choice.value = inTime;
    choice.addEventListener("change", () => { inTime = Number(choice.value); draw(); document.querySelector("#charts select").focus(); });
  }
  timeline(charts, data.runs[inTime].timeline);
}

function timeline(parent, run) {
  const server = run.server, panels = [requests, rates, tokens, ...(server.cache_usage ? [cache] : []), firsts];
  const some = run.dots.length < run.of_dots ? `; of ${number(run.of_dots)} requests, ${number(run.dots.length)} are dots, the slowest among them` : "";
  const made = figure(parent, "timeline", `The run in slices of ${duration(run.width)}`, `grey: not measured (warm-up, and the end), cut off where it leaves a frame${some}`);
  const height = 96, step = height + 34, total = panels.length * step + MARGIN.bottom;
  const on = canvas(made, total, "Timeline", "Requests running and waiting, arrivals and answers, output tokens and times to the first token over the run.");
  const x = across(on, linear, [0, run.until]);
  panels.forEach((panel, place) => {
    const top = place * step + 26;
    for (const [from, to] of [[0, run.measured[0]], [run.measured[1], run.until]]) {
      if (to > from) node("rect", { class: "warmup", x: x(from), width: x(to) - x(from), y: top, height }, on.svg);
    }
    panel(on, x, top, top + height, run);
  });
  axis(on, x, tickSeconds, "since the run began");
  readout(on, run.starts.map((start, slice) => ({ x: x(Math.min(run.until, start + run.width / 2)), title: `at ${duration(start)}`, rows: told(run, slice) })));
}

// An axis is as long as the measured time needs; what the warm-up has beyond it is cut off at the frame's edge.
function measuredOf(run, times, values) {
  const inside = values.filter((value, place) => value !== null && times[place] >= run.measured[0] && times[place] < run.measured[1]);
  return inside.length ? inside : values;
}
function slices(run, ...names) { return names.flatMap((name) => measuredOf(run, run.starts, run[name])); }
function samples(run, ...names) { return names.flatMap((name) => measuredOf(run, run.server.times, run.server[name])); }
function upright(on, top, bottom, domain, format) {
  const y = frame(on, top, bottom, { scale: linear, domain, format });
  return (value) => Math.max(top - 2, y(value));
}

function sliced(on, x, y, run, name) {
  const points = run.starts.map((start, slice) => [x(start), y(run[name][slice])]);
  path(on, [...points, [on.right, points[points.length - 1][1]]], PARTS[name], true);
}
function sampled(on, x, y, run, name) {
  const { times } = run.server;
  path(on, times.map((time, place) => run.server[name][place] === null ? null : [x(Math.min(time, run.until)), y(run.server[name][place])]), PARTS[name], true);
}
function most(...rows) { return roundedUp(Math.max(0, ...rows.flat().filter((value) => value !== null))); }

function requests(on, x, top, bottom, run) {
  const served = ["running", "waiting"].filter((name) => run.server[name]);
  const y = upright(on, top, bottom, [0, most(slices(run, "in_flight"), samples(run, ...served))], tickNumber);
  titled(on, top, "Requests", [...served.map((name) => [PARTS[name], name]), [PARTS.in_flight, "in flight"]]);
  sliced(on, x, y, run, "in_flight");
  for (const name of served) sampled(on, x, y, run, name);
}
function rates(on, x, top, bottom, run) {
  const names = ["arrived", "finished", ...(run.of_errors ? ["failed"] : [])];
  const y = upright(on, top, bottom, [0, most(slices(run, ...names))], tickNumber);
  titled(on, top, "A second", names.map((name) => [PARTS[name], name]));
  for (const name of names) sliced(on, x, y, run, name);
}
function tokens(on, x, top, bottom, run) {
  const y = upright(on, top, bottom, [0, most(slices(run, "output_tokens"))], tickNumber);
  titled(on, top, "Output tokens a second", []);
  sliced(on, x, y, run, "output_tokens");
}
function cache(on, x, top, bottom, run) {
  const y = upright(on, top, bottom, [0, Math.min(1, most(samples(run, "cache_usage")))], tickPercent);
  const lost = run.server.preemptions || [], total = lost[lost.length - 1];
  titled(on, top, "KV cache in use", total ? [[PARTS.preemptions, `${number(total)} preemptions`]] : []);
  sampled(on, x, y, run, "cache_usage");
  run.server.times.forEach((time, place) => {
    if (!place || !(lost[place] > lost[place - 1])) return;
    node("line", { x1: x(time), x2: x(time), y1: bottom - 9, y2: bottom, "stroke-width": 1.5 }, on.svg).style.stroke = PARTS.preemptions.color;
  });
}
function firsts(on, x, top, bottom, run) {
  const values = run.dots.map((dot) => dot[1]).filter((value) => value > 0);
  const low = values.length ? Math.min(...values) : 0.01, high = values.length ? Math.max(...values) : 1;
  const y = frame(on, top, bottom, { scale: powers, domain: [low / 1.2, high * 1.2], format: tickDuration });
  const groups = run.groups.length > 1 ? run.groups.slice(0, 4).map((group, place) => [{ ...colored(place), mark: DOTS[place] }, group]) : [];
  titled(on, top, "TTFT by arrival", run.of_errors ? [...groups, [{ ...PARTS.failed, mark: CROSS }, "failed"]] : groups);
  for (const [time, seconds, group] of run.dots) {
    const dot = node("path", { class: "dot", d: DOTS[group % DOTS.length], transform: `translate(${x(time).toFixed(1)},${y(seconds).toFixed(1)})` }, on.svg);
    dot.style.fill = colored(group).color;
  }
  for (const [time] of run.errors) {
    const cross = node("path", { class: "error", d: CROSS, transform: `translate(${x(time)},${top + 5})`, "stroke-width": 1.5 }, on.svg);
    cross.style.stroke = PARTS.failed.color;
  }
}

// A slice in words, with what the server had said by its end.
function told(run, slice) {
  const end = run.starts[slice] + run.width, { server } = run;
  const last = server.times ? server.times.filter((time) => time <= end).length - 1 : -1;
  const rows = [
    [PARTS.arrived, `${number(run.arrived[slice])} arrived a second`], [PARTS.finished, `${number(run.finished[slice])} finished a second`],
    [PARTS.in_flight, `${number(run.in_flight[slice])} in flight, the client says`], [PARTS.output_tokens, `${number(run.output_tokens[slice])} output tokens a second`],
  ];
  if (run.failed[slice]) rows.push([PARTS.failed, `${number(run.failed[slice])} failed a second`]);
  for (const name of last < 0 ? [] : ["running", "waiting"]) if (server[name] && server[name][last] !== null) rows.push([PARTS[name], `${number(server[name][last])} ${name}`]);
  if (last >= 0 && server.cache_usage && server.cache_usage[last] !== null) rows.push([PARTS.cache_usage, `${percent(server.cache_usage[last])} of the cache`]);
  return rows;
}

// Light or dark: as the system says, until the button is pressed.
const dark = matchMedia("(prefers-color-scheme: dark)"), theme = document.getElementById("theme");
function now() { return document.documentElement.dataset.theme || (dark.matches ? "dark" : "light"); }
function label() { theme.textContent = now() === "dark" ? "Light" : "Dark"; }
theme.addEventListener("click", () => { document.documentElement.dataset.theme = now() === "dark" ? "light" : "dark"; label(); });
dark.addEventListener("change", label);
label();

let drawn = innerWidth;
addEventListener("resize", () => { if (innerWidth !== drawn) { drawn = innerWidth; draw(); } });
draw();
