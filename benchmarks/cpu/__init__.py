"""The engine on the processor, beside the reference and the machine's limits: `flashelmo bench`."""
