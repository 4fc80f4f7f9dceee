"""What a model can see, what a token costs and what fits, from a config alone: no torch, no weights.

`read_config` reads, `describe` resolves to one `Layer` record a layer, cost functions add the records up, `fit` holds
them against a GPU.
"""

from .bill import Item, KvCost, LayerCost
from .bounds import Bounds
from .describe import describe
from .finding import SEVERITIES, Finding
from .findings import findings
from .fit import Fit, fit
from .flops import Flops, Traffic, attention_flops, decode_bytes, decode_flops, prefill_bytes, prefill_flops
from .gpus import Gpu, find_gpu, gpus
from .kv_cost import ACCOUNTINGS, kv_cost
from .patterned import with_pattern
from .read_config import read_config
from .records import Assumed, Inert, Layer, Memory, Model, Parameters, Quantization, Rope, Scores, Weights
from .remedies import Remedy
from .sight import Run, Sight, sight
from .tensor_parallel import allowed_splits
from .weights import WeightsCost, weights_bytes, weights_cost
from .workspace import Workspace, workspace

__all__ = [
    "ACCOUNTINGS",
    "SEVERITIES",
    "Assumed",
    "Bounds",
    "Finding",
    "Fit",
    "Flops",
    "Gpu",
    "Inert",
    "Item",
    "KvCost",
    "Layer",
    "LayerCost",
    "Memory",
    "Model",
    "Parameters",
    "Quantization",
    "Remedy",
    "Rope",
    "Run",
    "Scores",
    "Sight",
    "Traffic",
    "Weights",
    "WeightsCost",
    "Workspace",
    "allowed_splits",
    "attention_flops",
    "decode_bytes",
    "decode_flops",
    "describe",
    "find_gpu",
    "findings",
    "fit",
    "gpus",
    "kv_cost",
    "prefill_bytes",
    "prefill_flops",
    "read_config",
    "sight",
    "weights_bytes",
    "weights_cost",
    "with_pattern",
    "workspace",
]
