"""Data for learned registration: sets and splits, pairs, preparation, loaders, augmentation, synthetic images.

This room turns files into batches of tensors on one model grid. It knows nothing of networks or of training; what it
does to an image is written on the model card and done again, the same, in prediction (``preparation.py``).
"""
