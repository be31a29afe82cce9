"""Named sets: layouts that are built small here, splits that hold what they say, and lists of what is missing."""

from __future__ import annotations

import gzip
import json
import pickle

import nibabel as nib
import numpy as np
import pytest

from verimorph.data.adapters import ADAPTERS, adapter
from verimorph.data.adapters.adapter import packaged_split
from verimorph.data.adapters.brain_labels import FREESURFER_30, OASIS_35, swaps_by_name
from verimorph.data.preparation import Preparation, canonical_order
from verimorph.errors import InputError, OptionError
from verimorph.image import Image

PEERS = {f"hippocampus_{n}" for n in ("006", "008", "017", "019", "045", "048", "087", "088")}


def learn2reg_tree(root, name, write, *, pairs="registration_val", count=4):
    for n in range(count):
        write(root / "imagesTr" / f"{name}_000{n}_0000.nii.gz", seed=n)
        write(root / "labelsTr" / f"{name}_000{n}_0000.nii.gz", seed=n, labels=2)
    entry = {key: f"./imagesTr/{name}_000{n}_0000.nii.gz" for n, key in enumerate(("fixed", "moving"))}
    training = [{"image": f"./imagesTr/{name}_000{n}_0000.nii.gz"} for n in range(count)]
    (root / f"{name}_dataset.json").write_text(json.dumps({"name": name, "training": training, pairs: [entry]}))


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_set_says_how_to_obtain_it_and_how_to_prepare_it(name, tmp_path):
    found = adapter(name)
    assert found.name == name
    assert found.obtain.startswith("obtain")
    assert "\n" not in found.obtain
    assert found.licence
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in found.preparation.items()}
    Preparation.from_dict(settings)
    with pytest.raises(InputError, match="no such folder; obtain"):
        found.dataset(tmp_path / "nowhere")
    with pytest.raises(InputError) as told:
        found.dataset(tmp_path)
    assert found.obtain in str(told.value)


@pytest.mark.parametrize(
    ("name", "task", "pairs"),
    [
        ("l2r_abdomen_ct", "AbdomenCTCT", "registration_val"),
        ("l2r_hippocampus_mr", "HippocampusMR", "registration_val"),
        ("l2r_oasis", "OASIS", "registration_val"),
        ("l2r_nlst", "NLST", "registration_val"),
        ("lumir", "LUMIR", "validation"),
    ],
)
def test_learn2reg_tasks(tmp_path, write, name, task, pairs):
    learn2reg_tree(tmp_path, task, write, pairs=pairs)
    found = adapter(name).dataset(tmp_path)
    assert len(found.splits["train"]) == 2
    assert found.pairs["validation"] == ((f"{task}_0000_0000", f"{task}_0001_0000"),)
    (tmp_path / "imagesTr" / f"{task}_0002_0000.nii.gz").unlink()
    (tmp_path / "imagesTr" / f"{task}_0003_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"2 files are missing: .*{task}_0002.*{task}_0003.*; obtain"):
        adapter(name).dataset(tmp_path)


def test_abdomen_of_2020_has_45_validation_pairs_smaller_number_fixed(tmp_path, write):
    for n in range(1, 41):
        if n not in (11, 12, 13, 14, 15, 16, 17, 18, 19, 20):
            write(tmp_path / "Training" / "img" / f"img{n:04d}.nii.gz", shape=(2, 3, 4))
            write(tmp_path / "Training" / "label" / f"label{n:04d}.nii.gz", shape=(2, 3, 4), labels=2)
    found = adapter("l2r_abdomen_ct").dataset(tmp_path)
    assert len(found.splits["train"]) == 20
    assert len(found.pairs["validation"]) == 45
    assert all(int(fixed) < int(moving) for fixed, moving in found.pairs["validation"])


def test_learn2reg_reads_a_task_whose_test_images_are_an_archive_of_their_own(tmp_path, write):
    def pairs(folder, *numbers):
        return [{key: f"./{folder}/NLST_{n:04d}_000{k}.nii.gz" for k, key in enumerate(("fixed", "moving"))}
                for n in numbers]  # fmt: skip

    root = tmp_path / "NLST2023" / "NLST"
    for n in (1, 101, 201):
        for scan in range(2):
            write(root / "imagesTr" / f"NLST_{n:04d}_000{scan}.nii.gz", shape=(2, 3, 4))
    listed = [{"image": pair[key]} for pair in pairs("imagesTr", 1, 101, 201) for key in pair]
    content = {
        "training": listed,
        "test": [{"image": "./imagesTs/NLST_0111_0000.nii.gz"}, {"image": "./imagesTs/NLST_0111_0001.nii.gz"}],
        "training_paired_images": pairs("imagesTr", 1, 101, 201),
        "test_paired_images": pairs("imagesTs", 111),
        "registration_val": pairs("imagesTr", 101),
    }
    file = root / "NLST_dataset.json"
    file.write_text(json.dumps(content))
    found = adapter("l2r_nlst").dataset(tmp_path)
    assert set(found.splits) == {"train", "validation"}
    assert "test_paired_images" not in found.pairs
    assert [fixed for fixed, _ in found.pairs["train"]] == ["NLST_0001_0000", "NLST_0201_0000"]

    # Once there, they are the test; and what is to test on is not trained on.
    write(root / "imagesTs" / "NLST_0111_0000.nii.gz", shape=(2, 3, 4))
    with pytest.raises(InputError, match=r"1 file is missing: .*imagesTs.NLST_0111_0001"):
        adapter("l2r_nlst").dataset(tmp_path)
    write(root / "imagesTs" / "NLST_0111_0001.nii.gz", shape=(2, 3, 4))
    file.write_text(json.dumps({**content, "registration_test": pairs("imagesTr", 201)}))
    found = adapter("l2r_nlst").dataset(tmp_path)
    assert found.pairs["test"] == (("NLST_0201_0000", "NLST_0201_0001"),)
    assert found.pairs["train"] == (("NLST_0001_0000", "NLST_0001_0001"),)
    assert found.splits["train"] == ("NLST_0001_0000", "NLST_0001_0001")


def test_abdomen_is_numbered_as_by_btcv():
    from verimorph.data.adapters.l2r_abdomen_ct import LABELS, SWAPS

    assert (LABELS[2], LABELS[12], LABELS[13]) == ("right kidney", "right adrenal gland", "left adrenal gland")
    assert all({LABELS[a].split()[0], LABELS[b].split()[0]} == {"left", "right"} for a, b in SWAPS)


def test_two_copies_in_one_folder_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "database" / "training").mkdir(parents=True)
    with pytest.raises(InputError, match=r"one.database and .*two.database both hold training; give one of them"):
        adapter("acdc").dataset(tmp_path)


def test_acdc_frames_come_from_the_information_file(tmp_path, write):
    folder = tmp_path / "training" / "patient001"
    for frame in (1, 12):
        write(folder / f"patient001_frame{frame:02d}.nii.gz", seed=frame)
        write(folder / f"patient001_frame{frame:02d}_gt.nii.gz", labels=3)
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
    found = adapter("acdc").dataset(tmp_path)
    assert found.pairs["train"] == (("patient001_ed", "patient001_es"),)
    assert found.case("patient001_es").images[0].path.name == "patient001_frame12.nii.gz"


def test_acdc_of_the_challenge_has_no_labels_to_test_on(tmp_path, write):
    base = tmp_path / "ACDC" / "database"
    for folder in (base / "training" / "patient001", base / "testing" / "patient101"):
        for frame in (1, 9):
            write(folder / f"{folder.name}_frame{frame:02d}.nii.gz")
            if folder.name == "patient001":
                write(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", labels=3)
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\nNbFrame: 30\n")
    found = adapter("acdc").dataset(tmp_path)
    assert found.pairs["test"] == (("patient101_ed", "patient101_es"),)
    assert [case.labels is not None for case in found.cases] == [True, True, False, False]
    (base / "training" / "patient001" / "patient001_frame09_gt.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 file is missing: .*patient001_frame09_gt"):
        adapter("acdc").dataset(tmp_path)


@pytest.mark.parametrize(
    "table",
    ["211230_M&Ms_Dataset_information_diagnosis_opendataset.csv", "201014_M&Ms_Dataset_Information_-_opendataset.csv"],
)
def test_mnms_labels_are_numbered_as_in_acdc(tmp_path, write, table):
    base = tmp_path / "OpenDataset"
    folder = base / "Training" / "Labeled" / "A1"
    write(folder / "A1_sa.nii.gz", shape=(4, 5, 6, 3))
    write(folder / "A1_sa_gt.nii.gz", shape=(4, 5, 6, 3), labels=3)
    (base / table).write_text(
        ",External code,VendorName,Vendor,Centre,ED,ES\n0,A1,Siemens,A,1,0,2\n1,ZZ,Siemens,A,1,0,2\n"
    )
    found = adapter("mnms").dataset(tmp_path)
    stored = np.asarray(nib.load(folder / "A1_sa_gt.nii.gz").dataobj)[..., 2]
    read = found.case("A1_es").read_labels().array
    assert np.array_equal(read, np.array([0, 3, 2, 1])[stored])
    assert found.case("A1_ed").cohort == "A"


def test_ixi_pairs_have_the_atlas_moving(tmp_path):
    for place in ("atlas", "Train/subject_1", "Train/subject_2", "Val/subject_3", "Test/subject_4"):
        file = tmp_path / f"{place}.pkl"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(pickle.dumps((np.ones((4, 5, 6), np.float32), np.full((4, 5, 6), 17, np.uint8))))
    found = adapter("ixi").dataset(tmp_path)
    assert found.pairs["train"] == (("subject_1", "atlas"), ("subject_2", "atlas"))
    assert found.case("subject_3").read_labels().array.max() == 17
    assert len(found.label_names) == 30


def test_neurite_oasis(tmp_path, write):
    for n in range(10):
        write(tmp_path / f"OASIS_OAS1_000{n}_MR1" / "aligned_norm.nii.gz", shape=(2, 3, 4))
        write(tmp_path / f"OASIS_OAS1_000{n}_MR1" / "aligned_seg35.nii.gz", shape=(2, 3, 4), labels=35)
    found = adapter("neurite_oasis").dataset(tmp_path)
    assert {name: len(ids) for name, ids in found.splits.items()} == {"train": 8, "validation": 1, "test": 1}
    assert set().union(*found.splits.values()) == set(found.ids)


def test_grid_of_neurite_oasis_holds_its_whole_image():
    # FreeSurfer's order of axes: to the left, down, to the front.
    affine = np.array([[-1, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
    image = Image.from_array(np.zeros((160, 192, 224), np.uint8), affine)
    assert adapter("neurite_oasis").preparation["shape"] == canonical_order(image.array, image.grid)[0].shape


@pytest.mark.parametrize("new", [False, True])
def test_brats_contrasts_are_channels_and_label_4_was_the_enhancing_tumour(tmp_path, new):
    folder = tmp_path / "BraTS_001"
    folder.mkdir()
    names = ["-t1n", "-t2f", "-seg"] if new else ["_t1", "_flair", "_seg"]
    for name in names:
        voxels = np.full((3, 3, 3), 4, np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"BraTS_001{name}.nii.gz")
    found = adapter("brats").dataset(tmp_path, contrasts=["t1", "flair"])
    assert len(found.case("BraTS_001").images) == 2
    assert found.case("BraTS_001").read_labels().array.max() == (4 if new else 3)
    with pytest.raises(OptionError, match="did you mean 'flair'"):
        adapter("brats").dataset(tmp_path, contrasts=["flare"])


@pytest.mark.parametrize(
    ("place", "ids", "ends"),
    [
        ("MICCAI_BraTS_2018_Data_Training/HGG", ["Brats18_CBICA_AAB_1", "Brats18_TCIA02_135_1"], "_{}.nii.gz"),
        ("archive/MICCAI_BraTS2020_TrainingData", ["BraTS20_Training_001", "BraTS20_Training_355"], "_{}.nii"),
        ("BraTS2021_Training_Data", ["BraTS2021_00000", "BraTS2021_00002"], "_{}.nii.gz"),
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", ["BraTS-GLI-00000-000"], "-{}.nii.gz"),
    ],
)
def test_brats_is_found_in_the_folders_of_its_archive(tmp_path, write, place, ids, ends):
    t1 = "t1n" if "-" in ends else "t1"
    for id in ids:
        write(tmp_path / place / id / (id + ends.format(t1)), shape=(2, 3, 4))
        odd = id == "BraTS20_Training_355"
        write(tmp_path / place / id / ("W39_1998.09.19_Segm.nii" if odd else id + ends.format("seg")), labels=2)
    aside = tmp_path / "MICCAI_BraTS2020_ValidationData" / "BraTS20_Validation_001"
    write(aside / "BraTS20_Validation_001_t1.nii.gz")
    found = adapter("brats").dataset(tmp_path)
    assert set(found.ids) == set(ids)
    assert all(case.labels is not None for case in found.cases)
    assert adapter("brats").dataset(aside.parent).ids == ("BraTS20_Validation_001",)


def test_brats_keeps_scans_of_a_patient_together_and_the_cavity_apart(tmp_path, write):
    for patient in range(40):
        for scan in (100, 101):
            id = f"BraTS-GLI-{patient:05d}-{scan}"
            write(tmp_path / id / f"{id}-t1n.nii.gz", shape=(2, 3, 4))
            write(tmp_path / id / f"{id}-seg.nii.gz", shape=(2, 3, 4), labels=4)
    found = adapter("brats").dataset(tmp_path)
    people = [{id[:-4] for id in ids} for ids in found.splits.values()]
    assert len(people) == 3
    assert sum(map(len, people)) == len(set.union(*people)) == 40
    assert found.label_names[4] == "resection cavity"
    stored = np.asarray(nib.load(tmp_path / id / f"{id}-seg.nii.gz").dataobj)
    assert np.array_equal(found.case(id).read_labels().array, stored)


def test_lpba40_as_distributed_is_a_header_with_compressed_voxels(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    for n in range(1, 41):
        for kind in ("skullstripped", "structure.label"):
            folder = tmp_path / "LPBA40" / "delineation_space" / f"S{n:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            header = folder / f"S{n:02d}.delineation.{kind}.hdr"
            nib.save(nib.Nifti1Pair(voxels, np.eye(4)), header)
            image = header.with_suffix(".img")
            image.with_suffix(".img.gz").write_bytes(gzip.compress(image.read_bytes()))
            image.unlink()
    found = adapter("lpba40").dataset(tmp_path)
    assert np.array_equal(found.case("S07").read_images()[0].array, voxels[..., 0])
    assert np.array_equal(found.case("S07").read_labels().array, voxels[..., 0])


def test_lpba40(tmp_path, write):
    for n in range(1, 41):
        write(tmp_path / f"S{n:02d}" / f"S{n:02d}.delineation.skullstripped.nii.gz", shape=(2, 3, 4))
        write(tmp_path / f"S{n:02d}" / f"S{n:02d}.delineation.structure.label.nii.gz", shape=(2, 3, 4), labels=2)
    found = adapter("lpba40").dataset(tmp_path)
    assert len(found.ids) == 40
    assert all(case.labels is not None and case.labels.path != case.images[0].path for case in found.cases)
    assert len(found.label_names) == 56
    assert len(found.pairs["test"]) == 90


def test_autopet(tmp_path, write):
    for n in range(5):
        write(tmp_path / f"PETCT_{n}" / "study" / "CTres.nii.gz", shape=(2, 3, 4))
        write(tmp_path / f"PETCT_{n}" / "study" / "SUV.nii.gz", shape=(2, 3, 4))
    found = adapter("autopet").dataset(tmp_path, pet=True)
    assert len(found.cases[0].images) == 2
    assert sum(len(ids) for ids in found.splits.values()) == 5


def test_autopet_since_2024(tmp_path, write):
    ids = ["fdg_0011f3deaf_03-23-2003-NA-PET-CT Ganzkoerper-10445", "psma_95b8_2018-04-23", "psma_95b8_2018-05-23"]
    base = tmp_path / "PSMA-FDG-PET-CT-Lesions"
    for id in ids:
        for channel in range(2):
            write(base / "imagesTr" / f"{id}_000{channel}.nii.gz", shape=(2, 3, 4))
        write(base / "labelsTr" / f"{id}.nii.gz", shape=(2, 3, 4), labels=1)
    write(base / "organs" / f"{ids[0]}.nii.gz", shape=(2, 3, 4), labels=1)
    found = adapter("autopet").dataset(tmp_path, pet=True, labels="organs")
    assert list(found.ids) == ids
    assert [source.path.name[-9:] for source in found.cases[0].images] == ["00.nii.gz", "01.nii.gz"]
    assert [case.subject for case in found.cases[1:]] == ["psma_95b8"] * 2
    # Lesions are no landmarks.
    assert [case.labels is not None for case in found.cases] == [True, False, False]


def test_hippocampus_split_is_what_the_page_says():
    content = packaged_split("hippocampus_mr")
    splits, score = content["splits"], content["pairs"]["score"]
    train, scored = set(splits["train"]), set(splits["score"])
    assert (len(train), len(scored)) == (100, 20)
    assert not train & scored
    assert len(score) == 20
    assert {fixed for fixed, _ in score} == {moving for _, moving in score} == scored
    assert scored >= PEERS
    assert ["hippocampus_006", "hippocampus_008"] in score
    assert len(splits["labelled"]) == 20
    assert set(splits["labelled"]) | set(splits["unlabelled"]) == train
    assert splits["labelled"] == sorted(splits["labelled"])
    assert {id for pair in content["pairs"]["monitor"] for id in pair} <= train


@pytest.mark.parametrize("name", ["brain_t1_oasis", "cardiac_cine_acdc"])
def test_folds_keep_a_person_on_one_side(name):
    content = packaged_split(name)
    person = (lambda id: "1003" if id == "1023" else id) if name == "brain_t1_oasis" else (lambda id: id[:10])
    everyone = set()
    for k in range(1, 6):
        train, score = content["splits"][f"fold{k}-train"], content["splits"][f"fold{k}-score"]
        assert not {person(id) for id in train} & {person(id) for id in score}
        assert {id for pair in content["pairs"][f"fold{k}-score"] for id in pair} <= set(score)
        everyone |= set(score)
    assert everyone == set(content["splits"]["fold1-train"]) | set(content["splits"]["fold1-score"])


def test_left_and_right_of_brains():
    for names, count in ((OASIS_35, 16), (FREESURFER_30, 13)):
        swaps = swaps_by_name(names)
        assert len(swaps) == count
        assert all(names[a].replace("left", "right") == names[b] for a, b in swaps)
    assert OASIS_35[14] == "left hippocampus"
    assert OASIS_35[35] == "right choroid plexus"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "cases", "labels"), [("hippocampus_mr", 120, 2), ("brain_t1_oasis", 11, 0), ("cardiac_cine_acdc", 20, 3)]
)
def test_development_sets(data_folder, name, cases, labels):
    found = adapter(name).dataset(data_folder / name)
    assert len(found.cases) == cases
    assert not labels or len(found.label_names) == labels
    assert found.pairs["score"]
