// A plotly figure in a view: drawn whole, in the colours and the width of its page, with a line
// through its panels that mouse and keys move from stop to stop, and bars that are drawn by hand.

const CONFIG = { displaylogo: false, plotlyServerURL: "" };
const RIDING = 17; // pixels that a number on the line needs
const FAINT = 0.25; // opacity of the others while one run is pointed at
const PACE = 700; // milliseconds that a line that plays stays at a stop

async function find(model, source, tries = 100) { // a page may be told of it after the figure
  try { return await model.widget_manager.get_model(source); } catch (error) {
    if (tries < 1) throw error;
    await new Promise((again) => setTimeout(again, 100));
    return find(model, source, tries - 1);
  }
}

function plotly(model) { // once for all figures of a page
  const known = (globalThis.anytimeLabPlotly ??= {}), source = model.get("_source");
  known[source] ??= find(model, source).then(async (held) => {
    const parts = ["const module = { exports: {} };", held.get("value"), "\nexport default module.exports;"];
    const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
    try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
  });
  return known[source];
}

// Without title, template and colours of its own: those are the page's.
function forPage({ data, layout }) {
  const { title, template, ...told } = layout, clear = "rgba(0,0,0,0)";
  const grid = { gridcolor: "#8883", zerolinecolor: "#8888", linecolor: "#8888" };
  for (const name of Object.keys(told).filter((key) => /^[xy]axis/.test(key))) told[name] = { ...grid, ...told[name] };
  if (title?.text) told.margin = { ...told.margin, t: Math.max((told.margin?.t ?? 100) - 40, 24) };
  const modebar = { ...told.modebar, bgcolor: clear, color: "#888" };
  return { data, layout: { ...told, modebar, paper_bgcolor: clear, plot_bgcolor: clear } };
}

class Figure {
  constructor(model, el, Plotly) {
    Object.assign(this, { model, el, Plotly });
    el.classList.add("anytime-lab-figure");
    el.setAttribute("role", "figure");
    this.plot = el.appendChild(document.createElement("div"));
    this.line = el.appendChild(document.createElement("div"));
    this.line.className = "budget-line";
    this.line.tabIndex = 0;
    this.line.setAttribute("role", "slider");
    this.line.dataset.lmSuppressShortcuts = "true"; // JupyterLab takes arrow keys for its own
    this.riding = el.appendChild(document.createElement("div"));
    this.riding.className = "riding";
    this.riding.setAttribute("aria-hidden", "true"); // the slider's value says the same
    this.line.addEventListener("keydown", (event) => this.key(event));
    el.addEventListener("pointerdown", (event) => this.press(event), true);
    this.sized = new ResizeObserver(() => this.ready && el.offsetWidth && Plotly.Plots.resize(this.plot));
    this.sized.observe(el);
    this.told = () => this.draw();
    this.moved = () => this.place();
    model.on("change:_figure change:_stops change:label", this.told);
    this.pointed = () => this.fade();
    model.on("change:over", this.pointed);
    model.on("change:at", this.moved);
    this.played = () => this.play();
    model.on("change:playing", this.played);
  }

  // One drawing at a time; what changed meanwhile is drawn after it, once.
  async draw() {
    this.wanted = true;
    if (this.drawing) return;
    this.drawing = true;
    try {
      while (this.wanted) { this.wanted = false; await this.react(); }
    } finally { this.drawing = false; }
  }

  async react() {
    const { model, Plotly, plot } = this, told = model.get("_figure");
    this.el.setAttribute("aria-label", model.get("label"));
    if (told && told !== this.shown) {
      const figure = forPage(JSON.parse(told));
      this.el.style.height = `${figure.layout.height}px`;
      await Plotly.react(plot, figure.data, figure.layout, CONFIG);
      this.shown = told;
      if (!this.ready) this.listen();
    }
    this.fade();
    this.place();
  }

  fade() { // the others, while one run is pointed at
    if (!this.ready) return;
    const over = this.model.get("over"), { data } = this.plot;
    const known = data.some((trace) => over && trace.meta?.name === over);
    const named = data.flatMap((trace, i) => (trace.meta?.name ? [i] : []));
    const opacity = named.map((i) => {
      const { name, rest = 1 } = data[i].meta; // some bands are seen only when they are pointed at
      return !known ? rest : name === over ? 1 : Math.min(rest, FAINT);
    });
    if (opacity.some((value, k) => value !== (data[named[k]].opacity ?? 1)))
      this.Plotly.restyle(this.plot, { opacity }, named);
  }

  listen() {
    this.ready = true;
    this.plot.on("plotly_afterplot", () => this.place());
    this.plot.on("plotly_relayout", () => this.place());
    this.plot.on("plotly_click", ({ points: [point] }) => {
      this.model.send({ click: [point.data.name, point.x, point.y] });
    });
  }

  get stops() { return this.model.get("_stops"); }
  axis(trace) { return this.plot._fullLayout[(trace.yaxis ?? "y").replace("y", "yaxis")]; }

  // The line and the numbers that ride on it, where they belong now.
  place() {
    for (const button of this.plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
    const full = this.plot._fullLayout, stop = this.stops[this.model.get("at")];
    this.line.hidden = this.riding.hidden = !stop || !full?.xaxis;
    if (this.line.hidden) return;
    const x = full.xaxis, left = x._offset + x.d2p(stop[0]);
    const { t, h } = full._size;
    Object.assign(this.line.style, { left: `${left}px`, top: `${t}px`, height: `${h}px` });
    const said = this.ride(x);
    for (const [name, value] of Object.entries({
      label: this.model.get("_moves"), valuemin: 0, valuemax: this.stops.length - 1,
      valuenow: this.model.get("at"), valuetext: [stop[1], ...said].join("; "),
    })) this.line.setAttribute(`aria-${name}`, value);
  }

  ride(x) {
    const at = this.model.get("at"), tags = [], said = [];
    for (const trace of this.plot.data) {
      const here = trace.meta?.riding?.[at];
      if (!here || trace.visible === false) continue;
      const y = this.axis(trace), left = x._offset + x.d2p(here[0]);
      tags.push({ left, top: y._offset + y.d2p(here[1]), text: here[2], colour: trace.line.color, axis: y });
      said.push(`${trace.meta.name ?? trace.name} ${here[2]}`);
    }
    tags.sort((a, b) => a.top - b.top);
    for (let i = 1; i < tags.length; i++) // below one another, and not over the panel's edge
      tags[i].top = Math.max(tags[i].top, tags[i - 1].top + RIDING);
    for (let i = tags.length - 1; i >= 0; i--) {
      const { axis } = tags[i], below = tags[i + 1];
      const last = axis._offset + axis._length - RIDING / 2;
      tags[i].top = Math.min(tags[i].top, below?.axis === axis ? below.top - RIDING : last);
    }
    const right = x._offset + x._length;
    this.riding.replaceChildren(...tags.map(({ left, top, text, colour }) => {
      const tag = document.createElement("span");
      tag.textContent = text;
      const flip = left + 62 > right;
      Object.assign(tag.style, { top: `${top}px`, left: `${left + (flip ? -8 : 8)}px`, borderColor: colour });
      tag.classList.toggle("before", flip);
      return tag;
    }));
    return said;
  }

  moveTo(at) {
    at = Math.min(Math.max(at, 0), this.stops.length - 1);
    if (at === this.model.get("at")) return;
    this.model.set("at", at);
    this.model.save_changes();
  }

  play() { // from stop to stop to the last one; from the beginning where it stands there
    clearInterval(this.timer);
    if (!this.model.get("playing")) return;
    const last = this.stops.length - 1;
    if (this.model.get("at") >= last) this.moveTo(0);
    this.timer = setInterval(() => {
      this.moveTo(this.model.get("at") + 1);
      if (this.model.get("at") < last) return;
      this.model.set("playing", false);
      this.model.save_changes();
    }, PACE);
  }

  key(event) {
    const at = this.model.get("at"), last = this.stops.length - 1, page = Math.max(1, Math.round(last / 8));
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last,
      PageDown: at - page, PageUp: at + page }[event.key];
    if (to === undefined) return;
    this.moveTo(to);
    event.preventDefault();
    event.stopPropagation();
  }

  nearest(event) {
    const x = this.plot._fullLayout.xaxis, box = this.plot.getBoundingClientRect();
    const gaps = this.stops.map(([value]) => Math.abs(x._offset + x.d2p(value) - (event.clientX - box.left)));
    return gaps.indexOf(Math.min(...gaps));
  }

  press(event) {
    const full = this.plot._fullLayout;
    if (event.button || !this.stops.length || !full || event.target.closest?.(".modebar")) return;
    const box = this.plot.getBoundingClientRect(), y = event.clientY - box.top, { l, t, w, h } = full._size;
    const x = event.clientX - box.left;
    if (x < l - 8 || x > l + w + 8 || y < t || y > t + h) return;
    const painted = this.plot.data.findIndex((trace) => trace.meta?.paint);
    const axis = painted >= 0 && this.axis(this.plot.data[painted]);
    const paints = axis && y >= axis._offset;
    const step = paints ? this.brush(painted, axis) : (moved) => this.moveTo(this.nearest(moved));
    step(event);
    const ended = () => {
      document.removeEventListener("pointermove", step);
      if (paints) this.model.send({ painted: this.weights });
      else this.line.focus({ preventScroll: true, focusVisible: false });
    };
    document.addEventListener("pointermove", step);
    document.addEventListener("pointerup", ended, { once: true });
    if (paints) event.stopPropagation();
  }

  // Bars follow the pointer: all between where it was and where it is.
  brush(index, axis) {
    const trace = this.plot.data[index], box = this.plot.getBoundingClientRect();
    this.weights = [...trace.meta.paint];
    let before = null;
    return (event) => {
      const top = axis._offset, y = Math.min(Math.max(event.clientY - box.top, top), top + axis._length);
      const here = { at: this.nearest(event), weight: Math.max(axis.p2d(y - top), 0) };
      const from = before ?? here, span = Math.abs(here.at - from.at);
      for (let k = 0; k <= span; k++) {
        const at = from.at + Math.sign(here.at - from.at) * k;
        this.weights[at] = span ? from.weight + ((here.weight - from.weight) * k) / span : here.weight;
      }
      before = here;
      this.Plotly.restyle(this.plot, { y: [this.weights.flatMap((weight) => [0, weight, null])] }, [index]);
    };
  }

  remove() {
    this.sized.disconnect();
    this.model.off("change:_figure change:_stops change:label", this.told);
    this.model.off("change:over", this.pointed);
    this.model.off("change:at", this.moved);
    this.model.off("change:playing", this.played);
    clearInterval(this.timer);
    this.Plotly.purge(this.plot);
  }
}

export default {
  initialize,
  async render({ model, el }) {
    const figure = new Figure(model, el, await plotly(model));
    figure.draw();
    return () => figure.remove();
  },
};
