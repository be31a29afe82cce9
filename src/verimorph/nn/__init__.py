"""Parts of networks: features, matching, heads, refinement. Plain tensors in, named tensors out.

Nothing here knows files, grids in the world, losses or training. A model is composed of these parts in
``verimorph.methods``; what it must offer stands in ``model.py``.
"""
