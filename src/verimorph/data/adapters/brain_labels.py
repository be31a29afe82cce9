"""Names of the brain structures that several sets number alike."""

from __future__ import annotations

_LEFT = (
    *("cerebral white matter", "cerebral cortex", "lateral ventricle", "inferior lateral ventricle"),
    *("cerebellum white matter", "cerebellum cortex", "thalamus", "caudate", "putamen", "pallidum"),
)
_MIDDLE = ("third ventricle", "fourth ventricle", "brain stem")
_LEFT_TOO = ("hippocampus", "amygdala", "accumbens", "ventral DC", "vessel", "choroid plexus")

#: The 35 structures of neurite-OASIS, numbered 1 to 35.
OASIS_35 = dict(
    enumerate(
        [
            *(f"left {name}" for name in _LEFT),
            *_MIDDLE,
            *(f"left {name}" for name in _LEFT_TOO),
            *(f"right {name}" for name in (*_LEFT, *_LEFT_TOO)),
        ],
        start=1,
    )
)

#: The 30 structures of the IXI benchmark, FreeSurfer's numbers.
FREESURFER_30 = {
    2: "left cerebral white matter", 3: "left cerebral cortex", 4: "left lateral ventricle",
    7: "left cerebellum white matter", 8: "left cerebellum cortex", 10: "left thalamus", 11: "left caudate",
    12: "left putamen", 13: "left pallidum", 14: "third ventricle", 15: "fourth ventricle", 16: "brain stem",
    17: "left hippocampus", 18: "left amygdala", 24: "CSF", 28: "left ventral DC", 31: "left choroid plexus",
    41: "right cerebral white matter", 42: "right cerebral cortex", 43: "right lateral ventricle",
    46: "right cerebellum white matter", 47: "right cerebellum cortex", 49: "right thalamus", 50: "right caudate",
    51: "right putamen", 52: "right pallidum", 53: "right hippocampus", 54: "right amygdala", 60: "right ventral DC",
    63: "right choroid plexus",
}  # fmt: skip


def swaps_by_name(names: dict[int, str]) -> tuple[tuple[int, int], ...]:
    """Pairs of values whose names differ in left and right alone."""
    numbers = {name.lower(): value for value, name in names.items()}
    return tuple(
        (value, numbers[other])
        for name, value in numbers.items()
        if "left" in name and (other := name.replace("left", "right")) in numbers
    )
