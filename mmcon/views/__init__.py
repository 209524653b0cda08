"""View generators: random functions of samples, written as ordinary functions of keys.

A generator is two functions. `draw` turns keys into parameters that can be read, logged and replayed; `apply` is
deterministic. Neither knows of workers, processes or batches, so one sample alone and the same sample in a batch of
thousands get the same view.

A chain draws the parameters of all its parts at once, from what the headers say (sizes, lengths, rates); its leading
*ragged* parts then run sample by sample where the data are decoded, and the rest runs batched, on the device.
"""

from mmcon.views.adapters import FunctionView, Identity, seeded, takes_generator
from mmcon.views.buffers import empty_buffer
from mmcon.views.chain import NUMBERS_PER_CHUNK, Chain, as_chain, collate
from mmcon.views.generator import SCOPES, SHAPE_META, Meta, Params, Scope, ViewGenerator, in_scope, meta_of
from mmcon.views.params import check_params, describe_sample, params_from_json, params_to_json, select_samples

__all__ = [
    "NUMBERS_PER_CHUNK",
    "SCOPES",
    "SHAPE_META",
    "Chain",
    "FunctionView",
    "Identity",
    "Meta",
    "Params",
    "Scope",
    "ViewGenerator",
    "as_chain",
    "check_params",
    "collate",
    "describe_sample",
    "empty_buffer",
    "in_scope",
    "meta_of",
    "params_from_json",
    "params_to_json",
    "seeded",
    "select_samples",
    "takes_generator",
]
