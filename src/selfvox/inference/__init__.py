"""From scans and a fine-tuned run to predictions, and from predictions to scores."""
