"use strict";
// What a reader does with the page: sort and filter tables, see what differs, open evidence, read figures, copy.
// It asks nothing of the network, and reads data only from the page.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 2", "8 3 2 3", "8 3 2 3 2 3"];
const said = document.getElementById("said");

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(parent, tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

function say(text) {
  said.textContent = "";
  said.textContent = text;
}

// --- tables --------------------------------------------------------------------------------------

function wordsOf(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

function sortKey(cell) {
  if (cell === undefined) return null;
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function setUpTable(section) {
  const table = section.querySelector("table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];
  const title = section.querySelector("h3");
  const name = title === null ? "table" : title.textContent;
  const scroll = section.querySelector(".scroll");
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", name);
  const tools = make("div", { class: "tools" });
  const shown = make("span", { class: "n", role: "status" });

  function count() {
    const n = rows.filter((row) => !row.hidden).length;
    shown.textContent = n === rows.length ? `${n} row${n === 1 ? "" : "s"}` : `${n} of ${rows.length} rows`;
  }

  if (rows.length > 1) {
    const input = make("input", { type: "search", size: "18", autocomplete: "off", spellcheck: "false" });
    tools.append(make("label", {}, "Filter rows", input));
    input.addEventListener("input", () => {
      const words = wordsOf(input.value);
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      count();
    });
    heads.forEach((head, at) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const order = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        let sorted = rows;
        if (order !== null) {
          head.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          const keyed = rows.map((row, place) => ({ row, place, key: sortKey(row.cells[at]) }));
          // What has no value comes last, whichever way it is sorted.
          keyed.sort((a, b) =>
            a.key === null || b.key === null
              ? (a.key === null) - (b.key === null) || a.place - b.place
              : sign * compare(a.key, b.key) || a.place - b.place,
          );
          sorted = keyed.map((entry) => entry.row);
        }
        table.classList.toggle("sorted", order !== null);
        body.append(...sorted);
        say(order === null ? `${name}: in the order of the request` : `${name}: sorted by ${button.textContent}, ${order}`);
      });
    });
  }

  const same = heads.map((head, at) => at > 0 && head.dataset.differs === undefined);
  if (rows.length > 1 && same.includes(true)) {
    const toggle = make("button", { type: "button", "aria-pressed": "false", class: "differs" }, "Only columns that differ");
    toggle.addEventListener("click", () => {
      const on = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(on));
      for (const row of [table.tHead.rows[0], ...rows]) {
        same.forEach((hide, at) => {
          if (hide && row.cells[at] !== undefined) row.cells[at].hidden = on;
        });
      }
    });
    tools.append(toggle);
  }

  if (rows.length > 0) {
    const copy = make("button", { type: "button" }, "Copy as CSV");
    copy.addEventListener("click", () => copyText(csvOf(table, heads), copy));
    tools.append(copy);
  }
  count();
  tools.append(shown);
  scroll.before(tools);
}

function csvOf(table, heads) {
  const quote = (text) => {
    // A spreadsheet takes what begins so for a formula.
    const safe = /^[=+@\t\r-]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const visible = heads.map((head) => !head.hidden);
  const line = (cells, textOf) => [...cells].filter((_, at) => visible[at]).map((cell) => quote(textOf(cell))).join(",");
  const lines = [line(heads, (head) => head.dataset.key || head.textContent)];
  for (const row of table.tBodies[0].rows) {
    if (!row.hidden) lines.push(line(row.cells, (cell) => cell.dataset.value ?? cell.textContent.trim()));
  }
  return `${lines.join("\n")}\n`;
}

// --- copying -------------------------------------------------------------------------------------

async function copyText(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { readonly: "", class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.dataset.words ?? button.textContent;
  button.dataset.words = before;
  button.textContent = done ? "Copied" : "Select and copy it by hand";
  say(button.textContent);
  setTimeout(() => { button.textContent = before; }, 1500);
}

function setUpCommand(box) {
  const code = box.querySelector("code");
  code.tabIndex = 0;
  const button = make("button", { type: "button", "aria-label": `Copy ${code.textContent}` }, "Copy");
  button.addEventListener("click", () => copyText(code.textContent, button));
  box.append(button);
}

// --- claims --------------------------------------------------------------------------------------

function setUpClaims(box) {
  const claims = [...box.querySelectorAll("details.claim")];
  const verdicts = [...new Set(claims.flatMap((claim) => claim.dataset.verdicts.split(" ")))].sort();
  const choice = make("select", {}, make("option", { value: "" }, "any verdict"));
  for (const verdict of verdicts) choice.append(make("option", { value: verdict }, verdict));
  const input = make("input", { type: "search", size: "18", autocomplete: "off", spellcheck: "false" });
  const shown = make("span", { class: "n", role: "status" });
  function update() {
    const words = wordsOf(input.value);
    let n = 0;
    for (const claim of claims) {
      const text = claim.querySelector("summary").textContent.toLowerCase();
      const fits = choice.value === "" || claim.dataset.verdicts.split(" ").includes(choice.value);
      claim.hidden = !(fits && words.every((word) => text.includes(word)));
      n += claim.hidden ? 0 : 1;
    }
    shown.textContent = `${n} of ${claims.length} claims`;
  }
  input.addEventListener("input", update);
  choice.addEventListener("change", update);
  update();
  box.before(make("div", { class: "tools" }, make("label", {}, "Verdict", choice), make("label", {}, "Filter claims", input), shown));
}

// --- figures -------------------------------------------------------------------------------------

const FORMATS = {
  si(value) {
    for (const [factor, suffix] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= factor) return `${Number((value / factor).toPrecision(4))}${suffix}`;
    }
    return String(Number(value.toPrecision(4)));
  },
  whole: (value) => Math.round(value).toLocaleString("en"),
  percent: (value) => `${Number((100 * value).toPrecision(4))}%`,
  digits: (value) => String(Number(value.toPrecision(6))),
};

function niceTicks(low, high, most) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function scale(low, high, from, to) {
  const span = high > low ? high - low : 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

function withMargin(low, high, share) {
  const margin = share * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - margin, high + margin];
}

function clip(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}

// One figure: `render` draws into an SVG and returns the places a reader can go to, each with what is said there.
class Figure {
  constructor(box) {
    this.box = box;
    this.data = JSON.parse(box.querySelector("script").textContent);
    this.name = box.querySelector("figcaption b").textContent;
    this.off = new Set();
    this.choice = 0;
    this.at = -1;
    this.places = [];
    this.canvas = make("div", { class: "canvas" });
    this.tip = make("div", { class: "tip" });
    this.tip.hidden = true;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("tabindex", "0");
    this.svg.setAttribute("role", "img");
    this.canvas.append(this.svg, this.tip);
    if (this.data.kind === "pareto") this.addChoice();
    this.box.append(this.canvas);
    if (this.data.series !== undefined) this.addLegend();
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => { if (document.activeElement !== this.svg) this.go(-1); });
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("focus", () => { if (this.at < 0 && this.svg.matches(":focus-visible")) this.go(0); });
    this.svg.addEventListener("blur", () => this.go(-1));
    this.width = 0;
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.resize();
  }

  addChoice() {
    const choices = this.data.choices;
    const select = make("select");
    choices.forEach((choice, i) => select.append(make("option", { value: String(i) }, choice.label)));
    select.addEventListener("change", () => {
      this.choice = Number(select.value);
      this.render();
    });
    this.box.append(make("div", { class: "tools" }, make("label", {}, "Against", select)));
  }

  addLegend() {
    const list = make("ul", { class: "legend", "aria-label": `${this.name}: lines` });
    this.data.series.forEach((series, i) => {
      const swatch = document.createElementNS(SVG, "svg");
      swatch.setAttribute("viewBox", "0 0 36 12");
      swatch.setAttribute("aria-hidden", "true");
      draw(swatch, "path", { d: "M1 6H35", ...this.look(series) });
      const words = `${series.label} (${series.note || `n = ${series.n}`})`;
      const button = make("button", { type: "button", "aria-pressed": "true" }, swatch, words);
      button.addEventListener("click", () => {
        const on = !this.off.delete(i);
        if (on) this.off.add(i);
        button.setAttribute("aria-pressed", String(!on));
        this.render();
      });
      list.append(make("li", {}, button));
    });
    this.box.append(list);
  }

  look(series) {
    const dash = DASHES[(series.look + Math.floor(series.look / 35)) % DASHES.length];
    return { class: `line s${series.look % 7}`, ...(dash ? { "stroke-dasharray": dash } : {}) };
  }

  resize() {
    const width = Math.min(900, Math.max(260, Math.round(this.canvas.clientWidth)));
    if (this.canvas.clientWidth === 0 || width === this.width) return;
    this.width = width;
    this.render();
  }

  render() {
    this.svg.replaceChildren();
    this.over = null;
    this.at = -1;
    this.tip.hidden = true;
    const kinds = { curves: drawLines, steps: drawLines, ranges: drawRanges, pareto: drawPareto };
    this.places = kinds[this.data.kind](this);
    this.over = draw(this.svg, "g");
    const hint = "Arrow keys go through its values.";
    this.svg.setAttribute("aria-label", `${this.name}. ${hint}`);
  }

  frame(height) {
    this.height = height;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    const y = ((event.clientY - box.top) / box.height) * this.height;
    let best = -1;
    let least = Infinity;
    this.places.forEach((place, i) => {
      const distance = place.y === null ? Math.abs(place.x - x) : place.x === null ? Math.abs(place.y - y) : Math.hypot(place.x - x, place.y - y);
      if (distance < least) [best, least] = [i, distance];
    });
    this.go(best);
  }

  key(event) {
    const last = this.places.length - 1;
    const page = Math.max(1, Math.round(last / 10));
    const moves = {
      ArrowRight: this.at + 1, ArrowDown: this.at + 1, ArrowLeft: this.at - 1, ArrowUp: this.at - 1,
      PageDown: this.at + page, PageUp: this.at - page, Home: 0, End: last,
    };
    if (event.key === "Escape") {
      this.go(-1);
    } else if (moves[event.key] !== undefined) {
      this.go(Math.min(last, Math.max(0, moves[event.key])));
      if (this.at >= 0) say(this.places[this.at].text.replaceAll("\n", "; "));
      event.preventDefault();
    }
  }

  go(at) {
    this.at = at;
    this.over.replaceChildren();
    const place = this.places[at];
    this.tip.hidden = place === undefined;
    if (place === undefined) return;
    if (place.y === null) draw(this.over, "line", { class: "cursor", x1: place.x, x2: place.x, y1: place.top, y2: place.bottom });
    else draw(this.over, "circle", { class: "here", cx: place.cx ?? place.x, cy: place.y, r: 9 });
    this.tip.textContent = place.text;
    const share = (place.cx ?? place.x) / this.width;
    const box = this.canvas.clientWidth;
    const own = this.tip.offsetWidth;
    const left = share > 0.5 ? share * box - own - 14 : share * box + 14;
    this.tip.style.left = `${Math.max(0, Math.min(box - own, left))}px`;
    this.tip.style.top = `${Math.max(0, ((place.y ?? place.top) / this.height) * this.canvas.clientHeight)}px`;
  }
}

function drawAxes(figure, { left, right, top, bottom, x, y, xTicks, yTicks, xFormat, yFormat, xLabel, yLabel }) {
  const svg = figure.svg;
  for (const tick of yTicks) {
    draw(svg, "line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) });
    draw(svg, "text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, yFormat(tick));
  }
  for (const tick of xTicks) {
    draw(svg, "line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 });
    draw(svg, "text", { class: "tick", x: x(tick), y: bottom + 18, "text-anchor": "middle" }, xFormat(tick));
  }
  draw(svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
  draw(svg, "text", { x: figure.width / 2, y: bottom + 36, "text-anchor": "middle" }, clip(xLabel, Math.floor(figure.width / 6.8)));
  if (yLabel !== null) draw(svg, "text", { x: 2, y: 12 }, yLabel);
}

function drawLines(figure) {
  const { data, width } = figure;
  const steps = data.kind === "steps";
  const height = Math.round(Math.min(420, Math.max(260, width * 0.55)));
  figure.frame(height);
  const area = { left: 56, right: width - 26, top: 26, bottom: height - 44 };
  const on = data.series.map((series, i) => ({ series, i })).filter(({ i }) => !figure.off.has(i));
  const end = Math.max(...data.series.map((series) => series.x[series.x.length - 1]));
  const begin = steps ? 0 : Math.min(...data.series.map((series) => series.x[0]));
  const [low, high] = steps ? [-0.03, 1.03] : withMargin(data.shown[0], data.shown[1], 0.05);
  const x = scale(begin, end, area.left, area.right);
  const y = scale(low, high, area.bottom, area.top);
  const xFormat = FORMATS[data.x.format];
  const yFormat = FORMATS[data.y.format];
  drawAxes(figure, {
    ...area, x, y, xFormat, yFormat, xLabel: data.x.label, yLabel: data.y.label,
    xTicks: niceTicks(begin, end, width / 90), yTicks: niceTicks(steps ? 0 : low, steps ? 1 : high, 5),
  });
  // The fall at the beginning is cut off at the top: it would flatten all that follows.
  const clipId = `${figure.box.id}-clip`;
  const clipPath = draw(draw(figure.svg, "defs"), "clipPath", { id: clipId });
  draw(clipPath, "rect", { x: area.left, y: area.top - 3, width: area.right - area.left + 4, height: area.bottom - area.top + 6 });
  const inside = draw(figure.svg, "g", { "clip-path": `url(#${clipId})` });
  on.forEach(({ series }, order) => {
    const shift = steps ? ((on.length - 1) / 2 - order) * Math.min(2.5, 14 / on.length) : 0;
    const at = (i) => `${x(series.x[i]).toFixed(1)} ${(y(series.y[i]) - shift).toFixed(1)}`;
    if (series.low !== undefined && series.n > 1) {
      const upper = series.x.map((value, i) => `${x(value).toFixed(1)} ${y(series.high[i]).toFixed(1)}`);
      const lower = series.x.map((value, i) => `${x(value).toFixed(1)} ${y(series.low[i]).toFixed(1)}`).reverse();
      draw(inside, "path", { class: `band f${series.look % 7}`, d: `M${[...upper, ...lower].join("L")}Z` });
    }
    let path = `M${at(0)}`;
    for (let i = 1; i < series.x.length; i += 1) path += steps ? `H${x(series.x[i]).toFixed(1)}V${(y(series.y[i]) - shift).toFixed(1)}` : `L${at(i)}`;
    draw(inside, "path", { d: path, ...figure.look(series) });
    for (const time of series.marks ?? []) {
      let last = 0;
      series.x.forEach((value, i) => { if (value <= time) last = i; });
      const level = y(series.y[last]) - shift;
      draw(inside, "path", { class: `line s${series.look % 7}`, d: `M${x(time).toFixed(1)} ${level - 6}V${level + 6}` });
    }
  });
  const positions = [...new Set(on.flatMap(({ series }) => series.x))].sort((a, b) => a - b);
  return positions.map((position) => {
    const lines = [`${xFormat(position)} ${data.x.label}`];
    const values = on.map(({ series }) => {
      let i = series.x.indexOf(position);
      if (steps) series.x.forEach((value, place) => { if (value <= position) i = place; });
      return { series, i };
    });
    const found = values.filter(({ i }) => i >= 0).sort((a, b) => a.series.y[a.i] - b.series.y[b.i]);
    for (const { series, i } of found.slice(0, 10)) {
      const range = series.low !== undefined && series.n > 1 ? ` (${yFormat(series.low[i])} to ${yFormat(series.high[i])})` : "";
      lines.push(`${series.label}: ${yFormat(series.y[i])}${range}`);
    }
    if (found.length > 10) lines.push(`and ${found.length - 10} more`);
    return { x: x(position), y: null, top: area.top, bottom: area.bottom, text: lines.join("\n") };
  });
}

function drawRanges(figure) {
  const { data, width } = figure;
  const narrow = width < 520;
  const rowHeight = narrow ? 40 : 30;
  const height = 16 + rowHeight * data.rows.length + 48;
  figure.frame(height);
  const longest = Math.max(...data.rows.map((row) => row.label.length));
  const left = narrow ? 14 : Math.min(240, 24 + longest * 6.6);
  const area = { left, right: width - 18, top: 8, bottom: height - 44 };
  const all = data.rows.flatMap((row) => [row.x, row.low ?? row.x, row.high ?? row.x, ...row.values]);
  const [low, high] = withMargin(Math.min(...all), Math.max(...all), 0.04);
  const x = scale(low, high, area.left, area.right);
  const format = FORMATS[data.x.format];
  const ticks = niceTicks(low, high, width / 110);
  for (const tick of ticks) draw(figure.svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: area.top, y2: area.bottom });
  drawAxes(figure, {
    ...area, x, y: () => 0, xTicks: ticks, yTicks: [], xFormat: format, yFormat: format, xLabel: data.x.label, yLabel: null,
  });
  return data.rows.map((row, i) => {
    const middle = area.top + rowHeight * (i + (narrow ? 0.68 : 0.5));
    const colour = row.look % 7;
    if (narrow) draw(figure.svg, "text", { x: area.left, y: middle - 12 }, clip(row.label, Math.floor(width / 7)));
    else draw(figure.svg, "text", { x: area.left - 10, y: middle + 4, "text-anchor": "end" }, clip(row.label, 34));
    if (row.low !== null) {
      draw(figure.svg, "path", { ...figure.look(row), "stroke-dasharray": "", d: `M${x(row.low)} ${middle}H${x(row.high)}M${x(row.low)} ${middle - 5}v10M${x(row.high)} ${middle - 5}v10` });
    }
    for (const value of row.values) draw(figure.svg, "circle", { class: `f${colour}`, opacity: 0.55, cx: x(value), cy: middle + 8, r: 2.5 });
    draw(figure.svg, "rect", { class: `f${colour}`, x: x(row.x) - 4, y: middle - 4, width: 8, height: 8 });
    const seeds = row.values.map(format).join(", ");
    return { x: null, cx: x(row.x), y: middle, text: `${row.label}: ${row.text}\nn = ${row.n}; seeds: ${seeds}` };
  });
}

function drawPareto(figure) {
  const { data, width } = figure;
  const choice = data.choices[figure.choice];
  const height = Math.round(Math.min(440, Math.max(280, width * 0.55)));
  figure.frame(height);
  const area = { left: 60, right: width - 18, top: 26, bottom: height - 44 };
  const xs = choice.points.map((point) => point.x);
  const ys = choice.points.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]);
  const [xLow, xHigh] = withMargin(Math.min(...xs), Math.max(...xs), 0.08);
  const [yLow, yHigh] = withMargin(Math.min(...ys), Math.max(...ys), 0.06);
  const x = scale(xLow, xHigh, area.left, area.right);
  const y = scale(yLow, yHigh, area.bottom, area.top);
  const yFormat = FORMATS[data.y.format];
  const whole = `${choice.label}, ${choice.better} is better`;
  const xLabel = whole.length * 6.8 > width ? choice.label : whole;
  drawAxes(figure, {
    ...area, x, y, xTicks: niceTicks(xLow, xHigh, width / 110), yTicks: niceTicks(yLow, yHigh, 5),
    xFormat: FORMATS.si, yFormat, xLabel, yLabel: `${data.y.label}, ${data.y.better} is better`,
  });
  // The border of what the front dominates: a step, as nothing lies between two rows.
  let border = "";
  choice.front.forEach((i, order) => {
    const [px, py] = [x(choice.points[i].x).toFixed(1), y(choice.points[i].y).toFixed(1)];
    border += order === 0 ? `M${px} ${py}` : choice.better === "lower" ? `H${px}V${py}` : `V${py}H${px}`;
  });
  if (choice.front.length > 1) draw(figure.svg, "path", { class: "front", d: border });
  const taken = [];
  const onFront = new Set(choice.front);
  const places = choice.points.map((point, i) => {
    const [px, py] = [x(point.x), y(point.y)];
    const colour = point.look % 7;
    if (point.low !== null) draw(figure.svg, "path", { class: `line s${colour}`, opacity: 0.6, d: `M${px} ${y(point.low)}V${y(point.high)}` });
    const dot = { class: onFront.has(i) ? `f${colour}` : `line s${colour}`, cx: px, cy: py, r: onFront.has(i) ? 6 : 5 };
    draw(figure.svg, "circle", dot);
    const range = point.low === null ? "" : ` (${yFormat(point.low)} to ${yFormat(point.high)})`;
    const where = onFront.has(i) ? "on the front" : "not on the front";
    const lines = [point.label, `${data.y.label}: ${yFormat(point.y)}${range}, n = ${point.n}`, `${choice.label}: ${FORMATS.si(point.x)}`, where];
    return { x: px, y: py, text: lines.join("\n"), label: point.label, front: onFront.has(i) };
  });
  // Names where there is room, those on the front first; the others are in the tooltip.
  for (const place of [...places].sort((a, b) => b.front - a.front)) {
    const text = clip(place.label, 28);
    const wide = text.length * 6.6;
    const toLeft = place.x + wide + 12 > area.right;
    const from = toLeft ? place.x - wide - 10 : place.x + 10;
    const box = [from, place.y - 14, from + wide, place.y + 2];
    if (from < area.left || taken.some((o) => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3])) continue;
    taken.push(box);
    draw(figure.svg, "text", { x: from, y: place.y - 3 }, text);
  }
  return places.sort((a, b) => a.x - b.x);
}

// --- the page ------------------------------------------------------------------------------------

let opened = [];

function openForPrint() {
  if (opened.length > 0) return;
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
}

function closeAfterPrint() {
  for (const details of opened) details.open = false;
  opened = [];
}

function setUpPage() {
  for (const section of document.querySelectorAll("section.table")) setUpTable(section);
  for (const box of document.querySelectorAll(".command")) setUpCommand(box);
  for (const box of document.querySelectorAll(".claims")) setUpClaims(box);
  for (const box of document.querySelectorAll("figure.plot")) new Figure(box);
  const all = document.querySelector(".open-all");
  if (all !== null && document.querySelector("details") !== null) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const open = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", String(open));
      all.textContent = open ? "Close all details" : "Open all details";
      for (const details of document.querySelectorAll("details")) details.open = open;
    });
  }
  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target !== null && target.tagName === "DETAILS") target.open = true;
  };
  window.addEventListener("hashchange", openTarget);
  openTarget();
  window.addEventListener("beforeprint", openForPrint);
  window.addEventListener("afterprint", closeAfterPrint);
}

setUpPage();
