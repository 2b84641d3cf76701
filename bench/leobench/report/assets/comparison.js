// A comparison: how much more or less each quantity came to, as a mark with its interval on either side of no change.
const VERDICTS = {
  faster: { color: "var(--s2)", shape: 2 }, slower: { color: "var(--bad)", shape: 4 },
  "no difference shown": { color: "var(--s7)", shape: 0 },
};
const WIDEST = [-1, 2];  // what goes beyond is cut off at the edge: an interval from few runs may be endless

function tickChange(change) { return change === 0 ? "same" : (change > 0 ? "+" : "−") + short(Math.abs(change) * 100) + "%"; }

function forest(parent, title, rows) {
  const made = figure(parent, parent.id + "-figure", "Change of each quantity, with its 95% interval", "more is to the right: of rates that is good, of latencies bad");
  key(made, Object.entries(VERDICTS).map(([verdict, looks]) => [looks, verdict]));
  const step = 24, top = 10, bottom = top + step * rows.length;
  const on = canvas(made, bottom + MARGIN.bottom, title, rows.map((row) => `${row.name}: ${row.verdict}.`).join(" "));
  on.left = 112;
  on.frames.push({ top, bottom });
  const low = Math.max(WIDEST[0], Math.min(-0.05, ...rows.map((row) => row.low - 1)));
  const high = Math.min(WIDEST[1], Math.max(0.05, ...rows.map((row) => row.high - 1)));
  const x = across(on, linear, [low * 1.05, high * 1.05]), inside = (ratio) => x(Math.min(high * 1.05, Math.max(low * 1.05, ratio - 1)));
  node("line", { class: "rule", x1: x(0), x2: x(0), y1: top, y2: bottom }, on.svg);
  axis(on, x, tickChange, "");
  readout(on, rows.map((row, place) => {
    const y = top + step * (place + 0.5), looks = VERDICTS[row.verdict];
    node("text", { class: "name", x: on.left - 8, y: y + 4, "text-anchor": "end" }, on.svg, row.name);
    node("line", { class: "grid", x1: on.left, x2: on.right, y1: y, y2: y }, on.svg);
    path(on, [[inside(row.low), y], [inside(row.high), y]], looks).classList.add("interval");
    point(on, inside(row.change), y, looks);
    const words = [`ratio ${row.change.toFixed(3)}`, `${row.low.toFixed(3)} to ${row.high.toFixed(3)}`, row.verdict];
    return { x: inside(row.change), y, title: row.name, rows: words.map((text) => [null, text]) };
  }));
}

function drawComparisons() {
  (data.comparisons || []).forEach(({ title, rows }, place) => {
    const parent = document.getElementById("comparison-" + place);
    parent.replaceChildren();
    if (rows.length) forest(parent, title, rows);
  });
}
