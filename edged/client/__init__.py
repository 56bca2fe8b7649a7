"""A small client: arrays or image files in, `Result`s out, over MQTT 5; sync and asyncio.

``link`` has the connection and its thread, ``messages`` the bodies, ``infer_client`` joins requests
with their answers, ``async_client`` is its face for an event loop. docs/client.md has examples.
"""

from edged.client.async_client import AsyncInferClient
from edged.client.endpoint import Endpoint
from edged.client.infer_client import InferClient
from edged.client.messages import Message, image_message, tensor_message
from edged.client.result import Classified, Result
from edged.client.sending_options import SendingOptions

__all__ = [
    "AsyncInferClient",
    "Classified",
    "Endpoint",
    "InferClient",
    "Message",
    "Result",
    "SendingOptions",
    "image_message",
    "tensor_message",
]
