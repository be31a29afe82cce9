"""Tables of pairs, Learn2Reg task files, and the folders that results are found in."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from verimorph.errors import InputError, OptionError
from verimorph.evaluate import challenge
from verimorph.evaluate.cases import find_results, read_task
from verimorph.evaluate.many import evaluate_cohort


def write(path, text):
    path.write_text(text)
    return path


def test_table_paths_start_at_its_folder_and_unnamed_pairs_are_called_after_their_images(tmp_path):
    table = write(tmp_path / "list.csv", "fixed,moving,landmarks,units\na/f.nii.gz,a/m.nii.gz,a/p.csv,voxel\n")
    (case,) = read_task(table).cases
    assert case.name == "f-m"
    assert case.fixed == tmp_path / "a" / "f.nii.gz"
    assert case.moving_landmarks == f"{tmp_path / 'a' / 'p.csv'}::moving"
    assert case.unit == "voxel"
    (tmp_path / "x").mkdir()
    assert read_task(table, data=tmp_path / "x").cases[0].moving == tmp_path / "x" / "a" / "m.nii.gz"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("a,b\n1,2\n", InputError, "it needs fixed and moving"),
        ("fixed,moving\n", InputError, "names no pair"),
        ("case,fixed,moving\np,a,b\np,c,d\n", InputError, "p stands there 2 times"),
        ("fixed,moving\na.nii,\n", InputError, "line 2"),
        ("fixed,moving,units\na,b,mn\n", OptionError, "did you mean 'mm'"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, error, words):
    with pytest.raises(error, match=words):
        read_task(write(tmp_path / "t.csv", text))


def test_results_are_found_by_name_folder_field_and_label_map(tmp_path):
    table = write(tmp_path / "t.csv", "case,fixed,moving\n" + "".join(f"p{n},f{n}.nii,m{n}.nii\n" for n in range(5)))
    folder = tmp_path / "results"
    (folder / "p0").mkdir(parents=True)
    for name in ("p0/transform.h5", "p0/inverse.h5", "p0/moved_labels.nii.gz", "p1.tfm", "p2_moved_labels.nii.gz"):
        write(folder / name, "")
    write(folder / "disp_f3_m3.npz", "")
    write(folder / "stray.h5", "")
    (folder / "submission").mkdir()  # as 'verimorph predict --save-submission' leaves it
    found, extra = find_results(folder, read_task(table))
    assert found["p0"].transform == folder / "p0" / "transform.h5"
    assert found["p0"].inverse == folder / "p0" / "inverse.h5"
    assert found["p1"].transform == folder / "p1.tfm"
    assert found["p2"].moved_labels == folder / "p2_moved_labels.nii.gz"
    assert found["p3"].format == "learn2reg"
    assert "p4" not in found
    assert extra == [folder / "stray.h5"]
    write(folder / "p1.h5", "")
    with pytest.raises(InputError, match="both results of p1"):
        find_results(folder, read_task(table))


@pytest.fixture
def submission(tmp_path, random):
    """A Learn2Reg task of two pairs with labels, landmarks and masks, and a submission of voxel fields."""
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    pairs = []
    for n in (1, 2):
        names = [f"TASK_000{n}_000{m}.nii.gz" for m in (0, 1)]
        for m, name in enumerate(names):
            for folder in ("imagesTs", "labelsTs", "masksTs", "landmarksTs"):
                (tmp_path / folder).mkdir(exist_ok=True)
            labels = np.zeros((16, 16, 16), np.uint8)
            labels[4 + m : 9 + m, 4:9, 4:9] = 1
            labels[11 + m, 4:9, 4:9] = 2
            labels[1, 1, 1] = 14 if m else 0
            nib.save(nib.Nifti1Image(labels.astype(np.float32), affine), tmp_path / "imagesTs" / name)
            nib.save(nib.Nifti1Image(labels, affine), tmp_path / "labelsTs" / name)
            nib.save(nib.Nifti1Image(np.ones_like(labels), affine), tmp_path / "masksTs" / name)
            points = np.array([[5.0, 5, 5], [6, 7, 8], [7, 8, 9]]) + [m, 0, 0]
            np.savetxt(tmp_path / "landmarksTs" / name.replace(".nii.gz", ".csv"), points, delimiter=",")
        pairs.append({"fixed": f"./imagesTs/{names[0]}", "moving": f"./imagesTs/{names[1]}"})
    methods = [
        {"name": "DSC", "metric": "dice", "labels": [1, 2, 3]},
        {"name": "TRE", "metric": "tre", "dest": "landmarks"},
    ]
    task = {"task_name": "TASK", "eval_pairs": pairs, "evaluation_methods": methods}
    (tmp_path / "task.json").write_text(json.dumps(task))
    (tmp_path / "submission").mkdir()
    for n in (1, 2):
        field = 0.2 * random.normal(size=(16, 16, 16, 3)).astype(np.float32)
        field[..., 0] += 1.0
        np.savez_compressed(tmp_path / "submission" / f"disp_000{n}_000{n}.npz", field)
    return tmp_path


def test_learn2reg_task_file_is_understood(submission):
    task = read_task(submission / "task.json")
    assert task.name == "TASK"
    assert task.labels == (1, 2, 3)
    assert [case.name for case in task.cases] == ["0001_0000-0001_0001", "0002_0000-0002_0001"]
    assert task.cases[0].fixed_labels == submission / "labelsTs" / "TASK_0001_0000.nii.gz"
    assert task.cases[0].moving_landmarks == str(submission / "landmarksTs" / "TASK_0001_0001.csv")
    with pytest.raises(OptionError, match="eval_pairs"):
        read_task(submission / "task.json", split="eval_pair")


def test_challenge_run_equals_the_challenge_functions_on_the_files(submission):
    cohort = evaluate_cohort(read_task(submission / "task.json"), {"ours": submission / "submission"}, mode="challenge")
    row = next(r for r in cohort.rows if r["method"] == "ours")
    load = {m: np.asarray(nib.load(submission / "labelsTs" / f"TASK_0001_000{m}.nii.gz").dataobj) for m in (0, 1)}
    points = [np.loadtxt(submission / "landmarksTs" / f"TASK_0001_000{m}.csv", delimiter=",") for m in (0, 1)]
    field = np.load(submission / "submission" / "disp_0001_0001.npz")["arr_0"]
    direct = challenge.challenge_score(
        field,
        fixed_labels=load[0],
        moving_labels=load[1],
        labels=[1, 2, 3],
        fixed_voxels=points[0],
        moving_voxels=points[1],
        moving_spacing=(1.0, 1.0, 2.5),
        mask=np.ones((16, 16, 16)),
    )
    assert row["dice"] == direct["dice"]["mean"]
    assert row["hd95_voxel"] == direct["hd95"]["mean"]
    assert row["sdlogj_plus3"] == direct["sdlogj"]["mean"]
    assert row["tre_mm"] == pytest.approx(direct["tre"]["mean"], abs=1e-9)


def test_honest_run_differs_where_it_should_and_names_unknown_labels(submission):
    task = read_task(submission / "task.json")
    honest = evaluate_cohort(task, {"ours": submission / "submission"})
    scored = evaluate_cohort(task, {"ours": submission / "submission"}, mode="challenge")
    ours, theirs = (next(r for r in c.rows if r["method"] == "ours") for c in (honest, scored))
    assert ours["dice"] == pytest.approx(theirs["dice"], abs=0.05)
    assert ours["sd_log_jacobian"] > 3 * theirs["sdlogj_plus3"]
    assert theirs["num_foldings"] == 0 < ours["ndv_percent"]
    assert not {"hd95_voxel", "sdlogj_plus3"} & set(ours)
    assert not {"hd95_mm", "folding_percent"} & set(theirs)
    unknown = [p for p in honest.problems if p.kind == "unknown label"]
    assert {p.what.split()[1] for p in unknown} == {"14"}
    assert {p.case for p in unknown} == set(honest.cases)


def test_identity_is_a_row_and_a_reserved_name(submission):
    task = read_task(submission / "task.json")
    cohort = evaluate_cohort(task, {}, surface=False, non_diffeomorphic=False)
    assert cohort.methods == ["identity"]
    assert all(row["tre_mean_mm"] == pytest.approx(1.0) for row in cohort.rows)
    with pytest.raises(OptionError, match="cannot be called"):
        evaluate_cohort(task, {"identity": submission / "submission"})
    with pytest.raises(OptionError, match="unknown mode"):
        evaluate_cohort(task, {}, mode="both")


def test_pair_with_an_input_on_another_grid_is_named_not_skipped(submission):
    path = submission / "masksTs" / "TASK_0002_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((8, 16, 16), np.uint8), np.eye(4)), path)
    cohort = evaluate_cohort(read_task(submission / "task.json"), {}, surface=False, non_diffeomorphic=False)
    assert [row["status"] for row in cohort.rows] == ["ok", "failed"]
    (problem,) = [p for p in cohort.problems if p.kind == "unusable input"]
    assert "another grid" in problem.what
    assert cohort.summary()[0]["n_missing"] == 1


def test_label_summary_is_over_the_cases_that_have_the_label(submission):
    cohort = evaluate_cohort(read_task(submission / "task.json"), {}, surface=False, non_diffeomorphic=False)
    rows = [row for row in cohort.label_summary() if row["measure"] == "dice"]
    assert [(row["label"], row["n"]) for row in rows] == [(1, 2), (2, 2)]
    assert rows[0]["mean"] == pytest.approx(0.8)


def test_robustness_figures_are_three_and_named(submission, random):
    for m in (0, 1):
        for n in (1, 2):
            points = np.column_stack([np.linspace(2, 13, 40), np.full(40, 6.0 + m), np.linspace(3, 12, 40)])
            np.savetxt(submission / "landmarksTs" / f"TASK_000{n}_000{m}.csv", points, delimiter=",")
    task = read_task(submission / "task.json")
    cohort = evaluate_cohort(task, {"ours": submission / "submission"}, mode="challenge")
    rows = {(r["definition"], r["measure"], r["method"]): r["value"] for r in cohort.robustness()}
    table = cohort.table()
    assert rows["quantile", "tre_mm", "ours"] == pytest.approx(np.quantile(table["tre_mm"]["ours"], 0.7))
    assert rows["quantile", "dice", "ours"] == pytest.approx(np.quantile(table["dice"]["ours"], 0.3))
    assert rows["hardest landmarks", "tre", "identity"] == pytest.approx(1.0)
    dice = {(r["method"], r["case"], r["label"]): r["dice"] for r in cohort.label_rows}
    hardest = min((k for k in dice if k[0] == "identity"), key=lambda k: (dice[k], k[1:]))
    assert rows["hardest entries", "dice", "identity"] == pytest.approx(dice[hardest])  # 30 % of four entries is one
