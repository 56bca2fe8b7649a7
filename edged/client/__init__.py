"""A small synchronous client: arrays or image files in, `Result`s out, over MQTT 5.

``link`` knows paho and the broker, ``messages`` the bodies, ``infer_client`` joins requests with
their answers.
"""

from edged.client.infer_client import InferClient, Result
from edged.client.link import Endpoint
from edged.client.messages import Message, image_message, tensor_message

__all__ = [
    "Endpoint",
    "InferClient",
    "Message",
    "Result",
    "image_message",
    "tensor_message",
]
