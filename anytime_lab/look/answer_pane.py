"""A pane for text that streams: appended piece by piece, never resent whole, with keys of its own.

Neither ipywidgets nor plotly can append to a text or hear a key, so this is an anywidget. Text
enters the page as text nodes, which cannot act; controls in it are made visible before.
"""

from __future__ import annotations

from collections.abc import Callable

import anywidget
import traitlets

from anytime_lab.page import NO_MATHS, plain

SHOWN = 40_000  # characters at the end of the text that the page holds

_ESM = """
function render({ model, el }) {
  const frame = document.createElement("div");
  frame.className = `anytime-lab ${model.get("classes")}`;
  const pane = document.createElement("div");
  pane.className = "model stream";
  pane.tabIndex = 0;
  pane.setAttribute("role", "log");
  pane.setAttribute("aria-live", "off");
  pane.dataset.lmSuppressShortcuts = "true";  // or JupyterLab takes the keys
  frame.append(pane);
  el.append(frame);
  let next = null;
  const name = () => pane.setAttribute("aria-label", model.get("label"));
  const askWhole = () => { next = null; model.send({ want: "whole" }); };
  const add = ([kind, text]) => {
    const last = pane.lastChild;
    if (kind) {
      const mark = document.createElement("span");
      mark.className = `mark ${kind}`;
      mark.textContent = text;
      pane.append(mark);
    } else if (last && last.nodeType === Node.TEXT_NODE) {
      last.appendData(text);
    } else {
      pane.append(document.createTextNode(text));
    }
  };
  const trim = () => {
    let over = pane.textContent.length - model.get("shown");
    while (over > 0 && pane.firstChild) {
      const first = pane.firstChild, length = first.textContent.length;
      if (first.nodeType === Node.TEXT_NODE && length > over) first.deleteData(0, over);
      else first.remove();
      over -= length;
    }
  };
  const hear = (message) => {
    const follows = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;
    if (message.whole) { pane.replaceChildren(); message.whole.forEach(add); next = message.next; }
    else if (next === null) return;
    else if (message.at !== next) return askWhole();
    else { add(message.part); next += 1; trim(); }
    if (follows) pane.scrollTop = pane.scrollHeight;
  };
  pane.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) model.send({ press: event.key });
  });
  name();
  model.on("change:label", name);
  model.on("msg:custom", hear);
  askWhole();
  return () => { model.off("msg:custom", hear); model.off("change:label", name); };
}
export default { render };
"""


_CSS = """
.anytime-lab .model.stream { height: 15em; max-height: none; resize: vertical; }
.anytime-lab .model.stream:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: -2px; }
"""


class StreamPane(anywidget.AnyWidget):
    """Text that grows, with marks in it; Space and Enter in it are told.

    Attributes:
        label: What a screen reader calls it.
        parts: (kind, text) of all that is shown: kind `` is text, any other a mark of that class.
    """

    _esm = _ESM
    _css = _CSS
    label = traitlets.Unicode("thinking").tag(sync=True)
    classes = traitlets.Unicode(NO_MATHS).tag(sync=True)
    shown = traitlets.Int(SHOWN).tag(sync=True)

    def __init__(self, pressed: Callable[[], None], **traits: object) -> None:
        super().__init__(**traits)
        self.parts: list[tuple[str, str]] = []
        self._sent = 0
        self._pressed = pressed
        self.on_msg(self._heard)

    @property
    def text(self) -> str:
        """The text without its marks."""
        return "".join(text for kind, text in self.parts if not kind)

    def append(self, text: str) -> None:
        """Add text at the end."""
        if text:
            self._add("", plain(text[-SHOWN:]))

    def mark(self, text: str, kind: str = "asked") -> None:
        """Add a mark at the end.

        Args:
            kind: Classes of the page's style, such as `right`.
        """
        self._add(kind, plain(text))

    def clear(self) -> None:
        """Begin anew."""
        self.parts, self._sent = [], self._sent + 1
        self._send_whole()

    def _add(self, kind: str, text: str) -> None:
        if not kind and self.parts and not self.parts[-1][0] and len(self.parts[-1][1]) < 2_000:
            self.parts[-1] = ("", self.parts[-1][1] + text)
        else:
            self.parts.append((kind, text))
        self.send({"at": self._sent, "part": [kind, text]})
        self._sent += 1

    def _send_whole(self) -> None:
        parts: list[tuple[str, str]] = []
        left = SHOWN
        for kind, text in reversed(self.parts):
            parts.insert(0, (kind, text[-left:]))
            left -= len(text)
            if left <= 0:
                break
        self.send({"whole": parts, "next": self._sent})

    def _heard(self, _widget: object, content: dict, _buffers: object) -> None:
        if content.get("want") == "whole":
            self._send_whole()
        elif "press" in content:
            self._pressed()
