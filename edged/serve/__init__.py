"""A request, left to right: mqtt, decode, admit, batch (asks timer), gpu, encode, publish.

``pipeline`` puts the stages in order, with their threads and the queues between them; stages do not
import each other.
"""
