"""Runs are measured, scored alike, recorded once, and taken up where they stopped; what fails stays visible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from verimorph.bench import ENGINES, Plan, Record, Records, command_engine, run_plan
from verimorph.bench.harness import _note_warm_up, prepared, warm_up_note
from verimorph.bench.process import measure


def plan_of(engines, cases, tmp_path, **more) -> Plan:
    return Plan(
        engines=[ENGINES["identity"], *engines],
        cases=cases,
        records=Records(tmp_path / "runs" / "results.jsonl"),
        work=tmp_path / "runs",
        environments=tmp_path / "environments",
        threads=1,
        **more,
    )


def test_a_perfect_engine_scores_perfectly_and_identity_does_not(cases, fake, tmp_path):
    records = {(r.engine, r.case): r for r in run_plan(plan_of([fake()], cases, tmp_path))}
    right = {case: records["right", case] for case in ("overlap.a", "points.a", "map.a")}
    assert right["overlap.a"].scores["dice"] == 1
    assert records["identity", "overlap.a"].scores["dice"] < 0.8
    assert right["points.a"].scores["landmark_error"] == pytest.approx(0, abs=1e-6)
    assert records["identity", "points.a"].scores["landmark_error"] == pytest.approx(14**0.5)
    assert right["map.a"].scores["reference_error"] == pytest.approx(0, abs=1e-6)
    # The identity of this case is centred on the blobs, which lie SHIFT apart; what is left is their cut-off tails.
    assert records["identity", "map.a"].scores["reference_error"] < 1.5


def test_folding_is_that_of_the_whole_map(cases, fake, tmp_path):
    record = next(r for r in run_plan(plan_of([fake()], cases[:1], tmp_path)) if r.engine == "right")
    assert record.scores["folding_percent"] == 0
    assert record.scores["sd_log_jacobian"] == pytest.approx(0, abs=1e-4)


def test_a_recorded_run_is_not_done_again(cases, fake, calls, tmp_path):
    plan = plan_of([fake()], cases, tmp_path)
    assert len(list(run_plan(plan))) == 6
    assert list(run_plan(plan)) == []
    assert len(calls.read_text().splitlines()) == 3
    assert len(list(run_plan(replace(plan, again=True)))) == 6
    assert len(calls.read_text().splitlines()) == 6


def test_a_stopped_benchmark_goes_on_where_it_was(cases, fake, calls, tmp_path):
    plan = plan_of([fake()], cases, tmp_path)
    runs = run_plan(plan)
    for _ in range(2):
        next(runs)
    runs.close()
    file = plan.records.path
    with file.open("a") as stream:
        stream.write('{"engine": "right", "case": "po')  # what a kill in the middle of a line leaves
    rest = list(run_plan(plan))
    assert len(rest) == 4
    assert len({r.key for r in plan.records}) == 6
    assert len(calls.read_text().splitlines()) == 3


def test_other_settings_are_another_run(cases, fake, tmp_path):
    list(run_plan(plan_of([fake("mine")], cases[1:2], tmp_path)))
    again = list(run_plan(plan_of([fake("mine", (0.0, 0.0, 0.0))], cases[1:2], tmp_path)))
    assert [r.engine for r in again] == ["mine"]
    assert again[0].scores["landmark_error"] == pytest.approx(14**0.5)


def test_failures_are_rows_with_exit_code_and_last_line(cases, fake, tmp_path):
    crash = command_engine(f"crash={sys.executable} -c 'import sys; print(1); sys.exit(\"out of {{kind}}s\")' {{out}}")
    silent = command_engine(f"silent={sys.executable} -c pass {{out}}")
    absent = command_engine("absent=/no/such/tool {out}")
    records = {r.engine: r for r in run_plan(plan_of([crash, silent, absent, fake()], cases[1:2], tmp_path))}
    assert (records["crash"].ok, records["crash"].exit_code) == (False, 1)
    assert records["crash"].problem.endswith("out of affines")
    assert not records["silent"].ok
    assert "transform" in records["silent"].problem
    assert records["absent"].exit_code == 127
    assert "No such file" in records["absent"].problem
    assert records["right"].ok  # one failure stops nobody else


def test_missing_data_and_missing_environment_are_rows(cases, tmp_path):
    cases[1].moving.unlink()
    records = {(r.engine, r.case): r for r in run_plan(plan_of([ENGINES["greedy"]], cases[1:2], tmp_path))}
    assert "moving.nii.gz" in records["identity", "points.a"].problem
    cases = [replace(cases[1], moving=cases[1].fixed)]
    # What could not start is no run: it is tried again, once what it lacked is there.
    records = {r.engine: r for r in run_plan(plan_of([ENGINES["greedy"]], cases, tmp_path))}
    assert records["identity"].ok
    assert "verimorph bench setup greedy" in records["greedy"].problem


def test_not_a_number_is_a_failure_not_a_score(cases, tmp_path):
    script = tmp_path / "nan.py"
    script.write_text(
        "import sys, SimpleITK as sitk\n"
        "sitk.WriteTransform(sitk.TranslationTransform(3, (float('nan'), 0, 0)), sys.argv[1] + '/transform.tfm')\n"
    )
    engine = command_engine(f"nan={sys.executable} {script} {{out}}")
    record = next(r for r in run_plan(plan_of([engine], cases[1:2], tmp_path)) if r.engine == "nan")
    assert not record.ok
    assert all(json.loads(line) for line in (tmp_path / "runs" / "results.jsonl").read_text().splitlines())


def test_order_alternates(cases, fake, tmp_path):
    plan = plan_of([fake("a"), fake("b")], [*cases, replace(cases[0], name="overlap.b")], tmp_path)
    order = [(r.case, r.engine) for r in run_plan(plan)]
    first = [next(engine for case, engine in order if case == name) for name in dict.fromkeys(c for c, _ in order)]
    assert len(set(first)) == 3


def test_cost_is_that_of_the_engine_alone(tmp_path):
    """A process that holds 60 MB and burns half a second; a large parent must not show in the child's peak."""
    ballast = bytearray(200_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    code = "import time; a = bytearray(60_000_000); a[::4096] = b'x' * len(a[::4096]); t = time.process_time()\n"
    code += "while time.process_time() - t < 0.5: pass"
    outcome = measure([sys.executable, "-c", code], log=tmp_path / "log", threads=1, limit_s=60)
    assert outcome.exit_code == 0
    assert 60 < outcome.peak_mb < 150 < len(ballast) / 1e6
    assert 0.5 <= outcome.cpu_s < 2
    assert outcome.wall_s >= outcome.cpu_s * 0.9


def test_work_of_other_programs_is_noticed(tmp_path):
    alone = measure([sys.executable, "-c", "import time; time.sleep(0.5)"], log=tmp_path / "log", threads=1, limit_s=20)
    spin = "import time; end = time.time() + 60\nwhile time.time() < end: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(os.cpu_count())]
    try:
        wait = [sys.executable, "-c", "import time; time.sleep(1)"]
        beside = measure(wait, log=tmp_path / "log", threads=1, limit_s=20)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert beside.others > 0.5
    assert 0 <= alone.others <= 1


def test_what_was_timed_on_a_busy_machine_can_be_timed_again(cases, fake, calls, tmp_path):
    plan = plan_of([fake()], cases[:1], tmp_path)
    done = list(run_plan(plan))
    plan.records.path.unlink()
    for record in done:
        plan.records.append(replace(record, others_share=0.5 if record.engine == "right" else 0.0))
    again = list(run_plan(replace(plan, again_busy=True)))
    assert [record.engine for record in again] == ["right"]


def test_time_limit_ends_the_whole_group(tmp_path):
    pid = tmp_path / "pid"
    code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    code += f"open({str(pid)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    outcome = measure([sys.executable, "-c", code], log=tmp_path / "log", threads=1, limit_s=1.5)
    assert outcome.exit_code is None
    assert outcome.wall_s < 10
    assert _gone(int(pid.read_text()))


def test_termination_leaves_no_process_behind(tmp_path):
    pid = tmp_path / "pid"
    child = tmp_path / "child.py"
    child.write_text(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    code = (
        "import sys; from pathlib import Path; from verimorph.cli.runtime import run_safely\n"
        "from verimorph.bench.process import measure\n"
        f"command, log = [sys.executable, {str(child)!r}], Path({str(tmp_path / 'log')!r})\n"
        "sys.exit(run_safely(lambda: measure(command, log=log, threads=1, limit_s=60)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.time() + 30
    while not (pid.exists() and pid.read_text()) and time.time() < deadline:
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 143
    assert _gone(int(pid.read_text()))


def test_clipping_and_pictures_are_prepared_alike_for_all(cases, tmp_path):
    import numpy as np
    import SimpleITK as sitk

    picture = tmp_path / "picture.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(12, dtype=np.uint8).reshape(3, 4)), str(picture))
    case = prepared(replace(cases[0], fixed=picture, clip=(2.0, 9.0)), tmp_path / "inputs")
    fixed, moving = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (case.fixed, case.moving))
    assert (fixed.min(), fixed.max(), fixed.ndim) == (2, 9, 2)
    assert (moving.min(), moving.max()) == (2, 9)
    assert case.fixed_labels == cases[0].fixed_labels


def test_records_round_trip_and_ignore_what_they_do_not_know(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    record = Record(engine="e", case="c", set="s", measure="dice", threads=2, scores={"dice": 0.5})
    records.append(record)
    with records.path.open("a") as stream:
        stream.write(json.dumps({"engine": "e2", "case": "c", "set": "s", "measure": "dice", "threads": 2, "new": 1}))
    records.append(replace(record, engine="e3"))
    assert [r.engine for r in records] == ["e", "e2", "e3"]
    assert next(iter(records)) == record


def test_compilation_is_reported_apart(tmp_path):
    file = tmp_path / "warm-up.json"
    assert warm_up_note(file) == ""
    _note_warm_up(file, 70.0, "")
    _note_warm_up(file, 9.0, "")
    assert "70.0 s when kernels had to be compiled, 9.0 s the last time" in warm_up_note(file)


def _gone(pid: int) -> bool:
    deadline = time.time() + 5
    while time.time() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
