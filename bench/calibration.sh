#!/bin/sh
# The packaged calibration of the error bound, from nothing: known deformations kind by kind, pairs of real scans, the
# fits. About three hours on two cores. Cases lie in KEEP, so that it goes on where it was stopped.
#
#     VERIMORPH_DATA=... sh bench/calibration.sh [KEEP]
#
# Then the verdicts: bench/verdict.py, of volumes and with --slices KEEP-2d/slices. Copy KEEP/general.json and
# KEEP-2d/general-2d.json to src/verimorph/uncertainty/calibrations first.
set -e
keep=${1:-runs/calibration}
data=${VERIMORPH_DATA:-../shared/data}
here=$(dirname "$0")
known() { # kind, cases, patterns below the data
    kind=$1 cases=$2
    shift 2
    for pattern in "$@"; do
        set -- "$@" "$kind=$data/$pattern"
        shift
    done
    verimorph calibrate "$@" -n "$cases" --keep "$keep" --check general # measures the cases, learns nothing yet
}
mkdir -p "$keep"
known hippocampus 32 'hippocampus_mr/*0[0-2]?_image.nii.gz'
known cardiac 24 'cardiac_cine_acdc/*_ed_image.nii.gz'
known spine 12 'spine_multimodal/t?.nii.gz' 'spine_multimodal/t2s.nii.gz'
known lung-mr 20 'lung_mr_proton/*_h1.nii.gz'
# Two images in such an order that each meets both families of deformations, which take turns.
known lung-ct 20 'lung_ct_pair/fixed_baseline.nii.gz' 'lung_ct_pair/moving_followup.nii.gz' \
    'lung_ct_pair/moving_followup.nii.gz' 'lung_ct_pair/fixed_baseline.nii.gz'
known abdomen 20 'abdomen_mr_chaos/*_t2spir.nii.gz'
known brain 24 'brain_t1_oasis/*_t1_brain.nii.gz'
known head 12 'brain_multimodal_ms/*visit?_*[RW].nii.gz'
# Of one person or two each; they are here for what is unlike all above.
known tumour 12 'brain_multimodal_tumour/*.nii.gz'
known template 12 'brain_templates_mr_ct/ct*.nii.gz' 'brain_templates_mr_ct/mni*_t1.nii.gz' \
    'brain_templates_mr_ct/mni*_t1.nii.gz' 'brain_templates_mr_ct/ct*.nii.gz'
known cord 12 'spine_multimodal/mt?.nii.gz' 'spine_multimodal/mt_t1w.nii.gz'
VERIMORPH_DATA=$data verimorph calibrate --pairs "$here/calibration-pairs.csv" --keep "$keep" --check general
verimorph calibrate --keep "$keep" -o "$keep/general.json" --name general --for "known deformations of brain T1 \
(skull-stripped), cardiac cine MR, abdominal MR, lung CT and MR, hippocampus MR, head MR (raw; with a tumour), brain \
templates (MR and CT), cervical spine and spinal cord MR, and pairs of scans of brains, hearts, abdomens, lungs (MR) and \
hippocampi"

# Slices: a calibration of their own, which knows hearts, abdomens and lungs by slices cut from volumes.
flat=$keep-2d
python "$here/slices.py" "$flat/slices"
verimorph calibrate slice="$data/brain_t1_slices_2d/*_t1.nii.gz" histology="$data/brain_histology_mr_2d/*_mri.png" \
    section="$data/brain_histology_mr_2d/*_histology_affine.png" heart="$flat/slices/heart/*_ed-*_image.nii.gz" \
    abdomen="$flat/slices/abdomen/*_image.nii.gz" lung-mr="$flat/slices/lung-mr/*_image.nii.gz" \
    lung-ct="$flat/slices/lung-ct/*_image.nii.gz" -n 24 --keep "$flat" --check general-2d
VERIMORPH_DATA=$data verimorph calibrate --pairs "$here/calibration-pairs-2d.csv" --keep "$flat" --check general-2d
verimorph calibrate --keep "$flat" -o "$flat/general-2d.json" --name general-2d --for "known deformations of slices of \
brain T1, of brain MR beside histology, of histological sections, and of slices through hearts (cine MR), abdomens (MR) \
and lungs (CT and MR), and pairs of such slices (brains and sections)"
