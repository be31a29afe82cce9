"""Batches: names, types, one window for both images, caches, and the same items whoever computes them."""

from __future__ import annotations

import itertools
import os
import signal

import nibabel as nib
import numpy as np
import pytest
import torch

from verimorph.data.config import DataConfig, build_data
from verimorph.data.loader import _guarded
from verimorph.data.preparation import Preparation
from verimorph.errors import InputError, OptionError, ResourceError
from verimorph.io.paths import expand


def take(data, count, **more):
    return list(itertools.islice(data.train_batches(**more), count))


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def test_batch_has_the_names_and_types_of_the_contract(folder_config):
    data = build_data(folder_config, seed=1)
    batch = next(data.train_batches(batch=2))
    assert batch["fixed"].shape == (2, 1, 8, 8, 8)
    assert batch["fixed"].dtype == torch.float32
    assert batch["fixed_labels"].shape == (2, 8, 8, 8)
    assert batch["fixed_labels"].dtype == torch.int64
    assert batch["moving_known"].tolist() == [[True] * 3] * 2
    for name, fixed, moving in zip(batch["names"], batch["fixed"], batch["moving"], strict=True):
        fixed_id, moving_id = name.split("<-")
        assert fixed_id[:2] != moving_id[:2]
        assert torch.equal(fixed, data.pair(fixed_id, moving_id)["fixed"][0])
        assert torch.equal(moving, data.pair(fixed_id, moving_id)["moving"][0])


def test_resumed_and_shared_streams_are_the_same(folder_config):
    settings = {**folder_config, "crop": [4, 6, 8], "augment": {"flip": 0.5, "affine": 1.0, "intensity": 1.0}}
    whole = take(build_data(settings, seed=7), 6, batch=2)
    resumed = take(build_data(settings, seed=7), 2, batch=2, start_step=4)
    assert all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    ranks = [take(build_data(settings, seed=7), 3, batch=1, rank=r, world=2) for r in range(2)]
    assert all(
        torch.equal(torch.cat([a["fixed"], b["fixed"]]), w["fixed"]) for a, b, w in zip(*ranks, whole[:3], strict=True)
    )
    assert not same(whole[0], take(build_data(settings, seed=8), 1, batch=2)[0])


def test_one_window_for_both_images(folder_config):
    settings = {**folder_config, "crop": [3, 4, 5]}
    data = build_data(settings, seed=2)
    whole = build_data(folder_config, seed=2)
    corners = set()
    for batch in take(data, 12):
        fixed_id, moving_id = batch["names"][0].split("<-")
        pair = whole.pair(fixed_id, moving_id)
        windows = [
            {
                corner
                for corner in itertools.product(range(6), range(5), range(4))
                if torch.equal(
                    pair[role][0, 0][tuple(slice(a, a + n) for a, n in zip(corner, (3, 4, 5), strict=True))],
                    batch[role][0, 0],
                )
            }
            for role in ("fixed", "moving")
        ]
        assert windows[0] == windows[1]
        assert len(windows[0]) == 1
        corners |= windows[0]
    assert len(corners) > 6
    with pytest.raises(OptionError, match="does not fit"):
        build_data({**folder_config, "crop": [9, 4, 5]})


def test_disk_cache_gives_the_same_and_notices_changes(folder_config, tmp_path, write):
    settings = {**folder_config, "cache": str(tmp_path / "cache")}
    first = take(build_data(settings, seed=1), 4)
    assert list((tmp_path / "cache").glob("s0_0-*/image.npy"))
    assert not list((tmp_path / "cache").rglob(".partial*"))
    second = build_data(settings, seed=1)
    assert all(same(a, b) for a, b in zip(first, take(second, 4), strict=True))
    assert isinstance(second.store["s0_0"].image, np.memmap)
    memory = take(build_data(folder_config, seed=1), 4)
    assert all(same(a, b) for a, b in zip(first, memory, strict=True))
    before = build_data(settings).pair("s0_0", "s1_0")["fixed"]
    write(tmp_path / "images" / "s0_0.nii.gz", seed=99)
    os.utime(tmp_path / "images" / "s0_0.nii.gz", ns=(1, 10**18))
    assert not torch.equal(build_data(settings).pair("s0_0", "s1_0")["fixed"], before)


def test_workers_give_what_the_main_process_gives(folder_config):
    settings = {**folder_config, "augment": {"flip": 0.5, "intensity": 1.0}}
    alone = take(build_data(settings, seed=3), 3, batch=2)
    helped = take(build_data(settings, seed=3), 3, batch=2, workers=1)
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_what_workers_share_does_not_outlive_a_killed_run(folder_config, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("verimorph.io.lock.YOUNG", -1.0)
    left = build_data(folder_config)
    left._share()
    folder = left.store.folder
    data = build_data(folder_config)
    data._share()
    assert folder.is_dir(), "its process lives"
    left._folder._lock.release()  # as the system does when a process is killed
    again = build_data(folder_config)
    again._share()
    assert not folder.exists()
    assert data.store.folder.is_dir()


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_killed_while_it_hands_a_batch_over_is_the_same_message(error):
    def batches():
        yield {}
        raise error

    with pytest.raises(ResourceError, match="fewer workers"):
        list(_guarded(batches()))


def test_a_killed_worker_is_one_clear_message(folder_config):
    import multiprocessing

    stream = build_data(folder_config).train_batches(workers=1)
    next(stream)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match="fewer workers"):
        list(itertools.islice(stream, 20))


def test_scarce_labels_are_left_out_of_training_only(folder_config):
    data = build_data({**folder_config, "train": "all", "labelled": ["s0_0", "s1_0"], "validation": "train"}, seed=0)
    for batch in take(data, 12):
        for role, id in zip(("fixed", "moving"), batch["names"][0].split("<-"), strict=True):
            if f"{role}_known" in batch:
                assert bool(batch[f"{role}_known"].all()) == (id in ("s0_0", "s1_0"))
    assert all("fixed_labels" in batch for batch in data.validation_batches())
    single = build_data({**folder_config, "labelled": ["s0_0", "s1_0"], "pairs": {"kind": "single"}})
    assert set(single.train_ids) == {"s0_0", "s1_0"}


def test_noisy_labels_fill_in_and_true_ones_stay(folder_config, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    for subject, scan in itertools.product(range(3), range(2)):
        voxels = np.full((8, 9, 10), 3, np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), noisy / f"s{subject}_{scan}.nii.gz")
    settings = {**folder_config, "labelled": ["s0_0"], "noisy_labels": str(noisy)}
    data = build_data(settings)
    assert (data.store["s1_0"].labels == 3).all()
    assert data.store["s1_0"].known.all()
    assert np.array_equal(data.store["s0_0"].labels, build_data(folder_config).store["s0_0"].labels)


@pytest.mark.parametrize("kind", ["labels", "masks", "noisy"])
def test_what_lies_on_another_grid_than_its_image_is_refused(folder_config, folder_set, write, kind):
    settings = {**folder_config, "folder": dict(folder_config["folder"])}
    if kind == "masks":
        settings["folder"]["masks"] = "masks/{id}.nii.gz"
    if kind == "noisy":
        settings["noisy_labels"] = str(folder_set / "noisy")
    write(folder_set / kind / "s1_0.nii.gz", labels=1, shape=(4, 4, 4))
    store = build_data(settings).store
    assert store["s0_0"].labels is not None
    with pytest.raises(InputError, match=r"of case s1_0 s1_0\.nii\.gz: is on another grid"):
        store["s1_0"]


def test_the_part_of_a_file_counts_in_the_cache(folder_config, folder_set):
    from dataclasses import replace

    from verimorph.data.source import Source

    store = build_data(folder_config).store
    np.savez(folder_set / "both.npz", first=np.zeros((8, 9, 10), np.uint8), second=np.ones((8, 9, 10), np.uint8))
    case = store.dataset.case("s0_0")
    keys = {store.key(replace(case, labels=Source(folder_set / "both.npz", part))) for part in ("first", "second")}
    assert len(keys) == 2


def test_partial_annotation_is_told_and_kept_to(folder_config):
    from dataclasses import replace

    data = build_data(folder_config)
    case = replace(data.dataset.case("s0_0"), known=frozenset({1}))
    partial = data.store._prepare(case)
    assert partial.known.tolist() == [True, False, False]
    assert set(np.unique(partial.labels)) == {0, 1}


def test_classes_are_numbered_in_the_order_asked_for(folder_config):
    every, some = build_data(folder_config), build_data({**folder_config, "classes": [3, 1]})
    labels, chosen = every.store["s0_0"].labels, some.store["s0_0"].labels
    assert np.array_equal(chosen, np.array([0, 2, 0, 1])[labels])
    with pytest.raises(OptionError, match="no label 7"):
        build_data({**folder_config, "classes": [7]})


def test_landmarks_and_masks_come_along(tmp_path, write, folder_config):
    for subject, scan in itertools.product(range(3), range(2)):
        write(tmp_path / "masks" / f"s{subject}_{scan}.nii.gz", labels=1)
        (tmp_path / f"s{subject}_{scan}.csv").write_text("x_ras_mm,y_ras_mm,z_ras_mm\n3,4,5\n2,2,2\n")
    folder = {**folder_config["folder"], "masks": "masks/{id}.nii.gz", "landmarks": "{id}.csv"}
    batch = next(build_data({**folder_config, "folder": folder, "crop": [8, 8, 8]}).train_batches(batch=2))
    assert batch["fixed_mask"].shape == (2, 1, 8, 8, 8)
    assert batch["fixed_mask"].dtype == torch.bool
    # The field of view is 8 x 9 x 10, the grid 8^3: its corner is one voxel in along the last two axes.
    assert torch.allclose(batch["moving_points"][0], torch.tensor([[3.0, 3, 4], [2, 1, 1]]))


def test_single_images_for_segmentation(folder_config):
    data = build_data({**folder_config, "pairs": {"kind": "single"}, "validation": "train"})
    batch = next(data.train_batches(batch=3))
    assert set(batch) == {"image", "labels", "known", "names"}
    assert batch["image"].shape == (3, 1, 8, 8, 8)
    assert len(list(data.validation_batches())) == 6


def test_synthetic_streams(folder_config):
    shapes = build_data(
        {"synthetic": {"labels": 3, "velocity": 1.0, "scales": [8]}, "preparation": {"shape": [16, 16]}}
    )
    one, again = take(shapes, 2, batch=2), take(shapes, 1, batch=2, start_step=1)
    assert one[0]["known_field"].shape == (2, 2, 16, 16)
    assert one[0]["fixed_known"].shape == (2, 3)
    assert same(one[1], again[0])
    small = {"velocity": 0.5, "scales": [4]}
    images = next(build_data({**folder_config, "synthetic": {"kind": "images", **small}}).train_batches())
    assert images["known_field"].shape == (1, 3, 8, 8, 8)
    labels = next(build_data({**folder_config, "synthetic": {"kind": "labels", **small}}).train_batches())
    assert labels["fixed"].shape == (1, 1, 8, 8, 8)
    with pytest.raises(OptionError, match="own deformations"):
        build_data({**folder_config, "synthetic": {"kind": "images"}, "augment": {"flip": 0.5}})


def test_unknown_settings_are_refused_with_the_nearest(folder_config, tmp_path):
    for change, told in (
        ({"pair": {}}, "did you mean 'pairs'"),
        ({"pairs": {"atlas": "x"}}, "pairs: atlas is of kind 'atlas', and kind is 'inter'; leave it out"),
        ({"pairs": {"list": "train"}}, "pairs: list is of kind 'listed', and kind is 'inter'; leave it out"),
        ({"pairs": {"kind": "single", "itself": True}}, "pairs: itself is of kind 'inter'"),
        ({"pairs": {"kind": "intra", "within_cohort": False}}, "pairs: within_cohort is of kind 'inter'"),
        ({"keep_labels": False, "labelled": "train"}, "leave one of them out"),
        ({"pairs": {"kid": 1}}, "pairs: no setting 'kid'; did you mean 'kind'"),
        ({"augment": {"flips": 1}}, "did you mean 'flip'"),
        ({"augment": {"gamma": "x"}}, "augment.gamma is 'x'; give something like 0.2"),
        ({"augment": {"shared": 3}}, r"augment.shared is 3; give something like \['flip', 'turn'\]"),
        ({"synthetic": {"kind": "images", "means": [9, 1]}}, "means is .* give two numbers"),
        ({"augment": {"flip": 0.5, "flip_axes": [3]}}, "from 0 to 2"),
        ({"preparation": {"shapes": [1]}}, "did you mean 'shape'"),
        ({"csv": "x.csv"}, "give one of"),
        ({"train": "trian"}, "did you mean 'train'"),
        ({"validation": "trian"}, "did you mean 'train'"),
    ):
        with pytest.raises(OptionError, match=told):
            build_data({**folder_config, **change})
    with pytest.raises(InputError, match="no such folder of noisy labels"):
        build_data({**folder_config, "noisy_labels": str(tmp_path / "none")})


def test_label_maps_that_say_no_classes_are_refused(folder_config, folder_set):
    folder = {name: value for name, value in folder_config["folder"].items() if name != "label_names"}
    file = folder_set / "labels" / "s1_0.nii.gz"
    affine, voxels = np.eye(4), np.ones((8, 9, 10), np.float32)
    for value, said in (
        (np.nan, "label map s1_0.nii.gz: 1 NaN"),
        (0.5, "holds whole numbers"),
        (-1, "holds -1.*data.classes"),
    ):
        voxels[0, 0, 0] = value
        nib.save(nib.Nifti1Image(voxels, affine), file)
        with pytest.raises(InputError, match=said):
            build_data({**folder_config, "folder": folder})
    labels = build_data({**folder_config, "folder": folder, "classes": [1]}).store["s1_0"].labels
    assert set(np.unique(labels)) <= {0, 1}, "what is not among the classes is background"
    with pytest.raises(OptionError, match="label_names holds -1; give label values above 0"):
        build_data({**folder_config, "folder": {**folder_config["folder"], "label_names": {-1: "ignored", 1: "a"}}})


def test_the_air_of_a_ct_is_what_moves_in_from_outside(folder_config, folder_set, tmp_path):
    voxels = np.full((8, 9, 10), -1000, np.float32)
    voxels[2:6, 2:6, 2:6] = 40
    for file in (folder_set / "images").iterdir():
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), file)
    settings = {**folder_config, "augment": {"affine": 1.0, "shift": 0.5}, "cache": str(tmp_path / "cache")}
    for _ in range(2):  # prepared, and read from the cache
        for batch in take(build_data(settings), 4):
            assert not (batch["fixed"] == 0).any()
            assert batch["fixed"].min() == -1000
            assert batch["moving_background"].tolist() == [[-1000.0]] * len(batch["moving"])
    images = {**folder_config, "synthetic": {"kind": "images", "velocity": 2.0, "scales": [4]}}
    assert not (next(build_data(images).train_batches())["moving"] == 0).any()


def test_an_image_of_one_value_is_refused(folder_config, folder_set):
    nib.save(nib.Nifti1Image(np.full((8, 9, 10), 7.0, np.float32), np.eye(4)), folder_set / "images" / "s1_0.nii.gz")
    with pytest.raises(InputError, match=r"image of case s1_0 s1_0\.nii\.gz: all voxels are 7"):
        build_data(folder_config).store["s1_0"]


def test_one_of_several_channels_may_be_empty(folder_config, folder_set):
    """Such as the probability of a tissue that a case has none of."""
    for file in sorted((folder_set / "images").glob("*.nii.gz")):
        empty = nib.Nifti1Image(np.zeros(nib.load(file).shape, np.float32), nib.load(file).affine)
        nib.save(empty, folder_set / file.name)
    folder = {**folder_config["folder"], "images": "images/{id}.nii.gz+{id}.nii.gz"}
    data = build_data({**folder_config, "folder": folder})
    image = data.store["s1_0"].image
    assert image[0].std() > 0
    assert (image[1] == 0).all()


def test_variables_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("VERIMORPH_DATA", "/somewhere")
    assert str(expand("${VERIMORPH_DATA}/x")) == "/somewhere/x"
    monkeypatch.delenv("VERIMORPH_DATA")
    monkeypatch.setattr("verimorph.io.paths.BESIDE", tmp_path)
    assert expand("${VERIMORPH_DATA}/x") == tmp_path / "x"
    monkeypatch.setattr("verimorph.io.paths.BESIDE", tmp_path / "not there")
    with pytest.raises(OptionError, match="VERIMORPH_DATA is not set; set it, or write the path out"):
        build_data({"dataset": "ixi"})
    with pytest.raises(OptionError, match="VERIMORPH_DATA is not set"):
        Preparation(shape=(8, 8), centre="atlas", atlas="${VERIMORPH_DATA}/atlas.nii.gz").fingerprint()
    for written in ("${NOT_THERE}/x", "$NOT_THERE/x", "${NOT_THERE"):
        with pytest.raises(OptionError, match="NOT_THERE is not set"):
            expand(written)
    monkeypatch.setenv("NOT_THERE", "/a$b")
    assert str(expand("$NOT_THERE/x")) == "/a$b/x"


def test_configuration_survives_json(folder_config):
    settings = DataConfig.parse(folder_config)
    assert DataConfig.parse(settings.model_dump(mode="json")) == settings
