"""Providers written in CUDA C++, compiled from `csrc` on first use; importing `bind` builds, loads and enters them."""
