"""Finds faults: ``look`` reads the host, ``judge`` says whether that is good. Changes nothing lasting."""
