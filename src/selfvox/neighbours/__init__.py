"""Neighbours: networks and weights in the formats of other programs, one file per program."""
