"""The forms that are common elsewhere: what the kernels are measured against, and checked to equal."""
