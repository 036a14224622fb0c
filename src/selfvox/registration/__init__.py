"""Registration: labelled scans, and their labels, moved onto the anatomies of other scans."""
