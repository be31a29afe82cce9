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
