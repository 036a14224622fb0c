"""Operations: tensors in, tensors out."""
