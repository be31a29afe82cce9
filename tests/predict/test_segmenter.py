"""Labels on the image's own grid, with the data's own ids; true labels put back; largest components."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph.errors import InputError
from verimorph.evaluate import dice_per_label
from verimorph.image import Image
from verimorph.io.lock import locked
from verimorph.predict.jobs import ImageJob, images_of_folder
from verimorph.predict.many import segment_many
from verimorph.predict.segmenter import Segmenter, smallest_type, with_largest_components, with_true_labels


class Threshold(torch.nn.Module):
    """Classes by intensity on the model grid: below 0.3, to 0.6, above."""

    stride = 4

    def forward(self, *, image, condition=None):
        x = image * 20
        return {"logits": torch.cat([6 - x, 3 - (x - 9).abs(), x - 12], dim=1)}


@pytest.mark.parametrize("ndim", [2, 3])
def test_labels_lie_where_the_image_lies(oblique_pair, preparation, ndim):
    image, _ = oblique_pair(ndim)
    segmenter = Segmenter(Threshold(), preparation(ndim), values=(0, 7, 300))
    labels = segmenter(image)
    assert labels.grid is image.grid
    assert labels.array.dtype == np.int16
    scaled = image.array / image.array.max()
    expected = np.select([scaled < 0.3, scaled < 0.6], [0, 7], 300)
    scores = dice_per_label(expected, labels.array.astype(np.int64))
    assert set(scores) == {7, 300}
    assert min(scores.values()) > 0.75  # two interpolations at 1.2 mm lie between
    tiled = Segmenter(Threshold(), preparation(ndim), values=(0, 7, 300), tile=(12,) * ndim)(image)
    np.testing.assert_array_equal(tiled.array, labels.array)


def test_largest_components_only():
    labels = np.zeros((12, 12), np.uint8)
    labels[1:5, 1:5] = 1
    labels[8, 8] = 1
    labels[9:11, 1:3] = 2
    labels[0, 11] = 2
    kept = with_largest_components(labels, [1])
    assert ndimage.label(kept == 1)[1] == 1
    assert (kept == 1).sum() == 16
    assert ndimage.label(kept == 2)[1] == 2


def test_true_labels_return_where_they_are_known():
    predicted = Image.from_array(np.array([[1, 1, 2], [3, 2, 0]], np.uint8), name="predicted")
    true = Image.from_array(np.array([[1, 0, 0], [0, 1, 9]], np.int32), name="true")
    both = with_true_labels(predicted, true, known={1})
    np.testing.assert_array_equal(both.array, [[1, 0, 2], [3, 1, 0]])
    np.testing.assert_array_equal(with_true_labels(predicted, true).array, true.array)
    with pytest.raises(InputError, match="another grid"):
        with_true_labels(predicted, Image.from_array(np.zeros((3, 3), np.uint8)))


def test_smallest_types():
    assert [smallest_type(v) for v in ((0, 255), (0, 256), (-1, 5), (0, 70000))] == [
        np.uint8, np.int16, np.int16, np.int32,
    ]  # fmt: skip


def test_labels_that_a_model_cannot_draw_are_not_its_mistakes(oblique_pair, preparation, tmp_path):
    image, _ = oblique_pair()
    bright = image.array > 30
    one, two = image.with_array(bright.astype(np.uint8)), image.with_array(np.where(bright, 1, 9).astype(np.uint8))
    segmenter = Segmenter(Threshold(), preparation(), values=(0, 1, 2))
    jobs = [ImageJob(name, lambda truth=truth: ([image], truth)) for name, truth in (("one", one), ("two", two))]
    first, second = segment_many(segmenter, jobs, tmp_path).rows
    assert "dice_9" not in second
    assert second["dice"] == first["dice"]


def test_many_images_are_scored_kept_and_resumed(oblique_pair, preparation, tmp_path):
    image, other = oblique_pair()
    truth = image.with_array((image.array > 30).astype(np.uint8))
    constant = image.with_array(np.ones(image.grid.shape, np.float32), name="constant")
    jobs = [
        ImageJob("one", lambda: ([image], truth), frozenset({1})),
        ImageJob("bad", lambda: ([constant], None)),
        ImageJob("two", lambda: ([other], None)),
    ]
    segmenter = Segmenter(Threshold(), preparation())
    done = segment_many(segmenter, jobs, tmp_path, keep_true=True)
    assert [name for name, _ in done.failures] == ["bad"]
    assert 0 < done.rows[0]["dice_1"] < 1
    assert "dice_2" not in done.rows[0]
    written = np.asarray(nib.load(tmp_path / "one.nii.gz").dataobj)
    np.testing.assert_array_equal(written == 1, truth.array == 1)
    again = segment_many(segmenter, jobs, tmp_path, keep_true=True)
    assert again.skipped == 2
    assert [job.name for job in images_of_folder(tmp_path)] == ["one", "two"]
    with pytest.raises(InputError, match="no such folder"):
        images_of_folder(tmp_path / "nowhere")


def test_want_of_memory_sets_no_labels_aside(oblique_pair, preparation, tmp_path):
    def fail():
        raise MemoryError

    image, _ = oblique_pair()
    segmenter = Segmenter(Threshold(), preparation())
    segment_many(segmenter, [ImageJob("one", lambda: ([image], None))], tmp_path)
    segment_many(segmenter, [ImageJob("one", fail)], tmp_path, keep_true=True)
    assert (tmp_path / "one.nii.gz").is_file()


def test_what_a_model_cannot_take_is_one_line(oblique_pair, preparation):
    image, _ = oblique_pair()
    segmenter = Segmenter(Threshold(), preparation())
    with pytest.raises(InputError, match=r"^image: the model takes 1 image as channels, 2 are given; give the option"):
        segmenter([image, image])
    with pytest.raises(InputError, match=f"^image {oblique_pair(2)[0].name}: is 2-D, the model was trained on 3-D"):
        segmenter(oblique_pair(2)[0])


def test_two_processes_do_not_label_into_one_folder(oblique_pair, preparation, tmp_path):
    job = ImageJob("one", lambda: ([oblique_pair()[0]], None))
    with locked(tmp_path, doing="predicting"), pytest.raises(InputError, match="another process is predicting there"):
        segment_many(Segmenter(Threshold(), preparation()), [job], tmp_path)
