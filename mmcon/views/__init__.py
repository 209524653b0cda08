"""View generators (augmentations): `draw` turns keys into parameters, `apply` computes views from them.

Parameters can be read, logged and replayed. `apply` uses no randomness. So a view depends only on its key and its
sample: not on the worker, the rank or the rest of the batch.
This package is the contract; the built-in generators are in the package `mmcon_views` (in the folder `views/`).

>>> class Brightness(ViewGenerator):
...     modality = "image"
...
...     def draw(self, keys, meta):  # keys: one per sample; meta: header facts such as height and width, `b` each
...         return {"factor": keys.uniform("factor", 0.5, 1.5)}  # `b` float64, on the CPU
...
...     def apply(self, batch, params):  # batch: `b c h w`
...         return (batch * params["factor"].to(batch).view(-1, 1, 1, 1)).clamp(0, 1)
>>> views = Brightness()(torch.rand(2, 3, 8, 8), mmcon.keys(seed=0, epoch=0, sample=[11, 12]))

Optional methods and attributes (see `ViewGenerator`):

- `output_meta`: the sizes or lengths of the views, for the next draw of a chain;
- `columns`: drawn values for the index table of the batch, such as the time of a clip;
- `scope`: which fields of the key draws depend on; `partners`: the sample of the global batch to mix each sample with;
- `ragged`: `apply` takes samples of different sizes, also undecoded ones;
- `copy_into` and `apply_`: an in-place variant of `apply`.

A `Chain` draws the parameters of all its children at once, before anything is decoded. Its leading ragged children run
sample by sample on the worker; the other children run on the collated batch, on the device. `mmcon.testing.check_view`
checks a generator against the laws of its scope.
"""

from mmcon.views.adapters import FunctionView, Identity, seeded, takes_generator
from mmcon.views.buffers import empty_buffer
from mmcon.views.chain import NUMBERS_PER_CHUNK, Chain, as_chain, collate
from mmcon.views.generator import SCOPES, SHAPE_META, Meta, Params, Scope, ViewGenerator, in_scope, meta_of
from mmcon.views.params import check_params, describe_sample, params_from_json, params_to_json, select_samples
from mmcon.views.thread_pool import map_parts

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
    "map_parts",
    "meta_of",
    "params_from_json",
    "params_to_json",
    "seeded",
    "select_samples",
    "takes_generator",
]
