"""The scripts that run in the peers' environments: what can be checked without the peers."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

import verimorph.bench
from verimorph.bench import ENGINES

PEERS = Path(verimorph.bench.__file__).parent / "peers"


@pytest.fixture(scope="module")
def job():
    """Return the module that peers' scripts find beside them."""
    spec = importlib.util.spec_from_file_location("job", PEERS / "job.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_peer_has_its_script_and_none_imports_this_package():
    scripts = {engine.script for engine in ENGINES.values() if engine.script}
    assert {path.stem for path in PEERS.glob("*.py")} == scripts | {"job", "__init__"}
    for path in PEERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "verimorph" for name in names), path


def test_no_script_hides_the_package_it_imports():
    """A script's folder comes first on the path: `ants.py` importing ants would import itself."""
    for path in PEERS.glob("*.py"):
        text = path.read_text()
        assert f"\nimport {path.stem}\n" not in text
        assert f"\nfrom {path.stem} " not in text


def test_affine_keeps_its_meaning_from_ras_to_itk(job):
    rng = np.random.default_rng(1)
    matrix = np.eye(4)
    matrix[:3] += rng.normal(size=(3, 4))
    point = rng.normal(size=3)
    flip = np.array([-1.0, -1.0, 1.0])
    expected = (matrix[:3, :3] @ point + matrix[:3, 3]) * flip
    np.testing.assert_allclose(job.itk_affine(matrix).TransformPoint((point * flip).tolist()), expected, atol=1e-12)


def test_field_lands_on_its_voxel(job, tmp_path):
    reference = sitk.Image([5, 6, 7], sitk.sitkUInt8)
    reference.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    vectors = np.zeros((5, 6, 7, 3), np.float32)
    vectors[1, 2, 3] = (4.0, 5.0, 6.0)
    image = sitk.ReadImage(str(job.write_field(vectors, reference, tmp_path / "field.nii.gz")))
    assert image.GetPixel(1, 2, 3) == (4.0, 5.0, 6.0)
    assert image.GetDirection() == pytest.approx(reference.GetDirection())


def test_levels_leave_at_least_four_slices(job):
    sizes = ((64, 64, 64), (216, 256, 10), (216, 256, 7), (9, 9, 16), (16, 16, 16))
    assert [job.levels_that_fit(size, 3) for size in sizes] == [3, 2, 1, 2, 3]


def test_demons_script_finds_a_known_shift(data, cases, tmp_path):
    """The one peer whose package is a dependency of ours: its script must run here, end to end, in the right frame."""
    from dataclasses import replace

    from verimorph.bench.process import measure
    from verimorph.bench.scoring import read_chain, score_transform

    noise = np.random.default_rng(0).normal(size=(36, 36, 36)).astype(np.float32)
    fixed = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.5)
    fixed.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    shift = sitk.TranslationTransform(3, (-3.0, 2.0, -1.0))  # moved by SHIFT: a fixed point lies there in the moving
    for name, image in (("fixed", fixed), ("moving", sitk.Resample(fixed, fixed, shift))):
        sitk.WriteImage(image, str(data / f"{name}.nii.gz"))
    region = sitk.Cast(fixed, sitk.sitkUInt8) * 0
    region[10:26, 10:26, 10:26] = 1
    sitk.WriteImage(region, str(data / "region.nii.gz"))
    case = replace(cases[2], kind="deformable")
    engine, out = ENGINES["sitk_demons"], tmp_path / "out"
    out.mkdir()
    command = engine.command_line(case, out=out, threads=1, environments=tmp_path)
    command[0] = sys.executable
    outcome = measure(command, log=tmp_path / "log", threads=1, limit_s=120, folder=out)
    assert outcome.exit_code == 0, outcome.last_line
    result = engine.result(out)
    assert score_transform(case, sitk.Transform(3, sitk.sitkIdentity))["reference_error"] == pytest.approx(14**0.5)
    scores = score_transform(case, read_chain([Path(name) for name in result["chain"]], 3))
    assert scores["reference_error"] < 0.5 * 14**0.5  # a wrong sign or axis would at least double it
    assert result["versions"]["SimpleITK"]
    assert result["register_s"] > 0


@pytest.mark.parametrize(
    ("kind", "contrast", "metric"),
    [("deformable", "same", "NCC"), ("deformable", "different", "NMI"), ("rigid", "same", "NMI")],
)
def test_greedy_compares_contrasts_by_information(job, monkeypatch, kind, contrast, metric):
    monkeypatch.setitem(sys.modules, "job", job)
    monkeypatch.setitem(sys.modules, "picsl_greedy", SimpleNamespace(Greedy2D=None, Greedy3D=None))
    spec = importlib.util.spec_from_file_location("greedy", PEERS / "greedy.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    said = []

    class Engine(dict):
        def execute(self, command, **_):
            said.append(command)

    image = sitk.Image([32, 32, 32], sitk.sitkFloat32)
    task = SimpleNamespace(kind=kind, contrast=contrast, fixed_mask=None, threads=1)
    settings = {"affine_metric": "NCC", "linear_metric": "NMI", "iterations": [1, 1]}
    script.affine(task, Engine(matrix=np.eye(4)), image, image, settings)
    assert f"-m {metric} " in said[0]
