// The runs of a figure as its legend and its table in one: a tick to show a run, its line, its
// numbers where the budget line stands, and a mark at the one that the others are compared with.

const DASHES = { solid: "", dash: "5 3", dashdot: "6 2 2 2", dot: "2 2", longdash: "9 3", longdashdot: "9 2 2 2" };
const SVG = "http://www.w3.org/2000/svg";
const FEW = 8; // runs that need no search

function made(tag, settings = {}, ...children) {
  const node = Object.assign(document.createElement(tag), settings);
  node.append(...children);
  return node;
}

function sample({ colour, dash, glyph }) {
  const svg = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "line");
  const mark = document.createElementNS(SVG, "text");
  for (const [key, value] of Object.entries({ width: 34, height: 14, "aria-hidden": "true" })) svg.setAttribute(key, value);
  for (const [key, value] of Object.entries({
    x1: 0, x2: 34, y1: 7, y2: 7, stroke: colour, "stroke-width": 2.4, "stroke-dasharray": DASHES[dash],
  })) line.setAttribute(key, value);
  for (const [key, value] of Object.entries({ x: 17, y: 11.5, "text-anchor": "middle", "font-size": 13, fill: colour }))
    mark.setAttribute(key, value);
  mark.textContent = glyph;
  svg.append(line, mark);
  return svg;
}

export default {
  initialize,
  render({ model, el }) {
    const group = `reference-${Math.random().toString(36).slice(2)}`;
    let names = null, lines = {};
    const head = made("tr"), body = made("tbody");
    const search = made("input", { type: "search", placeholder: "Find a run" });
    search.setAttribute("aria-label", "Find a run");
    search.addEventListener("input", () => {
      for (const [name, { row }] of Object.entries(lines))
        row.hidden = !name.toLowerCase().includes(search.value.toLowerCase());
    });
    const table = made("table", {}, made("thead", {}, head), body);
    el.append(made("div", { className: `anytime-lab run-list ${NO_MATHS}` },
      search, made("div", { className: "wide" }, table)));

    const tell = (trait, value) => { model.set(trait, value); model.save_changes(); };
    const ticked = () => model.get("_rows").map(({ name }) => name).filter((name) => lines[name].tick.checked);

    function line(row) {
      const tick = made("input", { type: "checkbox" }), radio = made("input", { type: "radio", name: group });
      tick.setAttribute("aria-label", `show ${row.label}`);
      radio.setAttribute("aria-label", `compare with ${row.label}`);
      tick.addEventListener("change", () => tell("ticked", ticked()));
      radio.addEventListener("change", () => tell("reference", row.name));
      const here = made("td"), difference = made("td");
      const name = made("th", { scope: "row", title: row.label }, made("span", {}, row.label));
      const tr = made("tr", {}, made("td", {}, tick), made("td", {}, sample(row)), name, here, difference, made("td", {}, radio));
      for (const [event, over] of [["mouseenter", row.label], ["mouseleave", ""], ["focusin", row.label], ["focusout", ""]])
        tr.addEventListener(event, () => tell("over", over));
      return { row: tr, tick, radio, here, difference };
    }

    function draw() {
      const rows = model.get("_rows"), told = JSON.stringify(rows.map(({ name }) => name));
      if (told !== names) {
        names = told;
        lines = Object.fromEntries(rows.map((row) => [row.name, line(row)]));
        body.replaceChildren(...Object.values(lines).map(({ row }) => row));
        search.hidden = rows.length <= FEW;
      }
      head.replaceChildren(...model.get("_head").map((words) => made("th", { scope: "col" }, words)));
      for (const row of rows) {
        const { row: tr, tick, radio, here, difference } = lines[row.name];
        tick.checked = row.shown;
        radio.checked = row.name === model.get("reference");
        tr.classList.toggle("out", !row.shown);
        here.replaceChildren(row.here, made("small", {}, row.here_bounds));
        difference.replaceChildren(row.difference, made("small", {}, row.difference_bounds));
      }
    }
    model.on("change:_rows", draw);
    model.on("change:_head", draw);
    draw();
  },
};
