"""Linear maps against SciPy's rotations, polar decomposition and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import linalg
from scipy.spatial.transform import Rotation

from verimorph.errors import InputError, NoInverseError
from verimorph.transform import Affine, Transform, identity, rigid, similarity


def test_rigid_rotates_about_its_centre_as_simpleitk_does(random):
    vector, translation, centre = random.normal(size=(3, 3))
    quaternion = Rotation.from_rotvec(vector).as_quat()
    oracle = sitk.VersorRigid3DTransform()
    oracle.SetCenter(centre.tolist())
    oracle.SetRotation(quaternion.tolist())
    oracle.SetTranslation(translation.tolist())
    made = rigid(rotation=vector, translation=translation, centre=centre)
    for point in random.normal(size=(20, 3)) * 50:
        np.testing.assert_allclose(made.map_points(point[None])[0], oracle.TransformPoint(point.tolist()), atol=1e-9)


def test_rotation_forms_agree(random):
    vector = random.normal(size=3)
    np.testing.assert_allclose(
        rigid(rotation=vector).matrix, rigid(rotation=Rotation.from_rotvec(vector).as_matrix()).matrix, atol=1e-12
    )
    np.testing.assert_allclose(
        rigid(rotation=0.3, centre=[0, 0]).linear, [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    )


def test_inverse_composes_to_identity(ndim, linear, points):
    both = linear.then(linear.inverse())
    assert both.kind == "identity"
    np.testing.assert_allclose(linear.inverse().map_points(linear.map_points(points)), points, atol=1e-9)
    assert both.ndim == ndim


def test_singular_matrix_has_no_inverse():
    with pytest.raises(NoInverseError, match="singular"):
        Affine(np.diag([1.0, 1.0, 0.0, 1.0])).inverse()


def test_then_applies_the_left_one_first():
    turn, shift = rigid(rotation=[0, 0, np.pi / 2]), rigid(translation=[10.0, 0, 0])
    np.testing.assert_allclose(turn.then(shift).map_points(np.array([[1.0, 0, 0]])), [[10, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(shift.then(turn).map_points(np.array([[1.0, 0, 0]])), [[0, 11, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("transform", "kind"),
    [
        (identity(3), "identity"),
        (rigid(translation=[1.0, 0, 0]), "translation"),
        (rigid(rotation=[0.1, 0.2, 0]), "rigid"),
        (similarity(rotation=[0.1, 0.2, 0], scale=0.9), "similarity"),
        (Affine(np.diag([1.0, 1.1, 1.0, 1.0])), "affine"),
        (Affine(np.diag([-1.0, 1.0, 1.0, 1.0])), "affine"),
    ],
)
def test_kind_is_the_narrowest_name(transform, kind):
    assert transform.kind == kind
    assert isinstance(transform, Transform)


@pytest.mark.parametrize("degrees", [0.0, 0.001, 35.0, 179.0, 180.0])
def test_decomposition_returns_what_went_in(degrees):
    axis = np.array([2.0, -1.0, 2.0]) / 3
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
    stretch = np.diag([1.2, 0.9, 0.8])
    parts = Affine(linalg.block_diag(rotation @ stretch, 1)).decompose()
    assert parts.rotation_degrees == pytest.approx(degrees, abs=1e-6)
    np.testing.assert_allclose(parts.scales, [1.2, 0.9, 0.8], atol=1e-12)
    np.testing.assert_allclose(parts.rotation, linalg.polar(rotation @ stretch)[0], atol=1e-9)
    assert parts.determinant == pytest.approx(1.2 * 0.9 * 0.8)
    assert not parts.reflects
    if degrees > 0:
        assert abs(parts.axis @ axis) == pytest.approx(1, abs=1e-6)
    if 0 < degrees < 180:
        assert parts.axis @ axis > 0


def test_jacobian_determinant_is_that_of_the_matrix(linear, fixed, ndim):
    jacobian = linear.jacobian_determinant(fixed)
    assert jacobian.shape == (1, *fixed.shape)
    np.testing.assert_allclose(jacobian, 1.08**ndim, rtol=1e-6)


@pytest.mark.parametrize("matrix", [np.eye(2), np.eye(5), np.full((4, 4), np.nan), np.ones((4, 4)), np.zeros((4, 4))])
def test_matrices_that_are_no_transform_are_refused(matrix):
    with pytest.raises(InputError):
        Affine(matrix)


def test_contradictory_arguments_are_refused():
    with pytest.raises(InputError, match="same number of axes"):
        rigid(rotation=0.1, translation=[1.0, 2, 3])
    with pytest.raises(InputError, match="reflection"):
        rigid(rotation=np.diag([-1.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="orthogonal"):
        rigid(rotation=np.diag([1.0, 1.1, 1.0]))
    with pytest.raises(InputError, match="above zero"):
        similarity(translation=[1.0, 2, 3], scale=-1.0)
