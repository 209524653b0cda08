"""Use of a trained model: embeddings, similarities, classes with probabilities, search; export and sharing."""

from mmcon.inference.any_data import open_data
from mmcon.inference.embedding_parts import embed_source
from mmcon.inference.embedding_table import EmbeddingTable
from mmcon.inference.export import export_model
from mmcon.inference.foreign import load_encoder
from mmcon.inference.hard_negatives import MinedNegatives, mine_hard_negatives
from mmcon.inference.inputs import UnreadableWarning
from mmcon.inference.loaded_model import LoadedModel
from mmcon.inference.loading import load
from mmcon.inference.predictions import Predictions
from mmcon.inference.saving import save_model
from mmcon.inference.search import load_for, search_table
from mmcon.inference.sharing import push_to_hub

__all__ = [
    "EmbeddingTable",
    "LoadedModel",
    "MinedNegatives",
    "Predictions",
    "UnreadableWarning",
    "embed_source",
    "export_model",
    "load",
    "load_encoder",
    "load_for",
    "mine_hard_negatives",
    "open_data",
    "push_to_hub",
    "save_model",
    "search_table",
]
