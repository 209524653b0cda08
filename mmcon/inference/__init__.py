"""Use of a trained model: embeddings of files, texts and arrays, similarities, classes with probabilities, search."""

from mmcon.inference.any_data import open_data
from mmcon.inference.embedding_parts import embed_source
from mmcon.inference.embedding_table import EmbeddingTable
from mmcon.inference.foreign import load_encoder
from mmcon.inference.inputs import UnreadableWarning
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.loading import load
from mmcon.inference.predictions import Predictions
from mmcon.inference.saving import save_model
from mmcon.inference.search import load_for, search_table

__all__ = [
    "EmbeddingTable",
    "LoadedModel",
    "Predictions",
    "UnreadableWarning",
    "embed_source",
    "load",
    "load_encoder",
    "load_for",
    "open_data",
    "save_model",
    "search_table",
]
