"""Policies as files for programs without klimb: ONNX, StableHLO, and a file of Python that needs NumPy alone."""
