"""Benchmarks: one suite an op on the CPU (`bench_*.py`), one script for a GPU (`gpu.sh`), recorded results."""
