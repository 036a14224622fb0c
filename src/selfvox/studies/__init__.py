"""Label-efficiency studies: methods x labels x seeds, each beside its from-scratch twin."""
