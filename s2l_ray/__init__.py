"""S2L (SmallToLarge, NeurIPS 2024) data selection as a distributed system on Ray."""

__version__ = "0.1.0"
