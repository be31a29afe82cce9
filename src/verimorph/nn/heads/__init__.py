"""Features to a field. A head takes features, ``fixed`` and ``moving`` and returns the named outputs of ``nn.model``.

Features may be on a coarser grid than the images; the field is on that of the images. Fields are made and integrated in
float32 (or float64) whatever the features' type.
"""
