"""Networks: the encoder contract and its adapters, and what is built on an encoder."""
