"""Label-efficiency studies: methods x labels x seeds, each compared with its from-scratch twin."""
