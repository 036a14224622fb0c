"""Run folders and what they are made of: files, weights, devices, progress, event logs."""
