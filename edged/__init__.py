"""edged: an edge inference daemon for Jetson-class NVIDIA devices.

Three straight lines, one folder each: ``serve`` (a request), ``build`` (a model) and
``report`` (an event). ARCHITECTURE.md draws them.
"""

__version__ = "0.1.0"
