"""The exported ONNX file beside the engine and the reference: `flashelmo bench onnx`."""
