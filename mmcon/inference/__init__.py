"""Use of a trained model: embeddings of files, texts and arrays, similarities, and classes with probabilities."""

from mmcon.inference.foreign import load_encoder
from mmcon.inference.inputs import UnreadableWarning
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.loading import load
from mmcon.inference.predictions import Predictions
from mmcon.inference.saving import save_model

__all__ = ["LoadedModel", "Predictions", "UnreadableWarning", "load", "load_encoder", "save_model"]
