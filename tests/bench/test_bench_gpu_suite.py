"""The kernels' checks in processes of their own, with scripts in their place that pass, fail, fall and hang."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from alibi_attention.bench.gpu import part as part_module
from alibi_attention.bench.gpu import process as process_module
from alibi_attention.bench.gpu import suite as suite_module
from alibi_attention.bench.gpu.process import LOST
from alibi_attention.bench.gpu.suite import Suite

# What kernel_suite.py says to whoever starts it.
PRELUDE = """
import json, os, sys, time
def option(name): return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None
def say(**what): print(json.dumps(what), flush=True)
def plan(*names):
    exactly = [value for flag, value in zip(sys.argv, sys.argv[1:]) if flag == "--exactly"]
    names = [name for name in names if name in exactly or not exactly]
    behind = names[names.index(option("--after")) + 1:] if option("--after") in names else names
    say(planned=behind)
    return behind
def begin(name): say(begun=name)
def done(name, failure=None, **rest): say(check=name, failure=failure, **rest)
part = option("--part")
"""


def suite(tmp_path: Path, body: str, seconds: float = 30.0, parts: int = 1) -> Suite:
    script = tmp_path / "checks.py"
    script.write_text(PRELUDE + body, encoding="utf-8")
    return Suite(script, tmp_path, parts, seconds, 5)


def test_checks_are_gathered_from_all_processes(tmp_path: Path) -> None:
    body = """
plan("good " + part, "bad " + part, "late " + part)
print("a library prints something")
begin("good " + part)
done("good " + part)
if part == "1/2":
    begin("bad " + part)
    done("bad " + part, "AssertionError: no", traceback="in line 7")
    sys.exit(1)
"""
    found = suite(tmp_path, body, parts=2).wait()
    assert sorted(found.passed) == ["good 1/2", "good 2/2"]
    assert found.failed == {"bad 1/2": "AssertionError: no"}
    assert found.tracebacks == {"bad 1/2": "in line 7"}
    assert sorted(found.left_out) == ["bad 2/2", "late 1/2", "late 2/2"]
    assert (found.cut_short, found.restarts) == ([], 0)
    assert "2 passed, 1 failed, 3 left out" in found.line()


def test_a_script_that_does_not_start_is_a_failure(tmp_path: Path) -> None:
    found = suite(tmp_path, "raise ImportError('no triton here')").wait()
    assert found.failed == {"part 1, at its start": "ImportError: no triton here"}
    assert found.restarts == 0


def test_behind_a_lost_device_another_process_goes_on(tmp_path: Path) -> None:
    body = f"""
for name in plan("one", "two", "three"):
    begin(name)
    if name == "two":
        done(name, "AcceleratorError: an illegal memory access", lost=True)
        sys.exit({LOST})
    done(name)
"""
    found = suite(tmp_path, body).wait()
    assert found.passed == ["one", "three"]
    assert found.failed == {"two": "AcceleratorError: an illegal memory access"}
    assert (found.restarts, found.left_out) == (1, [])


def test_behind_a_process_that_fell_another_goes_on_and_the_fault_is_named(tmp_path: Path) -> None:
    body = """
for name in plan("one", "two", "three"):
    begin(name)
    if name == "two":
        print("llvm: Assertion `no' failed.", file=sys.stderr)
        sys.stderr.flush()
        print("half a li", end="", flush=True)
        os.abort()
    done(name)
"""
    found = suite(tmp_path, body).wait()
    assert found.passed == ["one", "three"]
    (reason,) = found.failed.values()
    assert list(found.failed) == ["two"]
    assert "status -6" in reason
    assert "llvm: Assertion `no' failed." in reason
    assert "Fatal Python error: Aborted" in reason
    assert found.restarts == 1


def test_a_device_that_stays_away_ends_the_restarts(tmp_path: Path) -> None:
    body = f"""
names = plan("one", "two", "three")
if option("--after"):
    raise RuntimeError("no device")
begin("one")
done("one", "a fault", lost=True)
sys.exit({LOST})
"""
    found = suite(tmp_path, body).wait()
    assert found.failed == {"one": "a fault", "part 1, started again behind one": "RuntimeError: no device"}
    assert (found.restarts, found.left_out) == (1, ["two", "three"])


def test_a_check_that_answers_no_more_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "_STALL", 2.0)
    body = """
for name in plan("one", "two", "three"):
    begin(name)
    if name == "two":
        time.sleep(1000)
    done(name)
"""
    found = suite(tmp_path, body).wait()
    assert found.passed == ["one", "three"]
    assert found.failed == {"two": "gave no answer within 2 s"}


def test_a_check_that_compiles_is_not_taken_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "_STALL", 2.0)
    body = """
for name in plan("many kernels", "a kernel without end", "three"):
    begin(name)
    for number in range(6 if name == "many kernels" else 0):
        say(compiling=f"kernel {number}")
        time.sleep(0.5)
        say(compiling=None)
        time.sleep(0.5)
    if name == "a kernel without end":
        say(compiling="kernel 7")
        time.sleep(1000)
    done(name)
"""
    found = suite(tmp_path, body, seconds=60.0).wait()
    # What waits for a compiler says nothing of the kernels, for good or ill.
    assert (found.passed, found.failed) == (["many kernels", "three"], {})
    assert found.left_out == found.cut_short == ["a kernel without end"]
    assert found.restarts == 1


def test_a_process_that_is_never_reaped_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_module, "_GRACE", 0.5)
    checks = suite(tmp_path, 'plan("one")\nbegin("one")\ntime.sleep(1000)\n', seconds=3.0)
    (part,) = checks._parts
    ended = threading.Event()

    class Stuck:
        """Killed, and in a driver that does not let it go."""

        status = None

        def send(self, number: int) -> None:
            if number == signal.SIGKILL:
                ended.set()

    real, part.process = part.process, Stuck()
    monkeypatch.setattr(process_module, "_PATIENCE", 0.2)
    begin = time.monotonic()
    try:
        found = checks.wait()
    finally:
        real.end()
    assert ended.is_set()
    assert time.monotonic() - begin < 30.0
    assert found.cut_short == ["one"]


def test_what_is_ended_for_want_of_time_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "_GRACE", 0.5)
    begin = time.monotonic()
    body = """
plan("one", "two", "three")
done("one")
begin("two")
time.sleep(1000)
"""
    found = suite(tmp_path, body, seconds=4.0).wait()
    assert time.monotonic() - begin < 60.0
    assert (found.passed, found.failed) == (["one"], {})
    assert (found.left_out, found.cut_short) == (["two", "three"], ["two"])
    assert "2 left out (1 cut short)" in found.line()
    assert found.summary()["cut_short"] == ["two"]


def test_no_check_is_begun_after_a_time_that_all_processes_share(tmp_path: Path) -> None:
    body = """
plan("one")
begin("one")
done("one", option("--until"))
"""
    before = time.time()
    found = suite(tmp_path, body, seconds=30.0).wait()
    assert before + 29.9 <= float(found.failed["one"]) <= time.time() + 30.0


@pytest.mark.parametrize("fits", [True, False])
def test_what_did_not_fit_beside_others_is_tried_alone(tmp_path: Path, fits: bool) -> None:
    body = f"""
alone = part is None
for name in plan("small", "large"):
    begin(name)
    full = name == "large" and not (alone and {fits})
    done(name, "OutOfMemoryError: no" if full else None, memory=full)
"""
    checks = suite(tmp_path, body)
    first = checks.wait()
    assert (first.passed, first.failed, first.short_of_memory) == (["small"], {}, ["large"])
    assert "1 left out (1 for memory)" in first.line()
    found = checks.again(30.0)
    assert found.failed == {}
    assert found.passed == (["small", "large"] if fits else ["small"])
    assert found.left_out == found.short_of_memory == ([] if fits else ["large"])


def test_the_checks_of_the_repository_are_where_the_command_looks() -> None:
    from alibi_attention.bench.gpu.run import SCRIPT

    # Below the package's repository or, where it is installed apart from one, below this file's.
    assert (Path(__file__).parents[2] / SCRIPT.relative_to(SCRIPT.parents[3])).is_file()


def test_without_a_checkout_the_checks_say_so(tmp_path: Path) -> None:
    assert "needs a checkout" in str(Suite(tmp_path / "none.py", tmp_path, 2, 5.0, 5).wait().reason)
