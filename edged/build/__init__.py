"""A model, left to right: dataset, calibrate, (ranges), quantize, engine, verify.

``pipeline`` runs the steps and installs the engine; steps do not import each other.
"""
