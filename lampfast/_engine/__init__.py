"""From tensors to the compiled engine: their addresses, their devices, and the calls into C++."""
