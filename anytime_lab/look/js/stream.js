function render({ model, el }) {
  const frame = document.createElement("div");
  frame.className = `anytime-lab ${NO_MATHS}`;
  const pane = document.createElement("div");
  pane.className = "model stream";
  pane.tabIndex = 0;
  pane.setAttribute("role", "log");
  pane.setAttribute("aria-live", "off");
  pane.setAttribute("aria-label", "thinking; Space or Enter stops it for its answer, and then thinks on");
  pane.dataset.lmSuppressShortcuts = "true";  // or JupyterLab takes the keys
  frame.append(pane);
  el.append(frame);
  let next = null;
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
  const follow = (message) => {
    const atEnd = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 30;
    if (message.whole) { pane.replaceChildren(); message.whole.forEach(add); next = message.next; }
    else if (next === null) return;
    else if (message.at !== next) return askWhole();
    else { add(message.part); next += 1; trim(); }
    if (atEnd) pane.scrollTop = pane.scrollHeight;
  };
  pane.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) model.send({ press: event.key });
  });
  model.on("msg:custom", follow);
  askWhole();
  return () => model.off("msg:custom", follow);
}
export default { initialize, render };
