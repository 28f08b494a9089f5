"use strict";
// Rewards and actions of an episode over its steps: small charts, one below the other, with a cursor at one step.
// panels: [{title, lines: [[number, …], …], unit}]. Returns what draws them, and what moves the cursor.
function strips(parent) {
  const HEIGHT = 84, TOP = 20, BOTTOM = 8, LEFT = 46;
  let panels = [], length = 1, cursors = [], width = 0;

  function node(under, tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    under.append(made);
    return made;
  }
  const format = (value) => String(+value.toPrecision(3)).replace("-", "−");
  const x = (step) => LEFT + ((width - LEFT - 4) * step) / Math.max(1, length - 1);

  function range(lines) {
    let low = Infinity, high = -Infinity;
    for (const line of lines) for (const v of line) { low = Math.min(low, v); high = Math.max(high, v); }
    if (!(low <= high)) return [0, 1];
    return low === high ? [low - 1, high + 1] : [low, high];
  }
  function draw(given, steps) {
    if (given) [panels, length] = [given, steps];
    width = Math.max(200, parent.clientWidth);
    parent.replaceChildren();
    cursors = panels.map(({ title, lines }) => {
      const root = node(parent, "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "strip", role: "img", "aria-label": title });
      const [low, high] = range(lines);
      const y = (v) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * (v - low)) / (high - low);
      node(root, "text", { x: LEFT, y: 11 }, title);
      for (const v of [low, high]) {
        node(root, "path", { class: "grid-line", d: `M${LEFT} ${y(v).toFixed(1)}H${width}` });
        node(root, "text", { x: LEFT - 6, y: y(v) + 3.5, "text-anchor": "end" }, format(v));
      }
      lines.forEach((line, k) => {
        const points = line.map((v, t) => `${x(t).toFixed(1)} ${y(v).toFixed(1)}`);
        node(root, "path", { class: "line", d: points.length ? `M${points.join("L")}` : "M0 0", stroke: `var(--c${(k % 5) + 1})` });
      });
      return node(root, "path", { class: "cross", d: "M0 0" });
    });
  }
  function at(step) {
    for (const cursor of cursors) cursor.setAttribute("d", `M${x(Math.min(step, length - 1)).toFixed(1)} ${TOP - 4}V${HEIGHT - BOTTOM + 4}`);
  }
  return { draw, at };
}
