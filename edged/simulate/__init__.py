"""Discrete-event simulation of a device: the daemon's own batch timer on made-up time.

Left to right: arrivals (models, or a recorded capture) and a latency curve go into the device loop,
which asks the timer as the waiting room does; its run is summed up, searched for the largest load
that still meets a limit, and printed or drawn.
"""
