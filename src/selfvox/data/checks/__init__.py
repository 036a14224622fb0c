"""Checks of a data set before training: what is wrong with it, or differs from the rest."""
