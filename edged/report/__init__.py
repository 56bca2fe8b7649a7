"""An event, left to right: what happened leaves the device here."""
