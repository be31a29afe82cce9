"""Images to features. A features module takes (b, c, \\*space) and says ``out_channels``, ``stride`` and ``scale``.

Sides of its input must be multiples of ``stride``; its output is on a grid ``scale`` times coarser than its input.
"""
