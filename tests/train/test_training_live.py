"""A real kernel: the training view shown in one cell follows while the next cell runs."""

import time

import pytest
from jupyter_client.manager import start_new_kernel

VIEW = """
from anytime_lab.look.training_view import Training
view = Training({"run": FOLDER}, seconds=0.1, follow=True)
view
"""
BUSY = """
import time
from anytime_lab.store.files import append_jsonl, write_progress
for step in range(1, 6):
    append_jsonl(FOLDER + "/metrics.jsonl", {"step": step, "anytime_accuracy": 0.1 * step,
        "final_accuracy": 0.5, "thinking/length": 80.0, "score/24": 0.1, "seconds": 1.0 * step})
    write_progress(FOLDER, "train", step, 5, "updates", started=0.0)
    time.sleep(1)
"""


@pytest.mark.slow
def test_the_view_is_updated_while_a_cell_runs(tmp_path):
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute_interactive(f"FOLDER = {str(tmp_path)!r}\n{VIEW}", timeout=120)
        asked = client.execute(BUSY)
        told, idle, end = [], False, time.time() + 120
        while not idle and time.time() < end:
            message = client.get_iopub_msg(timeout=60)
            content = message["content"]
            if message["msg_type"] == "comm_msg":
                told.append(str(content["data"].get("state", "")))
            assert message["msg_type"] not in ("error", "stream"), content
            idle = (
                message["parent_header"].get("msg_id") == asked
                and content.get("execution_state") == "idle"
            )
        # all of these came before the cell was through
        for step in range(1, 5):
            assert any(f"{step} of 5" in state for state in told), step
        reply = client.execute_interactive(
            "import time; time.sleep(1); assert not view.follow.value", timeout=60
        )
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
