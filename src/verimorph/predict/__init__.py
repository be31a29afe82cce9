"""A trained model on a pair, a list, a challenge split; refinement, submissions, export.

Reads models, never trains them. The numerics of fields stay in ``verimorph.field``.
"""

from verimorph.predict.pair import predict_pair
from verimorph.predict.refine import refinement_recipe
from verimorph.predict.registrar import Prediction, Registrar
from verimorph.predict.segmenter import Segmenter

__all__ = ["Prediction", "Registrar", "Segmenter", "predict_pair", "refinement_recipe"]
