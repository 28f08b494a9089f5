"use strict";
// Draws every [data-chart] card from the JSON in #data: SVG, no library. Data reach the page only as text nodes
// and attributes. Charts over time share their points, and a crosshair.
// kept: what the reader has chosen in an earlier state of the page, of `state`.
function drawReport(kept = {}) {
  const data = JSON.parse(document.getElementById("data").textContent);
  const charts = [];

  // ---- elements
  function svg(parent, tag, attributes = {}, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }
  function html(parent, tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  // ---- numbers
  const minus = (text) => text.replace("-", "−");
  const SUFFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  function format(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    for (const [limit, suffix] of SUFFIXES) {
      if (size >= limit && size >= 1e4) return minus(String(+(value / limit).toPrecision(4))) + suffix;
    }
    if (size > 0 && size < 1e-4) return minus(String(+value.toPrecision(3)));
    return minus(String(+value.toPrecision(4)));
  }
  // A label without the count at its end.
  const stem = (label) => label.replace(/ \([\d,]+\)$/, "");
  const power = (exponent) => "10" + [...String(exponent)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

  // Round ticks and labels that share one unit: 0, 50k, 100k.
  function linearTicks([low, high], room) {
    const rough = (high - low) / Math.max(room, 1);
    const base = 10 ** Math.floor(Math.log10(rough));
    const step = base * [1, 2, 5, 10].find((m) => m * base >= rough * 0.999);
    const top = Math.max(Math.abs(low), Math.abs(high));
    const [unit, suffix] = (top >= 1e4 && SUFFIXES.find(([limit]) => top >= limit)) || [1, ""];
    const digits = Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9));
    const label = (v) => {
      if (Math.abs(v) < step / 2) return "0";
      return minus(top < 1e-3 ? String(+v.toPrecision(2)) : (v / unit).toFixed(digits)) + suffix;
    };
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push([k * step, label(k * step)]);
    return ticks;
  }
  function logTicks([low, high], room) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const decades = Math.log10(high / low);
    const every = Math.max(1, Math.ceil(decades / Math.max(room, 1)));
    const plain = low >= 5e-4 && high <= 2e4;
    const factors = decades < 1.2 ? [1, 2, 3, 5] : decades < 2.2 ? [1, 3] : [1];
    const ticks = [];
    for (let e = first; e <= last; e++) {
      for (const m of e % every ? [] : factors) {
        const v = m * 10 ** e;
        const label = plain ? String(+v.toPrecision(2)) : (m > 1 ? `${m}·` : "") + power(e);
        if (v >= low * 0.999 && v <= high * 1.001) ticks.push([v, label]);
      }
    }
    return ticks;
  }
  // log: false, true, or the size up to which an axis of both signs is about linear.
  function warp(log) {
    if (typeof log === "number") return (v) => Math.sign(v) * Math.log10(1 + Math.abs(v) / log);
    return log ? Math.log10 : (v) => v;
  }
  // Zero and powers of ten on both sides, at least one row apart.
  function signedTicks([low, high], room, linear) {
    const f = warp(linear), gap = (f(high) - f(low)) / (room * 2.4);
    const plain = linear >= 1e-3 && Math.max(-low, high) < 2e4;
    const ticks = low <= 0 && high >= 0 ? [[0, "0"]] : [];
    for (const [sign, end] of [[1, high], [-1, -low]]) {
      let last = 0;
      for (let e = Math.round(Math.log10(linear)); 10 ** e <= end; e++) {
        if (f(10 ** e) - last < gap) continue;
        last = f(10 ** e);
        ticks.push([sign * 10 ** e, (sign < 0 ? "−" : "") + (plain ? String(+(10 ** e).toPrecision(1)) : power(e))]);
      }
    }
    return ticks.length > 2 ? ticks : linearTicks([low, high], room);
  }
  function scale([low, high], [from, to], log) {
    const f = warp(log);
    const ratio = (to - from) / (f(high) - f(low));
    return (v) => from + (f(v) - f(low)) * ratio;
  }
  function padded(low, high, pins = []) {
    if (!(low <= high)) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
    const pad = (high - low) * 0.06;
    return [pins.includes(low) ? low : low - pad, high + (pins.includes(high) && high === 1 ? pad / 2 : pad)];
  }
  const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(q * (sorted.length - 1))))];
  const finite = (values) => values.filter((v) => v !== null);

  // ---- frame: axes, grid, and where the data go
  function frame(chart, xDomain, yDomain, { log = false, xLog = false, strip = 0, yTicks, xTicks } = {}) {
    const { plot, spec } = chart;
    const [width, height] = chart.size;
    const rows = Math.max(3, (height - strip - 50) / 44);
    const axis = typeof log === "number" ? signedTicks : log ? logTicks : linearTicks;
    const ticks = yTicks || axis(yDomain, rows, log);
    const left = Math.max(22, ...ticks.map(([, label]) => label.length * 6.7 + 10));
    const area = { left, right: width - 14, top: spec.unit || spec.yLabel ? 22 : 10, bottom: height - (chart.small && !spec.xLabel ? 24 : 38) - strip };
    const root = svg(plot, "svg", {
      viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img", "aria-label": `${spec.title}. ${spec.about}`,
    });
    const x = scale(xDomain, [area.left, area.right], xLog);
    const y = scale(yDomain, [area.bottom, area.top], log);
    const lines = ticks.map(([v]) => `M${left} ${y(v).toFixed(1)}H${area.right}`).join("");
    if (!yTicks) svg(root, "path", { class: "grid-line", d: lines || "M0 0" });
    svg(root, "path", { class: "axis", d: `M${left} ${area.bottom}H${area.right}` });
    for (const [v, label] of ticks) svg(root, "text", { x: left - 8, y: y(v) + 3.8, "text-anchor": "end" }, label);
    const below = area.bottom + strip;
    for (const [v, label] of xTicks || (xLog ? logTicks : linearTicks)(xDomain, (area.right - left) / 84)) {
      const at = x(v), half = label.length * 3.3;
      const anchor = at + half > width ? "end" : at - half < 0 ? "start" : "middle";
      svg(root, "text", { x: anchor === "end" ? width : Math.max(at, 0), y: below + 16, "text-anchor": anchor }, label);
    }
    if (!chart.small || spec.xLabel) svg(root, "text", { x: area.right, y: below + 33, "text-anchor": "end" }, spec.xLabel || data.unit[0]);
    const corner = spec.unit || spec.yLabel;
    if (corner) svg(root, "text", { x: 0, y: 10 }, corner);
    const id = `clip-${chart.index}`;
    const clip = svg(svg(root, "defs"), "clipPath", { id });
    svg(clip, "rect", { x: left - 3, y: area.top - 4, width: area.right - left + 6, height: area.bottom - area.top + 5 });
    const inner = svg(root, "g", { "clip-path": `url(#${id})` });
    return { root, inner, x, y, area, width, height };
  }

  // ---- lines over time
  const color = (layer) => (layer.type === "marks" ? `var(--bad${layer.color})` : `var(--c${layer.color})`);
  const ORDER = { line: 0, band: 1, marks: 2 };
  const byKind = (a, b) => ORDER[a.type] - ORDER[b.type] || Boolean(a.name) - Boolean(b.name) || a.color - b.color;
  const shown = (chart, layer) => !chart.hidden.has(layer.label);

  // The last step, or the round number just beyond it.
  function roundEnd() {
    const end = data.steps[data.steps.length - 1] || 1, base = 10 ** Math.floor(Math.log10(end));
    const round = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((m) => m * base).find((v) => v >= end);
    return round <= end * 1.02 ? round : end;
  }
  function linePath(values, x, y, { connect, log, dots }) {
    let path = "", pen = false;
    values.forEach((v, i) => {
      const missing = v === null || (log && v <= 0);
      if (missing) { pen = pen && connect; return; }
      path += `${pen ? "L" : "M"}${x(data.steps[i]).toFixed(1)} ${y(v).toFixed(1)}${pen ? "" : "h0.01"}`;
      pen = !dots;
    });
    return path || "M0 0";
  }
  function bandPath(layer, x, y, { connect, log, floor }) {
    let path = "", run = [];
    const close = () => {
      if (run.length) {
        const at = (i, v) => `${x(data.steps[i]).toFixed(1)} ${y(log ? Math.max(v, floor) : v).toFixed(1)}`;
        path += "M" + run.map((i) => at(i, layer.high[i])).join("L");
        path += "L" + run.reverse().map((i) => at(i, layer.low[i])).join("L") + "Z";
      }
      run = [];
    };
    layer.high.forEach((v, i) => {
      if (v === null || (log && v <= 0)) { if (!connect) close(); } else run.push(i);
    });
    close();
    return path || "M0 0";
  }
  function lineDomain(chart, log) {
    const { spec } = chart;
    const values = [];
    for (const layer of spec.layers) {
      if (!shown(chart, layer) || layer.type === "marks") continue;
      for (const list of layer.type === "band" ? [layer.low, layer.high] : [layer.values]) values.push(...finite(list));
    }
    for (const level of spec.levels || []) values.push(level.value);
    if (log) {
      const positive = values.filter((v) => v > 0).sort((a, b) => a - b);
      if (!positive.length) return null;
      const levels = (spec.levels || []).map((level) => level.value).filter((v) => v > 0);
      const low = Math.min(Math.max(positive[0], quantile(positive, 0.01) / 10), ...levels), high = positive[positive.length - 1];
      return [low / 1.25, Math.max(high, low * 1.5) * 1.25];
    }
    values.push(...(spec.include || []));
    let low = Infinity, high = -Infinity;
    for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
    if (spec.floor !== undefined) low = Math.max(low, spec.floor);
    if (chart.log && spec.symlog) {
      const f = warp(spec.symlog);
      return padded(f(low), f(high)).map((u) => Math.sign(u) * spec.symlog * (10 ** Math.abs(u) - 1));
    }
    const domain = padded(low, high, [...(spec.include || []), spec.floor]);
    for (const level of spec.levels || []) domain[1] = Math.max(domain[1], level.value + 0.12 * (level.value - domain[0]));
    return domain;
  }
  function prefersLog(spec) {
    const line = (spec.layers || []).filter((layer) => layer.type === "line" && !layer.hidden);
    const all = line.flatMap((layer) => finite(layer.values));
    const positive = all.filter((v) => v > 0).sort((a, b) => a - b);
    if (positive.length < 8 || positive.length < all.length * 0.9 || all.some((v) => v < 0)) return false;
    return quantile(positive, 0.98) / quantile(positive, 0.02) > 60;
  }

  function drawLines(chart) {
    const { spec } = chart;
    const visible = spec.layers.filter((layer) => shown(chart, layer));
    if (!visible.some((layer) => layer.type !== "marks")) return empty(chart);
    const signed = chart.log && spec.symlog;
    const domain = (chart.log && !signed && lineDomain(chart, true)) || lineDomain(chart, false);
    const log = chart.log && !signed && domain[0] > 0;
    const marks = visible.filter((layer) => layer.type === "marks");
    const strip = marks.length ? marks.length * 11 + 4 : 0;
    const f = frame(chart, [0, roundEnd()], domain, { log: signed || log, strip });
    const style = { connect: spec.connect, log, floor: domain[0] };
    if (!log && domain[0] < 0 && domain[1] > 0) svg(f.root, "path", { class: "zero", d: `M${f.area.left} ${f.y(0)}H${f.area.right}` });
    for (const layer of visible) {
      if (layer.type === "band") {
        svg(f.inner, "path", { d: bandPath(layer, f.x, f.y, style), fill: color(layer), opacity: layer.strength, "data-layer": "band" });
      } else if (layer.type === "line") {
        svg(f.inner, "path", {
          class: "line", d: linePath(layer.values, f.x, f.y, style), stroke: color(layer),
          "stroke-width": layer.width || 1.75, "stroke-dasharray": layer.dash ? "5 4" : "none", "data-layer": "line",
        });
        if (layer.values.length <= 24) {
          svg(f.inner, "path", { class: "line", d: linePath(layer.values, f.x, f.y, { log, dots: true }), stroke: color(layer), "stroke-width": 6 });
        }
        clipped(f, layer, spec.floor, domain[0]);
      }
    }
    marks.forEach((layer, row) => {
      const foot = f.area.bottom + 13 + row * 11, largest = Math.max(...layer.points.map(([, count]) => count));
      const d = layer.points.map(([i, count]) => `M${f.x(data.steps[i]).toFixed(1)} ${foot}v${(-2 - (6 * count) / largest).toFixed(1)}`).join("");
      svg(f.root, "path", { d, stroke: color(layer), "stroke-width": layer.points.length > 200 ? 1.2 : 2, fill: "none", "data-layer": "marks" });
    });
    for (const level of spec.levels || []) drawLevel(f, level, visible.find((layer) => layer.type === "line" && layer.color === 1));
    chart.cursor = svg(f.root, "g");
    chart.frame = f;
    chart.visible = visible;
    listen(f.root, (event) => hover(chart, event), () => leave());
    f.root.addEventListener("keydown", (event) => step(chart, event));
  }
  // The label stands over the end where the line leaves it more room.
  function drawLevel(f, level, line) {
    const at = f.y(level.value);
    svg(f.root, "path", { class: "level", d: `M${f.area.left} ${at.toFixed(1)}H${f.area.right}` });
    const distance = (values) => values.reduce((sum, v) => sum + Math.min(60, Math.abs(f.y(v) - at)), 0) / (values.length || 1);
    const values = line ? finite(line.values) : [], quarter = Math.ceil(values.length / 4);
    const start = distance(values.slice(0, quarter)) > distance(values.slice(-quarter)) + 8;
    const above = at - 6 > f.area.top + 6;
    svg(f.root, "text", {
      class: "level-label", x: start ? f.area.left + 4 : f.area.right, y: above ? at - 6 : at + 14, "text-anchor": start ? "start" : "end",
    }, level.label);
  }
  // A triangle at the bottom for every point below the axis.
  function clipped(f, layer, floor, low) {
    if (floor === undefined || low < floor) return;
    const d = layer.values.map((v, i) => (v === null || v >= floor ? "" : `M${(f.x(data.steps[i]) - 4).toFixed(1)} ${f.area.bottom - 8}h8l-4 7z`)).join("");
    if (d) svg(f.root, "path", { d, fill: color(layer), "data-layer": "clipped" });
  }

  // ---- hovering
  function listen(node, move, out) {
    node.addEventListener("pointermove", move);
    node.addEventListener("pointerdown", move);
    node.addEventListener("pointerleave", out);
    node.addEventListener("blur", out);
  }
  function pointer(chart, event) {
    const box = chart.frame.root.getBoundingClientRect();
    const k = chart.frame.width / box.width;
    return [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
  }
  function nearest(px, x) {
    let low = 0, high = data.steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x(data.steps[middle]) < px) low = middle; else high = middle;
    }
    return Math.abs(x(data.steps[low]) - px) <= Math.abs(x(data.steps[high]) - px) ? low : high;
  }
  function hover(chart, event) {
    const [px] = pointer(chart, event);
    focus(chart, nearest(px, chart.frame.x));
  }
  function step(chart, event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") leave();
    if (!move) return;
    event.preventDefault();
    const last = data.steps.length - 1;
    focus(chart, Math.min(last, Math.max(0, chart.at === undefined ? last : chart.at + move)));
  }
  function leave() {
    for (const chart of charts) {
      if (chart.cursor) chart.cursor.replaceChildren();
      chart.tooltip.classList.remove("shown");
    }
  }
  function focus(chart, i) {
    chart.at = i;
    for (const other of charts) {
      if (!other.visible) continue;
      const { x, area } = other.frame;
      other.cursor.replaceChildren();
      const at = x(data.steps[i]).toFixed(1);
      svg(other.cursor, "path", { class: "cross", d: `M${at} ${area.top - 4}V${area.bottom}` });
      if (other !== chart) other.tooltip.classList.remove("shown");
    }
    const { x, y, area } = chart.frame;
    const rows = [];
    for (const layer of [...chart.visible].sort(byKind)) {
      if (layer.type === "line") {
        const v = layer.values[i];
        rows.push([color(layer), layer.name || layer.label, format(v)]);
        const at = v === null ? NaN : y(v);
        if (at >= area.top - 4 && at <= area.bottom + 1) {
          svg(chart.cursor, "circle", { class: "dot", cx: x(data.steps[i]), cy: at, r: 4, fill: color(layer) });
        }
      } else if (layer.type === "band") {
        if (layer.high[i] !== null) rows.push([null, layer.label, `${format(layer.low[i])} to ${format(layer.high[i])}`]);
      } else {
        const mark = layer.points.find(([point]) => point === i);
        if (mark) rows.push([color(layer), stem(layer.label), String(mark[1])]);
      }
    }
    const range = data.first[i] === data.last[i] ? `iteration ${data.first[i]}` : `iterations ${data.first[i]}–${data.last[i]}`;
    showTooltip(chart, `${range} · ${format(data.steps[i])} ${data.unit[1]}`, rows, x(data.steps[i]), area.top);
  }
  function showTooltip(chart, title, rows, px, py) {
    const { tooltip, frame: f, plot } = chart;
    tooltip.replaceChildren();
    html(tooltip, "p", "", title);
    for (const [swatch, label, value] of rows.slice(0, 14)) {
      const row = html(tooltip, "div");
      html(row, "i").style.background = swatch || "transparent";
      html(row, "span", "", label);
      html(row, "b", "", value);
    }
    const k = plot.clientWidth / f.width, room = plot.clientWidth, size = tooltip.offsetWidth;
    const left = px * k + 14 + size <= room ? px * k + 14 : px * k - 14 - size;
    tooltip.style.left = `${Math.max(-8, Math.min(left, room - size + 8))}px`;
    tooltip.style.top = `${py * k}px`;
    tooltip.classList.add("shown");
  }

  // ---- predicted against realised
  function robust(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = [quantile(sorted, 0.01), quantile(sorted, 0.99)], slack = (middle[1] - middle[0]) * 0.25;
    return padded(Math.max(sorted[0], middle[0] - slack), Math.min(sorted[sorted.length - 1], middle[1] + slack));
  }
  function drawScatter(chart) {
    const { spec } = chart, { points } = spec;
    const [xDomain, yDomain] = [robust([...points.predicted, 0]), robust([...points.realised, 0])];
    const f = frame(chart, xDomain, yDomain);
    svg(f.root, "path", { class: "zero", d: `M${f.area.left} ${f.y(0)}H${f.area.right}M${f.x(0)} ${f.area.top}V${f.area.bottom}` });
    const px = points.predicted.map((v) => Math.min(Math.max(f.x(v), f.area.left + 3), f.area.right - 3));
    const py = points.realised.map((v) => Math.min(Math.max(f.y(v), f.area.top + 3), f.area.bottom - 3));
    const size = px.length > 600 ? 4 : px.length > 150 ? 5 : 6.5;
    spec.groups.forEach((label, group) => {
      if (chart.hidden.has(label)) return;
      const d = px.map((at, i) => (points.group[i] === group ? `M${at.toFixed(1)} ${py[i].toFixed(1)}h0.01` : "")).join("");
      svg(f.inner, "path", { class: "line", d: d || "M0 0", stroke: `var(--q${group})`, "stroke-width": size, opacity: 0.85, "data-layer": "dots" });
    });
    svg(f.inner, "path", { class: "level", d: `M${f.x(xDomain[0])} ${f.y(xDomain[0])}L${f.x(xDomain[1])} ${f.y(xDomain[1])}`, "data-layer": "calibration" });
    if (spec.fit && !chart.hidden.has(spec.fit.label)) {
      const [from, to] = spec.fit.span.map((v) => `${f.x(v).toFixed(1)} ${f.y(spec.fit.intercept + spec.fit.slope * v).toFixed(1)}`);
      svg(f.inner, "path", { class: "line", d: `M${from}L${to}`, stroke: "var(--c2)", "stroke-width": 2, "data-layer": "fit" });
    }
    const mark = svg(f.root, "g");
    chart.frame = f;
    listen(f.root, (event) => {
      const [ex, ey] = pointer(chart, event);
      let best = -1, distance = 30 ** 2;
      px.forEach((at, i) => {
        const d = (at - ex) ** 2 + (py[i] - ey) ** 2;
        if (d < distance && !chart.hidden.has(spec.groups[points.group[i]])) [best, distance] = [i, d];
      });
      mark.replaceChildren();
      if (best < 0) return leave();
      errorBars(chart, mark, best, px[best], py[best]);
    }, () => { mark.replaceChildren(); leave(); });
  }
  function errorBars(chart, mark, i, px, py) {
    const { points } = chart.spec, f = chart.frame;
    const clampX = (v) => Math.min(Math.max(v, f.area.left), f.area.right), clampY = (v) => Math.min(Math.max(v, f.area.top), f.area.bottom);
    const [xe, ye] = [points.predicted_se[i], points.realised_se[i]];
    const across = xe === null ? "" : `M${clampX(f.x(points.predicted[i] - xe))} ${py}H${clampX(f.x(points.predicted[i] + xe))}`;
    const along = ye === null ? "" : `M${px} ${clampY(f.y(points.realised[i] - ye))}V${clampY(f.y(points.realised[i] + ye))}`;
    if (across + along) svg(mark, "path", { class: "error-bar", d: across + along });
    svg(mark, "circle", { class: "dot", cx: px, cy: py, r: 4.5, fill: `var(--q${points.group[i]})` });
    const error = (e) => (e === null ? "" : ` ± ${format(+e.toPrecision(2))}`);
    const seed = new Set(points.seed).size > 1 ? ` · seed ${points.seed[i]}` : "";
    showTooltip(chart, `iteration ${points.iteration[i]}${seed}`, [
      [null, "predicted", format(points.predicted[i]) + error(xe)],
      [null, "realised", format(points.realised[i]) + error(ye)],
    ], px, Math.max(0, py - 30));
  }

  // ---- trials of a search: points, the best so far, and the importance of fields
  function drawPoints(chart) {
    const { spec } = chart, { points } = spec;
    const seen = (i) => !chart.hidden.has(spec.groups[points.group[i]][0]);
    const inside = points.y.filter((_, i) => seen(i)).sort((a, b) => a - b);
    if (!inside.length) return empty(chart);
    // A few very low scores do not flatten all others.
    const [tenth, top] = [quantile(inside, 0.1), inside[inside.length - 1]];
    const yDomain = padded(Math.max(inside[0], tenth - 1.5 * (top - tenth)), top);
    const f = frame(chart, spec.xDomain, yDomain, { xLog: spec.xLog, xTicks: spec.xTicks });
    const px = points.x.map(f.x), py = points.y.map((v) => Math.min(Math.max(f.y(v), f.area.top + 3), f.area.bottom - 4));
    if (spec.best) {
      const at = (v) => Math.min(Math.max(f.y(v), f.area.top), f.area.bottom - 4).toFixed(1);
      const steps = spec.best.values.map((v, i) => (v === null ? null : [f.x(i).toFixed(1), at(v)])).filter((p) => p);
      const d = steps.map(([x, y], i) => (i ? `H${x}V${y}` : `M${x} ${y}`)).join("");
      svg(f.inner, "path", { class: "line", d: d || "M0 0", stroke: "var(--c1)", "stroke-width": 1.75, opacity: 0.6, "data-layer": "best" });
    }
    const size = px.length > 300 ? 4.5 : chart.small ? 6.5 : 8;
    spec.groups.forEach(([label, paint], group) => {
      if (chart.hidden.has(label)) return;
      const d = px.map((x, i) => (points.group[i] === group ? `M${x.toFixed(1)} ${py[i].toFixed(1)}h0.01` : "")).join("");
      svg(f.inner, "path", { class: "line", d: d || "M0 0", stroke: paint, "stroke-width": size, opacity: 0.85, "data-layer": "dots" });
    });
    const mark = svg(f.root, "g");
    chart.frame = f;
    listen(f.root, (event) => {
      const [ex, ey] = pointer(chart, event);
      let best = -1, distance = 30 ** 2;
      px.forEach((x, i) => {
        const d = (x - ex) ** 2 + (py[i] - ey) ** 2;
        if (d < distance && seen(i)) [best, distance] = [i, d];
      });
      mark.replaceChildren();
      if (best < 0) return leave();
      const trial = data.trials[points.trial[best]], paint = spec.groups[points.group[best]][1];
      svg(mark, "circle", { class: "dot", cx: px[best], cy: py[best], r: size / 2 + 1.5, fill: paint });
      showTooltip(chart, trial.title, trial.rows.map(([name, value]) => [null, name, value]), px[best], Math.max(0, py[best] - 30));
    }, () => { mark.replaceChildren(); leave(); });
  }
  function drawBars(chart) {
    const { rows } = chart.spec;
    const ticks = rows.map((row, i) => [rows.length - i, row.label]);
    const percent = [0, 0.25, 0.5, 0.75, 1].map((v) => [v, `${v * 100} %`]);
    const f = frame(chart, [0, 1.04], [0.4, rows.length + 0.6], { yTicks: ticks, xTicks: percent });
    rows.forEach((row, i) => {
      const y = f.y(rows.length - i), to = Math.max(f.x(row.value), f.area.left + 2);
      svg(f.inner, "path", { d: `M${f.area.left} ${y - 8}H${to - 2}q2 0 2 2V${y + 6}q0 2 -2 2H${f.area.left}Z`, fill: "var(--c1)", opacity: 0.85, "data-layer": "bar" });
      const end = row.value > 0.9;
      svg(f.root, "text", { class: "level-label", x: end ? to - 8 : to + 7, y: y + 4, "text-anchor": end ? "end" : "start", style: end ? "fill: var(--card); stroke: none" : "" }, `${(row.value * 100).toFixed(0)} %`);
    });
    chart.frame = f;
  }

  // ---- the final evaluation
  function drawHistogram(chart) {
    const { counts, bounds, mean, interval } = chart.spec;
    const span = bounds[bounds.length - 1] - bounds[0];
    const f = frame(chart, [bounds[0] - span * 0.02, bounds[bounds.length - 1] + span * 0.02], [0, Math.max(...counts) * 1.12]);
    counts.forEach((count, i) => {
      const [from, to, top] = [f.x(bounds[i]) + 0.75, f.x(bounds[i + 1]) - 0.75, f.y(count)];
      if (!count) return;
      const r = Math.min(3, (to - from) / 2, f.area.bottom - top);
      const d = `M${from} ${f.area.bottom}V${top + r}q0 ${-r} ${r} ${-r}H${to - r}q${r} 0 ${r} ${r}V${f.area.bottom}Z`;
      svg(f.inner, "path", { d, fill: "var(--c1)", opacity: 0.8, "data-layer": "bar" });
    });
    if (interval) {
      const [from, to] = interval.map((v) => Math.min(Math.max(f.x(v), f.area.left), f.area.right));
      svg(f.inner, "rect", { x: from, y: f.area.top - 4, width: Math.max(to - from, 1), height: f.area.bottom - f.area.top + 4, fill: "var(--ink)", opacity: 0.12, "data-layer": "interval" });
    }
    const at = f.x(mean), end = at > (f.area.left + f.area.right) / 2;
    svg(f.root, "path", { class: "level", d: `M${at} ${f.area.top - 4}V${f.area.bottom}` });
    svg(f.root, "text", { class: "level-label", x: at + (end ? -7 : 7), y: f.area.top + 6, "text-anchor": end ? "end" : "start" }, `mean ${format(mean)}`);
    chart.frame = f;
    listen(f.root, (event) => {
      const [px] = pointer(chart, event);
      const i = counts.findIndex((_, j) => px >= f.x(bounds[j]) && px < f.x(bounds[j + 1]));
      if (i < 0) return leave();
      showTooltip(chart, `return ${format(bounds[i])} to ${format(bounds[i + 1])}`, [["var(--c1)", "episodes", String(counts[i])]], f.x(bounds[i + 1]), f.area.top);
    }, leave);
  }
  function drawStrips(chart) {
    const { rows } = chart.spec;
    const all = rows.flatMap((row) => [...row.values, row.mean, ...(row.interval || [])]);
    const ticks = rows.map((row, i) => [rows.length - i, row.label]);
    const f = frame(chart, padded(Math.min(...all), Math.max(...all)), [0.4, rows.length + 0.6], { yTicks: ticks });
    rows.forEach((row, i) => {
      const y = f.y(rows.length - i);
      svg(f.inner, "path", { class: "grid-line", d: `M${f.area.left} ${y}H${f.area.right}` });
      // The golden ratio spreads the dots evenly and the same way every time.
      const d = row.values.map((v, j) => `M${f.x(v).toFixed(1)} ${(y + (((j * 0.618034) % 1) - 0.5) * 13).toFixed(1)}h0.01`).join("");
      svg(f.inner, "path", { class: "line", d: d || "M0 0", stroke: "var(--c1)", "stroke-width": 4.5, opacity: 0.5, "data-layer": "dots" });
      if (row.interval) {
        const [from, to] = row.interval.map((v) => f.x(v));
        svg(f.inner, "rect", { x: from, y: y - 9, width: Math.max(to - from, 1), height: 18, fill: "var(--ink)", opacity: 0.14, "data-layer": "interval" });
      }
      svg(f.inner, "path", { class: "line", d: `M${f.x(row.mean)} ${y - 10}V${y + 10}`, stroke: "var(--ink)", "stroke-width": 2.25, "data-layer": "mean" });
    });
    chart.frame = f;
    listen(f.root, (event) => {
      const [, py] = pointer(chart, event);
      const i = Math.round((py - f.y(rows.length)) / (f.y(1) - f.y(2)));
      const row = rows[i];
      if (!row) return leave();
      const sorted = [...row.values].sort((a, b) => a - b);
      showTooltip(chart, row.label, [
        ["var(--ink)", "mean", format(row.mean)],
        ...(row.interval ? [[null, "95 % interval of the mean", `${format(row.interval[0])} to ${format(row.interval[1])}`]] : []),
        ["var(--c1)", "median", format(quantile(sorted, 0.5))],
        [null, "lowest to highest", `${format(sorted[0])} to ${format(sorted[sorted.length - 1])}`],
      ], f.x(row.mean), f.y(rows.length - i) - 12);
    }, leave);
  }

  // ---- cards
  const DRAW = { lines: drawLines, scatter: drawScatter, histogram: drawHistogram, strips: drawStrips, points: drawPoints, bars: drawBars };

  function empty(chart) {
    frame(chart, [0, roundEnd()], [0, 1]);
    chart.visible = null;
  }
  function draw(chart) {
    chart.cursor = chart.visible = null;
    chart.plot.replaceChildren();
    chart.size = [Math.max(chart.plot.clientWidth, 200), chart.plot.clientHeight];
    DRAW[chart.spec.kind](chart);
    chart.tooltip = html(chart.plot, "div", "tooltip");
  }
  function swatch(button, kind, paint, dash) {
    const icon = svg(button, "svg", { viewBox: "0 0 18 12", "aria-hidden": "true" });
    if (kind === "band") svg(icon, "rect", { x: 1, y: 1, width: 16, height: 10, rx: 2, fill: paint, opacity: 0.1 + dash * 1.2 });
    else if (kind === "marks") svg(icon, "path", { d: "M6 2v8M12 2v8", stroke: paint, "stroke-width": 2 });
    else if (kind === "many") [2, 6, 10].forEach((y, i) => svg(icon, "path", { d: `M1 ${y}h16`, stroke: `var(--c${i + 1})`, "stroke-width": 1.5 }));
    else if (kind === "dots") svg(icon, "circle", { cx: 9, cy: 6, r: 4, fill: paint });
    else svg(icon, "path", { d: "M1 6h16", stroke: paint, "stroke-width": 2.25, "stroke-dasharray": dash ? "4 3" : "none", "stroke-linecap": dash ? "butt" : "round" });
  }
  function toggle(chart, label, kind, paint, dash) {
    const button = html(chart.legend, "button");
    button.type = "button";
    swatch(button, kind, paint, dash);
    html(button, "span", "", label);
    button.setAttribute("aria-pressed", String(!chart.hidden.has(label)));
    button.addEventListener("click", () => {
      if (!chart.hidden.delete(label)) chart.hidden.add(label);
      chart.chosen.set(stem(label), chart.hidden.has(label));
      button.setAttribute("aria-pressed", String(!chart.hidden.has(label)));
      draw(chart);
    });
  }
  function legend(chart) {
    const { spec } = chart;
    if (spec.kind === "scatter") spec.groups.forEach((label, i) => toggle(chart, label, "dots", `var(--q${i})`));
    if (spec.kind === "points" && !chart.small && spec.groups.length > 1) spec.groups.forEach(([label, paint]) => toggle(chart, label, "dots", paint));
    if (spec.fit) toggle(chart, spec.fit.label, "line", "var(--c2)");
    if (spec.kind !== "lines") return;
    const entries = new Map();
    for (const layer of spec.layers) if (!entries.has(layer.label)) entries.set(layer.label, layer);
    const sorted = [...entries.values()].sort(byKind);
    // One line and its band explain themselves below the first chart.
    if (sorted.length > 1 && (spec.wide || sorted.some((layer) => layer.color !== 1))) {
      for (const layer of sorted) toggle(chart, layer.label, layer.name ? "many" : layer.type, color(layer), layer.type === "band" ? layer.strength : layer.dash);
    }
    if (!spec.log || !spec.layers.some((layer) => layer.type === "line" && layer.values.some((v) => v > 0))) return;
    const button = html(chart.legend.parentNode, "button", "scale");
    button.type = "button";
    html(button, "span", "", "log");
    button.title = "Logarithmic axis";
    button.setAttribute("aria-pressed", String(chart.log));
    button.addEventListener("click", () => {
      chart.log = chart.chosenLog = !chart.log;
      button.setAttribute("aria-pressed", String(chart.log));
      draw(chart);
    });
  }
  function copyButtons() {
    document.querySelectorAll(".command").forEach((block) => copies(block));
  }
  function copies(block) {
    const button = html(block, "button", "", "Copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      const code = block.querySelector("code");
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected"; // no clipboard here: the text is selected for the keyboard's own copy
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  document.querySelectorAll("[data-chart]").forEach((card, index) => {
    const spec = data.charts[index], before = kept[spec.title] || { chosen: new Map() };
    const labels = (spec.layers || []).map((layer) => layer.label).concat(spec.groups || [], spec.fit ? [spec.fit.label] : []);
    const hidden = new Set((spec.layers || []).filter((layer) => layer.hidden).map((layer) => layer.label));
    for (const label of labels.filter((label) => before.chosen.has(stem(String(label))))) {
      if (before.chosen.get(stem(label))) hidden.add(label); else hidden.delete(label);
    }
    const small = card.parentNode.classList.contains("small");
    const log = before.log ?? (spec.log === "always" || (Boolean(spec.log) && prefersLog(spec)));
    const chart = { spec, index, hidden, small, log, chosen: before.chosen, chosenLog: before.log, plot: card.querySelector(".plot"), legend: card.querySelector(".legend") };
    charts.push(chart);
    legend(chart);
    const marks = (spec.layers || []).filter((layer) => layer.type === "marks").length;
    const height = spec.kind === "strips" || spec.kind === "bars" ? 56 + spec.rows.length * 28 : (spec.height || 230) + marks * 11;
    chart.plot.style.minHeight = `${height}px`;
  });
  charts.forEach(draw);
  copyButtons();
  const resized = new ResizeObserver(() => requestAnimationFrame(() => {
    for (const chart of charts) {
      const { plot, size } = chart;
      if (plot.clientWidth && (plot.clientWidth !== size[0] || plot.clientHeight !== size[1])) draw(chart);
    }
  }));
  for (const chart of charts) resized.observe(chart.plot);
  // Drawn again for paper, and afterwards for the screen: letters keep their size.
  const paper = matchMedia("print"), redraw = () => charts.forEach(draw);
  paper.addEventListener("change", redraw);
  document.documentElement.dataset.rendered = "true";
  return {
    state: () => Object.fromEntries(charts.map((chart) => [chart.spec.title, { chosen: chart.chosen, log: chart.chosenLog }])),
    stop: () => {
      resized.disconnect();
      paper.removeEventListener("change", redraw);
    },
  };
}
let report = drawReport();
// On paper everything is unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
});
addEventListener("afterprint", () => { for (const part of unfolded) part.open = false; });
