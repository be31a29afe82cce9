"""A trained model on a pair, a list, a challenge split; refinement, submissions, export.

Reads models, never trains them. The numerics of fields stay in ``verimorph.field``.
"""
