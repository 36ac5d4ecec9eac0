"""Grading that is interrupted, killed, spawned or forked leaves no orphan and no lost batch."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
from processes import family, gone, until

ROOT = str(Path(__file__).resolve().parents[2])


def script(tmp_path, body):
    """A Python program of its own that uses the package."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(body))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
        start_new_session=True,
        # A shell without job control starts `make test &` with SIGINT ignored, and so its children.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


INTERRUPTED = """
    import os, sys, time
    from anytime_lab.verify.verifiers import FunctionVerifier

    verifier = FunctionVerifier("operator:eq", workers=2, seconds=60)
    answers = golds = [str(n) for n in range(2, 30)]
    print("ready", *[verifier.grade_answers(answers[:2], golds[:2])[0].reason], flush=True)
    print("workers", *verifier.pool.processes(), flush=True)
    try:
        verifier.pool.run([("time:sleep", [50])] * 4)
    except KeyboardInterrupt:
        print("interrupted", *verifier.pool.processes(), flush=True)
    grades = verifier.grade_answers(answers, golds)
    print("after", sum(grade.score for grade in grades), flush=True)
"""


def test_an_interrupt_ends_the_batch_and_its_workers_and_the_next_batch_is_whole(tmp_path):
    program = script(tmp_path, INTERRUPTED)
    assert program.stdout.readline().split() == ["ready", "correct"]
    workers = [int(pid) for pid in program.stdout.readline().split()[1:]]
    processes = until(lambda: len(both := family(workers)) == 3 and both)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    assert program.stdout.readline().split() == ["interrupted"]
    assert gone(processes)
    assert program.stdout.readline().split() == ["after", "28.0"]
    assert program.wait(30) == 0, program.stderr.read()


def kernel_says(client, code, meanwhile=lambda: None):
    """What a cell prints, or the name of its error; `meanwhile` is called while it runs."""
    sent = client.execute(code)
    printed, called = "", False
    while True:
        message = client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != sent:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "execute_input" and not called:
            called = True
            meanwhile()
        elif kind == "stream":
            printed += content["text"]
        elif kind == "error":
            printed += content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return printed


@pytest.mark.slow
def test_an_interrupted_cell_leaves_no_orphan_and_the_next_cell_grades_whole(tmp_path, monkeypatch):
    (tmp_path / "sleepy_grader.py").write_text(
        "import time\n\n\ndef score(answer, gold):\n    time.sleep(float(answer))\n    return 1.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        told = kernel_says(
            client,
            "import torch\n"
            "torch.ones(9, 9) @ torch.ones(9, 9)\n"  # its threads are there
            "from anytime_lab.verify.verifiers import FunctionVerifier\n"
            "verifier = FunctionVerifier('sleepy_grader:score', workers=2, seconds=120)\n"
            "grades = verifier.grade_answers(['0', '0.0'], [1, 1])\n"
            "print(*verifier.pool.processes())",
        )
        server = [int(pid) for pid in told.split()]
        processes = until(lambda: len(both := family(server)) == 3 and both)
        mapped = [Path(f"/proc/{pid}/maps").read_text() for pid in processes]
        assert not any("libtorch" in maps for maps in mapped)
        answers = "[str(0.01 * n) for n in range(1, 5)] + ['100', '101'] + ['0.5'] * 20"
        batch = f"answers = {answers}\nverifier.grade_answers(answers, [1] * len(answers))"

        def interrupt():
            time.sleep(1.0)
            manager.interrupt_kernel()

        assert kernel_says(client, batch, interrupt) == "KeyboardInterrupt"
        assert gone(processes)
        told = kernel_says(
            client,
            "answers = [a for a in answers if float(a) < 100]\n"
            "grades = verifier.grade_answers(answers, [1] * len(answers))\n"
            "print(sum(grade.score for grade in grades), verifier.counts['timed out'])\n"
            "print(*verifier.pool.processes())",
        )
        scores, server = told.splitlines()
        assert scores == "24.0 0"
        left = family(int(pid) for pid in server.split())
        assert len(left) == 3
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()
    assert gone(left, seconds=12.0)


def test_ctrl_c_for_the_whole_process_group_leaves_no_orphan(tmp_path):
    program = script(tmp_path, INTERRUPTED.replace("except KeyboardInterrupt", "except OSError"))
    program.stdout.readline()
    processes = family(int(pid) for pid in program.stdout.readline().split()[1:])
    time.sleep(0.3)
    os.killpg(program.pid, signal.SIGINT)
    program.wait(30)
    assert "KeyboardInterrupt" in program.stderr.read()
    assert gone(processes)


def test_a_parent_killed_without_warning_leaves_no_orphan(tmp_path):
    program = script(tmp_path, INTERRUPTED.replace("seconds=60", "seconds=2"))
    program.stdout.readline()
    workers = [int(pid) for pid in program.stdout.readline().split()[1:]]
    processes = until(lambda: len(both := family(workers)) == 3 and both)
    time.sleep(0.3)
    program.kill()
    program.wait(30)
    assert gone(processes, seconds=12.0)


def test_a_script_without_a_main_guard_can_grade(tmp_path):
    # `multiprocessing` with spawn would run the script again in each worker.
    program = script(
        tmp_path,
        """
        print("started", flush=True)
        from anytime_lab.verify.verifiers import MathVerifier
        print(MathVerifier().grade_answers(["x+x"], ["2x"])[0].reason, flush=True)
        """,
    )
    out, err = program.communicate(timeout=60)
    assert out.split() == ["started", "correct"], err


def test_grading_works_in_spawned_and_forked_processes(tmp_path):
    program = script(
        tmp_path,
        """
        import multiprocessing
        from anytime_lab.verify.verifiers import FunctionVerifier

        verifier = FunctionVerifier("operator:eq", workers=1)

        def grade(n):
            return verifier.grade_answers([str(n)], [str(n)])[0].reason

        if __name__ == "__main__":
            print(grade(1), len(verifier.pool.processes()))
            mine = verifier.pool.processes()
            for method in ("spawn", "fork"):
                with multiprocessing.get_context(method).Pool(2) as processes:
                    print(method, *processes.map(grade, range(2, 6)))
            print(grade(7), verifier.pool.processes() == mine)
        """,
    )
    out, err = program.communicate(timeout=120)
    assert out.splitlines() == [
        "correct 1",
        "spawn" + " correct" * 4,
        "fork" + " correct" * 4,
        "correct True",
    ], err


def test_a_child_forked_while_others_grade_grades_for_itself(tmp_path):
    program = script(
        tmp_path,
        """
        import os, signal, threading, time
        from anytime_lab.verify.verifiers import FunctionVerifier

        verifier = FunctionVerifier("operator:eq", workers=1, seconds=30)
        print(verifier.grade_answers(["1"], ["1"])[0].reason, flush=True)
        workers = verifier.pool.processes()
        outcomes = []
        job = [("time:sleep", [3])]
        batch = threading.Thread(target=lambda: outcomes.extend(verifier.pool.run(job)))
        batch.start()
        lock = verifier.pool.lock
        while lock.acquire(blocking=False):  # until the batch has it
            lock.release()
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a deadlock ends in a death by signal
            verifier.close()  # nothing of the parent's
            known = verifier.grade_answers(["1"], ["1"])[0].reason
            print(known, verifier.grade_answers(["2"], ["2"])[0].reason, flush=True)
            mine = verifier.pool.processes()
            verifier.close()
            os._exit(0 if len(mine) == 1 and mine != workers else 3)
        print("child", os.waitpid(child, 0)[1], len(outcomes), flush=True)
        batch.join()
        print(outcomes[0].died or "whole", verifier.pool.processes() == workers)
        """,
    )
    out, err = program.communicate(timeout=120)
    assert out.splitlines()[0] == "correct", err
    assert sorted(out.splitlines()[-3:]) == ["child 0 0", "correct correct", "whole True"], (
        out + err
    )
    assert program.returncode == 0


def test_importing_the_verifiers_imports_no_heavy_library():
    code = (
        "import sys, anytime_lab.verify.verifiers as v; m = v.MathVerifier(); "
        "assert m.grade_answers(['0.5'], ['1/2'])[0].score == 1.0; "
        "heavy = {'torch', 'sympy', 'math_verify', 'latex2sympy2_extended', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert out.stdout.strip() == "[]", out.stderr
