// What every view needs of its page: names for screen readers, keys that stay in a control, and
// the picture that stands for the view in a saved notebook hidden while the view is alive.

let count = 0;

function name(view) { // sliders have no name for a screen reader of their own
  for (const handle of view.querySelectorAll(".noUi-handle")) {
    const slider = handle.closest(".widget-inline-hbox");
    const [label, value] = [".widget-label", ".widget-readout"].map((c) => slider.querySelector(c));
    if (label) handle.setAttribute("aria-label", label.textContent);
    if (!value) continue;
    value.id ||= `anytime-lab-value-${count++}`;
    handle.setAttribute("aria-describedby", value.id);
    const say = () => handle.setAttribute("aria-valuetext", value.textContent); // not its place in a list
    if (!handle.dataset.said) {
      handle.dataset.said = "true";
      new MutationObserver(say).observe(value, { childList: true, characterData: true, subtree: true });
    }
    say();
  }
}

function toEnd(event) { // a slider's own End goes to the end of the range that it began with
  const handle = event.target;
  if (event.key !== "End" || !handle.matches(".noUi-handle")) return;
  handle.closest(".noUi-target").noUiSlider.set(Number(handle.getAttribute("aria-valuemax")));
  event.preventDefault();
  event.stopPropagation();
}

function hidePicture(view) { // the output before this one, where it is the picture of this view
  const output = view.closest(".jp-OutputArea-child, .jupyter-widgets-view")?.previousElementSibling;
  if (output?.querySelector(".js-plotly-plot, .jp-RenderedPlotly, .jp-RenderedImage, .plotly-graph-div"))
    output.style.display = "none";
}

export default {
  initialize,
  render({ model, el }) {
    let view = null, gone = false;
    const keep = ({ target }) => {
      name(view);
      if (target.matches("select, .noUi-handle")) target.dataset.lmSuppressShortcuts = "true";
    };
    const begin = () => {
      view = el.closest(".widget-vbox");
      if (view) {
        view.classList.add("anytime-lab-view");
        view.addEventListener("focusin", keep);
        view.addEventListener("keydown", toEnd, true);
        for (const wait of [0, 500, 2000]) // when its controls, or its picture, are there
          setTimeout(() => { name(view); if (model.get("_pictured")) hidePicture(view); }, wait);
      } else if (!gone) requestAnimationFrame(begin);
    };
    begin();
    return () => {
      gone = true;
      view?.removeEventListener("focusin", keep);
      view?.removeEventListener("keydown", toEnd, true);
    };
  },
};
