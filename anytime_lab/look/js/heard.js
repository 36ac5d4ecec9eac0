// What each module of a widget begins with.

const NO_MATHS = "tex2jax_ignore mathjax_ignore"; // $ and \( are text here

// anywidget gives a module 2 s. A model that waited longer for its own, on a page that is busy, throws
// away what its kernel says from then on: such a one is made to listen again, and asks for its state.
async function hear(own) {
  own.unset("heard", { silent: true }); // not told to the kernel
  try { await own._handle_comm_msg({ content: { data: {} } }); } catch {
    const { _handle_comm_msg: heard } = Object.getPrototypeOf(own.constructor.prototype);
    own.comm?.on_msg((message) => heard.call(own, message));
    own.comm?.send({ method: "request_state" });
  }
}

function initialize({ model }) { // is given a proxy; an event tells of the model itself
  model.on("change:heard", hear);
  model.set("heard", true);
}

