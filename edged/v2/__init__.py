"""Open Inference Protocol V2 with Triton's binary tensor extension, both directions. Pure.

A body is a JSON header, then raw little-endian tensors in the order in which the header declares
them, each as long as its ``parameters.binary_data_size`` says. The length of the header travels
beside the body; without it the whole body is the header, and tensors are JSON lists under ``data``.

Nothing here trusts a stated size: sizes are compared in Python integers with what the header's
shape needs and what really lies there, before numpy is touched, and views of the body are handed
out instead of copies. Everything takes time and memory linear in the length of the body.

Sources: the Open Inference Protocol (inference_rest.md) and Triton's extension_binary_data.md and
extension_classification.md.
"""

from edged.v2.header import show
from edged.v2.read import parse_request, parse_response
from edged.v2.tensors import (
    BYTES,
    DATATYPES,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensor,
    datatype_of,
    string_array,
)
from edged.v2.write import write_request, write_response

__all__ = [
    "BYTES",
    "DATATYPES",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Tensor",
    "datatype_of",
    "parse_request",
    "parse_response",
    "show",
    "string_array",
    "write_request",
    "write_response",
]
