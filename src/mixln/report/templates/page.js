"use strict";
// What makes a report answer: numbers under the pointer, legends that hide lines, tables that sort, buttons that copy.
// Plain browser JavaScript. It fetches nothing, and writes text only as text.

const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("role", "status");

const share = (value, axis) => {
  const scale = axis.log ? Math.log10 : Number;
  return (scale(value) - scale(axis.low)) / (scale(axis.high) - scale(axis.low));
};
const clip = (value) => Math.min(1, Math.max(0, value));
const read = (value) => (value === null ? "no finite number" : String(Number(value.toPrecision(5))));

function describe(data, series, index) {
  const places = [`${data.columns[1]} ${read(series.x[index])}`];
  if (series.y) places.push(`${data.columns[2]} ${read(series.y[index])}`);
  const value = series.value[index];
  const hasInterval = series.low && series.low[index] !== null;
  const interval = hasInterval ? ` [${read(series.low[index])}, ${read(series.high[index])}]` : "";
  return `${series.label}\n${places.join(", ")}\n${read(value)}${interval}`;
}

// Every number of a figure with its place in the picture, in shares of the picture's size.
function marksOf(svg, data) {
  return JSON.parse(svg.dataset.panels).flatMap((panel) =>
    panel.series.flatMap((number) => {
      const series = data.series[number];
      return series.x.map((x, index) => {
        const height = (series.y || series.value)[index];
        const across = share(x, panel.x);
        // what is cut off is found at the edge where it is cut, what is no number at the bottom
        const up = height === null || (panel.y.log && height <= 0) ? 0 : clip(share(height, panel.y));
        const [left, top, width, tall] = panel.box;
        return { panel, series, index, across, x: left + across * width, y: top + (1 - up) * tall };
      });
    })
  ).filter((mark) => mark.across >= 0 && mark.across <= 1);
}

function startFigure(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const hidden = new Set();
  for (const svg of figure.querySelectorAll("svg[data-panels]")) {
    const all = marksOf(svg, data);
    const ring = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", "5");
    svg.setAttribute("tabindex", "0");
    let current = -1;

    const show = (mark) => {
      current = all.indexOf(mark);
      const box = svg.getBoundingClientRect();
      ring.setAttribute("cx", mark.x * svg.viewBox.baseVal.width);
      ring.setAttribute("cy", mark.y * svg.viewBox.baseVal.height);
      ring.classList.add("shown");
      tip.textContent = describe(data, mark.series, mark.index);
      tip.hidden = false;
      const left = box.left + mark.x * box.width, top = box.top + mark.y * box.height;
      tip.style.left = `${Math.max(4, Math.min(left + 12, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${top > tip.offsetHeight + 16 ? top - tip.offsetHeight - 10 : top + 16}px`;
    };
    const hide = () => {
      tip.hidden = true;
      ring.classList.remove("shown");
    };
    const visible = () => all.filter((mark) => !hidden.has(mark.series.legend));

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
      const inside = ({ box: [left, top, width, tall] }) =>
        at.x >= left - 0.01 && at.x <= left + width + 0.01 && at.y >= top - 0.01 && at.y <= top + tall + 0.01;
      // bars and cells are found by their column first, lines and points by distance
      const weight = data.byColumn ? 1000 : 1;
      const away = (mark) => Math.hypot((mark.x - at.x) * box.width * weight, (mark.y - at.y) * box.height);
      let nearest = null;
      for (const mark of visible()) {
        if (inside(mark.panel) && (nearest === null || away(mark) < away(nearest))) nearest = mark;
      }
      if (nearest) show(nearest);
      else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const marks = visible();
      if (event.key === "Escape") hide();
      if (!step || !marks.length) return;
      event.preventDefault();
      show(marks[(marks.indexOf(all[current]) + step + marks.length) % marks.length]);
    });
  }

  for (const button of figure.querySelectorAll(".legend button")) {
    const number = Number(button.dataset.series);
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      if (isShown) hidden.delete(number);
      else hidden.add(number);
      for (const part of figure.querySelectorAll(`svg [data-series="${number}"]`)) {
        part.style.visibility = isShown ? "" : "hidden";
      }
    });
  }
  figure.querySelector("[data-copy=csv]").addEventListener("click", (event) => copy(event.target, csv(data)));
}

function csv(data) {
  const hasMap = data.series.some((series) => series.y);
  const hasInterval = data.series.some((series) => series.low);
  const columns = data.columns.slice(0, (hasMap ? 4 : 3) + (hasInterval ? 2 : 0));
  const rows = data.series.flatMap((series) =>
    series.x.map((x, index) => [
      series.label, x, ...(hasMap ? [series.y[index]] : []), series.value[index],
      ...(hasInterval ? [series.low?.[index], series.high?.[index]] : []),
    ])
  );
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

async function copy(button, text) {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // an older browser, or a page that may not use the clipboard: by a selection
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    said = document.execCommand("copy") ? said : "Cannot copy";
    area.remove();
  }
  const label = button.dataset.label || (button.dataset.label = button.textContent);
  button.textContent = said;
  setTimeout(() => (button.textContent = label), 1500);
}

const SIZES = { K: 1e3, M: 1e6, B: 1e9, T: 1e12 };
function sortKey(cell) {
  if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  if (text === "" || text === "-") return null;
  const found = /^[+\u2212-]?[\d,]*\.?\d+(?:e[+-]?\d+)?/.exec(text);
  if (!found) return text;
  const number = Number(found[0].replace("\u2212", "-").replaceAll(",", ""));
  return number * (SIZES[text[found[0].length]] || 1);
}

function startTable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] || "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (order === "none") return body.append(...original);
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keys = new Map(original.map((row) => [row, sortKey(row.cells[column])]));
      const compare = (first, second) => {
        const [a, b] = [keys.get(first), keys.get(second)];
        if (a === null || b === null) return (a === null) - (b === null); // what is missing stays last
        if (typeof a === "number" && typeof b === "number") return sign * (a - b);
        return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
      };
      body.append(...[...original].sort(compare));
    });
  });
}

document.querySelectorAll("figure").forEach(startFigure);
document.querySelectorAll("table").forEach(startTable);
for (const button of document.querySelectorAll("[data-copy=text]")) {
  button.addEventListener("click", () => copy(button, document.getElementById(button.dataset.of).textContent));
}
document.documentElement.classList.add("answers");
