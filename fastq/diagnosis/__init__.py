"""``fastq.diagnose``: what is wrong with a quantized network, layer by layer, as numbers, a table, a picture and in words."""

from .measure import diagnose
from .report import Diagnosis, LayerDiagnosis, RuleOne, TensorDiagnosis

__all__ = ["Diagnosis", "LayerDiagnosis", "RuleOne", "TensorDiagnosis", "diagnose"]
