"""Training: a recipe run. Phases, checkpoints that a killed run goes on from, validation, the loop itself.

`passes` turns a batch into the named tensors of an objective, `loop` takes plain iterables and modules and knows no
recipe, `recipe` builds what the loop needs from a strict YAML file. Nothing here knows file formats of images.
"""
