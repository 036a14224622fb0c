"""Prediction: trained networks, the loop over scans, and the folder of predictions."""
