"""Atlas: labelled scans carried onto the anatomies of unlabelled ones by registration."""
