"""One script a peer. Each runs in the peer's own environment and sees only its job file; none imports this package.

A script reads the job with ``job.py`` beside it, registers, and leaves transform files in ITK's frame and format. It
holds the peer's settings and the translation of its transform, and nothing that scores.
"""
