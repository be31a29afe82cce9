"""Transform files of a class that SimpleITK has no name for: it shows them as a composite of itself, without end."""

import numpy as np

from verimorph.io import read_transform

_FILE = """#Insight Transform File V1.0
#Transform 0
Transform: MatrixOffsetTransformBase_double_3_3
Parameters: 1.001 0.0014 -0.0045 -0.0017 0.9993 0.0024 0.0051 0.0023 1.0036 0.116 -0.0115 0.257
FixedParameters: -0.85 11.45 -5.15
"""


def test_matrix_offset_base_is_read_as_an_affine(tmp_path):
    """y = A (x - c) + c + t in LPS, so F (...) F in RAS."""
    file = tmp_path / "reference.tfm"
    file.write_text(_FILE)
    numbers = [float(word) for word in _FILE.splitlines()[3].split()[1:]]
    matrix, shift, centre = np.reshape(numbers[:9], (3, 3)), np.array(numbers[9:]), np.array([-0.85, 11.45, -5.15])
    points = np.random.default_rng(0).normal(scale=50, size=(20, 3))
    flip = np.array([-1.0, -1.0, 1.0])
    expected = ((points * flip - centre) @ matrix.T + centre + shift) * flip
    np.testing.assert_allclose(read_transform(file).map_points(points), expected, atol=1e-9)
