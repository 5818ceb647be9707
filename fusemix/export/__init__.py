"""Export of a checkpoint to what other tools load: sentence-transformers, ONNX, transformers, mteb.

Each target is one module; the library it writes for is imported only there.
"""
